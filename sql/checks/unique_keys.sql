-- invariant: the key of every table is unique
-- reads: tokens, documents, latents, jacobian_entries, pair_stats, latent_stats, threshold_counts, interventions,
--   function_shapes, transcoder_tokens, transcoder_latents, transcoder_effects
-- parameters:
--   run_id VARCHAR - the run
-- grain: one key that occurs more than once
-- columns:
--   table_name VARCHAR - the table
--   key_values VARCHAR - its key, columns in the order of the contract
--   copies BIGINT - how often it occurs [rows]
SELECT
    'tokens' AS table_name,
    token_id::VARCHAR AS key_values,
    count(*) AS copies
FROM tokens
WHERE run_id = $run_id
GROUP BY token_id
HAVING count(*) > 1
UNION ALL
SELECT
    'documents' AS table_name,
    document_id::VARCHAR AS key_values,
    count(*) AS copies
FROM documents
WHERE run_id = $run_id
GROUP BY document_id
HAVING count(*) > 1
UNION ALL
SELECT
    'latents' AS table_name,
    token_id || ' ' || side || ' ' || latent AS key_values,
    count(*) AS copies
FROM latents
WHERE run_id = $run_id
GROUP BY token_id, side, latent
HAVING count(*) > 1
UNION ALL
SELECT
    'jacobian_entries' AS table_name,
    token_id || ' ' || out_latent || ' ' || in_latent AS key_values,
    count(*) AS copies
FROM jacobian_entries
WHERE run_id = $run_id
GROUP BY token_id, out_latent, in_latent
HAVING count(*) > 1
UNION ALL
SELECT
    'pair_stats' AS table_name,
    scope || ' ' || out_latent || ' ' || in_latent AS key_values,
    count(*) AS copies
FROM pair_stats
WHERE run_id = $run_id
GROUP BY scope, out_latent, in_latent
HAVING count(*) > 1
UNION ALL
SELECT
    'latent_stats' AS table_name,
    side || ' ' || latent AS key_values,
    count(*) AS copies
FROM latent_stats
WHERE run_id = $run_id
GROUP BY side, latent
HAVING count(*) > 1
UNION ALL
SELECT
    'threshold_counts' AS table_name,
    scope || ' ' || part || ' ' || left_out || ' ' || threshold AS key_values,
    count(*) AS copies
FROM threshold_counts
WHERE run_id = $run_id
GROUP BY scope, part, left_out, threshold
HAVING count(*) > 1
UNION ALL
SELECT
    'interventions' AS table_name,
    token_id || ' ' || out_latent || ' ' || in_latent || ' ' || kind || ' ' || in_after AS key_values,
    count(*) AS copies
FROM interventions
WHERE run_id = $run_id
GROUP BY token_id, out_latent, in_latent, kind, in_after
HAVING count(*) > 1
UNION ALL
SELECT
    'function_shapes' AS table_name,
    token_id || ' ' || out_latent || ' ' || in_latent AS key_values,
    count(*) AS copies
FROM function_shapes
WHERE run_id = $run_id
GROUP BY token_id, out_latent, in_latent
HAVING count(*) > 1
UNION ALL
SELECT
    'transcoder_tokens' AS table_name,
    token_id::VARCHAR AS key_values,
    count(*) AS copies
FROM transcoder_tokens
WHERE run_id = $run_id
GROUP BY token_id
HAVING count(*) > 1
UNION ALL
SELECT
    'transcoder_latents' AS table_name,
    token_id || ' ' || latent AS key_values,
    count(*) AS copies
FROM transcoder_latents
WHERE run_id = $run_id
GROUP BY token_id, latent
HAVING count(*) > 1
UNION ALL
SELECT
    'transcoder_effects' AS table_name,
    token_id || ' ' || out_latent || ' ' || in_latent AS key_values,
    count(*) AS copies
FROM transcoder_effects
WHERE run_id = $run_id
GROUP BY token_id, out_latent, in_latent
HAVING count(*) > 1
ORDER BY table_name, key_values
