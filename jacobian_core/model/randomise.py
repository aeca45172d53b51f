"""The published control: every weight tensor redrawn from a normal with that tensor's own mean and deviation.

What survives is each tensor's scale; what training arranged within it is gone. The weights need no storage, because the
same module, names and seed give the same draw: float64 normals from one CPU generator, parameters in the order of their
names. A wrapper that renames parameters changes that order, so the plain Hugging Face module is what must be passed.
"""

import torch


@torch.no_grad()
def randomise_weights(module: torch.nn.Module, seed: int) -> None:
    """Redraw every parameter of `module` in place; shapes, dtypes and devices stay.

    Args:
        module: a Hugging Face model, before anything wraps it. Tied parameters are drawn once and stay tied; buffers
            are left alone.
        seed: of the one generator that all tensors are drawn from.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for _, parameter in sorted(module.named_parameters(), key=lambda named: named[0]):
        values = parameter.detach().to(device="cpu", dtype=torch.float64)
        deviation, mean = torch.std_mean(values, correction=0)
        draw = torch.randn(values.shape, generator=generator, dtype=torch.float64)
        parameter.copy_((mean + deviation * draw).to(parameter.dtype))
