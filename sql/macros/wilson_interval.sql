-- question: Between which values does a share lie, that was found in a sample?
-- reads: nothing
-- parameters:
--   share DOUBLE - as found
--   effective DOUBLE - independent observations that the sample is worth
--   reach DOUBLE - standard errors to each side, see t_quantile
-- grain: one value
--
-- Wilson's score interval, as a struct of low and high. It stays inside 0 and 1, and is not empty where the share is 0:
-- of 100 observations without a hit, up to 3.7 % may have been missed. At 0 and 1 it ends exactly there.
SELECT
    {
        'low': CASE WHEN share > 0 THEN 1 ELSE 0 END * (
            share + reach ** 2 / (2 * effective)
            - reach * sqrt(share * (1 - share) / effective + reach ** 2 / (4 * effective ** 2))
        ) / (1 + reach ** 2 / effective),
        'high': 1 - CASE WHEN share < 1 THEN 1 ELSE 0 END * (
            1 - share + reach ** 2 / (2 * effective)
            - reach * sqrt(share * (1 - share) / effective + reach ** 2 / (4 * effective ** 2))
        ) / (1 + reach ** 2 / effective)
    }
