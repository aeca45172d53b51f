-- invariant: what thresholds dropped adds up: nothing is stored beyond the totals, and without drops both are equal
-- reads: tokens
-- parameters:
--   run_id VARCHAR - the run
-- grain: one token whose totals contradict each other
-- columns:
--   token_id BIGINT - the token
--   entries_total INTEGER - before thresholds [entries]
--   entries_stored INTEGER - after thresholds [entries]
--   abs_sum_total DOUBLE - sum of |J| before thresholds
--   abs_sum_stored DOUBLE - sum of |J| after thresholds
--   sq_sum_total DOUBLE - sum of J^2 before thresholds
--   abs_max FLOAT - largest |J| before thresholds
--
-- 1e-6 is more than float32's rounding of abs_max; 1e-300 lets squares underflow to 0.
SELECT
    token_id,
    entries_total,
    entries_stored,
    abs_sum_total,
    abs_sum_stored,
    sq_sum_total,
    abs_max
FROM tokens
WHERE
    run_id = $run_id
    AND (
        entries_stored > entries_total
        OR NOT abs_sum_stored <= abs_sum_total * (1 + 1e-9)
        OR (entries_stored = entries_total AND NOT abs_sum_stored >= abs_sum_total * (1 - 1e-9))
        -- The norms of any n numbers: max <= l1 <= n max, and l1^2 / n <= l2^2 <= l1 max.
        OR NOT abs_max <= abs_sum_total * (1 + 1e-6)
        OR NOT abs_sum_total <= entries_total * abs_max::DOUBLE * (1 + 1e-6)
        OR NOT sq_sum_total <= abs_sum_total * abs_max * (1 + 1e-6) + 1e-300
        OR NOT abs_sum_total ** 2 <= entries_total * sq_sum_total * (1 + 1e-6) + 1e-300
    )
ORDER BY token_id
