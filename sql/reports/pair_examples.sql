-- question: At which tokens are the strongest pairs strongest, and what stands around them?
-- reads: pair_means, jacobian_entries, tokens, documents, latents, text_around
-- parameters:
--   run_id VARCHAR - the run
--   top BIGINT default 10 - how many pairs, by mean |J| over all tokens [pairs]
--   examples BIGINT default 3 - how many tokens of each, by |J| [tokens]
--   before BIGINT default 14 - tokens of text before [tokens]
--   after BIGINT default 8 - tokens of text after [tokens]
--   min_coactive BIGINT default 3 - leave out pairs that were active together at fewer tokens [tokens]
-- grain: one token of one pair
-- columns:
--   rank BIGINT - of the pair; 1 is the strongest
--   place BIGINT - of the token; 1 is where the pair's |J| is largest
--   out_latent UINTEGER - latent of the output SAE
--   in_latent UINTEGER - latent of the input SAE
--   n_coactive BIGINT - tokens at which both were active [tokens]
--   mean_abs_all_tokens DOUBLE - sum of |J| / all analysed tokens
--   mean DOUBLE - mean of J over the tokens at which both were active
--   max_abs FLOAT - largest |J|
--   token_id BIGINT - the token
--   value FLOAT - J there
--   in_activation FLOAT - activation of the input latent there
--   out_activation FLOAT - activation of the output latent there
--   source VARCHAR - where the document is from, if known
--   text_before VARCHAR - the text before the token
--   text VARCHAR - the token
--   text_after VARCHAR - the text after it
WITH chosen AS (
    SELECT
        row_number() OVER (ORDER BY mean_abs_all_tokens DESC NULLS LAST, out_latent ASC, in_latent ASC) AS rank,
        out_latent,
        in_latent,
        n_coactive,
        mean_abs_all_tokens,
        mean,
        max_abs
    FROM pair_means
    WHERE run_id = $run_id AND scope = 'active' AND n_coactive >= $min_coactive
    QUALIFY rank <= $top
),

placed AS (
    SELECT
        c.rank,
        e.out_latent,
        e.in_latent,
        c.n_coactive,
        c.mean_abs_all_tokens,
        c.mean,
        c.max_abs,
        e.token_id,
        e.value,
        row_number() OVER (
            PARTITION BY e.out_latent, e.in_latent
            ORDER BY abs(e.value) DESC, e.token_id ASC
        ) AS place
    FROM jacobian_entries AS e
    INNER JOIN chosen AS c ON e.out_latent = c.out_latent AND e.in_latent = c.in_latent
    WHERE e.run_id = $run_id
    QUALIFY place <= $examples
)

SELECT
    p.rank,
    p.place,
    p.out_latent,
    p.in_latent,
    p.n_coactive,
    p.mean_abs_all_tokens,
    p.mean,
    p.max_abs,
    p.token_id,
    p.value,
    i.activation AS in_activation,
    o.activation AS out_activation,
    d.source,
    text_around($run_id, p.token_id, -$before, 0) AS text_before,
    t.text,
    text_around($run_id, p.token_id, 1, $after + 1) AS text_after
FROM placed AS p
INNER JOIN tokens AS t ON p.token_id = t.token_id AND t.run_id = $run_id
LEFT JOIN documents AS d ON t.document_id = d.document_id AND d.run_id = $run_id
LEFT JOIN latents AS i
    ON p.token_id = i.token_id AND p.in_latent = i.latent AND i.side = 'in' AND i.run_id = $run_id
LEFT JOIN latents AS o
    ON p.token_id = o.token_id AND p.out_latent = o.latent AND o.side = 'out' AND o.run_id = $run_id
ORDER BY p.rank, p.place
