"""From entries, token by token, to pairs of latents: what a run adds up to, one strip of the matrix at a time."""
