"""The lake on disk: where files are, how they are written, published, checked and cleared away."""
