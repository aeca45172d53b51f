-- question: What text stands around each token?
-- reads: tokens
-- grain: one analysed token
-- columns:
--   run_id VARCHAR - the run
--   token_id BIGINT - the token
--   document_id BIGINT - its document
--   position INTEGER - its position in the document, BOS being 0 [tokens]
--   text_before VARCHAR - up to 10 tokens before it in its document, joined
--   text VARCHAR - the token itself
--   text_after VARCHAR - up to 5 tokens after it in its document, joined
--
-- Token ids of a document are consecutive, so neighbours are found by equality: 16 probes a token, in any order,
-- instead of a sorted window over the whole run. Positions stay far below 2^24, so a neighbour's id is never another
-- document's. Where only a few tokens are wanted, the macro text_around is quicker.
WITH probes AS (
    SELECT
        run_id,
        token_id,
        document_id,
        position,
        text,
        unnest(range(token_id - 10, token_id + 6)) AS near_id
    FROM tokens
)

SELECT
    p.run_id,
    p.token_id,
    p.document_id,
    p.position,
    coalesce(string_agg(n.text, '' ORDER BY n.token_id) FILTER (WHERE n.token_id < p.token_id), '') AS text_before,
    p.text,
    coalesce(string_agg(n.text, '' ORDER BY n.token_id) FILTER (WHERE n.token_id > p.token_id), '') AS text_after
FROM probes AS p
INNER JOIN tokens AS n ON p.run_id = n.run_id AND p.near_id = n.token_id
GROUP BY p.run_id, p.token_id, p.document_id, p.position, p.text
