-- invariant: both latents of every entry are active at its token
-- reads: jacobian_entries, latents
-- parameters:
--   run_id VARCHAR - the run
-- grain: one latent at one token that has entries and is not active
-- columns:
--   side VARCHAR - 'in' or 'out'
--   token_id BIGINT - the token
--   latent UINTEGER - the latent
--   entries BIGINT - entries that refer to it [entries]
WITH used AS (
    SELECT
        'in' AS side,
        token_id,
        in_latent AS latent,
        count(*) AS entries
    FROM jacobian_entries
    WHERE run_id = $run_id
    GROUP BY token_id, in_latent
    UNION ALL
    SELECT
        'out' AS side,
        token_id,
        out_latent AS latent,
        count(*) AS entries
    FROM jacobian_entries
    WHERE run_id = $run_id
    GROUP BY token_id, out_latent
)

SELECT
    u.side,
    u.token_id,
    u.latent,
    u.entries
FROM used AS u
ANTI JOIN latents AS l
    ON u.side = l.side AND u.token_id = l.token_id AND u.latent = l.latent AND l.run_id = $run_id
ORDER BY u.side, u.token_id, u.latent
