-- invariant: a function's shape follows from its residuals by the rule, over a range that holds the token's activation
-- reads: function_shapes
-- parameters:
--   run_id VARCHAR - the run
-- grain: one function that contradicts itself
-- columns:
--   token_id BIGINT - the token
--   out_latent UINTEGER - latent of the output SAE
--   in_latent UINTEGER - latent of the input SAE
--   problem VARCHAR - what does not fit
--
-- The rule is applied to the stored residuals again, but where one is within 1e-5 of its limit: the shape was found
-- before they were rounded to float32. No best line of a function is further off than 4/3 of its range.
WITH limits AS (
    SELECT
        token_id,
        out_latent,
        in_latent,
        in_before,
        in_max,
        out_range,
        linear_residual,
        jumprelu_residual,
        shape,
        shape_scale_free,
        weight,
        unnest([0.01, 0.01 * CASE WHEN out_range > 0 THEN out_range ELSE 1 END]::DOUBLE[]) AS residual_limit,
        unnest([shape, shape_scale_free]) AS found
    FROM function_shapes
    WHERE run_id = $run_id
),

judged AS (
    SELECT DISTINCT
        token_id,
        out_latent,
        in_latent,
        CASE
            WHEN NOT abs(in_max - greatest(5, in_before + 1)) <= 1e-5 * in_max THEN 'in_max is not max(5, s_j + 1)'
            WHEN NOT greatest(linear_residual, jumprelu_residual) <= 1.5 * out_range + 1e-30
                THEN 'a residual too large for the range'
            WHEN NOT weight >= 1 THEN 'weight is below 1'
            WHEN
                found <> 'linear' AND linear_residual < residual_limit * (1 - 1e-5)
                THEN found || ' by its name, linear by its residual'
            WHEN
                found = 'linear' AND linear_residual > residual_limit * (1 + 1e-5)
                THEN 'linear by its name, not by its residual'
            WHEN
                found = 'other' AND jumprelu_residual < residual_limit * (1 - 1e-5)
                THEN 'other by its name, jumprelu by its residual'
            WHEN
                found = 'jumprelu' AND jumprelu_residual > residual_limit * (1 + 1e-5)
                THEN 'jumprelu by its name, not by its residual'
        END AS problem
    FROM limits
)

SELECT
    token_id,
    out_latent,
    in_latent,
    problem
FROM judged
WHERE problem IS NOT NULL
ORDER BY token_id, out_latent, in_latent, problem
