-- question: How does a share read in a sentence?
-- reads: nothing
-- parameters:
--   share DOUBLE - from 0 to 1; null stays null
-- grain: one value
SELECT format('{:.3g} %', 100 * share)
