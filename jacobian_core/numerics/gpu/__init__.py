"""The Jacobian on a GPU: Triton kernels, compaction and copies beside the computation. Imported where there is one.

`choice.py` decides; `gathered.py` and `sums.py` call the kernels of `gathered_kernel.py` and `sums_kernel.py`.
`torch.compile` is not used: what costs time here is gathered operands going through memory and sums kept apart from the
product, which a compiler of whole graphs leaves as they are, and it compiles anew for every number of tokens and of
active latents.
"""
