-- question: How sparse is the Jacobian of a single token?
-- reads: token_sparsity, count_above
-- parameters:
--   run_id VARCHAR - the run
--   thresholds DOUBLE[] default 0.005,0.01,0.015,0.02 - count the entries with |J| strictly greater than these
--   max_tokens BIGINT default 50000 - measure at most this many tokens, evenly spaced [tokens]
-- grain: one measure of a token (entries_above: one for each threshold)
-- columns:
--   measure VARCHAR - l1_over_l2, hoyer, gini, kurtosis: scale-free, see sql/macros/token_sparsity.sql; l1, l2, abs_max
--     are in units of J; entries: active pairs; entries_above: stored entries above the threshold
--   threshold DOUBLE - of entries_above, null otherwise
--   mean DOUBLE - over tokens
--   median DOUBLE - over tokens
--   p05 DOUBLE - 5th percentile over tokens
--   p95 DOUBLE - 95th percentile over tokens
--   tokens BIGINT - tokens for which the measure is defined [tokens]
WITH measured AS (
    SELECT
        entries,
        l1,
        l2,
        l1_over_l2,
        hoyer,
        gini,
        kurtosis,
        abs_max,
        bins
    FROM token_sparsity($run_id, $max_tokens, list_sort(list_distinct($thresholds)))
),

measures AS (
    SELECT
        unnest([1, 2, 3, 4, 5, 6, 7, 8]) AS rank,
        unnest(['l1_over_l2', 'hoyer', 'gini', 'kurtosis', 'l1', 'l2', 'abs_max', 'entries']) AS measure,
        NULL::DOUBLE AS threshold,
        unnest([l1_over_l2, hoyer, gini, kurtosis, l1, l2, abs_max, entries]::DOUBLE[]) AS measured_value
    FROM measured
    UNION ALL
    SELECT
        9 AS rank,
        'entries_above' AS measure,
        t.threshold,
        count_above(m.bins, t.threshold) AS measured_value
    FROM measured AS m
    CROSS JOIN (SELECT unnest(list_distinct($thresholds)) AS threshold) AS t
)

SELECT
    measure,
    threshold,
    avg(measured_value) AS mean,
    median(measured_value) AS median,
    quantile_cont(measured_value, 0.05) AS p05,
    quantile_cont(measured_value, 0.95) AS p95,
    count(measured_value) AS tokens
FROM measures
GROUP BY rank, measure, threshold
ORDER BY rank, threshold
