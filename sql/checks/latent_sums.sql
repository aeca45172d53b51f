-- invariant: `latent_stats` adds up to the tokens' counts of active latents, and no latent contradicts itself
-- reads: latent_stats, tokens
-- parameters:
--   run_id VARCHAR - the run
-- grain: one latent that contradicts itself, or a side whose sum differs (then without latent)
-- columns:
--   what VARCHAR - which of them
--   side VARCHAR - 'in' or 'out'
--   latent UINTEGER - index of the latent in its SAE; null: the whole side
--   expected DOUBLE - from the tokens, or a bound
--   found DOUBLE - from latent_stats
WITH of_tokens AS (
    SELECT
        unnest(['in', 'out']) AS side,
        unnest([coalesce(sum(in_active), 0), coalesce(sum(out_active), 0)])::DOUBLE AS active,
        count(*)::DOUBLE AS tokens
    FROM tokens
    WHERE run_id = $run_id
),

of_latents AS (
    SELECT
        side,
        latent,
        n_tokens,
        sum_activation,
        max_activation::DOUBLE AS max_activation
    FROM latent_stats
    WHERE run_id = $run_id
),

of_sides AS (
    SELECT
        side,
        sum(n_tokens)::DOUBLE AS active
    FROM of_latents
    GROUP BY side
)

SELECT
    'sum of n_tokens' AS what,
    t.side,
    NULL::UINTEGER AS latent,
    t.active AS expected,
    coalesce(s.active, 0) AS found
FROM of_tokens AS t
LEFT JOIN of_sides AS s ON t.side = s.side
WHERE t.active <> coalesce(s.active, 0)
UNION ALL
SELECT
    'n_tokens above the tokens' AS what,
    l.side,
    l.latent,
    t.tokens AS expected,
    l.n_tokens::DOUBLE AS found
FROM of_latents AS l
INNER JOIN of_tokens AS t ON l.side = t.side
WHERE l.n_tokens > t.tokens
UNION ALL
SELECT
    'sum_activation below max_activation' AS what,
    side,
    latent,
    max_activation AS expected,
    sum_activation AS found
FROM of_latents
WHERE NOT sum_activation >= max_activation * (1 - 1e-9)
UNION ALL
SELECT
    'sum_activation above n_tokens * max_activation' AS what,
    side,
    latent,
    n_tokens * max_activation AS expected,
    sum_activation AS found
FROM of_latents
WHERE NOT sum_activation <= n_tokens * max_activation * (1 + 1e-9)
ORDER BY what, side, latent
