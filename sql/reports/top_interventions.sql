-- question: Where is the Jacobian about zero and the effect of an intervention large?
-- reads: intervention_effects, tokens, text_around
-- parameters:
--   run_id VARCHAR - the run
--   kind VARCHAR default ablate - the kind of intervention
--   max_abs DOUBLE default 0.001 - only pairs with |J| below this
--   top BIGINT default 20 - how many interventions [interventions]
-- grain: one intervention
-- columns:
--   rank BIGINT - 1 has the largest |effect|
--   out_latent UINTEGER - latent of the output SAE
--   in_latent UINTEGER - latent of the input SAE
--   value FLOAT - J before the change
--   second_derivative FLOAT - d2 t_out / d s_in^2 before the change
--   in_before FLOAT - s_j before
--   in_after FLOAT - s_j after
--   out_before FLOAT - t_i before
--   effect DOUBLE - change of t_i
--   first_order DOUBLE - change that J predicts
--   second_order DOUBLE - change that J and J'' predict
--   left_selection BOOLEAN - true if the output latent is no longer active
--   weight DOUBLE - active pairs that this one stands for [pairs]
--   example VARCHAR - its token, in >>> <<<, with the text around it
--   token_id BIGINT - its token
WITH chosen AS (
    SELECT
        row_number() OVER (
            ORDER BY abs(effect) DESC, token_id ASC, out_latent ASC, in_latent ASC, in_after ASC
        ) AS rank,
        out_latent,
        in_latent,
        value,
        second_derivative,
        in_before,
        in_after,
        out_before,
        effect,
        first_order,
        second_order,
        left_selection,
        weight,
        token_id
    FROM intervention_effects
    WHERE run_id = $run_id AND kind = $kind AND abs(value) < $max_abs
    QUALIFY rank <= $top
)

SELECT
    c.rank,
    c.out_latent,
    c.in_latent,
    c.value,
    c.second_derivative,
    c.in_before,
    c.in_after,
    c.out_before,
    c.effect,
    c.first_order,
    c.second_order,
    c.left_selection,
    c.weight,
    text_around($run_id, c.token_id, -10, 0) || '>>>' || t.text || '<<<'
    || text_around($run_id, c.token_id, 1, 6) AS example,
    c.token_id
FROM chosen AS c
INNER JOIN tokens AS t ON c.token_id = t.token_id AND t.run_id = $run_id
ORDER BY c.rank
