-- question: Which pairs of latents have the strongest Jacobian, and at which token is each strongest?
-- reads: pair_means, jacobian_entries, tokens, text_around
-- parameters:
--   run_id VARCHAR - the run
--   order_by VARCHAR default mean_abs_all_tokens - or mean_abs_out_active, mean_abs_coactive, max_abs
--   top BIGINT default 20 - how many pairs [pairs]
--   scope VARCHAR default active - 'active' or 'all_inputs': which sums to read
--   min_coactive BIGINT default 1 - leave out pairs that were active together at fewer tokens (scope
--     'all_inputs': whose output latent was active at fewer) [tokens]
-- grain: one pair
-- columns:
--   rank BIGINT - 1 is the strongest
--   out_latent UINTEGER - latent of the output SAE
--   in_latent UINTEGER - latent of the input SAE
--   n_coactive BIGINT - tokens at which both were active [tokens]
--   mean_abs_all_tokens DOUBLE - sum of |J| / all analysed tokens
--   mean_abs_out_active DOUBLE - sum of |J| / tokens where the output latent is active
--   mean_abs_coactive DOUBLE - sum of |J| / tokens where both are active
--   mean DOUBLE - mean of J over the tokens of the scope
--   sd DOUBLE - standard deviation of J over the same tokens
--   max_abs FLOAT - largest |J|
--   example_value FLOAT - J of the pair's strongest stored entry
--   example VARCHAR - its token, in >>> <<<, with the text around it
--   example_token_id BIGINT - its token
-- without entries: the examples are null
WITH chosen AS (
    SELECT
        row_number() OVER (
            ORDER BY
                CASE $order_by
                    WHEN 'mean_abs_all_tokens' THEN mean_abs_all_tokens
                    WHEN 'mean_abs_out_active' THEN mean_abs_out_active
                    WHEN 'mean_abs_coactive' THEN mean_abs_coactive
                    WHEN 'max_abs' THEN max_abs
                    ELSE error('order_by: mean_abs_all_tokens, mean_abs_out_active, mean_abs_coactive or max_abs')
                END DESC NULLS LAST,
                out_latent ASC,
                in_latent ASC
        ) AS rank,
        out_latent,
        in_latent,
        n_coactive,
        mean_abs_all_tokens,
        mean_abs_out_active,
        mean_abs_coactive,
        mean,
        sd,
        max_abs
    FROM pair_means
    WHERE
        run_id = $run_id
        AND scope = $scope
        AND CASE scope WHEN 'active' THEN n_coactive ELSE n_stored END >= $min_coactive
    QUALIFY rank <= $top
),

ranked AS (
    -- The strongest entry of each chosen pair; of equal ones, the first in the corpus.
    SELECT
        e.out_latent,
        e.in_latent,
        e.token_id,
        e.value,
        row_number() OVER (
            PARTITION BY e.out_latent, e.in_latent
            ORDER BY abs(e.value) DESC, e.token_id ASC
        ) AS place
    FROM jacobian_entries AS e
    INNER JOIN chosen AS c ON e.out_latent = c.out_latent AND e.in_latent = c.in_latent
    WHERE e.run_id = $run_id
),

examples AS (
    SELECT
        r.out_latent,
        r.in_latent,
        r.token_id,
        r.value,
        t.text
    FROM ranked AS r
    INNER JOIN tokens AS t ON r.token_id = t.token_id AND t.run_id = $run_id
    WHERE r.place = 1
)

SELECT
    c.rank,
    c.out_latent,
    c.in_latent,
    c.n_coactive,
    c.mean_abs_all_tokens,
    c.mean_abs_out_active,
    c.mean_abs_coactive,
    c.mean,
    c.sd,
    c.max_abs,
    x.value AS example_value,
    text_around($run_id, x.token_id, -10, 0) || '>>>' || x.text || '<<<'
    || text_around($run_id, x.token_id, 1, 6) AS example,
    x.token_id AS example_token_id
FROM chosen AS c
LEFT JOIN examples AS x ON c.out_latent = x.out_latent AND c.in_latent = x.in_latent
ORDER BY c.rank
