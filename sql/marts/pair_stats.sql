-- question: What does the Jacobian of each pair of latents add up to over all tokens of a run (scope 'active')?
-- reads: jacobian_entries, latents, tokens
-- parameters:
--   run_id VARCHAR - the run
--   thresholded BOOLEAN - whether entries were dropped; if not, a pair is coactive exactly where it has an entry
-- grain: one pair with at least one stored entry
-- columns:
--   scope VARCHAR - 'active': both latents are active
--   out_latent UINTEGER - latent of the output SAE
--   in_latent UINTEGER - latent of the input SAE
--   n_coactive BIGINT - tokens at which both latents were active, stored or not [tokens]
--   n_stored BIGINT - tokens with a stored entry [tokens]
--   sum DOUBLE - sum of J over the stored entries
--   sum_abs DOUBLE - sum of |J| over the stored entries
--   sum_sq DOUBLE - sum of J^2 over the stored entries
--   max_abs FLOAT - largest |J| of the stored entries
--
-- For a run in progress; a finished run has its sums from jacobian_core/pairs, exact and rounded once: these may differ
-- in a last digit, as the values are rounded to the unit here (a test compares them).
-- The sums must not depend on the order in which threads meet the rows. The addition of floats does; so values are
-- added as 128-bit integers in a unit that leaves room for every token of the run: 2^(2 bits) times finer than the
-- run's largest |J|: 1e-28 of it for 24,000 tokens, 1e-19 for 10^9.
-- Both indices are packed into one 64-bit key, which groups a quarter faster than two columns.
WITH magnitude AS (
    SELECT
        greatest(count(*), 1)::DOUBLE AS n_tokens,
        greatest(coalesce(max(abs_max), 0)::DOUBLE, 1e-30) AS largest
    FROM tokens
    WHERE run_id = $run_id
),

limbs AS (
    SELECT
        62 - ceil(log2(n_tokens)) AS bits,
        ceil(log2(largest)) AS exponent
    FROM magnitude
),

units AS (
    SELECT
        power(2.0, 2 * bits - exponent) AS value_unit,
        power(2.0, 2 * bits - 2 * exponent) AS square_unit
    FROM limbs
),

stored AS (
    SELECT
        (e.out_latent::UBIGINT << 32) | e.in_latent::UBIGINT AS pair,
        count(*) AS n_stored,
        sum((e.value::DOUBLE * u.value_unit)::HUGEINT) AS sum_value,
        sum((abs(e.value)::DOUBLE * u.value_unit)::HUGEINT) AS sum_abs,
        sum((e.value::DOUBLE * e.value::DOUBLE * u.square_unit)::HUGEINT) AS sum_sq,
        max(abs(e.value)) AS max_abs
    FROM jacobian_entries AS e
    CROSS JOIN units AS u
    WHERE e.run_id = $run_id
    GROUP BY pair
),

coactive AS (
    SELECT
        s.pair,
        count(*) AS n_coactive
    FROM latents AS o
    INNER JOIN latents AS i ON o.token_id = i.token_id
    INNER JOIN stored AS s ON (o.latent::UBIGINT << 32) | i.latent::UBIGINT = s.pair
    WHERE
        $thresholded
        AND o.run_id = $run_id
        AND i.run_id = $run_id
        AND o.side = 'out'
        AND i.side = 'in'
    GROUP BY s.pair
)

SELECT
    'active' AS scope,
    (s.pair >> 32)::UINTEGER AS out_latent,
    (s.pair & 4294967295)::UINTEGER AS in_latent,
    coalesce(c.n_coactive, s.n_stored) AS n_coactive,
    s.n_stored,
    s.sum_value::DOUBLE / u.value_unit AS "sum",
    -- A sum of magnitudes is never below its largest term, not even where that is below the unit.
    greatest(s.sum_abs::DOUBLE / u.value_unit, s.max_abs::DOUBLE) AS sum_abs,
    greatest(s.sum_sq::DOUBLE / u.square_unit, s.max_abs::DOUBLE * s.max_abs::DOUBLE) AS sum_sq,
    s.max_abs
FROM stored AS s
CROSS JOIN units AS u
LEFT JOIN coactive AS c ON s.pair = c.pair
ORDER BY s.pair
