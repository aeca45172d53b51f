"""From an SAE artifact, wherever it is kept, to a checked pair of SAEs."""
