"""The published loss of a Jacobian pair: `mse_in + mse_out + lambda / k^2 sum |J|`, and the revival of dead latents.

Each squared error is divided by the total variance of what it reconstructs, measured once before training, so both
start near 1 whatever the model's scale and can be read as fractions of variance unexplained (FVU). J is taken at the
true MLP input (`evaluate_at = "activation"`) and averaged over tokens; it has the unit of the output code over the
input code, so a good lambda does depend on the model's scale.

Dead latents get a gradient from an auxiliary loss: the strongest of them, selected among themselves, try to explain
what the live ones leave unexplained.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float

from jacobian_core.model.mlp import Mlp
from jacobian_core.training.dictionary import DictionaryPair, Selection, TopKDictionary
from jacobian_core.training.penalty import sum_abs_jacobian


class MlpBatch(NamedTuple):
    """What enters and leaves the MLP at some tokens."""

    x: Float[torch.Tensor, "tokens d_in"]
    y: Float[torch.Tensor, "tokens d_out"]


class Scale(NamedTuple):
    """Mean and total variance (the sum over coordinates) of the MLP's input and output."""

    mean_in: Float[torch.Tensor, " d_in"]
    mean_out: Float[torch.Tensor, " d_out"]
    variance_in: float
    variance_out: float

    @classmethod
    def of(cls, batch: MlpBatch) -> "Scale":
        """Measured on a sample of tokens."""
        variances = (part.var(0, correction=0).sum().item() for part in batch)
        return cls(batch.x.mean(0), batch.y.mean(0), *variances)


class PairLosses(NamedTuple):
    """The parts of one batch's loss (scalars) and the codes that they were made from.

    `mean_sum_abs` is the mean over tokens of sum |J|, without lambda / k^2.
    """

    mse_in: Float[torch.Tensor, ""]
    mse_out: Float[torch.Tensor, ""]
    mean_sum_abs: Float[torch.Tensor, ""]
    revival: Float[torch.Tensor, ""]
    code_in: Selection
    code_out: Selection


def pair_matrices(
    pair: DictionaryPair, mlp: Mlp
) -> tuple[Float[torch.Tensor, "n_out d_mlp"], tuple[Float[torch.Tensor, "n_in d_mlp"], ...]]:
    """E and the D of each channel: output latents and input latents as seen from the MLP's hidden units."""
    return _matrices(mlp, pair.outputs.W_enc.T, pair.inputs.W_dec)


def _matrices(
    mlp: Mlp, encoder_rows: Float[torch.Tensor, "n_out d_out"], decoder_rows: Float[torch.Tensor, "n_in d_in"]
) -> tuple[Float[torch.Tensor, "n_out d_mlp"], tuple[Float[torch.Tensor, "n_in d_mlp"], ...]]:
    # A latent's row lies in one piece: rows are gathered for every token, and strided ones cost several times as much.
    joint = decoder_rows @ mlp.W_in
    channels = mlp.neurons.channels
    return encoder_rows @ mlp.W_out.T, joint.chunk(channels, dim=-1) if channels > 1 else (joint,)


def channel_gains(mlp: Mlp, x: Float[torch.Tensor, "tokens d_in"]) -> tuple[Float[torch.Tensor, "tokens d_mlp"], ...]:
    """What each channel's hidden units are multiplied by at these MLP inputs."""
    return mlp.neurons.slopes(mlp.hidden(x)).chunk(mlp.neurons.channels, dim=-1)


def pair_losses(
    pair: DictionaryPair,
    mlp: Mlp,
    batch: MlpBatch,
    scale: Scale,
    *,
    dead: tuple[Bool[torch.Tensor, " n"], Bool[torch.Tensor, " n"]],
    revival_latents: int,
    jacobian_every_tokens: int | None,
) -> PairLosses:
    """The parts of the loss on one batch.

    Args:
        pair: the dictionaries.
        mlp: the MLP between them.
        batch: the MLP's inputs and outputs.
        scale: what the squared errors are divided by.
        dead: which latents of the input and of the output dictionary are dead.
        revival_latents: dead latents that take part in the auxiliary loss.
        jacobian_every_tokens: take J at every n-th token only, an unbiased estimate; None leaves `mean_sum_abs` at 0.
    """
    code_in, mse_in, revival_in = _side(pair.inputs, batch.x, scale.variance_in, dead[0], revival_latents)
    code_out, mse_out, revival_out = _side(pair.outputs, batch.y, scale.variance_out, dead[1], revival_latents)
    mean_sum_abs = mse_in.new_zeros(())
    if jacobian_every_tokens is not None:
        some = slice(None, None, jacobian_every_tokens)
        mean_sum_abs = mean_sum_abs_jacobian(pair, mlp, batch.x[some], code_out[some], code_in[some])
    return PairLosses(mse_in, mse_out, mean_sum_abs, revival_in + revival_out, code_in, code_out)


def mean_sum_abs_jacobian(
    pair: DictionaryPair, mlp: Mlp, x: Float[torch.Tensor, "tokens d_in"], code_out: Selection, code_in: Selection
) -> Float[torch.Tensor, ""]:
    """Mean over these tokens of sum |J|. E and D are made for the latents that the tokens use, not for all."""
    used_out, compact_out = code_out.compact()
    used_in, compact_in = code_in.compact()
    E, D = _matrices(mlp, pair.outputs.W_enc.index_select(1, used_out).T, pair.inputs.W_dec.index_select(0, used_in))
    E, D = E.to(x.dtype), tuple(matrix.to(x.dtype) for matrix in D)  # bfloat16 under autocast, summed in float32
    with torch.no_grad():
        gains = tuple(gain.to(x.dtype) for gain in channel_gains(mlp, x))
    return sum_abs_jacobian(E, D, gains, compact_out, compact_in) / len(x)


def _side(
    dictionary: TopKDictionary,
    x: Float[torch.Tensor, "tokens d"],
    variance: float,
    dead: Bool[torch.Tensor, " n"],
    revival_latents: int,
) -> tuple[Selection, Float[torch.Tensor, ""], Float[torch.Tensor, ""]]:
    """One dictionary's code, squared error over variance, and auxiliary loss over what is left unexplained."""
    preactivations = dictionary.preactivations(x)
    code = dictionary.select(preactivations)
    residual = x - dictionary.decode(code)
    mse = residual.square().sum(-1).mean() / variance
    count = min(revival_latents, int(dead.sum()))
    if count == 0:
        return code, mse, mse.new_zeros(())
    value, index = preactivations.masked_fill(~dead, -torch.inf).topk(count, dim=-1, sorted=False)
    left = residual.detach()
    attempt = dictionary.span(Selection(index, value.relu()))
    return code, mse, (left - attempt).square().sum() / left.square().sum().clamp_min(1e-12)
