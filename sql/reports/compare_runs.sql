-- question: How do two runs differ: a JSAE pair and its control, one layer and another, trained and random weights?
-- reads: run_statistics
-- parameters:
--   run_a VARCHAR - the first run
--   run_b VARCHAR - the run to compare it with
--   thresholds DOUBLE[] default 0.001,0.005,0.01,0.02,0.1 - of |J|: strictly greater than these
--   max_tokens BIGINT default 50000 - sparsity of at most this many tokens of each run, evenly spaced [tokens]
--   kind VARCHAR default ablate - the kind of intervention
--   near_zero DOUBLE default 0.001 - |J| below this is about zero
--   relative_near_zero DOUBLE default 0.01 - the same for |J| / token_rms
--   tau DOUBLE default 0.1 - an effect larger than this counts as one
-- grain: one statistic (and threshold) that at least one of the runs has
-- columns:
--   statistic VARCHAR - tokens; fvu_in, fvu_out: share of variance unexplained; entries_per_token: active pairs;
--     mean_abs: of |J|; median_..., mean_kurtosis: over tokens, see sql/macros/token_sparsity.sql;
--     entries_above_per_token: mean count above the threshold; share_of_pairs_...: of all n_out x n_in pairs, those
--     whose mean over all tokens, or largest, |J| is above it; near_zero_...: of active pairs with |J| < near_zero, see
--     causal_zero_test; share_above, r2_...: of all active pairs; shape_..., scale_free_...: see function_shapes
--   threshold DOUBLE - of |J|, where there is one
--   run_a DOUBLE - value of the first run; null: it has none
--   run_b DOUBLE - value of the other run
--   a_minus_b DOUBLE - their difference
--   a_over_b DOUBLE - their ratio; null where run_b is 0
--   run_a_low DOUBLE - 95 % interval of run_a, where there is one
--   run_a_high DOUBLE - 95 % interval of run_a
--   run_b_low DOUBLE - 95 % interval of run_b
--   run_b_high DOUBLE - 95 % interval of run_b
-- without entries: statistics of single entries, and intervals of pairs, are left out
WITH both_runs AS (
    SELECT
        'a' AS run,
        rank,
        statistic,
        threshold,
        measured,
        low,
        high
    FROM
        run_statistics(
            $run_a, list_sort(list_distinct($thresholds)), $max_tokens, $kind, $near_zero, $relative_near_zero, $tau
        )
    UNION ALL
    SELECT
        'b' AS run,
        rank,
        statistic,
        threshold,
        measured,
        low,
        high
    FROM
        run_statistics(
            $run_b, list_sort(list_distinct($thresholds)), $max_tokens, $kind, $near_zero, $relative_near_zero, $tau
        )
)

SELECT
    statistic,
    threshold,
    max(measured) FILTER (WHERE run = 'a') AS run_a,
    max(measured) FILTER (WHERE run = 'b') AS run_b,
    max(measured) FILTER (WHERE run = 'a') - max(measured) FILTER (WHERE run = 'b') AS a_minus_b,
    max(measured) FILTER (WHERE run = 'a') / nullif(max(measured) FILTER (WHERE run = 'b'), 0) AS a_over_b,
    max(low) FILTER (WHERE run = 'a') AS run_a_low,
    max(high) FILTER (WHERE run = 'a') AS run_a_high,
    max(low) FILTER (WHERE run = 'b') AS run_b_low,
    max(high) FILTER (WHERE run = 'b') AS run_b_high
FROM both_runs
GROUP BY rank, statistic, threshold
ORDER BY rank, threshold
