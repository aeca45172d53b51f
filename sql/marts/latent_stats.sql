-- question: How often is each latent of a run active, and what do its activations and margins add up to?
-- reads: latents
-- parameters:
--   run_id VARCHAR - the run
-- grain: one latent of one SAE that is active at least once
-- columns:
--   side VARCHAR - 'in': input SAE; 'out': output SAE
--   latent UINTEGER - index of the latent in its SAE
--   n_tokens BIGINT - tokens at which it is active [tokens]
--   sum_activation DOUBLE - sum of its activation over these
--   max_activation FLOAT - largest activation
--   sum_margin DOUBLE - sum of its margin over these
--
-- For a run that keeps its active latents. Of one that does not, the sums are made as it goes (jacobian_core/pairs),
-- exact and rounded once: these may differ in a last digit.
SELECT
    side,
    latent,
    count(*) AS n_tokens,
    sum(activation::DOUBLE) AS sum_activation,
    max(activation) AS max_activation,
    sum(margin::DOUBLE) AS sum_margin
FROM latents
WHERE run_id = $run_id
GROUP BY side, latent
ORDER BY side, latent
