"""The one glossary of axis names that array annotations use.

| axis | meaning |
|---|---|
| `rows`, `context` | rows of a forward pass; positions of a row, BOS and padding included |
| `tokens` | analysed tokens of a chunk or block |
| `d_in`, `d_out` | width of the MLP's input and of its output (d_model for all known models) |
| `d_mlp` | hidden neurons of the MLP |
| `d_state` | pre-activations of the hidden neurons: `d_mlp`, or `2 d_mlp` of a gated MLP |
| `n_in`, `n_out` | latents of the input SAE and of the output SAE |
| `k_in`, `k_out` | selected latents of a token in each SAE, active or clamped |
| `k`, `n`, `d` | the same three where a function serves either SAE |
| `entries` | stored Jacobian elements |

`Float` stands for float32 or float64: the precision of the MLP and the SAEs follows `model.dtype`.
"""
