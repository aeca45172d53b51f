-- question: What share of all pairs of latents has a mean or largest |J| above a threshold?
-- reads: threshold_counts, counted, pair_means, jacobian_entries, runs, count_above, pair_share_reach
-- parameters:
--   run_id VARCHAR - the run
--   scope VARCHAR default active - 'active' or 'all_inputs': which sums to read
--   thresholds DOUBLE[] default 0,1e-6,1e-5,1e-4,1e-3,1e-2,1e-1,1 - a value counts where it is strictly greater
--   batches BIGINT default 20 - batches of documents for the intervals; 0: none
-- grain: one threshold
-- columns:
--   threshold DOUBLE - |J| strictly greater than this
--   share_mean_all_tokens DOUBLE - pairs whose mean over all tokens is above, of all n_out x n_in pairs [share]
--   share_mean_all_tokens_low DOUBLE - its 95 % interval; null for scope 'all_inputs' [share]
--   share_mean_all_tokens_high DOUBLE - its 95 % interval [share]
--   share_mean_out_active DOUBLE - the same for the mean over tokens where the output latent is active [share]
--   share_mean_coactive DOUBLE - the same for the mean over tokens where both are active (scope 'active' only) [share]
--   share_max DOUBLE - the same for the largest |J| [share]
--   share_max_low DOUBLE - its 95 % interval; null for scope 'all_inputs' [share]
--   share_max_high DOUBLE - its 95 % interval [share]
--   entries_per_token DOUBLE - stored entries of a token above, on average [entries]
--   share_of_entries DOUBLE - the same, of the entries before any threshold [share]
--   pairs_mean_all_tokens BIGINT - count behind share_mean_all_tokens [pairs]
--   pairs_mean_out_active BIGINT - count behind share_mean_out_active [pairs]
--   pairs_mean_coactive BIGINT - count behind share_mean_coactive [pairs]
--   pairs_max BIGINT - count behind share_max [pairs]
--   pairs_total BIGINT - all pairs of latents, n_out x n_in [pairs]
--   scope VARCHAR - which sums were read
--   entries_dropped BOOLEAN - true: entries were dropped, so the figures below the storage threshold are lower bounds
--     (in scope 'all_inputs' those of entries only: its sums are of all)
-- without entries: intervals and what counts entries are null
--
-- About a second at any size where `threshold_counts` has the thresholds (`marts.thresholds`; and 20 batches, or none);
-- else all pairs are read, for the intervals all entries too: the same figures, later.
-- The intervals are for the shares at this number of tokens, were other documents drawn (jackknife over batches of
-- documents, see sql/macros/pair_share_reach.sql). The sums of scope 'all_inputs' are not kept by document.
WITH thresholds AS (
    SELECT unnest(list_sort(list_distinct($thresholds))) AS threshold
),

needed AS (
    SELECT NOT coalesce(counted($run_id, $scope, list_sort(list_distinct($thresholds))), FALSE) AS from_pairs
),

held AS (
    SELECT
        threshold,
        pairs_mean_all_tokens,
        pairs_mean_out_active,
        pairs_mean_coactive,
        pairs_max
    FROM threshold_counts
    WHERE
        run_id = $run_id
        AND scope = $scope
        AND part = 1
        AND left_out = -1
        AND NOT (SELECT needed.from_pairs FROM needed)
),

held_entries AS (
    SELECT
        threshold,
        entries
    FROM threshold_counts
    WHERE
        run_id = $run_id
        AND scope = 'active'
        AND part = 1
        AND left_out = -1
        AND NOT (SELECT needed.from_pairs FROM needed)
),

pair_bins AS (
    SELECT
        histogram(mean_abs_all_tokens, list_sort(list_distinct($thresholds))) AS all_tokens,
        histogram(mean_abs_out_active, list_sort(list_distinct($thresholds))) AS out_active,
        histogram(mean_abs_coactive, list_sort(list_distinct($thresholds))) AS coactive,
        histogram(max_abs::DOUBLE, list_sort(list_distinct($thresholds))) AS largest
    FROM pair_means
    WHERE run_id = $run_id AND scope = $scope AND (SELECT needed.from_pairs FROM needed)
),

entry_bins AS (
    SELECT histogram(abs(value)::DOUBLE, list_sort(list_distinct($thresholds))) AS entries
    FROM jacobian_entries
    WHERE run_id = $run_id AND (SELECT needed.from_pairs FROM needed)
),

counts AS (
    SELECT
        t.threshold,
        coalesce(h.pairs_mean_all_tokens, count_above(p.all_tokens, t.threshold)) AS pairs_mean_all_tokens,
        coalesce(h.pairs_mean_out_active, count_above(p.out_active, t.threshold)) AS pairs_mean_out_active,
        CASE $scope
            WHEN 'active' THEN coalesce(h.pairs_mean_coactive, count_above(p.coactive, t.threshold))
        END AS pairs_mean_coactive,
        coalesce(h.pairs_max, count_above(p.largest, t.threshold)) AS pairs_max,
        coalesce(n.entries, count_above(e.entries, t.threshold)) AS entries
    FROM thresholds AS t
    LEFT JOIN held AS h ON t.threshold = h.threshold
    LEFT JOIN held_entries AS n ON t.threshold = n.threshold
    CROSS JOIN pair_bins AS p
    CROSS JOIN entry_bins AS e
),

intervals AS (
    SELECT
        threshold,
        mean_reach,
        max_reach
    FROM pair_share_reach(
        $run_id,
        list_sort(list_distinct($thresholds)),
        CASE $scope WHEN 'active' THEN $batches ELSE 0 END,
        1
    )
)

SELECT
    c.threshold,
    c.pairs_mean_all_tokens / nullif(r.n_out_latents * r.n_in_latents, 0) AS share_mean_all_tokens,
    greatest(c.pairs_mean_all_tokens / nullif(r.n_out_latents * r.n_in_latents, 0) - i.mean_reach, 0 * i.mean_reach)
        AS share_mean_all_tokens_low,
    least(c.pairs_mean_all_tokens / nullif(r.n_out_latents * r.n_in_latents, 0) + i.mean_reach, 1 + 0 * i.mean_reach)
        AS share_mean_all_tokens_high,
    c.pairs_mean_out_active / nullif(r.n_out_latents * r.n_in_latents, 0) AS share_mean_out_active,
    c.pairs_mean_coactive / nullif(r.n_out_latents * r.n_in_latents, 0) AS share_mean_coactive,
    c.pairs_max / nullif(r.n_out_latents * r.n_in_latents, 0) AS share_max,
    greatest(c.pairs_max / nullif(r.n_out_latents * r.n_in_latents, 0) - i.max_reach, 0 * i.max_reach) AS share_max_low,
    least(c.pairs_max / nullif(r.n_out_latents * r.n_in_latents, 0) + i.max_reach, 1 + 0 * i.max_reach)
        AS share_max_high,
    CASE r.keep WHEN 'entries' THEN c.entries / r.tokens END AS entries_per_token,
    CASE r.keep WHEN 'entries' THEN c.entries / r.entries_total END AS share_of_entries,
    c.pairs_mean_all_tokens,
    c.pairs_mean_out_active,
    c.pairs_mean_coactive,
    c.pairs_max,
    r.n_out_latents * r.n_in_latents AS pairs_total,
    $scope AS scope,
    r.thresholded AS entries_dropped
FROM counts AS c
CROSS JOIN runs AS r
LEFT JOIN intervals AS i ON c.threshold = i.threshold
WHERE r.run_id = $run_id
ORDER BY c.threshold
