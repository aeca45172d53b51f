"""A transcoder's latents against the MLP, compared with float64 autograd through sae_lens's transcoders and real MLPs.

Nothing of the closed form is used in the reference: directions by least squares, derivatives by whole Jacobians of
`transcoder.forward` and of Hugging Face's MLP. Tolerance: 1e-9 of the largest value of a token in float64 (directions
come from a solved system, which costs a digit), 1e-4 in float32.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jacobian_core.errors import ArtifactError
from jacobian_core.numerics import reference
from jacobian_core.numerics.sae import fold_sae
from jacobian_core.numerics.transcoder import FAMILIES, Comparison, TranscoderKernel, fold_transcoder
from tests.numerics.test_families import WIDTH, Block, block, make_sae, tokens  # noqa: F401

SAES = ["standard", "topk", "jumprelu", "gated"]


def make_transcoder(family: str, latents: int = 17, seed: int = 1, bias: float = -0.3) -> Any:
    """A random sae_lens transcoder, float64, with some latents active and some not."""
    from sae_lens.registry import get_sae_class

    made_class, config_class = get_sae_class(family)
    config: Any = config_class(d_in=WIDTH, d_sae=latents, d_out=WIDTH, dtype="float64", apply_b_dec_to_input=False)
    made: Any = made_class(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            drawn = 0.4 * torch.randn(*parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(drawn.abs() if name == "threshold" else drawn + bias * (name == "b_enc"))
    return made.eval()


def kernel_of(block: Block, transcoder: Any, output: Any, dtype: torch.dtype = torch.float64) -> TranscoderKernel:  # noqa: F811
    outputs = None if output is None else fold_sae(output, "cpu", dtype)
    return TranscoderKernel.build(fold_transcoder(transcoder, "cpu", dtype), block.mlp.to("cpu", dtype), outputs)


def check(block: Block, transcoder: Any, output: Any, kernel: TranscoderKernel, tolerance: float) -> int:  # noqa: F811
    """Every figure of every active latent against autograd; returns how many effects there were."""
    x = tokens()
    parts = kernel.compare(x.to(kernel.mlp.W_in.dtype))
    effects = 0
    row = 0
    for part in parts:
        for at in range(part.error_sq.shape[0]):
            effects += check_token(block, transcoder, output, (part, at), x[row], tolerance)
            row += 1
    assert row == len(x)
    return effects


def check_token(
    block: Block,  # noqa: F811
    transcoder: Any,
    output: Any,
    found: tuple[Comparison, int],
    x: Tensor,
    tolerance: float,
) -> int:
    part, at = found
    with torch.no_grad():
        s, y, predicted = transcoder.encode(x[None])[0], block.module(x[None])[0], transcoder(x[None])[0]
    active = torch.nonzero(s > 0).flatten()
    mine = part.inputs.active[at]
    assert torch.equal(part.inputs.index[at][mine], active)
    close(part.inputs.value[at][mine], s[active], tolerance)
    e = transcoder.W_enc.detach()[:, active]
    v = reference.transcoder_directions(e)
    m, g = reference.change_along(block.module, x, v), reference.change_along(transcoder.forward, x, v)
    close(part.mlp_norm[at][mine], m.norm(dim=1), tolerance)
    close(part.transcoder_norm[at][mine], g.norm(dim=1), tolerance)
    close(part.cosine[at][mine], torch.nn.functional.cosine_similarity(m, g, dim=1), 10 * tolerance)
    close(part.isolation[at][mine], (v * e.T).sum(1), tolerance)
    close(part.direction_norm[at][mine], v.norm(dim=1), tolerance)
    close(part.error_sq[at], (y - predicted).square().sum(), tolerance)
    close(part.output_sq[at], y.square().sum(), tolerance)
    if output is None:
        assert part.mlp_effect.shape[1] == 0
        return 0
    out = torch.nonzero(output.encode(y[None])[0] > 0).flatten()
    theirs = part.outputs.active[at]
    assert torch.equal(part.outputs.index[at][theirs], out)

    def code(z: Tensor) -> Tensor:
        return output.encode(block.module(z))

    def code_of_transcoder(z: Tensor) -> Tensor:
        """The transcoder's change, read by the output SAE where the MLP's output is."""
        return output.encode(y + transcoder(z) - predicted)

    for effect, function in ((part.mlp_effect, code), (part.transcoder_effect, code_of_transcoder)):
        expected = reference.change_along(function, x, v)[:, out].T
        close(effect[at][theirs][:, mine], expected, tolerance)
    return len(out) * len(active)


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(found.double(), expected.detach(), rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("block", ["gpt_neox", "llama", "gemma2"], indirect=True)
@pytest.mark.parametrize("family", FAMILIES)
def test_against_autograd(block: Block, family: str) -> None:  # noqa: F811
    transcoder, output = make_transcoder(family), make_sae(SAES[FAMILIES.index(family)], 2, latents=23)
    assert check(block, transcoder, output, kernel_of(block, transcoder, output), 1e-9) > 20


@pytest.mark.parametrize("block", ["llama"], indirect=True)
@pytest.mark.parametrize("family", FAMILIES)
def test_without_an_output_sae_and_in_float32(block: Block, family: str) -> None:  # noqa: F811
    transcoder = make_transcoder(family)
    check(block, transcoder, None, kernel_of(block, transcoder, None), 1e-9)
    check(block, transcoder, None, kernel_of(block, transcoder, None, torch.float32), 1e-4)


@pytest.mark.parametrize("block", ["gpt_neox"], indirect=True)
def test_more_active_latents_than_dimensions_have_no_directions_of_their_own(block: Block) -> None:  # noqa: F811
    transcoder, output = make_transcoder("skip_transcoder", latents=60, bias=2.0), make_sae("topk", 2, latents=23)
    kernel = kernel_of(block, transcoder, output)
    check(block, transcoder, output, kernel, 1e-8)
    part = kernel.compare(tokens())[0]
    assert int(part.inputs.counts().min()) > WIDTH
    assert float(part.isolation[part.inputs.active].max()) < 0.999


@pytest.mark.parametrize("block", ["gpt_neox"], indirect=True)
def test_no_active_latent(block: Block) -> None:  # noqa: F811
    transcoder, output = make_transcoder("transcoder", bias=-99.0), make_sae("topk", 2, latents=23)
    part = kernel_of(block, transcoder, output).compare(tokens())[0]
    assert not bool(part.inputs.active.any())
    assert not bool(part.cosine.any())
    assert torch.isfinite(part.error_sq).all()


def test_a_transcoder_that_is_locally_the_mlp_agrees_exactly() -> None:
    """What the direction is for: a map that is a transcoder has both effects equal; along encoder columns not."""
    transcoder = make_transcoder("transcoder", bias=-0.6)
    x = tokens()[0]
    active = torch.nonzero(transcoder.encode(x[None])[0] > 0).flatten()
    e = transcoder.W_enc.detach()[:, active]
    decoder = transcoder.W_dec.detach()[active]
    assert 3 < len(active) < WIDTH
    along = reference.change_along(transcoder.forward, x, reference.transcoder_directions(e))
    torch.testing.assert_close(along, decoder, rtol=0, atol=1e-12)
    columns = reference.change_along(transcoder.forward, x, e.T / e.square().sum(0)[:, None])
    assert float((columns - decoder).abs().max()) > 0.1


class TestTheComparisonNotices:
    @pytest.mark.parametrize("block", ["llama"], indirect=True)
    def test_encoder_columns_instead_of_directions(self, block: Block, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
        transcoder, output = make_transcoder("transcoder"), make_sae("topk", 2, latents=23)
        kernel = kernel_of(block, transcoder, output)
        own = torch.linalg.pinv

        def diagonal(products: Tensor, **settings: Any) -> Tensor:
            return own(torch.diag_embed(products.diagonal(dim1=1, dim2=2)), **settings)

        monkeypatch.setattr(torch.linalg, "pinv", diagonal)
        with pytest.raises(AssertionError):
            check(block, transcoder, output, kernel, 1e-4)

    @pytest.mark.parametrize("block", ["llama"], indirect=True)
    def test_the_skip_left_out(self, block: Block) -> None:  # noqa: F811
        transcoder = make_transcoder("skip_transcoder")
        right = kernel_of(block, transcoder, None)
        with pytest.raises(AssertionError):
            check(block, transcoder, None, replace(right, transcoder=replace(right.transcoder, W_skip=None)), 1e-4)

    @pytest.mark.parametrize("block", ["gemma2"], indirect=True)
    def test_the_norm_held_fixed(self, block: Block) -> None:  # noqa: F811
        transcoder = make_transcoder("jumprelu_transcoder")
        right = kernel_of(block, transcoder, None)
        with pytest.raises(AssertionError):
            check(block, transcoder, None, replace(right, mlp=replace(right.mlp, norm=None)), 1e-4)


@pytest.mark.parametrize("block", ["llama"], indirect=True)
def test_what_is_refused(block: Block, tmp_path: Path) -> None:  # noqa: F811
    del tmp_path
    with pytest.raises(ArtifactError, match="not supported beside a transcoder"):
        kernel_of(block, make_transcoder("transcoder"), make_sae("topk", 2, normalize_activations="layer_norm"))
    with pytest.raises(ArtifactError, match="'topk' is no transcoder"):
        fold_transcoder(make_sae("topk", 1), "cpu", torch.float64)
