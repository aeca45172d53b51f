-- invariant: no stored |J| is below the run's min_abs or above its token's abs_max, and no token has more entries
--     than top_entries_per_token
-- reads: jacobian_entries, tokens, runs
-- parameters:
--   run_id VARCHAR - the run
-- grain: one token with an entry that should not be stored
-- columns:
--   token_id BIGINT - the token
--   entries BIGINT - stored entries [entries]
--   smallest FLOAT - smallest stored |J|
--   largest FLOAT - largest stored |J|
--   abs_max FLOAT - as the token says
--   min_abs DOUBLE - as the run says
--   top_entries_per_token BIGINT - as the run says; null: no limit [entries]
WITH found AS (
    SELECT
        token_id,
        count(*) AS entries,
        min(abs(value)) AS smallest,
        max(abs(value)) AS largest
    FROM jacobian_entries
    WHERE run_id = $run_id
    GROUP BY token_id
)

SELECT
    f.token_id,
    f.entries,
    f.smallest,
    f.largest,
    t.abs_max,
    r.min_abs,
    r.top_entries_per_token
FROM found AS f
INNER JOIN tokens AS t ON f.token_id = t.token_id AND t.run_id = $run_id
INNER JOIN runs AS r ON r.run_id = $run_id
WHERE
    NOT f.smallest >= r.min_abs::FLOAT
    OR NOT f.largest <= t.abs_max
    OR f.entries > r.top_entries_per_token
ORDER BY f.token_id
