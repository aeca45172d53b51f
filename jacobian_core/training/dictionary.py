"""A TopK dictionary in training: `t = relu(topk(x W_enc + b_enc))`, `x^ = t W_dec + b_dec`, rows of W_dec of length 1.

Codes are kept as k indices and values a token, never as dense rows: at 16,384 latents a dense code is a thousand times
what it says. The decoder's bias is not subtracted from the input (`apply_b_dec_to_input: false` of the published
format); the encoder's bias starts where it would be if it were.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class Selection:
    """The selected latents of each token; a selected latent whose value is 0 is not active."""

    index: Int[torch.Tensor, "tokens k"]
    value: Float[torch.Tensor, "tokens k"]

    @property
    def active(self) -> Bool[torch.Tensor, "tokens k"]:
        """Selected and above zero."""
        return self.value > 0

    def compact(self) -> tuple[Int[torch.Tensor, " used"], "Selection"]:
        """The latents that occur, ascending, and the same codes with indices into them."""
        used, index = torch.unique(self.index, return_inverse=True)
        return used, Selection(index, self.value)

    def __getitem__(self, tokens: slice) -> "Selection":
        """The codes of some tokens."""
        return Selection(self.index[tokens], self.value[tokens])


class TopKDictionary(torch.nn.Module):
    """One side of a pair."""

    last_active: Int[torch.Tensor, " n"]

    def __init__(self, d: int, latents: int, k: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.k = k
        directions = torch.nn.functional.normalize(torch.randn(latents, d, generator=generator), dim=1)
        self.W_dec = torch.nn.Parameter(directions)
        self.W_enc = torch.nn.Parameter(directions.T.contiguous())
        self.b_enc = torch.nn.Parameter(torch.zeros(latents))
        self.b_dec = torch.nn.Parameter(torch.zeros(d))
        self.register_buffer("last_active", torch.zeros(latents, dtype=torch.int64))

    @torch.no_grad()
    def centre(self, mean: Float[torch.Tensor, " d"]) -> None:
        """Start from data with this mean: it becomes the decoder's bias, and the encoder does not see it."""
        self.b_dec.copy_(mean)
        self.b_enc.copy_(-mean @ self.W_enc)

    def preactivations(self, x: Float[torch.Tensor, "tokens d"]) -> Float[torch.Tensor, "tokens n"]:
        """What the selection is made from."""
        return torch.addmm(self.b_enc, x, self.W_enc).to(x.dtype)  # bfloat16 under autocast, selected in float32

    def select(self, preactivations: Float[torch.Tensor, "tokens n"]) -> Selection:
        """The k largest of each token, clamped at zero."""
        value, index = preactivations.topk(self.k, dim=-1, sorted=False)
        return Selection(index, value.relu())

    def encode(self, x: Float[torch.Tensor, "tokens d"]) -> Selection:
        """The code of each token."""
        return self.select(self.preactivations(x))

    def decode(self, code: Selection) -> Float[torch.Tensor, "tokens d"]:
        """The reconstruction of each token."""
        return self.span(code) + self.b_dec

    def span(self, code: Selection) -> Float[torch.Tensor, "tokens d"]:
        """The weighted sum of decoder rows, without the bias."""
        return torch.nn.functional.embedding_bag(code.index, self.W_dec, per_sample_weights=code.value, mode="sum")

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Bring the decoder's rows back to length one, so that a latent's value has the input's unit."""
        self.W_dec.copy_(torch.nn.functional.normalize(self.W_dec, dim=1))

    @torch.no_grad()
    def remember(self, code: Selection, tokens_seen: int) -> None:
        """Note the latents that are active in a batch, at this count of training tokens."""
        seen = torch.where(code.active, tokens_seen, 0)  # a mask of unknown size would make a GPU wait
        self.last_active.scatter_reduce_(0, code.index.flatten(), seen.flatten(), "amax")

    def dead(self, tokens_seen: int, dead_after_tokens: int) -> Bool[torch.Tensor, " n"]:
        """Latents not active in the last `dead_after_tokens` training tokens."""
        return self.last_active < tokens_seen - dead_after_tokens


class DictionaryPair(torch.nn.Module):
    """A dictionary on the MLP's input and one on its output."""

    def __init__(self, d_in: int, d_out: int, latents: int, k: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.inputs = TopKDictionary(d_in, latents, k, generator)
        self.outputs = TopKDictionary(d_out, latents, k, generator)

    def normalise_decoders(self) -> None:
        """Both decoders' rows to length one."""
        self.inputs.normalise_decoder()
        self.outputs.normalise_decoder()
