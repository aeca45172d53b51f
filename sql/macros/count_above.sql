-- question: How many values of a histogram are strictly greater than a threshold?
-- reads: nothing
-- parameters:
--   bins MAP(DOUBLE,UBIGINT) - histogram(values, thresholds): a key counts values above the key before, up to itself
--   threshold DOUBLE - one of the thresholds that the histogram was made with
-- grain: one value
--
-- One pass over the values then answers for every threshold. A histogram of no values is null, and counts 0.
SELECT coalesce(list_sum([bin.value FOR bin IN map_entries(bins) IF bin.key > threshold]), 0)::BIGINT  -- noqa: RF01
