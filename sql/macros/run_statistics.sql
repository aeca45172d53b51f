-- question: What are the main figures of a run?
-- reads: runs, token_sparsity, count_above, threshold_counts, counted, pair_means, pair_share_reach, causal_bins,
--   function_shapes
-- parameters:
--   of_run VARCHAR - the run
--   above DOUBLE[] - ascending thresholds of |J|
--   most_tokens BIGINT - sparsity of at most this many tokens, evenly spaced [tokens]
--   of_kind VARCHAR - the kind of intervention
--   zero_below DOUBLE - |J| below this is about zero
--   relative_zero_below DOUBLE - the same for |J| / token_rms
--   moved_by DOUBLE - an effect larger than this counts as one
-- grain: one statistic (and threshold)
-- columns:
--   rank INTEGER - order of the statistics
--   statistic VARCHAR - see the report compare_runs
--   threshold DOUBLE - of |J|, where there is one
--   measured DOUBLE - its value
--   low DOUBLE - its 95 % interval, where there is one
--   high DOUBLE - its 95 % interval, where there is one
WITH thresholds AS (
    SELECT
        unnest(above)::DOUBLE AS threshold,
        above::DOUBLE[] AS edges
),

facts AS (
    SELECT
        unnest([1, 2, 3, 4]) AS rank,
        unnest(['tokens', 'fvu_in', 'fvu_out', 'entries_per_token']) AS statistic,
        unnest([tokens, fvu_in, fvu_out, entries_total / nullif(tokens, 0)]::DOUBLE[]) AS measured
    FROM runs
    WHERE run_id = of_run
),

token_measures AS (
    SELECT
        entries,
        l1,
        l1_over_l2,
        hoyer,
        gini,
        kurtosis,
        bins
    FROM token_sparsity(of_run, most_tokens, above)
),

sparsity AS (
    SELECT
        unnest([5, 6, 7, 8, 9, 10]) AS rank,
        unnest([
            'mean_abs', 'median_l1_over_l2', 'median_hoyer', 'median_gini', 'median_kurtosis', 'mean_kurtosis'
        ]) AS statistic,
        unnest([
            sum(l1) / nullif(sum(entries), 0), median(l1_over_l2), median(hoyer), median(gini), median(kurtosis),
            avg(kurtosis)
        ]::DOUBLE[]) AS measured
    FROM token_measures
),

entries_above AS (
    SELECT
        11 AS rank,
        'entries_above_per_token' AS statistic,
        t.threshold,
        avg(count_above(m.bins, t.threshold)) AS measured
    FROM token_measures AS m
    CROSS JOIN thresholds AS t
    INNER JOIN runs AS r ON r.run_id IN (SELECT of_run) AND r.keep = 'entries'
    GROUP BY t.threshold
),

needed AS (
    SELECT NOT coalesce(counted(of_run, 'active', above), FALSE) AS from_pairs
),

held AS (
    SELECT
        threshold,
        pairs_mean_all_tokens,
        pairs_max
    FROM threshold_counts
    WHERE
        run_id IN (SELECT of_run)
        AND scope = 'active'
        AND part = 1
        AND left_out = -1
        AND NOT (SELECT needed.from_pairs FROM needed)
),

pair_bins AS (
    SELECT
        histogram(p.mean_abs_all_tokens, t.edges) AS mean_bins,
        histogram(p.max_abs::DOUBLE, t.edges) AS max_bins
    FROM pair_means AS p
    CROSS JOIN (SELECT any_value(thresholds.edges) AS edges FROM thresholds) AS t
    WHERE p.run_id IN (SELECT of_run) AND p.scope = 'active' AND (SELECT needed.from_pairs FROM needed)
),

pairs_above AS (
    SELECT
        unnest([12, 13]) AS rank,
        unnest(['share_of_pairs_mean_above', 'share_of_pairs_max_above']) AS statistic,
        t.threshold,
        unnest([
            coalesce(h.pairs_mean_all_tokens, count_above(p.mean_bins, t.threshold)),
            coalesce(h.pairs_max, count_above(p.max_bins, t.threshold))
        ]) / nullif(r.n_out_latents * r.n_in_latents, 0) AS measured,
        unnest([i.mean_reach, i.max_reach]) AS reach
    FROM pair_bins AS p
    CROSS JOIN thresholds AS t
    INNER JOIN runs AS r ON r.run_id IN (SELECT of_run)
    LEFT JOIN held AS h ON t.threshold = h.threshold
    LEFT JOIN pair_share_reach(of_run, above, 20, 1) AS i ON t.threshold = i.threshold  -- noqa: RF02
),

causal AS (
    SELECT
        measure,
        low,
        share_above,
        share_above_low,
        share_above_high,
        share_left,
        share_left_low,
        share_left_high,
        share_above_staying,
        share_above_staying_low,
        share_above_staying_high,
        r2_first,
        r2_second
    FROM causal_bins(of_run, of_kind, [zero_below]::DOUBLE[], [relative_zero_below]::DOUBLE[], moved_by, 0.1)
),

near_zero AS (
    SELECT
        unnest([14, 15, 16]) AS rank,
        unnest(['near_zero_share_above', 'near_zero_share_left', 'near_zero_share_above_staying']) AS statistic,
        unnest([share_above, share_left, share_above_staying]) AS measured,
        unnest([share_above_low, share_left_low, share_above_staying_low]) AS low,
        unnest([share_above_high, share_left_high, share_above_staying_high]) AS high
    FROM causal
    WHERE measure = 'absolute' AND low < zero_below
),

relative_near_zero AS (
    SELECT
        17 AS rank,
        'relative_near_zero_share_above' AS statistic,
        share_above AS measured,
        share_above_low AS low,
        share_above_high AS high
    FROM causal
    WHERE measure = 'relative' AND low < relative_zero_below
),

predictions AS (
    SELECT
        unnest([18, 19, 20]) AS rank,
        unnest(['share_above', 'r2_first', 'r2_second']) AS statistic,
        unnest([share_above, r2_first, r2_second]) AS measured,
        unnest([share_above_low, NULL, NULL]) AS low,
        unnest([share_above_high, NULL, NULL]) AS high
    FROM causal
    WHERE measure = 'all'
),

shapes AS (
    SELECT
        unnest(range(21, 27)) AS rank,
        unnest([
            'shape_linear', 'shape_jumprelu', 'shape_other', 'scale_free_linear', 'scale_free_jumprelu',
            'scale_free_other'
        ]) AS statistic,
        unnest([
            sum(weight * (shape = 'linear')::INTEGER) / sum(weight),
            sum(weight * (shape = 'jumprelu')::INTEGER) / sum(weight),
            sum(weight * (shape = 'other')::INTEGER) / sum(weight),
            sum(weight * (shape_scale_free = 'linear')::INTEGER) / sum(weight),
            sum(weight * (shape_scale_free = 'jumprelu')::INTEGER) / sum(weight),
            sum(weight * (shape_scale_free = 'other')::INTEGER) / sum(weight)
        ]) AS measured
    FROM function_shapes
    WHERE run_id = of_run AND weight > 0
),

collected AS (
    SELECT
        rank,
        statistic,
        NULL::DOUBLE AS threshold,
        measured,
        NULL::DOUBLE AS low,
        NULL::DOUBLE AS high
    FROM facts
    UNION ALL
    SELECT
        rank,
        statistic,
        NULL AS threshold,
        measured,
        NULL AS low,
        NULL AS high
    FROM sparsity
    UNION ALL
    SELECT
        rank,
        statistic,
        threshold,
        measured,
        NULL AS low,
        NULL AS high
    FROM entries_above
    UNION ALL
    SELECT
        rank,
        statistic,
        threshold,
        measured,
        greatest(measured - reach, 0 * reach) AS low,
        least(measured + reach, 1 + 0 * reach) AS high
    FROM pairs_above
    UNION ALL
    SELECT
        rank,
        statistic,
        NULL AS threshold,
        measured,
        low,
        high
    FROM near_zero
    UNION ALL
    SELECT
        rank,
        statistic,
        NULL AS threshold,
        measured,
        low,
        high
    FROM relative_near_zero
    UNION ALL
    SELECT
        rank,
        statistic,
        NULL AS threshold,
        measured,
        low,
        high
    FROM predictions
    UNION ALL
    SELECT
        rank,
        statistic,
        NULL AS threshold,
        measured,
        NULL AS low,
        NULL AS high
    FROM shapes
)

SELECT
    rank::INTEGER AS rank,
    statistic,
    threshold,
    measured,
    low,
    high
FROM collected
WHERE measured IS NOT NULL
