-- question: What shape has an output latent as a function of one input latent: linear, JumpReLU-like, or neither?
-- reads: function_shapes, wilson_interval, t_quantile
-- parameters:
--   run_id VARCHAR - the run
-- grain: one shape by one rule
-- columns:
--   by_rule VARCHAR - 'published': residual of the best line below 0.01; 'scale_free': below 0.01 of the range
--   shape VARCHAR - linear, jumprelu (zero, then a line) or other
--   traced BIGINT - sampled functions of that shape [functions]
--   pairs DOUBLE - active pairs that they stand for [pairs]
--   share_of_pairs DOUBLE - of the active pairs [share]
--   share_of_pairs_low DOUBLE - its 95 % interval [share]
--   share_of_pairs_high DOUBLE - its 95 % interval [share]
--   median_range DOUBLE - median of largest minus smallest t_i, of the functions of that shape
--   documents BIGINT - documents of the whole sample [documents]
--
-- Weighted, with intervals over documents, as in causal_zero_test. The median is of the sample, by weight.
WITH chosen AS (
    SELECT
        token_id >> 24 AS document_id,
        weight,
        out_range::DOUBLE AS out_range,
        unnest(['published', 'scale_free']) AS by_rule,
        unnest([shape, shape_scale_free]) AS shape
    FROM function_shapes
    WHERE run_id = $run_id AND weight > 0
),

kinds AS (
    SELECT
        unnest(range(6)) AS rank,
        unnest(['published', 'published', 'published', 'scale_free', 'scale_free', 'scale_free']) AS by_rule,
        unnest(['linear', 'jumprelu', 'other', 'linear', 'jumprelu', 'other']) AS shape
),

clusters AS (
    SELECT
        k.rank,
        c.document_id,
        count(*) FILTER (WHERE c.shape = k.shape) AS traced,
        sum(c.weight) AS all_pairs,
        sum(c.weight ** 2) AS squares,
        coalesce(sum(c.weight) FILTER (WHERE c.shape = k.shape), 0) AS pairs
    FROM chosen AS c
    INNER JOIN kinds AS k ON c.by_rule = k.by_rule
    GROUP BY k.rank, c.document_id
),

totals AS (
    SELECT
        rank,
        sum(traced)::BIGINT AS traced,
        sum(pairs) AS pairs,
        sum(all_pairs) AS all_pairs,
        sum(all_pairs) ** 2 / sum(squares) AS kish,
        count(*) AS documents,
        sum(pairs) / sum(all_pairs) AS share_of_pairs
    FROM clusters
    GROUP BY rank
),

variances AS (
    SELECT
        t.rank,
        sum((c.pairs - t.share_of_pairs * c.all_pairs) ** 2) * any_value(t.documents / nullif(t.documents - 1, 0))
        / any_value(t.all_pairs) ** 2 AS variance
    FROM clusters AS c
    INNER JOIN totals AS t ON c.rank = t.rank
    GROUP BY t.rank
),

intervals AS (
    SELECT
        t.rank,
        wilson_interval(
            t.share_of_pairs,
            least(t.kish, t.share_of_pairs * (1 - t.share_of_pairs) / nullif(v.variance, 0)),
            t_quantile(t.documents - 1)
        ) AS around
    FROM totals AS t
    INNER JOIN variances AS v ON t.rank = v.rank
),

reached AS (
    SELECT
        by_rule,
        shape,
        out_range,
        sum(weight) OVER (PARTITION BY by_rule, shape ORDER BY out_range) AS reached,
        sum(weight) OVER (PARTITION BY by_rule, shape) AS pairs
    FROM chosen
),

medians AS (
    SELECT
        by_rule,
        shape,
        min(out_range) FILTER (WHERE reached >= 0.5 * pairs * (1 - 1e-12)) AS median_range
    FROM reached
    GROUP BY by_rule, shape
)

SELECT
    k.by_rule,
    k.shape,
    coalesce(t.traced, 0) AS traced,
    coalesce(t.pairs, 0) AS pairs,
    t.share_of_pairs,
    i.around.low AS share_of_pairs_low,
    i.around.high AS share_of_pairs_high,
    m.median_range,
    coalesce(t.documents, 0) AS documents
FROM kinds AS k
LEFT JOIN totals AS t ON k.rank = t.rank
LEFT JOIN intervals AS i ON k.rank = i.rank
LEFT JOIN medians AS m ON k.by_rule = m.by_rule AND k.shape = m.shape
ORDER BY k.rank
