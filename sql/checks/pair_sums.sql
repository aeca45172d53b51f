-- invariant: `pair_stats` of scope 'active' adds up to the entries, and no pair contradicts itself
-- reads: pair_stats, runs
-- parameters:
--   run_id VARCHAR - the run
-- grain: one pair that contradicts itself, or a sum that differs from the run (then without latents)
-- columns:
--   what VARCHAR - which of them
--   out_latent UINTEGER - latent of the output SAE; null: the whole run
--   in_latent UINTEGER - latent of the input SAE; null: the whole run
--   expected DOUBLE - from the run, or a bound
--   found DOUBLE - from pair_stats
WITH totals AS (
    SELECT
        coalesce(sum(n_stored), 0)::DOUBLE AS n_stored,
        coalesce(sum(sum_abs), 0) AS sum_abs,
        coalesce(sum(sum_sq), 0) AS sum_sq
    FROM pair_stats
    WHERE run_id = $run_id AND scope = 'active'
)

SELECT
    'sum of n_stored' AS what,
    NULL::UINTEGER AS out_latent,
    NULL::UINTEGER AS in_latent,
    r.entries_stored::DOUBLE AS expected,
    t.n_stored AS found
FROM runs AS r
CROSS JOIN totals AS t
WHERE r.run_id = $run_id AND t.n_stored <> r.entries_stored
UNION ALL
SELECT
    'sum of sum_abs' AS what,
    NULL::UINTEGER AS out_latent,
    NULL::UINTEGER AS in_latent,
    r.abs_sum_stored AS expected,
    t.sum_abs AS found
FROM runs AS r
CROSS JOIN totals AS t
WHERE r.run_id = $run_id AND NOT abs(t.sum_abs - r.abs_sum_stored) <= 1e-9 * r.abs_sum_stored
UNION ALL
SELECT
    'sum of sum_sq' AS what,
    NULL::UINTEGER AS out_latent,
    NULL::UINTEGER AS in_latent,
    r.sq_sum_total AS expected,
    t.sum_sq AS found
FROM runs AS r
CROSS JOIN totals AS t
WHERE r.run_id = $run_id AND NOT r.thresholded AND NOT abs(t.sum_sq - r.sq_sum_total) <= 1e-9 * r.sq_sum_total
UNION ALL
SELECT
    'max_abs below min_abs' AS what,
    p.out_latent,
    p.in_latent,
    r.min_abs AS expected,
    p.max_abs::DOUBLE AS found
FROM pair_stats AS p
INNER JOIN runs AS r ON p.run_id = r.run_id
WHERE p.run_id = $run_id AND p.scope = 'active' AND p.max_abs < r.min_abs::FLOAT
UNION ALL
SELECT
    'n_coactive below n_stored' AS what,
    out_latent,
    in_latent,
    n_stored::DOUBLE AS expected,
    n_coactive::DOUBLE AS found
FROM pair_stats
WHERE run_id = $run_id AND scope = 'active' AND n_coactive < n_stored
UNION ALL
SELECT
    '|sum| above sum_abs' AS what,
    out_latent,
    in_latent,
    sum_abs AS expected,
    abs("sum") AS found
FROM pair_stats
WHERE run_id = $run_id AND NOT abs("sum") <= sum_abs * (1 + 1e-9)
UNION ALL
SELECT
    'sum_abs above n_stored * max_abs' AS what,
    out_latent,
    in_latent,
    n_stored * max_abs::DOUBLE AS expected,
    sum_abs AS found
FROM pair_stats
WHERE run_id = $run_id AND NOT sum_abs <= n_stored * max_abs::DOUBLE * (1 + 1e-6)
UNION ALL
SELECT
    'sum_sq above sum_abs * max_abs' AS what,
    out_latent,
    in_latent,
    sum_abs * max_abs::DOUBLE AS expected,
    sum_sq AS found
FROM pair_stats
WHERE run_id = $run_id AND NOT sum_sq <= sum_abs * max_abs::DOUBLE * (1 + 1e-6)
ORDER BY what, out_latent, in_latent
