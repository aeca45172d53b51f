-- question: Does `threshold_counts` hold all of these thresholds for a run?
-- reads: threshold_counts
-- parameters:
--   of_run VARCHAR - the run
--   of_scope VARCHAR - 'active' or 'all_inputs'
--   above DOUBLE[] - thresholds
-- grain: one value
--
-- If not (other thresholds, a run in progress or of an older version), the same figures are computed from the entries.
SELECT count(DISTINCT t.threshold) = len(list_distinct(above))
FROM threshold_counts AS t
WHERE t.run_id = of_run AND t.scope = of_scope AND t.part = 1 AND t.left_out = -1 AND list_contains(above, t.threshold)
