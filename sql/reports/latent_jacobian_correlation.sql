-- question: Do the activations of two latents go together with the Jacobian between them?
-- reads: jacobian_entries, latents, document_batches, t_quantile
-- parameters:
--   run_id VARCHAR - the run
--   batches BIGINT default 20 - batches of documents whose spread gives the intervals
-- grain: one pair of quantities, over all stored entries
-- columns:
--   a VARCHAR - s: activation of the input latent; t: activation of the output latent; J; abs_J: |J|; J_s: J * s
--   b VARCHAR - another of them
--   covariance DOUBLE - covariance (population)
--   pearson DOUBLE - correlation; null where one does not vary
--   pearson_low DOUBLE - its 95 % interval
--   pearson_high DOUBLE - its 95 % interval
--   entries BIGINT - entries [entries]
--
-- J_s is the first-order share of t that the input latent brings, and minus the effect that ablating it should have.
-- Intervals: leaving out one batch of documents at a time (jackknife).
WITH measured AS (
    SELECT
        e.token_id >> 24 AS document_id,
        i.activation::DOUBLE AS s,
        o.activation::DOUBLE AS t,
        e.value::DOUBLE AS j,
        abs(e.value)::DOUBLE AS abs_j,
        e.value::DOUBLE * i.activation AS j_s
    FROM jacobian_entries AS e
    INNER JOIN latents AS i
        ON e.token_id = i.token_id AND e.in_latent = i.latent AND i.run_id = $run_id AND i.side = 'in'
    INNER JOIN latents AS o
        ON e.token_id = o.token_id AND e.out_latent = o.latent AND o.run_id = $run_id AND o.side = 'out'
    WHERE e.run_id = $run_id
),

batch_sums AS (
    -- The five quantities, their squares, and their products in the order of `places`.
    SELECT
        b.batch,
        count(*) AS n,
        [
            sum(m.s), sum(m.t), sum(m.j), sum(m.abs_j), sum(m.j_s),
            sum(m.s ** 2), sum(m.t ** 2), sum(m.j ** 2), sum(m.j ** 2), sum(m.j_s ** 2),
            sum(m.s * m.t), sum(m.s * m.j), sum(m.s * m.abs_j), sum(m.s * m.j_s), sum(m.t * m.j),
            sum(m.t * m.abs_j), sum(m.t * m.j_s), sum(m.j * m.abs_j), sum(m.j * m.j_s), sum(m.abs_j * m.j_s)
        ] AS moments
    FROM measured AS m
    INNER JOIN document_batches($run_id, $batches, 1) AS b ON m.document_id = b.document_id
    GROUP BY b.batch
),

places AS (
    SELECT
        unnest(range(10)) AS rank,
        unnest(['s', 's', 's', 's', 't', 't', 't', 'J', 'J', 'abs_J']) AS a,
        unnest(['t', 'J', 'abs_J', 'J_s', 'J', 'abs_J', 'J_s', 'abs_J', 'J_s', 'J_s']) AS b,
        unnest([1, 1, 1, 1, 2, 2, 2, 3, 3, 4]) AS place_a,
        unnest([2, 3, 4, 5, 3, 4, 5, 4, 5, 5]) AS place_b
),

by_pair AS (
    SELECT
        s.batch,
        p.rank,
        p.a,
        p.b,
        s.n,
        s.moments[p.place_a] AS sum_a,
        s.moments[p.place_b] AS sum_b,
        s.moments[p.place_a + 5] AS sum_aa,
        s.moments[p.place_b + 5] AS sum_bb,
        s.moments[p.rank + 11] AS sum_ab
    FROM batch_sums AS s
    CROSS JOIN places AS p
),

totals AS (
    SELECT
        rank,
        a,
        b,
        sum(n)::DOUBLE AS n,
        sum(sum_a) AS sum_a,
        sum(sum_b) AS sum_b,
        sum(sum_aa) AS sum_aa,
        sum(sum_bb) AS sum_bb,
        sum(sum_ab) AS sum_ab
    FROM by_pair
    GROUP BY rank, a, b
),

sums AS (
    SELECT
        rank,
        NULL::BIGINT AS left_out,
        n,
        sum_a,
        sum_b,
        sum_aa,
        sum_bb,
        sum_ab
    FROM totals
    UNION ALL
    SELECT
        t.rank,
        p.batch AS left_out,
        t.n - p.n AS n,
        t.sum_a - p.sum_a AS sum_a,
        t.sum_b - p.sum_b AS sum_b,
        t.sum_aa - p.sum_aa AS sum_aa,
        t.sum_bb - p.sum_bb AS sum_bb,
        t.sum_ab - p.sum_ab AS sum_ab
    FROM totals AS t
    INNER JOIN by_pair AS p ON t.rank = p.rank
),

correlated AS (
    -- A variance of rounding errors only is none.
    SELECT
        rank,
        left_out,
        sum_ab / n - (sum_a / n) * (sum_b / n) AS covariance,
        CASE
            WHEN n * sum_aa - sum_a ** 2 > 1e-12 * n * sum_aa AND n * sum_bb - sum_b ** 2 > 1e-12 * n * sum_bb
                THEN
                    (n * sum_ab - sum_a * sum_b)
                    / sqrt((n * sum_aa - sum_a ** 2) * (n * sum_bb - sum_b ** 2))
        END AS pearson
    FROM sums
    WHERE n > 0
),

jackknife AS (
    SELECT
        rank,
        max(covariance) FILTER (WHERE left_out IS NULL) AS covariance,
        max(pearson) FILTER (WHERE left_out IS NULL) AS pearson,
        t_quantile(count(left_out) - 1)
        * (count(left_out) - 1) / sqrt(count(left_out))
        * stddev_samp(pearson) FILTER (WHERE left_out IS NOT NULL) AS reach
    FROM correlated
    GROUP BY rank
)

SELECT
    p.a,
    p.b,
    c.covariance,
    c.pearson,
    greatest(c.pearson - c.reach, -1 + 0 * c.reach) AS pearson_low,
    least(c.pearson + c.reach, 1 + 0 * c.reach) AS pearson_high,
    coalesce(t.n, 0)::BIGINT AS entries
FROM places AS p
LEFT JOIN jackknife AS c ON p.rank = c.rank
LEFT JOIN totals AS t ON p.rank = t.rank
ORDER BY p.rank
