-- invariant: every entry, and every active latent, has its token; every token has its document
-- reads: jacobian_entries, latents, tokens, documents
-- parameters:
--   run_id VARCHAR - the run
-- grain: one token or document that is referred to and missing
-- columns:
--   table_name VARCHAR - the table that refers to it
--   missing_id BIGINT - token_id, or document_id where tokens refer to it
--   rows_affected BIGINT - rows that refer to it [rows]
SELECT
    'jacobian_entries' AS table_name,
    e.token_id AS missing_id,
    count(*) AS rows_affected
FROM jacobian_entries AS e
ANTI JOIN tokens AS t ON e.token_id = t.token_id AND t.run_id = $run_id
WHERE e.run_id = $run_id
GROUP BY e.token_id
UNION ALL
SELECT
    'latents' AS table_name,
    l.token_id AS missing_id,
    count(*) AS rows_affected
FROM latents AS l
ANTI JOIN tokens AS t ON l.token_id = t.token_id AND t.run_id = $run_id
WHERE l.run_id = $run_id
GROUP BY l.token_id
UNION ALL
SELECT
    'tokens' AS table_name,
    t.document_id AS missing_id,
    count(*) AS rows_affected
FROM tokens AS t
ANTI JOIN documents AS d ON t.document_id = d.document_id AND d.run_id = $run_id
WHERE t.run_id = $run_id
GROUP BY t.document_id
ORDER BY table_name, missing_id
