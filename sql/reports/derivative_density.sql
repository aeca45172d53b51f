-- question: Do large first derivatives come with large second derivatives?
-- reads: jacobian_entries
-- parameters:
--   run_id VARCHAR - the run
--   bins_per_decade BIGINT default 5 - bins in a factor of ten [bins]
--   smallest DOUBLE default 1e-8 - what is below this, zeros too, falls into the bin that starts at 0
-- grain: one cell of (|J|, |J''|) that holds at least one stored entry whose second derivative was computed
-- columns:
--   low_first DOUBLE - lower end of |J|, inclusive
--   high_first DOUBLE - upper end of |J|, exclusive
--   low_second DOUBLE - lower end of |J''|, inclusive
--   high_second DOUBLE - upper end of |J''|, exclusive
--   entries BIGINT - entries in the cell [entries]
--   same_sign BIGINT - those of them whose J and J'' have the same sign [entries]
WITH binned AS (
    SELECT
        CASE WHEN abs(value) >= $smallest THEN floor(log10(abs(value)::DOUBLE) * $bins_per_decade)::BIGINT END AS bin1,
        CASE
            WHEN abs(second_derivative) >= $smallest
                THEN floor(log10(abs(second_derivative)::DOUBLE) * $bins_per_decade)::BIGINT
        END AS bin2,
        sign(value) * sign(second_derivative) > 0 AS same_sign
    FROM jacobian_entries
    WHERE run_id = $run_id AND second_derivative IS NOT NULL
)

SELECT
    CASE WHEN bin1 IS NULL THEN 0 ELSE pow(10, bin1 / $bins_per_decade) END AS low_first,
    CASE WHEN bin1 IS NULL THEN $smallest ELSE pow(10, (bin1 + 1) / $bins_per_decade) END AS high_first,
    CASE WHEN bin2 IS NULL THEN 0 ELSE pow(10, bin2 / $bins_per_decade) END AS low_second,
    CASE WHEN bin2 IS NULL THEN $smallest ELSE pow(10, (bin2 + 1) / $bins_per_decade) END AS high_second,
    count(*) AS entries,
    count(*) FILTER (WHERE same_sign) AS same_sign
FROM binned
GROUP BY bin1, bin2
ORDER BY low_first, low_second
