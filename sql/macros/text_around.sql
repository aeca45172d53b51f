-- question: What text stands near a token?
-- reads: tokens
-- parameters:
--   of_run VARCHAR - the run
--   of_token BIGINT - the token
--   first_step BIGINT - first token to take, counted from this one: -10 is the tenth before it [tokens]
--   end_step BIGINT - the step after the last one to take [tokens]
-- grain: one value
--
-- For a few tokens this is quicker than the view token_context, which joins the text of all of them.
SELECT coalesce(string_agg(n.text, '' ORDER BY n.token_id), '')
FROM unnest(range(of_token + first_step, of_token + end_step)) AS near (near_id)
INNER JOIN tokens AS n ON near.near_id = n.token_id AND n.run_id = of_run
