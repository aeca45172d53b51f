-- question: How does a share read in a sentence?
-- reads: nothing
-- parameters:
--   share DOUBLE - from 0 to 1; null reads '?'
-- grain: one value
SELECT coalesce(format('{:.3g} %', 100 * share), '?')
