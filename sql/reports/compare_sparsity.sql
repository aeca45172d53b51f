-- question: Is the Jacobian of one run sparser than that of another (a JSAE pair against its control)?
-- reads: runs, token_sparsity, count_above
-- parameters:
--   run_a VARCHAR - the first run
--   run_b VARCHAR - the run to compare it with
--   thresholds DOUBLE[] default 0.005,0.01,0.015,0.02 - count the entries with |J| strictly greater than these
--   max_tokens BIGINT default 50000 - measure at most this many tokens of each run, evenly spaced [tokens]
-- grain: one measure (mean_entries_above: one for each threshold)
-- columns:
--   measure VARCHAR - fvu_in, fvu_out: share of variance unexplained; mean_..., median_...: over tokens, see
--     sql/macros/token_sparsity.sql for the measures
--   threshold DOUBLE - of mean_entries_above, null otherwise
--   run_a DOUBLE - value of the first run
--   run_b DOUBLE - value of the other run
--   a_over_b DOUBLE - their ratio; null where run_b is 0
WITH measured AS (
    SELECT
        'a' AS run,
        entries,
        l1,
        l1_over_l2,
        hoyer,
        gini,
        kurtosis,
        bins
    FROM token_sparsity($run_a, $max_tokens, list_sort(list_distinct($thresholds)))
    UNION ALL
    SELECT
        'b' AS run,
        entries,
        l1,
        l1_over_l2,
        hoyer,
        gini,
        kurtosis,
        bins
    FROM token_sparsity($run_b, $max_tokens, list_sort(list_distinct($thresholds)))
),

summary AS (
    SELECT
        run,
        avg(entries) AS entries,
        sum(l1) / sum(entries) AS mean_abs,
        median(l1_over_l2) AS l1_over_l2,
        median(hoyer) AS hoyer,
        median(gini) AS gini,
        median(kurtosis) AS median_kurtosis,
        avg(kurtosis) AS mean_kurtosis
    FROM measured
    GROUP BY run
),

facts AS (
    SELECT
        'a' AS run,
        fvu_in,
        fvu_out,
        tokens
    FROM runs
    WHERE run_id = $run_a
    UNION ALL
    SELECT
        'b' AS run,
        fvu_in,
        fvu_out,
        tokens
    FROM runs
    WHERE run_id = $run_b
),

measures AS (
    SELECT
        f.run,
        unnest(range(10)) AS rank,
        unnest([
            'tokens', 'fvu_in', 'fvu_out', 'mean_entries', 'mean_abs', 'median_l1_over_l2', 'median_hoyer',
            'median_gini', 'median_kurtosis', 'mean_kurtosis'
        ]) AS measure,
        NULL::DOUBLE AS threshold,
        unnest([
            f.tokens, f.fvu_in, f.fvu_out, s.entries, s.mean_abs, s.l1_over_l2, s.hoyer,
            s.gini, s.median_kurtosis, s.mean_kurtosis
        ]::DOUBLE[]) AS measured_value
    FROM facts AS f
    LEFT JOIN summary AS s ON f.run = s.run
    UNION ALL
    SELECT
        m.run,
        11 AS rank,
        'mean_entries_above' AS measure,
        t.threshold,
        avg(count_above(m.bins, t.threshold)) AS measured_value
    FROM measured AS m
    CROSS JOIN (SELECT unnest(list_distinct($thresholds)) AS threshold) AS t
    GROUP BY m.run, t.threshold
)

SELECT
    measure,
    threshold,
    max(measured_value) FILTER (WHERE run = 'a') AS run_a,
    max(measured_value) FILTER (WHERE run = 'b') AS run_b,
    max(measured_value) FILTER (WHERE run = 'a') / nullif(max(measured_value) FILTER (WHERE run = 'b'), 0) AS a_over_b
FROM measures
GROUP BY rank, measure, threshold
ORDER BY rank, threshold
