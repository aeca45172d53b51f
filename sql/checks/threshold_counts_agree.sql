-- invariant: `threshold_counts` counts the pairs of `pair_stats` and the entries, fewer above higher thresholds
-- reads: threshold_counts, pair_stats, jacobian_entries, runs, count_above
-- parameters:
--   run_id VARCHAR - the run
-- grain: one count that can't be
-- columns:
--   what VARCHAR - which count, or what it contradicts
--   scope VARCHAR - 'active' or 'all_inputs'
--   part SMALLINT - the stage is the first 1/part of the tokens
--   left_out SMALLINT - the batch that is not counted; -1: none
--   threshold DOUBLE - |J| strictly greater than this
--   expected BIGINT - the count by the other table, or a bound
--   found BIGINT - from threshold_counts
--
-- Of all tokens, nothing left out, each count is made again; of the others only the bounds are looked at.
WITH counts AS (
    SELECT
        scope,
        part,
        left_out,
        threshold,
        pairs_mean_all_tokens,
        pairs_max,
        entries,
        lag(pairs_mean_all_tokens) OVER lower_ones AS lower_mean,
        lag(pairs_max) OVER lower_ones AS lower_max,
        first_value(pairs_max) OVER (PARTITION BY scope, part, threshold ORDER BY left_out) AS whole_max
    FROM threshold_counts
    WHERE run_id = $run_id
    WINDOW lower_ones AS (PARTITION BY scope, part, left_out ORDER BY threshold)
),

edges AS (
    SELECT
        scope,
        list(threshold ORDER BY threshold) AS edges
    FROM counts
    WHERE part = 1 AND left_out = -1
    GROUP BY scope
),

pair_bins AS (
    SELECT
        p.scope,
        histogram(p.sum_abs / r.tokens, e.edges) AS means,
        histogram(p.max_abs::DOUBLE, e.edges) AS largest
    FROM pair_stats AS p
    INNER JOIN edges AS e ON p.scope = e.scope
    INNER JOIN runs AS r ON p.run_id = r.run_id
    WHERE p.run_id = $run_id
    GROUP BY p.scope
),

entry_bins AS (
    SELECT histogram(abs(n.value)::DOUBLE, e.edges) AS entries
    FROM jacobian_entries AS n
    INNER JOIN edges AS e ON e.scope = 'active'
    WHERE n.run_id = $run_id
),

compared AS (
    SELECT
        c.scope,
        c.part,
        c.left_out,
        c.threshold,
        unnest([
            'pairs_mean_all_tokens', 'pairs_max', 'entries', 'more means than at the threshold before',
            'more pairs_max than at the threshold before', 'more pairs_max than with all batches'
        ]) AS what,
        unnest([
            CASE WHEN c.part = 1 AND c.left_out = -1 THEN count_above(p.means, c.threshold) END,
            CASE WHEN c.part = 1 AND c.left_out = -1 THEN count_above(p.largest, c.threshold) END,
            CASE WHEN c.entries IS NOT NULL THEN count_above(e.entries, c.threshold) END,
            c.lower_mean,
            c.lower_max,
            c.whole_max
        ]) AS expected,
        unnest([
            c.pairs_mean_all_tokens, c.pairs_max, c.entries, c.pairs_mean_all_tokens, c.pairs_max, c.pairs_max
        ]) AS found,
        unnest([TRUE, TRUE, TRUE, FALSE, FALSE, FALSE]) AS exact
    FROM counts AS c
    CROSS JOIN entry_bins AS e
    LEFT JOIN pair_bins AS p ON c.scope = p.scope
)

SELECT
    what,
    scope,
    part,
    left_out,
    threshold,
    expected,
    found
FROM compared
WHERE CASE WHEN exact THEN found <> expected ELSE found > expected END
ORDER BY what, scope, part, left_out, threshold
