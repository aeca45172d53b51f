-- question: Have enough tokens been seen: does the share of pairs above a threshold still change?
-- reads: threshold_counts, counted, jacobian_entries, j_steps, tokens, runs, count_above, pair_share_reach
-- parameters:
--   run_id VARCHAR - the run
--   thresholds DOUBLE[] default 0,1e-5,1e-4,1e-3,1e-2 - a value counts where it is strictly greater
--   batches BIGINT default 20 - batches of documents for the intervals; 0: none
-- grain: one threshold after one number of tokens: the first 1/16, 1/8, 1/4, 1/2 and all of them, in corpus order
-- columns:
--   tokens BIGINT - tokens seen [tokens]
--   threshold DOUBLE - |J| strictly greater than this
--   share_mean_all_tokens DOUBLE - pairs whose mean |J| over these tokens is above, of all n_out x n_in pairs [share]
--   share_mean_all_tokens_low DOUBLE - its 95 % interval [share]
--   share_mean_all_tokens_high DOUBLE - its 95 % interval [share]
--   share_max DOUBLE - pairs whose largest |J| is above, of all pairs [share]
--   share_max_low DOUBLE - its 95 % interval [share]
--   share_max_high DOUBLE - its 95 % interval [share]
--   pairs_mean_all_tokens BIGINT - count behind share_mean_all_tokens [pairs]
--   pairs_max BIGINT - count behind share_max [pairs]
--
-- About a second at any size where `threshold_counts` has the thresholds (`marts.thresholds`; and 20 batches, or none);
-- else all entries are read: the same figures, later. That is one aggregation: each entry falls into the stage in which
-- its token is first seen, and stages are added up after.
-- The intervals are for the share at each number of tokens, were other documents drawn (jackknife over batches of the
-- documents so far, see sql/macros/pair_share_reach.sql): where two stages differ by more, the share still changes.
WITH needed AS (
    SELECT NOT coalesce(counted($run_id, 'active', list_sort(list_distinct($thresholds))), FALSE) AS from_entries
),

ordered AS (
    SELECT
        token_id,
        row_number() OVER (ORDER BY token_id) AS seen
    FROM tokens
    WHERE run_id = $run_id AND (SELECT needed.from_entries FROM needed)
),

sizes AS (
    SELECT
        ceil(tokens / 16)::BIGINT AS n1,
        ceil(tokens / 8)::BIGINT AS n2,
        ceil(tokens / 4)::BIGINT AS n3,
        ceil(tokens / 2)::BIGINT AS n4,
        tokens AS n5
    FROM runs
    WHERE run_id = $run_id
),

stage_ends AS (
    SELECT
        max(o.token_id) FILTER (WHERE o.seen <= s.n1) AS end1,
        max(o.token_id) FILTER (WHERE o.seen <= s.n2) AS end2,
        max(o.token_id) FILTER (WHERE o.seen <= s.n3) AS end3,
        max(o.token_id) FILTER (WHERE o.seen <= s.n4) AS end4
    FROM ordered AS o
    CROSS JOIN sizes AS s
),

staged AS (
    SELECT
        (e.out_latent::UBIGINT << 32) | e.in_latent::UBIGINT AS pair,
        abs(e.value)::DOUBLE AS magnitude,
        ceil(abs(e.value)::DOUBLE * j.steps)::HUGEINT AS mass,
        CASE
            WHEN e.token_id <= s.end1 THEN 1
            WHEN e.token_id <= s.end2 THEN 2
            WHEN e.token_id <= s.end3 THEN 3
            WHEN e.token_id <= s.end4 THEN 4
            ELSE 5
        END AS stage_number
    FROM jacobian_entries AS e
    CROSS JOIN stage_ends AS s
    CROSS JOIN j_steps($run_id) AS j
    WHERE e.run_id = $run_id AND (SELECT needed.from_entries FROM needed)
),

partials AS (
    SELECT
        pair,
        coalesce(sum(mass) FILTER (WHERE stage_number = 1), 0) AS sum1,
        coalesce(sum(mass) FILTER (WHERE stage_number = 2), 0) AS sum2,
        coalesce(sum(mass) FILTER (WHERE stage_number = 3), 0) AS sum3,
        coalesce(sum(mass) FILTER (WHERE stage_number = 4), 0) AS sum4,
        coalesce(sum(mass) FILTER (WHERE stage_number = 5), 0) AS sum5,
        max(magnitude) FILTER (WHERE stage_number <= 1) AS max1,
        max(magnitude) FILTER (WHERE stage_number <= 2) AS max2,
        max(magnitude) FILTER (WHERE stage_number <= 3) AS max3,
        max(magnitude) FILTER (WHERE stage_number <= 4) AS max4,
        max(magnitude) AS max5
    FROM staged
    GROUP BY pair
),

bounds AS (
    SELECT list_sort(list_distinct($thresholds)) AS above
),

pair_bins AS (
    SELECT
        histogram(p.sum1::DOUBLE / j.steps / s.n1, b.above) AS mean1,
        histogram((p.sum1 + p.sum2)::DOUBLE / j.steps / s.n2, b.above) AS mean2,
        histogram((p.sum1 + p.sum2 + p.sum3)::DOUBLE / j.steps / s.n3, b.above) AS mean3,
        histogram((p.sum1 + p.sum2 + p.sum3 + p.sum4)::DOUBLE / j.steps / s.n4, b.above) AS mean4,
        histogram((p.sum1 + p.sum2 + p.sum3 + p.sum4 + p.sum5)::DOUBLE / j.steps / s.n5, b.above) AS mean5,
        histogram(p.max1, b.above) AS max1,
        histogram(p.max2, b.above) AS max2,
        histogram(p.max3, b.above) AS max3,
        histogram(p.max4, b.above) AS max4,
        histogram(p.max5, b.above) AS max5
    FROM partials AS p
    CROSS JOIN sizes AS s
    CROSS JOIN j_steps($run_id) AS j
    CROSS JOIN bounds AS b
),

stages AS (
    SELECT
        unnest([s.n1, s.n2, s.n3, s.n4, s.n5]) AS tokens,
        unnest([p.mean1, p.mean2, p.mean3, p.mean4, p.mean5]) AS means,
        unnest([p.max1, p.max2, p.max3, p.max4, p.max5]) AS maxima
    FROM sizes AS s
    CROSS JOIN pair_bins AS p
),

counts AS (
    -- A run of a few tokens has stages of the same size: each size once.
    SELECT DISTINCT
        s.tokens,
        t.threshold,
        count_above(s.means, t.threshold) AS pairs_mean_all_tokens,
        count_above(s.maxima, t.threshold) AS pairs_max
    FROM stages AS s
    CROSS JOIN (SELECT unnest(list_distinct($thresholds)) AS threshold) AS t
    WHERE (SELECT needed.from_entries FROM needed)
    UNION
    SELECT
        tokens,
        threshold,
        pairs_mean_all_tokens,
        pairs_max
    FROM threshold_counts
    WHERE
        run_id = $run_id
        AND scope = 'active'
        AND left_out = -1
        AND list_contains($thresholds, threshold)
        AND NOT (SELECT needed.from_entries FROM needed)
),

reaches AS (
    SELECT
        s.n1 AS tokens,
        i.threshold,
        i.mean_reach,
        i.max_reach
    FROM sizes AS s
    CROSS JOIN pair_share_reach($run_id, list_sort(list_distinct($thresholds)), $batches, 1.0 / 16) AS i
    UNION ALL
    SELECT
        s.n2 AS tokens,
        i.threshold,
        i.mean_reach,
        i.max_reach
    FROM sizes AS s
    CROSS JOIN pair_share_reach($run_id, list_sort(list_distinct($thresholds)), $batches, 1.0 / 8) AS i
    UNION ALL
    SELECT
        s.n3 AS tokens,
        i.threshold,
        i.mean_reach,
        i.max_reach
    FROM sizes AS s
    CROSS JOIN pair_share_reach($run_id, list_sort(list_distinct($thresholds)), $batches, 1.0 / 4) AS i
    UNION ALL
    SELECT
        s.n4 AS tokens,
        i.threshold,
        i.mean_reach,
        i.max_reach
    FROM sizes AS s
    CROSS JOIN pair_share_reach($run_id, list_sort(list_distinct($thresholds)), $batches, 1.0 / 2) AS i
    UNION ALL
    SELECT
        s.n5 AS tokens,
        i.threshold,
        i.mean_reach,
        i.max_reach
    FROM sizes AS s
    CROSS JOIN pair_share_reach($run_id, list_sort(list_distinct($thresholds)), $batches, 1) AS i
),

intervals AS (
    SELECT
        tokens,
        threshold,
        max(mean_reach) AS mean_reach,
        max(max_reach) AS max_reach
    FROM reaches
    GROUP BY tokens, threshold
)

SELECT
    c.tokens,
    c.threshold,
    c.pairs_mean_all_tokens / nullif(r.n_out_latents * r.n_in_latents, 0) AS share_mean_all_tokens,
    greatest(c.pairs_mean_all_tokens / nullif(r.n_out_latents * r.n_in_latents, 0) - i.mean_reach, 0 * i.mean_reach)
        AS share_mean_all_tokens_low,
    least(c.pairs_mean_all_tokens / nullif(r.n_out_latents * r.n_in_latents, 0) + i.mean_reach, 1 + 0 * i.mean_reach)
        AS share_mean_all_tokens_high,
    c.pairs_max / nullif(r.n_out_latents * r.n_in_latents, 0) AS share_max,
    greatest(c.pairs_max / nullif(r.n_out_latents * r.n_in_latents, 0) - i.max_reach, 0 * i.max_reach) AS share_max_low,
    least(c.pairs_max / nullif(r.n_out_latents * r.n_in_latents, 0) + i.max_reach, 1 + 0 * i.max_reach)
        AS share_max_high,
    c.pairs_mean_all_tokens,
    c.pairs_max
FROM counts AS c
CROSS JOIN runs AS r
LEFT JOIN intervals AS i ON c.tokens = i.tokens AND c.threshold = i.threshold
WHERE r.run_id = $run_id
ORDER BY c.threshold, c.tokens
