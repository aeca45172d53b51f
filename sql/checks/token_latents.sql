-- invariant: a token's counts of active latents are those of `latents`, and their product is entries_total
-- reads: tokens, latents, runs
-- parameters:
--   run_id VARCHAR - the run
-- grain: one token whose counts differ
-- columns:
--   token_id BIGINT - the token
--   in_active SMALLINT - as the token says [latents]
--   in_found BIGINT - rows of latents [latents]
--   out_active SMALLINT - as the token says [latents]
--   out_found BIGINT - rows of latents [latents]
--   entries_total INTEGER - as the token says [entries]
--
-- Of a run that does not keep `latents` only the product can be compared, and sums by latent (latent_sums).
WITH found AS (
    SELECT
        token_id,
        count(*) FILTER (WHERE side = 'in') AS in_found,
        count(*) FILTER (WHERE side = 'out') AS out_found
    FROM latents
    WHERE run_id = $run_id
    GROUP BY token_id
)

SELECT
    t.token_id,
    t.in_active,
    coalesce(f.in_found, 0) AS in_found,
    t.out_active,
    coalesce(f.out_found, 0) AS out_found,
    t.entries_total
FROM tokens AS t
INNER JOIN runs AS r ON t.run_id = r.run_id
LEFT JOIN found AS f ON t.token_id = f.token_id
WHERE
    t.run_id = $run_id
    AND (
        (r.keep <> 'aggregates' AND t.in_active <> coalesce(f.in_found, 0))
        OR (r.keep <> 'aggregates' AND t.out_active <> coalesce(f.out_found, 0))
        OR t.in_active::BIGINT * t.out_active::BIGINT <> t.entries_total
    )
ORDER BY t.token_id
