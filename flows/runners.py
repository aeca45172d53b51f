"""Where a run's tasks are executed: in threads of its own process, or on a Ray cluster with a device for each task.

Threads are the default, because one block already uses a whole device. Ray is an optional extra, chosen by the
environment so that the same flow, deployment and command serve both:

    JACOBIAN_TASK_RUNNER    `threads` (default) or `ray`
    JACOBIAN_RAY_ADDRESS    a running cluster, such as ray://head:10001; unset: a cluster of this machine for the run
    JACOBIAN_RAY_DEVICES    blocks computed at once; unset: the GPUs that are visible here, or 1
    JACOBIAN_RAY_GPUS       GPUs of each block, default 1; 0: each takes a CPU core instead
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from prefect.task_runners import ThreadPoolTaskRunner

from jacobian_core.errors import ConfigError

ONE_DEVICE = 3
"""Compute tasks in flight for a device: one computes, one is still written, one is loaded and waits for its turn."""


def uses_ray() -> bool:
    """Whether the environment asks for Ray; ConfigError if it asks for something unknown."""
    wanted = os.environ.get("JACOBIAN_TASK_RUNNER", "threads")
    if wanted not in ("threads", "ray"):
        raise ConfigError(f"JACOBIAN_TASK_RUNNER = {wanted!r} is refused.", "Use `threads` or `ray`.")
    return wanted == "ray"


def task_runner() -> Any:
    """The task runner of a run; ConfigError where Ray is asked for and not installed."""
    if not uses_ray():
        return ThreadPoolTaskRunner(max_workers=in_flight() + 1)  # and one to stage
    try:
        from prefect_ray import RayTaskRunner
    except ImportError:
        raise ConfigError("JACOBIAN_TASK_RUNNER=ray needs Ray.", "pip install 'jacobian-flows[ray]'.") from None
    address = os.environ.get("JACOBIAN_RAY_ADDRESS") or None
    cores = devices() + (1 if _gpus() else 0)  # one to stage; without GPUs, cores are what limits computing
    own: dict[str, Any] = {"num_cpus": cores, "include_dashboard": False}
    return RayTaskRunner(address=address, init_kwargs={} if address else own)


def in_flight() -> int:
    """Compute tasks submitted at a time."""
    return devices() + 1 if uses_ray() else ONE_DEVICE


def devices() -> int:
    """Blocks that Ray computes at once."""
    wanted = _number("JACOBIAN_RAY_DEVICES", 0)
    if wanted or not _gpus():
        return max(1, wanted)
    import torch

    return max(1, torch.cuda.device_count())


def on_device() -> AbstractContextManager[Any]:
    """Tasks submitted inside it get a device each; Ray's processes are kept, so that a model is loaded once in each."""
    if not uses_ray():
        return nullcontext()
    from prefect_ray.context import remote_options

    options: AbstractContextManager[Any] = remote_options(num_cpus=1, num_gpus=_gpus(), max_calls=0)
    return options


def _gpus() -> int:
    return _number("JACOBIAN_RAY_GPUS", 1)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdigit():
        raise ConfigError(f"{name} = {text!r} is refused: it must be a whole number.")
    return int(text)
