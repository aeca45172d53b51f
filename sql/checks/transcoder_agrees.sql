-- invariant: a transcoder's effects are of stored entries and repeat their J, its latents are the active ones of the
--     input side, and every token of it has an error
-- reads: transcoder_effects, transcoder_latents, transcoder_tokens, jacobian_entries, latents, tokens
-- parameters:
--   run_id VARCHAR - the run
-- grain: one (table, token, pair) that refers to something else
-- columns:
--   table_name VARCHAR - the table
--   token_id BIGINT - the token
--   out_latent UINTEGER - latent of the output SAE, or null
--   in_latent UINTEGER - latent of the transcoder, or null
--   problem VARCHAR - what does not fit
WITH is_transcoder AS (
    SELECT DISTINCT run_id
    FROM transcoder_tokens
    WHERE run_id = $run_id
),

said AS (
    SELECT
        token_id,
        out_latent,
        in_latent,
        mlp_effect
    FROM transcoder_effects
    WHERE run_id = $run_id
),

entries AS (
    SELECT
        e.token_id,
        e.out_latent,
        e.in_latent,
        e.value
    FROM jacobian_entries AS e
    INNER JOIN is_transcoder AS i ON e.run_id = i.run_id
),

active AS (
    SELECT
        l.token_id,
        l.latent
    FROM latents AS l
    INNER JOIN is_transcoder AS i ON l.run_id = i.run_id
    WHERE l.side = 'in'
),

described AS (
    SELECT
        token_id,
        latent,
        cosine,
        isolation
    FROM transcoder_latents
    WHERE run_id = $run_id
),

measured AS (
    SELECT token_id
    FROM transcoder_tokens
    WHERE run_id = $run_id
),

analysed AS (
    SELECT t.token_id
    FROM tokens AS t
    INNER JOIN is_transcoder AS i ON t.run_id = i.run_id
),

effects AS (
    SELECT
        'transcoder_effects' AS table_name,
        coalesce(t.token_id, e.token_id) AS token_id,
        coalesce(t.out_latent, e.out_latent) AS out_latent,
        coalesce(t.in_latent, e.in_latent) AS in_latent,
        CASE
            WHEN e.token_id IS NULL THEN 'no such entry'
            WHEN t.token_id IS NULL THEN 'an entry without an effect'
            WHEN coalesce(t.mlp_effect <> e.value, TRUE) THEN 'mlp_effect is not J of the entry'
        END AS problem
    FROM said AS t
    FULL JOIN entries AS e
        ON t.token_id = e.token_id AND t.out_latent = e.out_latent AND t.in_latent = e.in_latent
),

directions AS (
    SELECT
        'transcoder_latents' AS table_name,
        coalesce(t.token_id, l.token_id) AS token_id,
        NULL::UINTEGER AS out_latent,
        coalesce(t.latent, l.latent) AS in_latent,
        CASE
            WHEN l.token_id IS NULL THEN 'not an active latent'
            WHEN t.token_id IS NULL THEN 'an active latent without a direction'
            WHEN NOT abs(t.cosine) <= 1 THEN 'cosine beyond 1'
            WHEN NOT t.isolation BETWEEN -1e-3 AND 1.001 THEN 'isolation not between 0 and 1'
        END AS problem
    FROM described AS t
    FULL JOIN active AS l
        ON t.token_id = l.token_id AND t.latent = l.latent
),

errors AS (
    SELECT
        'transcoder_tokens' AS table_name,
        coalesce(e.token_id, t.token_id) AS token_id,
        NULL::UINTEGER AS out_latent,
        NULL::UINTEGER AS in_latent,
        CASE
            WHEN t.token_id IS NULL THEN 'no such token'
            WHEN e.token_id IS NULL THEN 'a token without an error'
        END AS problem
    FROM measured AS e
    FULL JOIN analysed AS t ON e.token_id = t.token_id
),

found AS (
    SELECT
        table_name,
        token_id,
        out_latent,
        in_latent,
        problem
    FROM effects
    UNION ALL
    SELECT
        table_name,
        token_id,
        out_latent,
        in_latent,
        problem
    FROM directions
    UNION ALL
    SELECT
        table_name,
        token_id,
        out_latent,
        in_latent,
        problem
    FROM errors
)

SELECT
    table_name,
    token_id,
    out_latent,
    in_latent,
    problem
FROM found
WHERE problem IS NOT NULL
ORDER BY table_name, token_id, out_latent, in_latent
