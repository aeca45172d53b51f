"""Where a pair's training data comes from: a language model run up to one MLP, whose input and output are read.

The model is loaded exactly as for an analysis (`llm.py`), so a pair is trained on what it will later be given.
Positions that hold BOS are dropped: their activations are unlike any other's and no analysis uses them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int

from jacobian_core.config import ModelConfig
from jacobian_core.errors import ModelError
from jacobian_core.model.llm import LanguageModel, load_language_model
from jacobian_core.model.mlp import Mlp
from jacobian_core.model.packaged import on_disk
from jacobian_core.training.loss import MlpBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class MlpSource:
    """One MLP of a loaded model, with the model's own tokenizer."""

    model: LanguageModel
    tokenizer: "PreTrainedTokenizerFast"

    @property
    def mlp(self) -> Mlp:
        """The MLP, in the precision of the analysis."""
        return self.model.mlp

    @property
    def bos_token_id(self) -> int:
        """The token that starts every document."""
        bos: int = self.tokenizer.bos_token_id
        return bos

    @torch.no_grad()
    def inputs(self, windows: Int[torch.Tensor, "rows context"]) -> Float[torch.Tensor, "tokens d_in"]:
        """The MLP's input (float32) at every position that does not hold BOS, windows end to end."""
        real = torch.ones_like(windows, dtype=torch.bool)
        x = self.model.mlp_inputs(windows, real)
        kept = (windows != self.bos_token_id).flatten().to(x.device)
        return x.flatten(0, 1)[kept].float()

    @torch.no_grad()
    def through(self, x: Float[torch.Tensor, "tokens d_in"]) -> MlpBatch:
        """MLP inputs with the MLP's outputs."""
        x = x.to(self.mlp.W_in.device)
        return MlpBatch(x, self.mlp(x))

    def read(self, windows: Int[torch.Tensor, "rows context"]) -> MlpBatch:
        """The MLP's input and output (float32) at every position that does not hold BOS, windows end to end."""
        return self.through(self.inputs(windows))


def load_source(config: ModelConfig, device: str = "cpu") -> MlpSource:
    """Load a model for training a pair on the MLP of `config.layer`.

    Raises:
        ModelError: the model can't be loaded or has no such layer, or its MLP is not supported.
    """
    if config.layer is None:
        raise ModelError("model.layer is not set.", "Name the block whose MLP the pair is trained on.")
    model = load_language_model(on_disk(config), config.layer, device)
    tokenizer = model.bridge.tokenizer
    if tokenizer is None or tokenizer.bos_token_id is None:
        raise ModelError(f"the tokenizer of {config.name} has no BOS token.", "Add one to its tokenizer_config.json.")
    probe = torch.arange(min(16, model.bridge.cfg.d_vocab))[None]
    model.prove_mlp(probe)
    return MlpSource(model, tokenizer)
