-- question: Are near-zero first derivatives near-zero second derivatives too: how do J and J'' go together?
-- reads: jacobian_entries, tokens, document_batches, t_quantile
-- parameters:
--   run_id VARCHAR - the run
--   near_zero_first DOUBLE default 0.005 - |J| below this is about zero
--   near_zero_second DOUBLE default 0 - |J''| below this is about zero; 0: chosen so that as many are as of |J|
--   rank_tokens BIGINT default 1000 - ranks (and that choice) use at most this many tokens, evenly spaced [tokens]
--   batches BIGINT default 20 - batches of documents whose spread gives the intervals
-- grain: one statistic
-- columns:
--   statistic VARCHAR - pearson, spearman, cosine: of J and J''; abs_...: of |J| and |J''|; share_first, share_second,
--     share_both: of entries near zero, in J, J'' or both; share_second_where_...: near zero in J'' where J is, or is
--     not; lift: share_both / (share_first * share_second); odds_ratio: of that table; near_zero_...: the thresholds
--   measured DOUBLE - its value; null: no second derivatives, or one that does not vary
--   low DOUBLE - its 95 % interval
--   high DOUBLE - its 95 % interval
--   entries BIGINT - entries that it is about [entries]
--
-- All entries with a second derivative count, but for ranks. Intervals: leaving out one batch of documents at a time
-- (jackknife, on the logarithm for lift and odds_ratio, where 0.5 is added to each count of the table); for ranks the
-- spread of the batches' own coefficients, since leaving a batch out does not show what ranks owe to each other.
WITH batched AS (
    SELECT
        document_id,
        batch
    FROM document_batches($run_id, $batches, 1)
),

numbered AS (
    SELECT
        token_id,
        row_number() OVER (ORDER BY token_id) - 1 AS ordinal,
        count(*) OVER () AS n_tokens
    FROM tokens
    WHERE run_id = $run_id AND entries_stored > 0
),

sampled AS (
    SELECT
        b.batch,
        e.value::DOUBLE AS x,
        e.second_derivative::DOUBLE AS y
    FROM jacobian_entries AS e
    INNER JOIN numbered AS n ON e.token_id = n.token_id
    INNER JOIN batched AS b ON e.token_id >> 24 = b.document_id
    WHERE
        e.run_id = $run_id
        AND e.second_derivative IS NOT NULL
        AND n.ordinal % greatest(ceil(n.n_tokens / greatest($rank_tokens, 1)), 1) = 0
),

ranked AS (
    -- Equal values share the middle of their ranks.
    SELECT
        batch,
        abs(x) AS size_x,
        abs(y) AS size_y,
        (rank() OVER by_x + count(*) OVER by_x) / 2 AS rank_x,
        (rank() OVER by_y + count(*) OVER by_y) / 2 AS rank_y,
        (rank() OVER by_size_x + count(*) OVER by_size_x) / 2 AS rank_size_x,
        (rank() OVER by_size_y + count(*) OVER by_size_y) / 2 AS rank_size_y,
        (rank() OVER batch_by_x + count(*) OVER batch_by_x) / 2 AS batch_rank_x,
        (rank() OVER batch_by_y + count(*) OVER batch_by_y) / 2 AS batch_rank_y,
        (rank() OVER batch_by_size_x + count(*) OVER batch_by_size_x) / 2 AS batch_rank_size_x,
        (rank() OVER batch_by_size_y + count(*) OVER batch_by_size_y) / 2 AS batch_rank_size_y
    FROM sampled
    WINDOW
        by_x AS (ORDER BY x),
        by_y AS (ORDER BY y),
        by_size_x AS (ORDER BY abs(x)),
        by_size_y AS (ORDER BY abs(y)),
        batch_by_x AS (PARTITION BY batch ORDER BY x),
        batch_by_y AS (PARTITION BY batch ORDER BY y),
        batch_by_size_x AS (PARTITION BY batch ORDER BY abs(x)),
        batch_by_size_y AS (PARTITION BY batch ORDER BY abs(y))
),

batch_ranks AS (
    SELECT
        corr(batch_rank_x, batch_rank_y) AS of_values,
        corr(batch_rank_size_x, batch_rank_size_y) AS of_sizes
    FROM ranked
    GROUP BY batch
),

rank_spread AS (
    SELECT
        t_quantile(count(of_values) FILTER (WHERE isfinite(of_values)) - 1)
        * stddev_samp(of_values) FILTER (WHERE isfinite(of_values))
        / sqrt(count(of_values) FILTER (WHERE isfinite(of_values))) AS of_values,
        t_quantile(count(of_sizes) FILTER (WHERE isfinite(of_sizes)) - 1)
        * stddev_samp(of_sizes) FILTER (WHERE isfinite(of_sizes))
        / sqrt(count(of_sizes) FILTER (WHERE isfinite(of_sizes))) AS of_sizes
    FROM batch_ranks
),

rank_values AS (
    SELECT
        count(*) AS entries,
        corr(rank_x, rank_y) AS of_values,
        corr(rank_size_x, rank_size_y) AS of_sizes,
        count(*) FILTER (WHERE size_x < $near_zero_first) AS near_zero
    FROM ranked
),

cuts AS (
    -- The smallest |J''| that is left when as many are near zero as of |J|.
    SELECT
        CASE
            WHEN $near_zero_second > 0 THEN $near_zero_second
            ELSE coalesce(min(r.size_y) FILTER (WHERE r.rank_size_y > v.near_zero), 'infinity'::DOUBLE)
        END AS second_cut
    FROM ranked AS r
    CROSS JOIN rank_values AS v
),

batch_sums AS (
    SELECT
        b.batch,
        count(*)::DOUBLE AS n,
        sum(e.value::DOUBLE) AS x,
        sum(e.second_derivative::DOUBLE) AS y,
        sum(abs(e.value)::DOUBLE) AS size_x,
        sum(abs(e.second_derivative)::DOUBLE) AS size_y,
        sum(e.value::DOUBLE ** 2) AS xx,
        sum(e.second_derivative::DOUBLE ** 2) AS yy,
        sum(e.value::DOUBLE * e.second_derivative) AS xy,
        sum(abs(e.value::DOUBLE * e.second_derivative)) AS size_xy,
        count(*) FILTER (WHERE abs(e.value) < $near_zero_first)::DOUBLE AS near_x,
        count(*) FILTER (WHERE abs(e.second_derivative) < c.second_cut)::DOUBLE AS near_y,
        count(*) FILTER (WHERE abs(e.value) < $near_zero_first AND abs(e.second_derivative) < c.second_cut)::DOUBLE
            AS near_both
    FROM jacobian_entries AS e
    INNER JOIN batched AS b ON e.token_id >> 24 = b.document_id
    CROSS JOIN cuts AS c
    WHERE e.run_id = $run_id AND e.second_derivative IS NOT NULL
    GROUP BY b.batch
),

totals AS (
    SELECT
        NULL::BIGINT AS left_out,
        sum(n) AS n,
        sum(x) AS x,
        sum(y) AS y,
        sum(size_x) AS size_x,
        sum(size_y) AS size_y,
        sum(xx) AS xx,
        sum(yy) AS yy,
        sum(xy) AS xy,
        sum(size_xy) AS size_xy,
        sum(near_x) AS near_x,
        sum(near_y) AS near_y,
        sum(near_both) AS near_both
    FROM batch_sums
),

sums AS (
    SELECT
        left_out,
        n,
        x,
        y,
        size_x,
        size_y,
        xx,
        yy,
        xy,
        size_xy,
        near_x,
        near_y,
        near_both
    FROM totals
    UNION ALL
    SELECT
        b.batch AS left_out,
        t.n - b.n AS n,
        t.x - b.x AS x,
        t.y - b.y AS y,
        t.size_x - b.size_x AS size_x,
        t.size_y - b.size_y AS size_y,
        t.xx - b.xx AS xx,
        t.yy - b.yy AS yy,
        t.xy - b.xy AS xy,
        t.size_xy - b.size_xy AS size_xy,
        t.near_x - b.near_x AS near_x,
        t.near_y - b.near_y AS near_y,
        t.near_both - b.near_both AS near_both
    FROM totals AS t
    CROSS JOIN batch_sums AS b
),

measured AS (
    -- A variance of rounding errors only is none.
    SELECT
        left_out,
        unnest([1, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13]) AS rank,
        unnest([
            CASE
                WHEN n * xx - x ** 2 > 1e-12 * n * xx AND n * yy - y ** 2 > 1e-12 * n * yy
                    THEN (n * xy - x * y) / sqrt((n * xx - x ** 2) * (n * yy - y ** 2))
            END,
            xy / nullif(sqrt(xx * yy), 0),
            CASE
                WHEN n * xx - size_x ** 2 > 1e-12 * n * xx AND n * yy - size_y ** 2 > 1e-12 * n * yy
                    THEN (n * size_xy - size_x * size_y) / sqrt((n * xx - size_x ** 2) * (n * yy - size_y ** 2))
            END,
            size_xy / nullif(sqrt(xx * yy), 0),
            near_x / nullif(n, 0),
            near_y / nullif(n, 0),
            near_both / nullif(n, 0),
            near_both / nullif(near_x, 0),
            (near_y - near_both) / nullif(n - near_x, 0),
            ln((near_both + 0.5) * (n + 0.5) / ((near_x + 0.5) * (near_y + 0.5))),
            ln((near_both + 0.5) * (n - near_x - near_y + near_both + 0.5))
            - ln((near_x - near_both + 0.5) * (near_y - near_both + 0.5))
        ]) AS measured_value
    FROM sums
    WHERE n > 0
),

jackknife AS (
    SELECT
        rank,
        max(measured_value) FILTER (WHERE left_out IS NULL) AS measured_value,
        t_quantile(count(left_out) - 1)
        * (count(left_out) - 1) / sqrt(count(left_out))
        * stddev_samp(measured_value) FILTER (WHERE left_out IS NOT NULL) AS reach
    FROM measured
    GROUP BY rank
),

collected AS (
    SELECT
        j.rank,
        j.measured_value,
        j.reach,
        t.n::BIGINT AS entries
    FROM jackknife AS j
    CROSS JOIN totals AS t
    UNION ALL
    SELECT
        unnest([2, 5]) AS rank,
        unnest([v.of_values, v.of_sizes]) AS measured_value,
        unnest([s.of_values, s.of_sizes]) AS reach,
        v.entries
    FROM rank_values AS v
    CROSS JOIN rank_spread AS s
    UNION ALL
    SELECT
        unnest([14, 15]) AS rank,
        unnest([$near_zero_first, c.second_cut]) AS measured_value,
        NULL AS reach,
        t.n::BIGINT AS entries
    FROM cuts AS c
    CROSS JOIN totals AS t
),

names AS (
    SELECT
        unnest(range(1, 16)) AS rank,
        unnest([
            'pearson', 'spearman', 'cosine', 'abs_pearson', 'abs_spearman', 'abs_cosine', 'share_first',
            'share_second', 'share_both', 'share_second_where_first', 'share_second_where_not_first', 'lift',
            'odds_ratio', 'near_zero_first', 'near_zero_second'
        ]) AS statistic
)

SELECT
    n.statistic,
    CASE
        WHEN NOT isfinite(c.measured_value) THEN NULL
        WHEN n.statistic IN ('lift', 'odds_ratio') THEN exp(c.measured_value)
        ELSE c.measured_value
    END AS measured,
    CASE
        WHEN n.statistic IN ('lift', 'odds_ratio') THEN exp(c.measured_value - c.reach)
        WHEN n.statistic LIKE 'share%' OR n.statistic = 'abs_cosine'
            THEN greatest(c.measured_value - c.reach, 0 * c.reach)
        ELSE greatest(c.measured_value - c.reach, -1 + 0 * c.reach)
    END AS low,
    CASE
        WHEN n.statistic IN ('lift', 'odds_ratio') THEN exp(c.measured_value + c.reach)
        ELSE least(c.measured_value + c.reach, 1 + 0 * c.reach)
    END AS high,
    coalesce(c.entries, 0) AS entries
FROM names AS n
LEFT JOIN collected AS c ON n.rank = c.rank
ORDER BY n.rank
