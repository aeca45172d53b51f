-- question: What is the mean and the largest |J| of each pair, by each of the means that are in use?
-- reads: pair_stats, active_latents, runs
-- grain: one pair (out_latent, in_latent) of one scope in a run
-- columns:
--   run_id VARCHAR - the run
--   scope VARCHAR - 'active': both latents active; 'all_inputs': output active, every input latent
--   out_latent UINTEGER - latent of the output SAE
--   in_latent UINTEGER - latent of the input SAE
--   n_tokens BIGINT - analysed tokens of the run [tokens]
--   n_out_active BIGINT - tokens at which the output latent was active [tokens]
--   n_coactive BIGINT - tokens at which both latents were active [tokens]
--   n_stored BIGINT - tokens that contribute to the sums [tokens]
--   mean_abs_all_tokens DOUBLE - sum of |J| / n_tokens (the notebook's mean)
--   mean_abs_out_active DOUBLE - sum of |J| / n_out_active
--   mean_abs_coactive DOUBLE - sum of |J| / n_coactive; null in scope 'all_inputs', whose sums hold other tokens too
--   mean DOUBLE - mean of J over the tokens of the scope: n_coactive ('active') or n_out_active ('all_inputs')
--   sd DOUBLE - standard deviation of J over the same tokens (population)
--   max_abs FLOAT - largest |J|
--
-- Entries that a threshold dropped count as 0 in every mean, which is then a lower bound (see runs.thresholded).
WITH out_active AS (
    SELECT
        run_id,
        latent,
        n_tokens
    FROM active_latents
    WHERE side = 'out'
),

counted AS (
    SELECT
        p.run_id,
        p.scope,
        p.out_latent,
        p.in_latent,
        r.tokens AS n_tokens,
        coalesce(o.n_tokens, 0) AS n_out_active,
        p.n_coactive,
        p.n_stored,
        p."sum",
        p.sum_abs,
        p.sum_sq,
        p.max_abs,
        CASE p.scope WHEN 'active' THEN p.n_coactive ELSE coalesce(o.n_tokens, 0) END AS n_scope
    FROM pair_stats AS p
    INNER JOIN runs AS r ON p.run_id = r.run_id
    LEFT JOIN out_active AS o ON p.run_id = o.run_id AND p.out_latent = o.latent
)

SELECT
    run_id,
    scope,
    out_latent,
    in_latent,
    n_tokens,
    n_out_active,
    n_coactive,
    n_stored,
    sum_abs / n_tokens AS mean_abs_all_tokens,
    sum_abs / nullif(n_out_active, 0) AS mean_abs_out_active,
    CASE scope WHEN 'active' THEN sum_abs / nullif(n_coactive, 0) END AS mean_abs_coactive,
    "sum" / nullif(n_scope, 0) AS mean,
    sqrt(greatest(sum_sq / nullif(n_scope, 0) - ("sum" / nullif(n_scope, 0)) ** 2, 0)) AS sd,
    max_abs
FROM counted
