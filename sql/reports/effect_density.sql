-- question: How well does J predict what an intervention does?
-- reads: interventions
-- parameters:
--   run_id VARCHAR - the run
--   kind VARCHAR default ablate - which interventions: ablate, unit, set, scale or sweep
--   linear DOUBLE default 1e-3 - cells have the same width below about this size, and grow in proportion above
--   bins_per_decade BIGINT default 5 - cells in a factor of ten, well above `linear` [cells]
-- grain: one cell of (predicted effect, measured effect), with and without the loss of the selection
-- columns:
--   left_selection BOOLEAN - true: the output latent is no longer active, so it lost all of its activation
--   predicted_low DOUBLE - lower end of the first-order prediction J * (in_after - in_before), inclusive
--   predicted_high DOUBLE - its upper end, exclusive
--   effect_low DOUBLE - lower end of the measured effect, inclusive
--   effect_high DOUBLE - its upper end, exclusive
--   interventions BIGINT - sampled interventions in the cell [interventions]
--   pairs DOUBLE - pairs of the run that they stand for: the sum of their weights [pairs]
--
-- The effect is the change of the output latent's activation: -out_before where it left the selection, else the exact
-- change of its pre-activation. Cells are equal steps of asinh(effect / linear), which is linear near 0 and a logarithm
-- with a sign far from it, so that zeros and both signs fit one picture.
WITH effects AS (
    SELECT
        left_selection,
        weight,
        value::DOUBLE * (in_after::DOUBLE - in_before) AS predicted,
        CASE WHEN left_selection THEN -out_before::DOUBLE ELSE pre_change END AS effect
    FROM interventions
    WHERE run_id = $run_id AND kind = $kind
),

binned AS (
    SELECT
        left_selection,
        weight,
        floor(asinh(predicted / $linear) * $bins_per_decade / ln(10))::BIGINT AS predicted_bin,
        floor(asinh(effect / $linear) * $bins_per_decade / ln(10))::BIGINT AS effect_bin
    FROM effects
),

counted AS (
    SELECT
        left_selection,
        predicted_bin * ln(10) / $bins_per_decade AS predicted_from,
        (predicted_bin + 1) * ln(10) / $bins_per_decade AS predicted_to,
        effect_bin * ln(10) / $bins_per_decade AS effect_from,
        (effect_bin + 1) * ln(10) / $bins_per_decade AS effect_to,
        count(*) AS interventions,
        sum(weight) AS pairs
    FROM binned
    GROUP BY left_selection, predicted_bin, effect_bin
)

SELECT
    left_selection,
    $linear * (exp(predicted_from) - exp(-predicted_from)) / 2 AS predicted_low,
    $linear * (exp(predicted_to) - exp(-predicted_to)) / 2 AS predicted_high,
    $linear * (exp(effect_from) - exp(-effect_from)) / 2 AS effect_low,
    $linear * (exp(effect_to) - exp(-effect_to)) / 2 AS effect_high,
    interventions,
    pairs
FROM counted
ORDER BY left_selection, predicted_low, effect_low
