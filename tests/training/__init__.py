"""Array annotations of the trainers are enforced; the hook must be installed before they are imported."""

from jaxtyping import install_import_hook

_MODULES = ("dictionary", "export", "job", "loss", "pair", "pair_evaluation", "penalty", "revival", "text", "trainer")
_hook = install_import_hook(
    [*(f"jacobian_core.training.{name}" for name in _MODULES), "jacobian_core.model.randomise"], "beartype.beartype"
)
