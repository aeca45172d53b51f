-- invariant: a token's entries_stored and abs_sum_stored are the count and the sum of |J| of its entries
-- reads: tokens, jacobian_entries, runs
-- parameters:
--   run_id VARCHAR - the run
-- grain: one token whose count or sum differs
-- columns:
--   token_id BIGINT - the token
--   entries_stored INTEGER - as the token says [entries]
--   entries_found BIGINT - entries of the token [entries]
--   abs_sum_stored DOUBLE - as the token says
--   abs_sum_found DOUBLE - sum of |J| of its entries
--
-- Of a run that does not keep entries only the sums by pair can be compared (pair_sums).
-- Sums are compared to 1e-9 of themselves: both are float64, added in another order. NOT <= also catches a NaN.
WITH found AS (
    SELECT
        token_id,
        count(*) AS entries,
        sum(abs(value)::DOUBLE) AS abs_sum
    FROM jacobian_entries
    WHERE run_id = $run_id
    GROUP BY token_id
)

SELECT
    t.token_id,
    t.entries_stored,
    coalesce(f.entries, 0) AS entries_found,
    t.abs_sum_stored,
    coalesce(f.abs_sum, 0) AS abs_sum_found
FROM tokens AS t
INNER JOIN runs AS r ON t.run_id = r.run_id AND r.keep = 'entries'
LEFT JOIN found AS f ON t.token_id = f.token_id
WHERE
    t.run_id = $run_id
    AND (
        t.entries_stored <> coalesce(f.entries, 0)
        OR NOT abs(t.abs_sum_stored - coalesce(f.abs_sum, 0)) <= 1e-9 * t.abs_sum_stored
    )
ORDER BY t.token_id
