-- question: How large is the second derivative of a pair, given its first?
-- reads: jacobian_entries
-- parameters:
--   run_id VARCHAR - the run
--   edges DOUBLE[] default 1e-6,1e-5,1e-4,1e-3,1e-2,1e-1,1 - |J| between the bins; 0 and infinity are added
-- grain: one bin of |J| that holds entries with a second derivative
-- columns:
--   low DOUBLE - the bin holds low <= |J| < high
--   high DOUBLE - null: no upper end
--   entries BIGINT - entries in the bin [entries]
--   share_of_entries DOUBLE - of the entries with a second derivative [share]
--   p05 DOUBLE - 5th percentile of |J''|
--   p25 DOUBLE - 25th percentile of |J''|
--   median DOUBLE - median of |J''|
--   p75 DOUBLE - 75th percentile of |J''|
--   p95 DOUBLE - 95th percentile of |J''|
--   max DOUBLE - largest |J''|
--   mean DOUBLE - mean of |J''|
--   median_ratio DOUBLE - median of |J''| / |J|: how fast J changes with s_j, as a share of itself; null where J is 0
--
-- Quantiles are by t-digest, in constant memory: within about 1 % of their rank.
WITH edges AS (
    SELECT unnest(list_distinct(list_append($edges, 0.0::DOUBLE))) AS low
),

bins AS (
    SELECT
        low,
        lead(low, 1, 'infinity'::DOUBLE) OVER (ORDER BY low) AS high
    FROM edges
    WHERE low >= 0
),

sizes AS (
    SELECT
        abs(value)::DOUBLE AS first_size,
        abs(second_derivative)::DOUBLE AS second_size
    FROM jacobian_entries
    WHERE run_id = $run_id AND second_derivative IS NOT NULL
),

summary AS (
    SELECT
        b.low,
        b.high,
        count(*) AS entries,
        approx_quantile(s.second_size, [0.05, 0.25, 0.5, 0.75, 0.95]) AS quantiles,
        max(s.second_size) AS largest,
        avg(s.second_size) AS mean,
        approx_quantile(s.second_size / nullif(s.first_size, 0), 0.5) AS median_ratio
    FROM sizes AS s
    INNER JOIN bins AS b ON s.first_size >= b.low AND s.first_size < b.high
    GROUP BY b.low, b.high
)

SELECT
    low,
    nullif(high, 'infinity'::DOUBLE) AS high,
    entries,
    entries / sum(entries) OVER () AS share_of_entries,
    quantiles[1] AS p05,
    quantiles[2] AS p25,
    quantiles[3] AS median,
    quantiles[4] AS p75,
    quantiles[5] AS p95,
    largest AS "max",
    mean,
    median_ratio
FROM summary
ORDER BY low
