-- question: Which of a transcoder's latents does the MLP contradict most?
-- reads: transcoder_latents, latents
-- parameters:
--   run_id VARCHAR - the run
--   top BIGINT default 20 - latents that are listed
--   least_tokens BIGINT default 10 - latents active at fewer tokens are left out [tokens]
--   isolated DOUBLE default 0.99 - tokens at which the latent has less isolation are left out
-- grain: one latent of the transcoder
-- columns:
--   rank BIGINT - 1: the lowest mean cosine
--   latent UINTEGER - the latent
--   n_tokens BIGINT - tokens at which it was active and isolated [tokens]
--   mean_cosine DOUBLE - mean cosine between the MLP's and the transcoder's change along its direction
--   mean_length_ratio DOUBLE - mean length of the MLP's change over the mean length of the transcoder's
--   mean_activation DOUBLE - its mean activation there
WITH found AS (
    SELECT
        t.latent,
        count(*) AS n_tokens,
        avg(t.cosine) AS mean_cosine,
        avg(t.mlp_norm) / nullif(avg(t.transcoder_norm), 0) AS mean_length_ratio,
        avg(l.activation) AS mean_activation
    FROM transcoder_latents AS t
    INNER JOIN latents AS l
        ON t.run_id = l.run_id AND t.token_id = l.token_id AND t.latent = l.latent AND l.side = 'in'
    WHERE t.run_id = $run_id AND $isolated <= t.isolation
    GROUP BY t.latent
    HAVING $least_tokens <= count(*)
),

ranked AS (
    SELECT
        row_number() OVER (ORDER BY mean_cosine, latent) AS rank,
        latent,
        n_tokens,
        mean_cosine,
        mean_length_ratio,
        mean_activation
    FROM found
)

SELECT
    rank,
    latent,
    n_tokens,
    mean_cosine,
    mean_length_ratio,
    mean_activation
FROM ranked
WHERE rank <= $top
ORDER BY rank
