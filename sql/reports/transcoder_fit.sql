-- question: Do a transcoder's latents do to the MLP's output what the MLP itself does along their directions?
-- reads: transcoder_tokens, transcoder_latents, transcoder_effects, runs
-- parameters:
--   run_id VARCHAR - the run
--   isolated DOUBLE default 0.99 - latents with less isolation have no direction of their own, and are left out
--   least_effect DOUBLE default 0.001 - signs are compared where the transcoder's effect is at least this large
-- grain: one statistic
-- columns:
--   statistic VARCHAR - fvu, error_share: of the MLP's output, what the transcoder leaves (of its variance, on the
--     run's first tokens; of its squared length, on all); isolated_share: of active latents; cosine_...,
--     length_ratio_...: of the MLP's and the transcoder's change along a latent's direction (ratio: MLP's over
--     transcoder's); effect_...: of both changes as the output SAE's active latents read them (slope: the MLP's change
--     per unit of the transcoder's)
--   measured DOUBLE - its value; null: there is nothing to measure
--   n BIGINT - what it is about: tokens, active latents or pairs
--
-- All figures hold the selections fixed, as every derivative here. Effects are those that thresholds left stored.
WITH errors AS (
    SELECT
        count(*) AS n,
        sum(error_sq) / nullif(sum(output_sq), 0) AS error_share
    FROM transcoder_tokens
    WHERE run_id = $run_id
),

latent_figures AS (
    SELECT
        count(*) AS n,
        count(*) FILTER (WHERE isolation >= $isolated) AS n_isolated,
        avg(cosine) FILTER (WHERE isolation >= $isolated) AS cosine_mean,
        median(cosine) FILTER (WHERE isolation >= $isolated) AS cosine_median,
        avg(CASE WHEN cosine > 0.5 THEN 1.0 ELSE 0.0 END) FILTER (WHERE isolation >= $isolated) AS cosine_above_half,
        median(mlp_norm / transcoder_norm) FILTER (WHERE isolation >= $isolated AND transcoder_norm > 0) AS ratio_median
    FROM transcoder_latents
    WHERE run_id = $run_id
),

pairs AS (
    SELECT
        e.mlp_effect::DOUBLE AS mlp,
        e.transcoder_effect::DOUBLE AS said
    FROM transcoder_effects AS e
    INNER JOIN transcoder_latents AS l
        ON e.run_id = l.run_id AND e.token_id = l.token_id AND e.in_latent = l.latent
    WHERE e.run_id = $run_id AND $isolated <= l.isolation
),

effects AS (
    SELECT
        count(*) AS n,
        count(*) FILTER (WHERE abs(said) >= $least_effect) AS n_signed,
        CASE WHEN var_pop(mlp) > 0 AND var_pop(said) > 0 THEN corr(mlp, said) END AS pearson,
        sum(mlp * said) / nullif(sqrt(sum(mlp ** 2) * sum(said ** 2)), 0) AS cosine,
        CASE WHEN var_pop(said) > 0 THEN regr_slope(mlp, said) END AS slope,
        sum((mlp - said) ** 2) / nullif(sum(mlp ** 2), 0) AS error_share,
        avg(CASE WHEN sign(mlp) = sign(said) THEN 1.0 ELSE 0.0 END) FILTER (WHERE abs(said) >= $least_effect)
            AS sign_agreement
    FROM pairs
),

measured AS (
    SELECT
        unnest(range(1, 13)) AS rank,
        unnest([
            'fvu', 'error_share', 'isolated_share', 'cosine_mean', 'cosine_median', 'cosine_above_half',
            'length_ratio_median', 'effect_pearson', 'effect_cosine', 'effect_slope', 'effect_error_share',
            'effect_sign_agreement'
        ]) AS statistic,
        unnest([
            CASE WHEN t.n > 0 THEN r.fvu_in END, t.error_share, l.n_isolated / nullif(l.n, 0)::DOUBLE, l.cosine_mean,
            l.cosine_median, l.cosine_above_half, l.ratio_median, e.pearson, e.cosine, e.slope, e.error_share,
            e.sign_agreement
        ]) AS measured,
        unnest([
            t.n, t.n, l.n, l.n_isolated, l.n_isolated, l.n_isolated, l.n_isolated, e.n, e.n, e.n, e.n, e.n_signed
        ]) AS n
    FROM runs AS r
    CROSS JOIN errors AS t
    CROSS JOIN latent_figures AS l
    CROSS JOIN effects AS e
    WHERE r.run_id = $run_id
)

SELECT
    statistic,
    measured,
    n
FROM measured
ORDER BY rank
