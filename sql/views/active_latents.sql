-- question: How often, and how strongly, is each latent active?
-- reads: latent_stats, runs
-- grain: one latent of one SAE that is active at least once in a run
-- columns:
--   run_id VARCHAR - the run
--   side VARCHAR - 'in': input SAE; 'out': output SAE
--   latent UINTEGER - index of the latent in its SAE
--   n_tokens BIGINT - tokens at which it is active [tokens]
--   share_of_tokens DOUBLE - the same, as a share of the run's analysed tokens
--   mean_activation DOUBLE - mean over the tokens at which it is active
--   max_activation FLOAT - largest activation
--   mean_margin DOUBLE - mean distance to the selection boundary, over the tokens at which it is active
SELECT
    l.run_id,
    l.side,
    l.latent,
    l.n_tokens,
    l.n_tokens::DOUBLE / r.tokens AS share_of_tokens,
    l.sum_activation / l.n_tokens AS mean_activation,
    l.max_activation,
    l.sum_margin / l.n_tokens AS mean_margin
FROM latent_stats AS l
INNER JOIN runs AS r ON l.run_id = r.run_id
