-- invariant: every intervention and every function shape is of a token of the run and of latents active there, whose
--     activations it repeats, and J is that of the stored entry, if there is one
-- reads: interventions, function_shapes, tokens, latents, jacobian_entries, runs
-- parameters:
--   run_id VARCHAR - the run
-- grain: one (table, token, pair) that refers to something else
-- columns:
--   table_name VARCHAR - interventions or function_shapes
--   token_id BIGINT - the token
--   out_latent UINTEGER - latent of the output SAE
--   in_latent UINTEGER - latent of the input SAE
--   problem VARCHAR - what does not fit
WITH referring AS (
    SELECT DISTINCT
        'interventions' AS table_name,
        token_id,
        out_latent,
        in_latent,
        in_before,
        out_before,
        value
    FROM interventions
    WHERE run_id = $run_id
    UNION ALL
    SELECT
        'function_shapes' AS table_name,
        token_id,
        out_latent,
        in_latent,
        in_before,
        NULL AS out_before,
        value
    FROM function_shapes
    WHERE run_id = $run_id
),

compared AS (
    SELECT
        r.table_name,
        r.token_id,
        r.out_latent,
        r.in_latent,
        CASE
            WHEN t.token_id IS NULL THEN 'no such token'
            -- What is not kept can't be compared.
            WHEN s.keep = 'aggregates' THEN NULL
            WHEN i.latent IS NULL THEN 'input latent not active'
            WHEN o.latent IS NULL THEN 'output latent not active'
            WHEN r.in_before <> i.activation THEN 'in_before is not the activation'
            WHEN r.out_before <> o.activation THEN 'out_before is not the activation'
            WHEN r.value <> e.value THEN 'value is not the entry''s'
        END AS problem
    FROM referring AS r
    INNER JOIN runs AS s ON s.run_id = $run_id
    LEFT JOIN tokens AS t ON r.token_id = t.token_id AND t.run_id = $run_id
    LEFT JOIN latents AS i
        ON r.token_id = i.token_id AND r.in_latent = i.latent AND i.run_id = $run_id AND i.side = 'in'
    LEFT JOIN latents AS o
        ON r.token_id = o.token_id AND r.out_latent = o.latent AND o.run_id = $run_id AND o.side = 'out'
    LEFT JOIN jacobian_entries AS e
        ON
            r.token_id = e.token_id
            AND r.out_latent = e.out_latent
            AND r.in_latent = e.in_latent
            AND e.run_id = $run_id
)

SELECT
    table_name,
    token_id,
    out_latent,
    in_latent,
    problem
FROM compared
WHERE problem IS NOT NULL
ORDER BY table_name, token_id, out_latent, in_latent, problem
