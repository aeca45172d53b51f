-- question: How concentrated is the Jacobian of single tokens?
-- reads: tokens, jacobian_entries
-- parameters:
--   of_run VARCHAR - the run
--   most_tokens BIGINT - at most this many tokens, evenly spaced in the order of the corpus [tokens]
--   above DOUBLE[] - ascending thresholds for the counts of |J|
-- grain: one analysed token that has at least one active pair
-- columns:
--   token_id BIGINT - the token
--   entries INTEGER - in_active * out_active: entries before thresholds; n in the formulas [entries]
--   l1 DOUBLE - sum of |J|, before thresholds
--   l2 DOUBLE - root of the sum of J^2, before thresholds
--   l1_over_l2 DOUBLE - from 1 (one entry holds everything) to sqrt(n) (all equal); null where J is 0
--   hoyer DOUBLE - (sqrt(n) - l1/l2) / (sqrt(n) - 1): from 0 (all equal) to 1 (one entry); null for n = 1
--   gini DOUBLE - Gini coefficient of |J|: from 0 (all equal) to 1 - 1/n (one entry)
--   kurtosis DOUBLE - fourth central moment of J / squared variance; 3 for a normal; null where J does not vary
--   abs_max FLOAT - largest |J|, before thresholds
--   bins MAP(DOUBLE,UBIGINT) - histogram of the stored |J|, for count_above(bins, threshold)
--
-- All measures are over the n entries of the token's active block. Entries that a threshold dropped count as 0 in gini,
-- kurtosis and bins; the others are exact in any case.
WITH numbered AS (
    SELECT
        token_id,
        entries_total,
        entries_stored,
        abs_sum_total,
        sq_sum_total,
        abs_max,
        row_number() OVER (ORDER BY token_id) - 1 AS ordinal,
        count(*) OVER () AS n_tokens
    FROM tokens
    WHERE run_id = of_run AND entries_total > 0
),

chosen AS (
    SELECT
        token_id,
        entries_total,
        entries_stored,
        entries_total::DOUBLE AS n,
        abs_sum_total AS l1,
        sqrt(sq_sum_total) AS l2,
        abs_max
    FROM numbered
    WHERE ordinal % greatest(ceil(n_tokens / greatest(most_tokens, 1)), 1) = 0
),

stored AS (
    SELECT
        e.token_id,
        sum(e.value::DOUBLE) AS s1,
        sum(e.value::DOUBLE ** 2) AS s2,
        sum(e.value::DOUBLE ** 3) AS s3,
        sum(e.value::DOUBLE ** 4) AS s4,
        sum(abs(e.value)::DOUBLE) AS mass,
        list_sort(list(abs(e.value)))::DOUBLE[] AS ascending,
        histogram(abs(e.value)::DOUBLE, above) AS bins
    FROM jacobian_entries AS e
    WHERE e.run_id = of_run AND e.token_id IN (SELECT chosen.token_id FROM chosen)
    GROUP BY e.token_id
),

moments AS (
    SELECT
        c.token_id,
        s.s1 / c.n AS mean,
        s.s2 / c.n AS raw2,
        s.s2 / c.n - (s.s1 / c.n) ** 2 AS variance,
        s.s4 / c.n - 4 * s.s1 * s.s3 / c.n ** 2 + 6 * s.s1 ** 2 * s.s2 / c.n ** 3 - 3 * (s.s1 / c.n) ** 4 AS central4,
        -- Ranks start after the dropped entries, the smallest ones.
        list_dot_product(s.ascending, range(1, len(s.ascending) + 1)::DOUBLE[])
        + (c.entries_total - c.entries_stored) * s.mass AS ranked,
        s.mass,
        s.bins
    FROM chosen AS c
    INNER JOIN stored AS s ON c.token_id = s.token_id
)

SELECT
    c.token_id,
    c.entries_total AS entries,
    c.l1,
    c.l2,
    c.l1 / nullif(c.l2, 0) AS l1_over_l2,
    (sqrt(c.n) - c.l1 / nullif(c.l2, 0)) / nullif(sqrt(c.n) - 1, 0) AS hoyer,
    2 * m.ranked / nullif(c.n * m.mass, 0) - (c.n + 1) / c.n AS gini,
    -- A variance of rounding errors only is none.
    CASE WHEN m.variance > 1e-12 * m.raw2 THEN m.central4 / m.variance ** 2 END AS kurtosis,
    c.abs_max,
    m.bins
FROM chosen AS c
LEFT JOIN moments AS m ON c.token_id = m.token_id
