-- question: What did each intervention do to its output latent, and what do the derivatives predict?
-- reads: interventions, tokens
-- grain: one varied input latent seen at one output latent
-- columns:
--   run_id VARCHAR - the run
--   token_id BIGINT - the token
--   document_id BIGINT - its document
--   out_latent UINTEGER - latent of the output SAE
--   in_latent UINTEGER - latent of the input SAE
--   kind VARCHAR - 'ablate', 'set', 'scale', 'sweep' or 'unit', see interventions
--   in_before FLOAT - s_j before
--   in_after FLOAT - s_j after
--   value FLOAT - J before the change
--   second_derivative FLOAT - d2 t_out / d s_in^2 before the change
--   out_before FLOAT - t_i before
--   out_after FLOAT - t_i after, the selection redone: 0 if it left
--   left_selection BOOLEAN - true if the output latent is no longer active
--   weight DOUBLE - pairs of the run that the row stands for [pairs]
--   effect DOUBLE - change of t_i: of its pre-activation where it stays active, to 0 where it leaves
--   first_order DOUBLE - predicted change J * d, where d = in_after - in_before
--   second_order DOUBLE - predicted change J * d + J'' * d^2 / 2
--   token_rms DOUBLE - root mean square of J over the token's active pairs
--   relative_value DOUBLE - |J| / token_rms: 1 is a typical size at this token; 0 where all of J is 0
--
-- The effect is not taken from out_after - out_before, two float32 numbers whose difference is lost in rounding just
-- where J is about 0, but from the change of the pre-activation, which is computed without that subtraction.
SELECT
    i.run_id,
    i.token_id,
    t.document_id,
    i.out_latent,
    i.in_latent,
    i.kind,
    i.in_before,
    i.in_after,
    i.value,
    i.second_derivative,
    i.out_before,
    i.out_after,
    i.left_selection,
    i.weight,
    CASE WHEN i.left_selection THEN -i.out_before ELSE i.pre_change END::DOUBLE AS effect,
    i.value::DOUBLE * (i.in_after::DOUBLE - i.in_before) AS first_order,
    i.value::DOUBLE * (i.in_after::DOUBLE - i.in_before)
    + i.second_derivative::DOUBLE * (i.in_after::DOUBLE - i.in_before) ** 2 / 2 AS second_order,
    sqrt(t.sq_sum_total / nullif(t.entries_total, 0)) AS token_rms,
    coalesce(abs(i.value) / nullif(sqrt(t.sq_sum_total / nullif(t.entries_total, 0)), 0), 0) AS relative_value
FROM interventions AS i
INNER JOIN tokens AS t ON i.run_id = t.run_id AND i.token_id = t.token_id
