-- question: Which Jacobian entries are there, with their token and the activations of both latents?
-- reads: jacobian_entries, tokens, latents
-- grain: one stored Jacobian entry
-- columns:
--   run_id VARCHAR - the run
--   token_id BIGINT - the token
--   document_id BIGINT - its document
--   position INTEGER - its position in the document, BOS being 0 [tokens]
--   text VARCHAR - the token as text
--   out_latent UINTEGER - latent of the output SAE
--   in_latent UINTEGER - latent of the input SAE
--   value FLOAT - J: d (output activation) / d (input activation)
--   second_derivative FLOAT - d2 (output activation) / d (input activation)^2; null: not computed
--   in_activation FLOAT - activation of the input latent, s_j
--   out_activation FLOAT - activation of the output latent, t_i
--   in_margin FLOAT - how far the input latent is from leaving the selection
--   out_margin FLOAT - how far the output latent is from leaving the selection
--   weighted DOUBLE - J * s_j: the first-order share of t_i that this input latent brings
SELECT
    e.run_id,
    e.token_id,
    t.document_id,
    t.position,
    t.text,
    e.out_latent,
    e.in_latent,
    e.value,
    e.second_derivative,
    i.activation AS in_activation,
    o.activation AS out_activation,
    i.margin AS in_margin,
    o.margin AS out_margin,
    e.value::DOUBLE * i.activation AS weighted
FROM jacobian_entries AS e
LEFT JOIN tokens AS t ON e.run_id = t.run_id AND e.token_id = t.token_id
LEFT JOIN latents AS i
    ON e.run_id = i.run_id AND e.token_id = i.token_id AND i.side = 'in' AND e.in_latent = i.latent
LEFT JOIN latents AS o
    ON e.run_id = o.run_id AND e.token_id = o.token_id AND o.side = 'out' AND e.out_latent = o.latent
