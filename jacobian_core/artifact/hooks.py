"""Does an SAE sit where its side of the MLP is? Its hook's name says so, where it is one that is known to be elsewhere.

The price of trusting names: an unknown name passes, and is judged by the FVU that is measured before a run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from jacobian_core.errors import ArtifactError

_MLP_OUTPUT = re.compile(r"\.hook_mlp_out$")
_MLP_INPUT = re.compile(r"\.(mlp\.hook_in|ln2\.hook_normalized|ln2\.hook_out)$")
_BEFORE_NORM = re.compile(r"\.hook_mlp_in$")
_ELSEWHERE = {
    r"\.hook_resid_(pre|mid|post)$": "the residual stream: a norm (or the skip) lies between it and the MLP",
    r"\.hook_attn_out$|\.attn\.|\.hook_z$": "the attention's side of the block",
    r"(^|\.)hook_embed$": "the embedding",
}
_AFTER_NORM = "pre_feedforward_layernorm.output"
"""How Gemma Scope 2 says, in Hugging Face's words, that it reads what its `hook_mlp_in` calls the MLP's input."""


def check_hook(path: Path, side: Literal["in", "out"], hook_name: str, hf_hook_name: str | None) -> None:
    """Refuse an SAE whose hook is not its side's: the MLP's true input, or the MLP's output (norms behind included)."""
    wanted = "input" if side == "in" else "output"
    reason = next((reason for pattern, reason in _ELSEWHERE.items() if re.search(pattern, hook_name)), None)
    if side == "in" and _MLP_OUTPUT.search(hook_name):
        reason = "the MLP's output"
    if side == "out" and (_MLP_INPUT.search(hook_name) or _BEFORE_NORM.search(hook_name)):
        reason = "the MLP's input"
    if side == "in" and _BEFORE_NORM.search(hook_name) and not (hf_hook_name or "").endswith(_AFTER_NORM):
        reason = "what comes before the norm in front of the MLP"
    if reason is not None:
        raise ArtifactError(
            f"{path}: the {wanted} SAE's hook is {hook_name!r}, {reason}; the Jacobian is that of one MLP.",
            f"Use an SAE on the MLP's {wanted}"
            + (", like blocks.3.mlp.hook_in." if side == "in" else ", like blocks.3.hook_mlp_out."),
        )
