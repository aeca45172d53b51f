-- question: What are the main figures of a run?
-- reads: run_statistics
-- parameters:
--   run_id VARCHAR - the run
--   thresholds DOUBLE[] default 0.001,0.005,0.01,0.02,0.1 - of |J|: strictly greater than these
--   max_tokens BIGINT default 50000 - sparsity of at most this many tokens, evenly spaced [tokens]
--   kind VARCHAR default ablate - the kind of intervention
--   near_zero DOUBLE default 0.001 - |J| below this is about zero
--   relative_near_zero DOUBLE default 0.01 - the same for |J| / token_rms
--   tau DOUBLE default 0.1 - an effect larger than this counts as one
-- grain: one statistic (and threshold) that the run has
-- columns:
--   statistic VARCHAR - see compare_runs
--   threshold DOUBLE - of |J|, where there is one
--   measured DOUBLE - its value
--   low DOUBLE - its 95 % interval, where there is one
--   high DOUBLE - its 95 % interval
-- without entries: statistics of single entries, and intervals of pairs, are left out
SELECT
    statistic,
    threshold,
    measured,
    low,
    high
FROM
    run_statistics(
        $run_id, list_sort(list_distinct($thresholds)), $max_tokens, $kind, $near_zero, $relative_near_zero, $tau
    )
ORDER BY rank, threshold
