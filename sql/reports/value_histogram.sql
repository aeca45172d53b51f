-- question: How are the sizes of the derivatives spread, entry by entry and pair by pair?
-- reads: jacobian_entries, pair_means, runs
-- parameters:
--   run_id VARCHAR - the run
--   bins_per_decade BIGINT default 5 - bins in a factor of ten [bins]
--   smallest DOUBLE default 1e-8 - what is below this, zeros too, falls into the first row
-- grain: one bin of |J| that holds at least one value
-- columns:
--   low DOUBLE - lower end of the bin, inclusive; 0 in the first row
--   high DOUBLE - upper end of the bin, exclusive
--   entries BIGINT - stored entries with |J| in the bin [entries]
--   share_of_entries DOUBLE - the same, of all stored entries [share]
--   pairs_mean_all_tokens BIGINT - pairs whose mean |J| over all tokens is in the bin (scope 'active') [pairs]
--   share_of_pairs DOUBLE - the same, of the pairs that were active together at least once [share]
--   pairs_max BIGINT - pairs whose largest |J| is in the bin (scope 'active') [pairs]
-- without entries: entries and share_of_entries are null
--
-- Bins are counted in one pass over the entries; what a threshold dropped on the way into the lake is not there.
WITH binned AS (
    SELECT
        'entry' AS what,
        CASE
            WHEN abs(value) >= $smallest THEN floor(log10(abs(value)::DOUBLE) * $bins_per_decade)::BIGINT
        END AS bin
    FROM jacobian_entries
    WHERE run_id = $run_id
    UNION ALL
    SELECT
        'mean' AS what,
        CASE
            WHEN mean_abs_all_tokens >= $smallest THEN floor(log10(mean_abs_all_tokens) * $bins_per_decade)::BIGINT
        END AS bin
    FROM pair_means
    WHERE run_id = $run_id AND scope = 'active'
    UNION ALL
    SELECT
        'max' AS what,
        CASE
            WHEN max_abs >= $smallest THEN floor(log10(max_abs::DOUBLE) * $bins_per_decade)::BIGINT
        END AS bin
    FROM pair_means
    WHERE run_id = $run_id AND scope = 'active'
),

counted AS (
    SELECT
        bin,
        count(*) FILTER (WHERE what = 'entry') AS entries,
        count(*) FILTER (WHERE what = 'mean') AS pairs_mean_all_tokens,
        count(*) FILTER (WHERE what = 'max') AS pairs_max
    FROM binned
    GROUP BY bin
)

SELECT
    CASE WHEN c.bin IS NULL THEN 0 ELSE pow(10, c.bin / $bins_per_decade) END AS low,
    CASE WHEN c.bin IS NULL THEN $smallest ELSE pow(10, (c.bin + 1) / $bins_per_decade) END AS high,
    CASE r.keep WHEN 'entries' THEN c.entries END AS entries,
    CASE r.keep WHEN 'entries' THEN c.entries / nullif(sum(c.entries) OVER (), 0) END AS share_of_entries,
    c.pairs_mean_all_tokens,
    c.pairs_mean_all_tokens / nullif(sum(c.pairs_mean_all_tokens) OVER (), 0) AS share_of_pairs,
    c.pairs_max
FROM counted AS c
CROSS JOIN runs AS r
WHERE r.run_id = $run_id
ORDER BY low
