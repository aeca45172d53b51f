"""The language model up to one MLP, and that MLP as a formula."""
