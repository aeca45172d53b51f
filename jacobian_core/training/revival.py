"""Dead latents begin anew: pointed at what the living ones leave unexplained.

The auxiliary loss (`loss.py`) moves a dead latent only where its pre-activation is above zero; one that never is would
stay dead for good. So from time to time each dead latent's decoder and encoder become the error of one token, drawn
with a chance that grows with the error's square, and Adam forgets what it knew of them. The draw depends on the seed
and the step alone, so a resumed training makes the same one.
"""

import torch
from jaxtyping import Bool, Float

from jacobian_core.training.dictionary import TopKDictionary

ENCODER_SHARE = 0.2
"""A new encoder's length over the living ones' mean: a full one wins selections that it is no good for."""


@torch.no_grad()
def resample(
    dictionary: TopKDictionary,
    optimiser: torch.optim.Optimizer,
    dead: Bool[torch.Tensor, " n"],
    x: Float[torch.Tensor, "tokens d"],
    seed: int,
) -> int:
    """Point the dead latents at errors of tokens `x`; returns how many. Where all are dead none is moved."""
    latents = dead.nonzero().flatten()
    residual = x - dictionary.decode(dictionary.encode(x))
    chance = residual.square().sum(-1)
    if len(latents) in (0, len(dead)) or not bool(chance.sum() > 0):
        return 0
    generator = torch.Generator(x.device).manual_seed(seed)
    tokens = torch.multinomial(chance, len(latents), replacement=True, generator=generator)
    directions = torch.nn.functional.normalize(residual[tokens], dim=1)
    encoders = ENCODER_SHARE * dictionary.W_enc[:, ~dead].norm(dim=0).mean() * directions
    dictionary.W_dec[latents] = directions
    dictionary.W_enc[:, latents] = encoders.T
    dictionary.b_enc[latents] = -encoders @ dictionary.b_dec
    for parameter, place in (
        (dictionary.W_dec, (latents,)),
        (dictionary.W_enc, (slice(None), latents)),
        (dictionary.b_enc, (latents,)),
    ):
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in optimiser.state[parameter]:
                optimiser.state[parameter][moment][place] = 0
    return len(latents)
