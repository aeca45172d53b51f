-- invariant: latent indices are below the widths of their SAEs
-- reads: latents, latent_stats, jacobian_entries, runs
-- parameters:
--   run_id VARCHAR - the run
-- grain: one index that is too large
-- columns:
--   table_name VARCHAR - the table
--   side VARCHAR - 'in' or 'out'
--   largest UINTEGER - largest index of that side
--   width BIGINT - latents of the SAE [latents]
WITH largest AS (
    SELECT
        'latents' AS table_name,
        side,
        max(latent) AS largest
    FROM latents
    WHERE run_id = $run_id
    GROUP BY side
    UNION ALL
    SELECT
        'latent_stats' AS table_name,
        side,
        max(latent) AS largest
    FROM latent_stats
    WHERE run_id = $run_id
    GROUP BY side
    UNION ALL
    SELECT
        'jacobian_entries' AS table_name,
        unnest(['in', 'out']) AS side,
        unnest([max(in_latent), max(out_latent)]) AS largest
    FROM jacobian_entries
    WHERE run_id = $run_id
)

SELECT
    l.table_name,
    l.side,
    l.largest,
    CASE l.side WHEN 'in' THEN r.n_in_latents ELSE r.n_out_latents END AS width
FROM largest AS l
INNER JOIN runs AS r ON r.run_id = $run_id
WHERE l.largest >= CASE l.side WHEN 'in' THEN r.n_in_latents ELSE r.n_out_latents END
ORDER BY l.table_name, l.side
