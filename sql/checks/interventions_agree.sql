-- invariant: what an intervention says of itself fits together: its kind, its change, its selection and its weight
-- reads: interventions
-- parameters:
--   run_id VARCHAR - the run
-- grain: one intervention that contradicts itself
-- columns:
--   token_id BIGINT - the token
--   out_latent UINTEGER - latent of the output SAE
--   in_latent UINTEGER - latent of the input SAE
--   kind VARCHAR - its kind
--   in_after FLOAT - s_j after
--   problem VARCHAR - what does not fit
--
-- Changes are computed in float64 and stored in float32: 1e-5 of the sizes involved covers the rounding of both.
WITH judged AS (
    SELECT
        token_id,
        out_latent,
        in_latent,
        kind,
        in_after,
        CASE
            WHEN kind = 'ablate' AND in_after <> 0 THEN 'ablated to another value than 0'
            WHEN kind = 'unit' AND NOT abs(in_after - (in_before - 1)) <= 1e-5 * (1 + abs(in_before))
                THEN 'changed by another step than -1'
            WHEN NOT in_before > 0 THEN 'in_before is not an activation'
            WHEN NOT out_before > 0 THEN 'out_before is not an activation'
            WHEN left_selection AND out_after <> 0 THEN 'left the selection, but out_after is not 0'
            WHEN NOT left_selection AND NOT out_after > 0 THEN 'stayed, but out_after is 0'
            WHEN
                NOT left_selection
                AND NOT abs(out_after::DOUBLE - (out_before::DOUBLE + pre_change))
                <= 1e-5 * (out_before + abs(pre_change::DOUBLE))
                THEN 'out_after is not out_before + pre_change'
            WHEN NOT weight >= 1 THEN 'weight is below 1'
        END AS problem
    FROM interventions
    WHERE run_id = $run_id
)

SELECT
    token_id,
    out_latent,
    in_latent,
    kind,
    in_after,
    problem
FROM judged
WHERE problem IS NOT NULL
ORDER BY token_id, out_latent, in_latent, kind, in_after
