-- question: How far do the shares of pairs above a threshold reach to each side, other tokens being drawn?
-- reads: threshold_counts, counted, jacobian_entries, j_steps, runs, document_batches, count_above, t_quantile
-- parameters:
--   of_run VARCHAR - the run
--   above DOUBLE[] - ascending thresholds: a value counts where it is strictly greater
--   n_batches BIGINT - batches of documents; below 2: no intervals, and no work
--   of_share DOUBLE - only the first tokens of the corpus, this share of them; 1: all
-- grain: one threshold
-- columns:
--   threshold DOUBLE - of `above`
--   mean_reach DOUBLE - half of the 95 % interval of the share of pairs whose mean |J| over all tokens is above [share]
--   max_reach DOUBLE - the same for the largest |J| [share]
--
-- These shares are no means over tokens: more tokens give larger shares. So batches can't be looked at one by one; each
-- is left out in turn instead (jackknife), which also leaves 19 of 20 tokens in. The interval is for the share at this
-- number of tokens, were other documents of the same kind drawn; it says nothing about more tokens (see convergence).
-- Where no batch makes a difference (no pair is above, or all are) its spread is not seen: null, not 0.
-- The pairs without each batch are in `threshold_counts`, for its thresholds and its number of batches; for others they
-- are computed from the entries, exactly the same.
-- A jackknife's variance is too large on average rather than too small (Efron and Stein 1981): for shares that rare
-- pairs decide, the interval is up to half too wide.
WITH needed AS (
    SELECT
        (n_batches > 1)
        AND NOT (
            coalesce(counted(of_run, 'active', above), FALSE)
            AND EXISTS (
                SELECT 1
                FROM threshold_counts AS h
                WHERE h.run_id = of_run AND h.scope = 'active' AND h.part * of_share = 1 AND h.batches = n_batches
            )
        ) AS from_entries
),

grid AS (
    SELECT steps
    FROM j_steps(of_run)
),

held AS (
    SELECT
        threshold,
        pairs_mean_all_tokens,
        pairs_max
    FROM threshold_counts
    WHERE
        run_id = of_run
        AND scope = 'active'
        AND part * of_share = 1
        AND left_out >= 0
        AND list_contains(above, threshold)
        AND n_batches > 1
        AND NOT (SELECT needed.from_entries FROM needed)
),

batched AS (
    SELECT
        document_id,
        batch,
        tokens,
        last_token_id
    FROM document_batches(of_run, n_batches, of_share)
    WHERE n_batches > 1 AND (SELECT needed.from_entries FROM needed)
),

batch_sizes AS (
    SELECT
        batch,
        sum(sum(tokens)) OVER () - sum(tokens) AS rest
    FROM batched
    GROUP BY batch
),

entries AS (
    SELECT
        token_id,
        (out_latent::UBIGINT << 32) | in_latent::UBIGINT AS pair,
        abs(value)::DOUBLE AS magnitude
    FROM jacobian_entries
    WHERE run_id = of_run AND (SELECT needed.from_entries FROM needed)
),

widths AS (
    SELECT nullif(n_out_latents * n_in_latents, 0) AS n_pairs
    FROM runs
    WHERE run_id = of_run
),

thresholds AS (
    SELECT
        unnest(list_distinct(above))::DOUBLE AS threshold,
        above::DOUBLE[] AS edges
),

partials AS (
    SELECT
        e.pair,
        b.batch,
        sum(ceil(e.magnitude * j.steps)::HUGEINT) AS mass,
        max(e.magnitude) AS largest
    FROM entries AS e
    CROSS JOIN grid AS j
    INNER JOIN batched AS b ON e.token_id >> 24 = b.document_id AND e.token_id <= b.last_token_id
    GROUP BY e.pair, b.batch
),

pairs AS (
    SELECT
        pair,
        sum(mass) AS mass,
        max(largest, 2) AS two_largest,
        arg_max(batch, largest) AS batch_of_largest
    FROM partials
    GROUP BY pair
),

edges AS (
    SELECT
        list_sort(list_distinct(list(t.threshold * s.rest))) AS mass_edges,
        any_value(t.edges) AS edges
    FROM thresholds AS t
    CROSS JOIN batch_sizes AS s
),

all_bins AS (
    SELECT
        histogram(p.mass::DOUBLE / j.steps, e.mass_edges) AS mass_bins,
        histogram(p.two_largest[1], e.edges) AS largest_bins
    FROM pairs AS p
    CROSS JOIN grid AS j
    CROSS JOIN edges AS e
),

-- Only pairs of the batch change when it is left out: their bins with it, and without it.
mean_bins AS (
    SELECT
        r.batch,
        histogram(p.mass::DOUBLE / j.steps, e.mass_edges) AS with_bins,
        histogram((p.mass - r.mass)::DOUBLE / j.steps, e.mass_edges) AS without_bins
    FROM partials AS r
    INNER JOIN pairs AS p ON r.pair = p.pair
    CROSS JOIN grid AS j
    CROSS JOIN edges AS e
    GROUP BY r.batch
),

max_bins AS (
    SELECT
        p.batch_of_largest AS batch,
        histogram(p.two_largest[1], e.edges) AS with_bins,
        histogram(coalesce(p.two_largest[2], -1), e.edges) AS without_bins
    FROM pairs AS p
    CROSS JOIN edges AS e
    GROUP BY p.batch_of_largest
),

left_out AS (
    SELECT
        t.threshold,
        (
            count_above(p.mass_bins, t.threshold * s.rest)
            - count_above(m.with_bins, t.threshold * s.rest) + count_above(m.without_bins, t.threshold * s.rest)
        ) / w.n_pairs AS mean_share,
        (
            count_above(p.largest_bins, t.threshold)
            - count_above(x.with_bins, t.threshold) + count_above(x.without_bins, t.threshold)
        ) / w.n_pairs AS max_share
    FROM thresholds AS t
    CROSS JOIN batch_sizes AS s
    CROSS JOIN all_bins AS p
    CROSS JOIN widths AS w
    LEFT JOIN mean_bins AS m ON s.batch = m.batch
    LEFT JOIN max_bins AS x ON s.batch = x.batch
    UNION ALL
    SELECT
        h.threshold,
        h.pairs_mean_all_tokens / w.n_pairs AS mean_share,
        h.pairs_max / w.n_pairs AS max_share
    FROM held AS h
    CROSS JOIN widths AS w
)

SELECT
    threshold,
    t_quantile(count(mean_share) - 1)
    * (count(mean_share) - 1) / sqrt(count(mean_share)) * nullif(stddev_samp(mean_share), 0) AS mean_reach,
    t_quantile(count(max_share) - 1)
    * (count(max_share) - 1) / sqrt(count(max_share)) * nullif(stddev_samp(max_share), 0) AS max_reach
FROM left_out
GROUP BY threshold
