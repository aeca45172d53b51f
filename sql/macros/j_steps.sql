-- question: In which steps is |J| added, so that sums are exact and depend on no order?
-- reads: tokens
-- parameters:
--   of_run VARCHAR - the run
-- grain: the run
-- columns:
--   steps DOUBLE - steps in 1, a power of two: |J| * steps, rounded up, is added as a whole number of 128 bits
--
-- There is room for every token of the run, and of what is rounded up, 2^(2 bits) times finer than the run's largest
-- |J|, no float32 near it has a digit left. As jacobian_core/numerics/masses.py has it for `threshold_counts`.
SELECT
    power(
        2.0,
        2 * least(48, 62 - ceil(log2(greatest(count(*), 1)::DOUBLE)))
        - ceil(log2(greatest(coalesce(max(abs_max), 0)::DOUBLE, 1e-30)))
    ) AS steps
FROM tokens
WHERE run_id = of_run
