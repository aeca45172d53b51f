"""The language model up to one MLP: what enters that MLP, and the MLP itself.

`TransformerBridge` with raw weights runs the model; nothing after the needed layer is executed. Two conventions of "the
MLP's input" are in use for SAEs (DESIGN trap 2): the true input, after LayerNorm's gain and bias, and the normalised,
pre-affine one of weights with LayerNorm folded in. For the second the fold is done here on the MLP's own weights, which
leaves the model untouched. Either way `prove_mlp` shows on real tokens that the formula reproduces the model's output.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jacobian_core.config import ModelConfig
from jacobian_core.errors import ModelError
from jacobian_core.model.forward import Forward, PlainModule, Probe, checked_forward
from jacobian_core.model.llm_identity import hub_name, not_found
from jacobian_core.model.mlp import Mlp
from jacobian_core.model.mlp_weights import affine_in_front, read_mlp
from jacobian_core.model.transfer import Transfer

log = logging.getLogger(__name__)

_PROOF_TOLERANCE = 1e-4
"""Largest |formula - module| over the output's largest absolute value; float32 round-off is below 1e-5."""


_PROBE_POSITIONS = 16


class _AllSeenError(Exception):
    """Everything that was wanted has been seen: the forward pass can end."""


@dataclass(frozen=True)
class LanguageModel:
    """A model that yields the input of one block's MLP.

    `mlp` is in the precision of the analysis: float64 if the model is, else float32. `forward` is the quick way to the
    MLP's input where there is one; otherwise the bridge is run.
    """

    bridge: Any
    layer: int
    mlp: Mlp
    hook: str
    device: torch.device
    forward: Forward | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the analysis."""
        return self.mlp.W_in.dtype

    @cached_property
    def _transfer(self) -> Transfer:
        return Transfer(self.device)

    @torch.no_grad()
    def mlp_inputs(
        self, vocab_ids: Int[Tensor, "rows context"], real: Bool[Tensor, "rows context"]
    ) -> Float[Tensor, "rows context d_in"]:
        """What the input SAE reads at every position of right-padded rows; positions beyond a row's end are noise."""
        if self.forward is not None:
            return self.forward(self._transfer.upload(vocab_ids)).to(self.dtype)
        return self._run(vocab_ids, real, [self.hook])[self.hook].to(self.dtype)

    def with_quick_forward(self, plain: PlainModule) -> LanguageModel:
        """The same model with the quick forward pass, if it is shown to be the bridge's on rows of two lengths."""
        ids = (torch.arange(2 * _PROBE_POSITIONS).reshape(2, -1) * 7919) % int(self.bridge.cfg.d_vocab)
        real = torch.ones_like(ids, dtype=torch.bool)
        real[1, _PROBE_POSITIONS // 2 :] = False
        with torch.no_grad():
            expected = self._run(ids, real, [self.hook])[self.hook]
        probe = Probe(ids.to(self.device), real.to(self.device), expected)
        return replace(self, forward=checked_forward(plain, self.bridge.blocks[self.layer], probe))

    @torch.no_grad()
    def prove_mlp(self, vocab_ids: Int[Tensor, "rows context"]) -> float:
        """Largest |mlp(hooked input) - model's MLP output| relative to the output's largest value.

        Raises ModelError if the formula is not the module: an unsupported architecture or a wrong convention.
        """
        output_hook = f"blocks.{self.layer}.hook_mlp_out"
        real = torch.ones_like(vocab_ids, dtype=torch.bool)
        seen = self._run(vocab_ids, real, [self.hook, output_hook])
        expected = seen[output_hook].to(self.dtype)
        error = (self.mlp(seen[self.hook].to(self.dtype)) - expected).abs().max() / expected.abs().max()
        tolerance = _PROOF_TOLERANCE if self.bridge.cfg.dtype != torch.bfloat16 else 0.05
        if not float(error) <= tolerance:
            raise ModelError(
                f"the MLP of block {self.layer} is not what its weights say: mlp({self.hook}) differs from "
                f"{output_hook} by {float(error):.2g} of its largest value.",
                "The architecture has parts around its MLP that are not supported.",
            )
        return float(error)

    def _run(
        self, vocab_ids: Int[Tensor, "rows context"], real: Bool[Tensor, "rows context"], hooks: list[str]
    ) -> dict[str, Tensor]:
        """The activations at `hooks`, which lie in block `layer`; nothing after the last of them is executed."""
        seen: dict[str, Tensor] = {}

        def keeper(name: str) -> Callable[..., None]:
            def keep(value: Tensor, **_: Any) -> None:
                seen[name] = value.detach()
                if len(seen) == len(hooks):
                    raise _AllSeenError

            return keep

        # The exception saves the rest of the block, a tenth of the time at pythia-70m's shape; hooks are removed.
        with suppress(_AllSeenError):
            self.bridge.run_with_hooks(
                vocab_ids.to(self.device),
                fwd_hooks=[(name, keeper(name)) for name in hooks],
                stop_at_layer=self.layer + 1,
                attention_mask=real.to(self.device, torch.int64),
            )
        if len(seen) < len(hooks):
            missing = ", ".join(name for name in hooks if name not in seen)
            raise ModelError(
                f"nothing passed {missing} while this {self.bridge.original_model.config.model_type} model ran.",
                "TransformerLens builds its blocks in another way, which is not supported; use another model.",
            )
        return seen


def load_language_model(
    config: ModelConfig, layer: int, device: str = "cpu", artifact_weights: Path | None = None
) -> LanguageModel:
    """The model of `config`, ready to yield the input of block `layer`'s MLP.

    Args:
        config: which model, which weights, which convention.
        layer: block whose MLP is analysed.
        device: torch device.
        artifact_weights: safetensors of the model kept beside an SAE pair, for `weights = "artifact"`.

    Raises:
        ModelError: the model is not found, has no such layer, or its MLP is not supported.
    """
    bridge, plain = _boot(config, device, artifact_weights)
    if not 0 <= layer < bridge.cfg.n_layers:
        raise ModelError(
            f"model {config.name} has {bridge.cfg.n_layers} layers, so there is no layer {layer}.",
            "Set model.layer, or use the model that the SAE pair was trained on.",
        )
    dtype = torch.float64 if config.dtype == "float64" else torch.float32
    mlp = read_mlp(bridge, layer).to(device, dtype)
    hook = f"blocks.{layer}.mlp.hook_in"
    if config.mlp_input == "normalized":
        gain, shift = affine_in_front(bridge.blocks[layer], mlp.d_in)
        mlp = mlp.folded(gain.to(device, dtype), shift.to(device, dtype))
        hook = f"blocks.{layer}.ln2.hook_normalized"
    model = LanguageModel(bridge, layer, mlp, hook, torch.device(device))
    return model if config.mlp_input == "normalized" else model.with_quick_forward(plain)


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Hide the libraries' progress bars while a model loads."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _boot(config: ModelConfig, device: str, artifact_weights: Path | None) -> tuple[Any, PlainModule]:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    folder = Path(config.name)
    if (folder.is_absolute() or folder.exists()) and not (folder / "config.json").is_file():
        raise ModelError(
            f"model folder {folder} has no config.json.", "Point model.name at a Hugging Face model folder."
        )
    name = str(folder) if folder.is_dir() else hub_name(config.name)
    dtype = getattr(torch, config.dtype)
    try:
        with _quiet_loading():
            module = _load_module(name, config, artifact_weights).to(device)
            plain = PlainModule.beside(module)
            tokenizer = AutoTokenizer.from_pretrained(name, revision=config.revision)
            bridge = TransformerBridge.boot_transformers(
                name, device=device, dtype=dtype, revision=config.revision, hf_model=module, tokenizer=tokenizer
            )
            return bridge, plain
    except ModelError:
        raise
    except Exception as error:
        raise not_found(config, error) from error


def _load_module(name: str, config: ModelConfig, artifact_weights: Path | None) -> Any:
    """The Hugging Face module with its own, the artifact's or randomised weights, for the bridge to wrap.

    Weights are replaced before the bridge wraps the module, because the bridge splits and renames parameters.
    """
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, config.dtype)
    module = AutoModelForCausalLM.from_pretrained(
        name, revision=config.revision, dtype=dtype, attn_implementation="eager", use_safetensors=True
    )
    if config.weights == "model":
        return module
    if config.weights == "randomised":
        from jacobian_core.model.randomise import randomise_weights

        randomise_weights(module, config.randomise_seed)
    elif artifact_weights is None:
        raise ModelError(
            "model.weights is 'artifact', but the SAE artifact carries no language-model weights.",
            "Set model.weights to 'model' or 'randomised'.",
        )
    else:
        from jacobian_core.model.llm_weights import load_weights_beside

        load_weights_beside(module, artifact_weights)
    return module
