-- invariant: every number is finite where it is not null
-- reads: tokens, latents, jacobian_entries, pair_stats, latent_stats, threshold_counts, interventions, function_shapes,
--   transcoder_tokens, transcoder_latents, transcoder_effects
-- parameters:
--   run_id VARCHAR - the run
-- grain: one column with a value that is not finite
-- columns:
--   table_name VARCHAR - the table
--   column_name VARCHAR - the column
--   violations BIGINT - values that are NaN or infinite [rows]
WITH counted AS (
    SELECT
        'tokens' AS table_name,
        unnest([
            'abs_sum_total',
            'abs_sum_stored',
            'sq_sum_total',
            'abs_max'
        ]) AS column_name,
        unnest([
            count(*) FILTER (WHERE NOT isfinite(abs_sum_total)),
            count(*) FILTER (WHERE NOT isfinite(abs_sum_stored)),
            count(*) FILTER (WHERE NOT isfinite(sq_sum_total)),
            count(*) FILTER (WHERE NOT isfinite(abs_max))
        ]) AS violations
    FROM tokens
    WHERE run_id = $run_id
    UNION ALL
    SELECT
        'latents' AS table_name,
        unnest([
            'activation',
            'margin'
        ]) AS column_name,
        unnest([
            count(*) FILTER (WHERE NOT isfinite(activation)),
            count(*) FILTER (WHERE NOT isfinite(margin))
        ]) AS violations
    FROM latents
    WHERE run_id = $run_id
    UNION ALL
    SELECT
        'jacobian_entries' AS table_name,
        unnest([
            'value',
            'second_derivative'
        ]) AS column_name,
        unnest([
            count(*) FILTER (WHERE NOT isfinite(value)),
            count(*) FILTER (WHERE NOT isfinite(second_derivative))
        ]) AS violations
    FROM jacobian_entries
    WHERE run_id = $run_id
    UNION ALL
    SELECT
        'pair_stats' AS table_name,
        unnest([
            'sum',
            'sum_abs',
            'sum_sq',
            'max_abs'
        ]) AS column_name,
        unnest([
            count(*) FILTER (WHERE NOT isfinite("sum")),
            count(*) FILTER (WHERE NOT isfinite(sum_abs)),
            count(*) FILTER (WHERE NOT isfinite(sum_sq)),
            count(*) FILTER (WHERE NOT isfinite(max_abs))
        ]) AS violations
    FROM pair_stats
    WHERE run_id = $run_id
    UNION ALL
    SELECT
        'latent_stats' AS table_name,
        unnest([
            'sum_activation',
            'max_activation',
            'sum_margin'
        ]) AS column_name,
        unnest([
            count(*) FILTER (WHERE NOT isfinite(sum_activation)),
            count(*) FILTER (WHERE NOT isfinite(max_activation)),
            count(*) FILTER (WHERE NOT isfinite(sum_margin))
        ]) AS violations
    FROM latent_stats
    WHERE run_id = $run_id
    UNION ALL
    SELECT
        'threshold_counts' AS table_name,
        'threshold' AS column_name,
        count(*) FILTER (WHERE NOT isfinite(threshold)) AS violations
    FROM threshold_counts
    WHERE run_id = $run_id
    UNION ALL
    SELECT
        'interventions' AS table_name,
        unnest([
            'in_before',
            'in_after',
            'value',
            'second_derivative',
            'out_before',
            'out_after',
            'pre_change',
            'weight'
        ]) AS column_name,
        unnest([
            count(*) FILTER (WHERE NOT isfinite(in_before)),
            count(*) FILTER (WHERE NOT isfinite(in_after)),
            count(*) FILTER (WHERE NOT isfinite(value)),
            count(*) FILTER (WHERE NOT isfinite(second_derivative)),
            count(*) FILTER (WHERE NOT isfinite(out_before)),
            count(*) FILTER (WHERE NOT isfinite(out_after)),
            count(*) FILTER (WHERE NOT isfinite(pre_change)),
            count(*) FILTER (WHERE NOT isfinite(weight))
        ]) AS violations
    FROM interventions
    WHERE run_id = $run_id
    UNION ALL
    SELECT
        'function_shapes' AS table_name,
        unnest([
            'value',
            'in_before',
            'in_max',
            'out_range',
            'linear_residual',
            'jumprelu_residual',
            'weight'
        ]) AS column_name,
        unnest([
            count(*) FILTER (WHERE NOT isfinite(value)),
            count(*) FILTER (WHERE NOT isfinite(in_before)),
            count(*) FILTER (WHERE NOT isfinite(in_max)),
            count(*) FILTER (WHERE NOT isfinite(out_range)),
            count(*) FILTER (WHERE NOT isfinite(linear_residual)),
            count(*) FILTER (WHERE NOT isfinite(jumprelu_residual)),
            count(*) FILTER (WHERE NOT isfinite(weight))
        ]) AS violations
    FROM function_shapes
    WHERE run_id = $run_id
    UNION ALL
    SELECT
        'transcoder_tokens' AS table_name,
        unnest([
            'error_sq',
            'output_sq'
        ]) AS column_name,
        unnest([
            count(*) FILTER (WHERE NOT isfinite(error_sq)),
            count(*) FILTER (WHERE NOT isfinite(output_sq))
        ]) AS violations
    FROM transcoder_tokens
    WHERE run_id = $run_id
    UNION ALL
    SELECT
        'transcoder_latents' AS table_name,
        unnest([
            'cosine',
            'mlp_norm',
            'transcoder_norm',
            'isolation',
            'direction_norm'
        ]) AS column_name,
        unnest([
            count(*) FILTER (WHERE NOT isfinite(cosine)),
            count(*) FILTER (WHERE NOT isfinite(mlp_norm)),
            count(*) FILTER (WHERE NOT isfinite(transcoder_norm)),
            count(*) FILTER (WHERE NOT isfinite(isolation)),
            count(*) FILTER (WHERE NOT isfinite(direction_norm))
        ]) AS violations
    FROM transcoder_latents
    WHERE run_id = $run_id
    UNION ALL
    SELECT
        'transcoder_effects' AS table_name,
        unnest([
            'mlp_effect',
            'transcoder_effect'
        ]) AS column_name,
        unnest([
            count(*) FILTER (WHERE NOT isfinite(mlp_effect)),
            count(*) FILTER (WHERE NOT isfinite(transcoder_effect))
        ]) AS violations
    FROM transcoder_effects
    WHERE run_id = $run_id
)

SELECT
    table_name,
    column_name,
    violations
FROM counted
WHERE violations > 0
ORDER BY table_name, column_name
