"""Dead latents begin anew: pointed at what the living ones leave unexplained.

The auxiliary loss (`loss.py`) moves a dead latent only where its pre-activation is above zero; one that never is would
stay dead for good. So from time to time each dead latent's decoder and encoder become the error of one token, drawn
with a chance that grows with the error's square, and Adam forgets what it knew of them. The draw depends on the seed
and the step alone, so a resumed training makes the same one.
"""

import torch
from jaxtyping import Bool, Float

from jacobian_core.training.dictionary import TopKDictionary


@torch.no_grad()
def resample(
    dictionary: TopKDictionary,
    optimiser: torch.optim.Optimizer,
    dead: Bool[torch.Tensor, " n"],
    x: Float[torch.Tensor, "tokens d"],
    seed: int,
) -> int:
    """Point the dead latents at errors of tokens `x`; returns how many there were."""
    latents = dead.nonzero().flatten()
    residual = x - dictionary.decode(dictionary.encode(x))
    chance = residual.square().sum(-1)
    if len(latents) == 0 or not bool(chance.sum() > 0):
        return 0
    generator = torch.Generator(x.device).manual_seed(seed)
    tokens = torch.multinomial(chance, len(latents), replacement=True, generator=generator)
    directions = torch.nn.functional.normalize(residual[tokens], dim=1)
    dictionary.W_dec[latents] = directions
    dictionary.W_enc[:, latents] = directions.T
    dictionary.b_enc[latents] = -directions @ dictionary.b_dec
    for parameter, place in (
        (dictionary.W_dec, (latents,)),
        (dictionary.W_enc, (slice(None), latents)),
        (dictionary.b_enc, (latents,)),
    ):
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in optimiser.state[parameter]:
                optimiser.state[parameter][moment][place] = 0
    return len(latents)
