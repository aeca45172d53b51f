-- question: Do zeros in the Jacobian imply that there is no causal connection: what do interventions do, by |J|?
-- reads: causal_bins
-- parameters:
--   run_id VARCHAR - the run
--   kind VARCHAR default ablate - the kind of intervention
--   edges DOUBLE[] default 1e-6,1e-5,1e-4,1e-3,1e-2,1e-1,1 - |J| between the bins; 0 and infinity are added
--   relative_edges DOUBLE[] default 1e-4,1e-3,1e-2,1e-1,1,10 - |J| / token_rms between the bins, token_rms being the
--     root mean square of J over the token's active pairs
--   tau DOUBLE default 0.1 - an effect larger than this counts as one, in units of the output's activation
--   relative_tau DOUBLE default 0.1 - the same as a share of the output's activation before
-- grain: one bin of one measure that holds interventions
-- columns:
--   measure VARCHAR - 'all': every pair, one bin; 'absolute': bins of |J|; 'relative': bins of |J| / token_rms
--   low DOUBLE - the bin holds low <= measure < high
--   high DOUBLE - null: no upper end
--   interventions BIGINT - sampled pairs [interventions]
--   documents BIGINT - documents that they are from [documents]
--   pairs DOUBLE - active pairs that they stand for [pairs]
--   share_of_pairs DOUBLE - of the pairs in all bins [share]
--   share_above DOUBLE - pairs with |effect| > tau [share]
--   share_above_low DOUBLE - its 95 % interval [share]
--   share_above_high DOUBLE - its 95 % interval [share]
--   share_above_relative DOUBLE - pairs with |effect| > relative_tau * t_i [share]
--   share_above_relative_low DOUBLE - its 95 % interval [share]
--   share_above_relative_high DOUBLE - its 95 % interval [share]
--   share_left DOUBLE - pairs whose output latent left the selection [share]
--   share_left_low DOUBLE - its 95 % interval [share]
--   share_left_high DOUBLE - its 95 % interval [share]
--   share_above_staying DOUBLE - pairs with |effect| > tau whose output latent stayed [share]
--   share_above_staying_low DOUBLE - its 95 % interval [share]
--   share_above_staying_high DOUBLE - its 95 % interval [share]
--   mean_abs_effect DOUBLE - mean of |effect|
--   mean_abs_effect_low DOUBLE - its 95 % interval
--   mean_abs_effect_high DOUBLE - its 95 % interval
--   median_abs_effect DOUBLE - median of |effect|
--   p95_abs_effect DOUBLE - 95th percentile of |effect|
--   max_abs_effect DOUBLE - largest |effect| of the sample
--   mean_abs_first_order DOUBLE - mean of |J * d|, the size that the Jacobian predicts; d is the change of s_j
--   r2_first DOUBLE - share of the effects' variance that J * d explains; negative: worse than their mean
--   r2_first_staying DOUBLE - the same over the pairs that stayed
--   r2_second DOUBLE - the same as r2_first for J * d + J'' * d^2 / 2
--   r2_second_staying DOUBLE - the same over the pairs that stayed
--   unit_interventions BIGINT - sampled pairs of kind 'unit' (the published variant); null: none [interventions]
--   unit_share_above DOUBLE - share_above of kind 'unit' [share]
--   unit_mean_abs_effect DOUBLE - mean_abs_effect of kind 'unit'
--
-- Weighted, so that it is about all active pairs. Intervals are over documents: what other text of the same kind would
-- give. See sql/macros/causal_bins.sql for both. There is no interval with a single document.
SELECT
    b.measure,
    b.low,
    nullif(b.high, 'infinity'::DOUBLE) AS high,
    b.interventions,
    b.documents,
    b.pairs,
    b.share_of_pairs,
    b.share_above,
    b.share_above_low,
    b.share_above_high,
    b.share_above_relative,
    b.share_above_relative_low,
    b.share_above_relative_high,
    b.share_left,
    b.share_left_low,
    b.share_left_high,
    b.share_above_staying,
    b.share_above_staying_low,
    b.share_above_staying_high,
    b.mean_abs_effect,
    b.mean_abs_effect_low,
    b.mean_abs_effect_high,
    b.median_abs_effect,
    b.p95_abs_effect,
    b.max_abs_effect,
    b.mean_abs_first_order,
    b.r2_first,
    b.r2_first_staying,
    b.r2_second,
    b.r2_second_staying,
    u.interventions AS unit_interventions,
    u.share_above AS unit_share_above,
    u.mean_abs_effect AS unit_mean_abs_effect
FROM causal_bins($run_id, $kind, $edges, $relative_edges, $tau, $relative_tau) AS b
LEFT JOIN causal_bins($run_id, 'unit', $edges, $relative_edges, $tau, $relative_tau) AS u
    ON b.measure = u.measure AND b.low = u.low
ORDER BY b.measure, b.low
