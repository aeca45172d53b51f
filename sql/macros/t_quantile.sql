-- question: By how many standard errors does a 95 % interval reach to each side?
-- reads: nothing
-- parameters:
--   degrees BIGINT - degrees of freedom: batches or documents less one
-- grain: one value
--
-- The 97.5 % quantile of Student's t by its expansion in 1 / degrees (Abramowitz and Stegun 26.7.5), to 1 % from 3
-- degrees on and too small by a tenth at 1. Null below 1: one batch says nothing about the spread of batches.
-- Count a column for it: of count(*) as a macro's argument DuckDB 1.5 makes null.
SELECT
    CASE
        WHEN degrees >= 1
            THEN
                1.959964
                + 2.372271 / degrees
                + 2.822501 / degrees ** 2
                + 2.555850 / degrees ** 3
                + 1.589534 / degrees ** 4
    END
