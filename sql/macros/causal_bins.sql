-- question: What did interventions of one kind do, by the size of the Jacobian element?
-- reads: intervention_effects, wilson_interval, t_quantile
-- parameters:
--   of_run VARCHAR - the run
--   of_kind VARCHAR - the kind of intervention
--   absolute_edges DOUBLE[] - |J| between the bins; 0 and infinity are added
--   relative_edges DOUBLE[] - |J| / token_rms between the bins; 0 and infinity are added
--   moved_by DOUBLE - an effect larger than this counts as one
--   moved_share DOUBLE - the same as a share of t_i
-- grain: one bin of one measure that holds interventions
-- columns:
--   measure VARCHAR - 'all': every pair, one bin; 'absolute': bins of |J|; 'relative': bins of |J| / token_rms
--   low DOUBLE - the bin holds low <= measure < high
--   high DOUBLE - infinity for the last bin
--   interventions BIGINT - sampled pairs [interventions]
--   documents BIGINT - documents that they are from [documents]
--   pairs DOUBLE - active pairs that they stand for [pairs]
--   share_of_pairs DOUBLE - of the pairs in all bins [share]
--   mean_abs_effect DOUBLE - mean of |effect|
--   mean_abs_effect_low DOUBLE - its 95 % interval
--   mean_abs_effect_high DOUBLE - its 95 % interval
--   median_abs_effect DOUBLE - median of |effect|
--   p95_abs_effect DOUBLE - 95th percentile of |effect|
--   max_abs_effect DOUBLE - largest |effect| of the sample
--   share_above DOUBLE - pairs with |effect| > moved_by [share]
--   share_above_low DOUBLE - its 95 % interval [share]
--   share_above_high DOUBLE - its 95 % interval [share]
--   share_above_relative DOUBLE - pairs with |effect| > moved_share * t_i [share]
--   share_above_relative_low DOUBLE - its 95 % interval [share]
--   share_above_relative_high DOUBLE - its 95 % interval [share]
--   share_left DOUBLE - pairs whose output latent left the selection [share]
--   share_left_low DOUBLE - its 95 % interval [share]
--   share_left_high DOUBLE - its 95 % interval [share]
--   share_above_staying DOUBLE - pairs with |effect| > moved_by whose output latent stayed [share]
--   share_above_staying_low DOUBLE - its 95 % interval [share]
--   share_above_staying_high DOUBLE - its 95 % interval [share]
--   mean_abs_first_order DOUBLE - mean of |J * d|, the size that the Jacobian predicts
--   r2_first DOUBLE - share of the effects' variance that J * d explains; negative: worse than their mean
--   r2_first_staying DOUBLE - the same over the pairs that stayed
--   r2_second DOUBLE - the same as r2_first for J * d + J'' * d^2 / 2
--   r2_second_staying DOUBLE - the same over the pairs that stayed
--
-- All figures but the two counts and the maximum are weighted, so that they are about all active pairs, not about the
-- sample, in which rare sizes of |J| are as frequent as common ones.
-- Effects of one document resemble each other. So every interval rests on the spread between documents (linearised
-- ratio estimates, a document being a cluster) with Student's t; a share's is Wilson's, with as many observations as
-- that spread, or at most the unequal weights (Kish), leave. One document gives no interval.
WITH edges AS (
    SELECT
        'all' AS measure,
        0.0::DOUBLE AS low
    UNION ALL
    SELECT
        'absolute' AS measure,
        unnest(list_distinct(list_append(absolute_edges, 0.0::DOUBLE))) AS low
    UNION ALL
    SELECT
        'relative' AS measure,
        unnest(list_distinct(list_append(relative_edges, 0.0::DOUBLE))) AS low
),

bins AS (
    SELECT
        measure,
        low,
        lead(low, 1, 'infinity'::DOUBLE) OVER (PARTITION BY measure ORDER BY low) AS high
    FROM edges
    WHERE low >= 0
),

chosen AS (
    SELECT
        document_id,
        weight,
        effect,
        first_order,
        second_order,
        abs(value)::DOUBLE AS absolute_value,
        relative_value,
        abs(effect) AS size,
        NOT left_selection AS stayed,
        left_selection::INTEGER AS has_left,
        (abs(effect) > moved_by)::INTEGER AS above,
        (abs(effect) > moved_share * out_before)::INTEGER AS above_relative,
        (abs(effect) > moved_by AND NOT left_selection)::INTEGER AS above_staying
    FROM intervention_effects
    WHERE run_id = of_run AND kind = of_kind AND weight > 0
),

placed AS (
    SELECT
        b.measure,
        b.low,
        b.high,
        c.document_id,
        c.weight,
        c.effect,
        c.first_order,
        c.second_order,
        c.size,
        c.stayed,
        c.has_left,
        c.above,
        c.above_relative,
        c.above_staying
    FROM chosen AS c
    INNER JOIN bins AS b
        ON
            CASE b.measure WHEN 'relative' THEN c.relative_value ELSE c.absolute_value END >= b.low
            AND CASE b.measure WHEN 'relative' THEN c.relative_value ELSE c.absolute_value END < b.high
),

totals AS (
    SELECT
        measure,
        low,
        high,
        count(*) AS interventions,
        count(DISTINCT document_id) AS documents,
        sum(weight) AS pairs,
        sum(weight) ** 2 / sum(weight ** 2) AS kish,
        max(size) AS max_size,
        sum(weight * size) / sum(weight) AS size,
        sum(weight * above) / sum(weight) AS above,
        sum(weight * above_relative) / sum(weight) AS above_relative,
        sum(weight * has_left) / sum(weight) AS has_left,
        sum(weight * above_staying) / sum(weight) AS above_staying,
        sum(weight * abs(first_order)) / sum(weight) AS first_order,
        sum(weight * effect) / sum(weight) AS effect,
        sum(weight * effect) FILTER (WHERE stayed) / sum(weight) FILTER (WHERE stayed) AS effect_staying
    FROM placed
    GROUP BY measure, low, high
),

clusters AS (
    SELECT
        measure,
        low,
        sum(weight) AS pairs,
        sum(weight * size) AS size,
        sum(weight * above) AS above,
        sum(weight * above_relative) AS above_relative,
        sum(weight * has_left) AS has_left,
        sum(weight * above_staying) AS above_staying
    FROM placed
    GROUP BY measure, low, document_id
),

variances AS (
    SELECT
        t.measure,
        t.low,
        any_value(t.documents / nullif(t.documents - 1, 0) / t.pairs ** 2) AS scale,
        sum((c.size - t.size * c.pairs) ** 2) AS size,
        sum((c.above - t.above * c.pairs) ** 2) AS above,
        sum((c.above_relative - t.above_relative * c.pairs) ** 2) AS above_relative,
        sum((c.has_left - t.has_left * c.pairs) ** 2) AS has_left,
        sum((c.above_staying - t.above_staying * c.pairs) ** 2) AS above_staying
    FROM clusters AS c
    INNER JOIN totals AS t ON c.measure = t.measure AND c.low = t.low
    GROUP BY t.measure, t.low
),

residuals AS (
    SELECT
        p.measure,
        p.low,
        sum(p.weight * (p.effect - t.effect) ** 2) AS spread,
        sum(p.weight * (p.effect - p.first_order) ** 2) AS off_first,
        sum(p.weight * (p.effect - p.second_order) ** 2) AS off_second,
        sum(p.weight * (p.effect - t.effect_staying) ** 2) FILTER (WHERE p.stayed) AS spread_staying,
        sum(p.weight * (p.effect - p.first_order) ** 2) FILTER (WHERE p.stayed) AS off_first_staying,
        sum(p.weight * (p.effect - p.second_order) ** 2) FILTER (WHERE p.stayed) AS off_second_staying
    FROM placed AS p
    INNER JOIN totals AS t ON p.measure = t.measure AND p.low = t.low
    GROUP BY p.measure, p.low
),

ranked AS (
    SELECT
        measure,
        low,
        size,
        sum(weight) OVER (PARTITION BY measure, low ORDER BY size) AS reached,
        sum(weight) OVER (PARTITION BY measure, low) AS pairs
    FROM placed
),

quantiles AS (
    -- The smallest size that at least that share of the pairs does not exceed; 1e-12 forgives the sums' rounding.
    SELECT
        measure,
        low,
        min(size) FILTER (WHERE reached >= 0.5 * pairs * (1 - 1e-12)) AS median,
        min(size) FILTER (WHERE reached >= 0.95 * pairs * (1 - 1e-12)) AS p95
    FROM ranked
    GROUP BY measure, low
),

intervals AS (
    SELECT
        t.measure,
        t.low,
        t_quantile(t.documents - 1) * sqrt(v.size * v.scale) AS size,
        wilson_interval(
            t.above,
            least(t.kish, t.above * (1 - t.above) / nullif(v.above * v.scale, 0)),
            t_quantile(t.documents - 1)
        ) AS above,
        wilson_interval(
            t.above_relative,
            least(t.kish, t.above_relative * (1 - t.above_relative) / nullif(v.above_relative * v.scale, 0)),
            t_quantile(t.documents - 1)
        ) AS above_relative,
        wilson_interval(
            t.has_left,
            least(t.kish, t.has_left * (1 - t.has_left) / nullif(v.has_left * v.scale, 0)),
            t_quantile(t.documents - 1)
        ) AS has_left,
        wilson_interval(
            t.above_staying,
            least(t.kish, t.above_staying * (1 - t.above_staying) / nullif(v.above_staying * v.scale, 0)),
            t_quantile(t.documents - 1)
        ) AS above_staying
    FROM totals AS t
    INNER JOIN variances AS v ON t.measure = v.measure AND t.low = v.low
)

SELECT
    t.measure,
    t.low,
    t.high,
    t.interventions,
    t.documents,
    t.pairs,
    t.pairs / sum(t.pairs) OVER (PARTITION BY t.measure) AS share_of_pairs,
    t.size AS mean_abs_effect,
    CASE WHEN i.size >= 0 THEN greatest(t.size - i.size, 0) END AS mean_abs_effect_low,
    t.size + i.size AS mean_abs_effect_high,
    q.median AS median_abs_effect,
    q.p95 AS p95_abs_effect,
    t.max_size AS max_abs_effect,
    t.above AS share_above,
    i.above.low AS share_above_low,
    i.above.high AS share_above_high,
    t.above_relative AS share_above_relative,
    i.above_relative.low AS share_above_relative_low,
    i.above_relative.high AS share_above_relative_high,
    t.has_left AS share_left,
    i.has_left.low AS share_left_low,
    i.has_left.high AS share_left_high,
    t.above_staying AS share_above_staying,
    i.above_staying.low AS share_above_staying_low,
    i.above_staying.high AS share_above_staying_high,
    t.first_order AS mean_abs_first_order,
    1 - r.off_first / nullif(r.spread, 0) AS r2_first,
    1 - r.off_first_staying / nullif(r.spread_staying, 0) AS r2_first_staying,
    1 - r.off_second / nullif(r.spread, 0) AS r2_second,
    1 - r.off_second_staying / nullif(r.spread_staying, 0) AS r2_second_staying
FROM totals AS t
INNER JOIN residuals AS r ON t.measure = r.measure AND t.low = r.low
INNER JOIN quantiles AS q ON t.measure = q.measure AND t.low = q.low
INNER JOIN intervals AS i ON t.measure = i.measure AND t.low = i.low
