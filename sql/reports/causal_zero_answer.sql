-- question: Do zeros in the Jacobian imply that there is no causal connection, in one sentence?
-- reads: causal_bins, percent_text
-- parameters:
--   run_id VARCHAR - the run
--   kind VARCHAR default ablate - the kind of intervention
--   near_zero DOUBLE default 0.001 - |J| below this is about zero
--   relative_near_zero DOUBLE default 0.01 - the same for |J| / token_rms, the root mean square of J at the token
--   tau DOUBLE default 0.1 - an effect larger than this counts as one, in units of the output's activation
--   relative_tau DOUBLE default 0.1 - the same as a share of the output's activation before
--   tolerance DOUBLE default 0.01 - share of pairs that may be moved while the answer is still yes
-- grain: the run
-- columns:
--   verdict VARCHAR - 'no': the interval of share_above is above the tolerance; 'yes': it is not above it;
--     'undecided': the tolerance is inside, or there is no interval; 'unknown': there are no interventions
--   answer VARCHAR - the sentence
--   kind VARCHAR - as asked for
--   near_zero DOUBLE - as asked for
--   tau DOUBLE - as asked for
--   interventions BIGINT - interventions on pairs with |J| < near_zero [interventions]
--   documents BIGINT - documents that they are from [documents]
--   pairs DOUBLE - active pairs that they stand for [pairs]
--   share_of_pairs DOUBLE - of all active pairs [share]
--   share_above DOUBLE - of them, with |effect| > tau [share]
--   share_above_low DOUBLE - its 95 % interval [share]
--   share_above_high DOUBLE - its 95 % interval [share]
--   share_above_relative DOUBLE - of them, with |effect| > relative_tau * t_i [share]
--   share_left DOUBLE - of them, whose output latent left the selection [share]
--   share_left_low DOUBLE - its 95 % interval [share]
--   share_left_high DOUBLE - its 95 % interval [share]
--   share_above_staying DOUBLE - of them, with |effect| > tau and still selected [share]
--   share_above_staying_low DOUBLE - its 95 % interval [share]
--   share_above_staying_high DOUBLE - its 95 % interval [share]
--   left_of_above DOUBLE - of those with |effect| > tau, whose output latent left the selection [share]
--   median_abs_effect DOUBLE - median of |effect|
--   p95_abs_effect DOUBLE - 95th percentile of |effect|
--   max_abs_effect DOUBLE - largest |effect| of the sample
--   other_interventions BIGINT - interventions on pairs with |J| >= near_zero [interventions]
--   other_share_above DOUBLE - of these pairs, with |effect| > tau [share]
--   other_share_above_low DOUBLE - its 95 % interval [share]
--   other_share_above_high DOUBLE - its 95 % interval [share]
--   relative_near_zero DOUBLE - as asked for
--   relative_interventions BIGINT - interventions with |J| / token_rms below it [interventions]
--   relative_share_above DOUBLE - of these pairs, with |effect| > tau [share]
--   relative_share_above_low DOUBLE - its 95 % interval [share]
--   relative_share_above_high DOUBLE - its 95 % interval [share]
--   r2_first DOUBLE - share of all effects' variance that J * d explains, whatever |J|
--   r2_second DOUBLE - the same for J * d + J'' * d^2 / 2
--
-- Weighted, with intervals over documents, as in causal_zero_test. A pair that is moved by an intervention is connected
-- for certain; the converse holds for this kind of intervention only. Pairs that were never active together are not
-- asked about: there the question does not arise.
WITH bins AS (
    SELECT
        measure,
        low,
        interventions,
        documents,
        pairs,
        share_of_pairs,
        share_above,
        share_above_low,
        share_above_high,
        share_above_relative,
        share_left,
        share_left_low,
        share_left_high,
        share_above_staying,
        share_above_staying_low,
        share_above_staying_high,
        median_abs_effect,
        p95_abs_effect,
        max_abs_effect,
        r2_first,
        r2_second
    FROM causal_bins(
        $run_id, $kind, [$near_zero]::DOUBLE[], [$relative_near_zero]::DOUBLE[], $tau, $relative_tau
    )
),

-- Outer joins from nothing: there is a row, whatever bins there are.
sides AS (
    SELECT
        coalesce(z.interventions, 0) AS interventions,
        coalesce(z.documents, 0) AS documents,
        coalesce(z.pairs, 0) AS pairs,
        z.share_of_pairs,
        z.share_above,
        z.share_above_low,
        z.share_above_high,
        z.share_above_relative,
        z.share_left,
        z.share_left_low,
        z.share_left_high,
        z.share_above_staying,
        z.share_above_staying_low,
        z.share_above_staying_high,
        1 - z.share_above_staying / nullif(z.share_above, 0) AS left_of_above,
        z.median_abs_effect,
        z.p95_abs_effect,
        z.max_abs_effect,
        coalesce(o.interventions, 0) AS other_interventions,
        o.share_above AS other_share_above,
        o.share_above_low AS other_share_above_low,
        o.share_above_high AS other_share_above_high,
        coalesce(r.interventions, 0) AS relative_interventions,
        r.share_above AS relative_share_above,
        r.share_above_low AS relative_share_above_low,
        r.share_above_high AS relative_share_above_high,
        a.r2_first,
        a.r2_second
    FROM (SELECT 0 AS place) AS n
    LEFT JOIN bins AS z ON n.place = 0 AND z.measure = 'absolute' AND z.low < $near_zero
    LEFT JOIN bins AS o ON n.place = 0 AND o.measure = 'absolute' AND o.low >= $near_zero
    LEFT JOIN bins AS r ON n.place = 0 AND r.measure = 'relative' AND r.low < $relative_near_zero
    LEFT JOIN bins AS a ON n.place = 0 AND a.measure = 'all'
),

judged AS (
    SELECT
        CASE
            WHEN interventions = 0 THEN 'unknown'
            WHEN share_above_low > $tolerance THEN 'no'
            WHEN share_above_high <= $tolerance THEN 'yes'
            ELSE 'undecided'
        END AS verdict,
        CASE $kind
            WHEN 'ablate' THEN 'was ablated'
            WHEN 'unit' THEN 'lost one unit'
            ELSE 'was changed (' || $kind || ')'
        END AS changed
    FROM sides
),

worded AS (
    SELECT
        j.verdict,
        CASE
            WHEN j.verdict = 'unknown'
                THEN
                    'Unknown: no ' || $kind || ' interventions on pairs with |J| < ' || $near_zero
                    || ' are in this run (set interventions.kinds).'
            ELSE
                CASE j.verdict
                    WHEN 'no' THEN 'No, a zero in the Jacobian does not rule out a causal connection: '
                    WHEN 'yes' THEN 'Yes, to within ' || percent_text($tolerance) || ': '
                    ELSE 'Undecided at a tolerance of ' || percent_text($tolerance) || ': '
                END
                || 'of the active pairs with |J| < ' || $near_zero || ' ('
                || format('{:,}', s.interventions) || ' interventions standing for ' || format('{:,.0f}', s.pairs)
                || ' pairs), ' || percent_text(s.share_above)
                || coalesce(
                    ' [' || percent_text(s.share_above_low) || ', ' || percent_text(s.share_above_high) || ']',
                    ' [no interval from one document]'
                )
                || ' moved the output latent by more than ' || $tau || ' when the input latent ' || j.changed
                || coalesce(', ' || percent_text(s.left_of_above) || ' of them by leaving the selection', '')
                || ' (' || percent_text(s.share_above_staying) || ' of the pairs did so and stayed)'
                || coalesce(
                    '. Of the pairs with |J| >= ' || $near_zero || ' it is ' || percent_text(s.other_share_above)
                    || coalesce(
                        ' [' || percent_text(s.other_share_above_low) || ', '
                        || percent_text(s.other_share_above_high) || ']',
                        ''
                    ),
                    ''
                )
                || '.'
        END AS answer
    FROM sides AS s
    CROSS JOIN judged AS j
)

SELECT
    w.verdict,
    w.answer,
    $kind AS kind,
    $near_zero AS near_zero,
    $tau AS tau,
    s.interventions,
    s.documents,
    s.pairs,
    s.share_of_pairs,
    s.share_above,
    s.share_above_low,
    s.share_above_high,
    s.share_above_relative,
    s.share_left,
    s.share_left_low,
    s.share_left_high,
    s.share_above_staying,
    s.share_above_staying_low,
    s.share_above_staying_high,
    s.left_of_above,
    s.median_abs_effect,
    s.p95_abs_effect,
    s.max_abs_effect,
    s.other_interventions,
    s.other_share_above,
    s.other_share_above_low,
    s.other_share_above_high,
    $relative_near_zero AS relative_near_zero,
    s.relative_interventions,
    s.relative_share_above,
    s.relative_share_above_low,
    s.relative_share_above_high,
    s.r2_first,
    s.r2_second
FROM sides AS s
CROSS JOIN worded AS w
ORDER BY w.verdict
