"""Trainers of the product: pairs of dictionaries under a Jacobian penalty, and the small language model of the demo."""
