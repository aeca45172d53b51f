"""Active-scope entries on the device, from token ids to compacted columns on the host, at pythia-70m's shape."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from benchmarks.gpu_sandwich import PYTHIA, random_sandwich, seconds, with_kernels
from jacobian_core.model.forward import Forward, _stop
from jacobian_core.model.transfer import Transfer
from jacobian_core.numerics.coo import Thresholds
from jacobian_core.numerics.gpu.compaction import DeviceCollector
from jacobian_core.numerics.precision import exact_products

_LAYER, _ROWS, _CONTEXT = 3, 32, 512


def language_model() -> Forward:
    """A GPT-NeoX of pythia-70m's shape with random weights on the GPU, ended at the input of one MLP."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=50_304, hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=2048,
        max_position_embeddings=2048, tie_word_embeddings=False, attn_implementation="sdpa",
    )  # fmt: skip
    module = GPTNeoXForCausalLM(config).cuda().eval()
    layer = module.gpt_neox.layers[_LAYER]
    layer.register_forward_pre_hook(_stop, with_kwargs=True)
    return Forward(module, layer.post_attention_layernorm)


@torch.no_grad()
def entries_on_the_device(turns: int) -> dict[str, float]:
    """Tokens a second with and without the language model and the copies."""
    exact_products()
    model, transfer = language_model(), Transfer("cuda")
    sandwich, collector = with_kernels(random_sandwich(PYTHIA, "cuda")), DeviceCollector("cuda")
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 50_000, (_ROWS, _CONTEXT)))
    part = SimpleNamespace(x=model(ids.cuda()).reshape(-1, PYTHIA.d_model))
    tokens = ids.numel()

    def forward() -> torch.Tensor:
        return model(transfer.upload(ids)).reshape(-1, PYTHIA.d_model)

    def jacobian(x: torch.Tensor) -> None:
        for few in x.split(PYTHIA.tokens):
            state = sandwich.state(few)
            collector.collect(sandwich.kernel.first(state), None, state, Thresholds())

    return {
        "language_model_tokens_per_second": tokens / seconds(forward, turns),
        "from_mlp_inputs_tokens_per_second": tokens / seconds(lambda: jacobian(part.x), turns),
        "entries_tokens_per_second": tokens / seconds(lambda: jacobian(forward()), turns),
    }
