-- invariant: token and document ids decode to the position, document and row beside them, and fit the document
-- reads: tokens, documents
-- parameters:
--   run_id VARCHAR - the run
-- grain: one id that does not decode
-- columns:
--   table_name VARCHAR - the table
--   id BIGINT - token_id or document_id
--   expected BIGINT - the id that its other columns make
--
-- A token whose position is beyond its document's tokens is listed too. 24 and 27 bits: see contracts.py.
SELECT
    'tokens' AS table_name,
    t.token_id AS id,
    (t.document_id << 24) | t.position AS expected
FROM tokens AS t
LEFT JOIN documents AS d ON t.document_id = d.document_id AND d.run_id = $run_id
WHERE
    t.run_id = $run_id
    AND (t.token_id <> (t.document_id << 24) | t.position OR t.position > d.tokens)
UNION ALL
SELECT
    'documents' AS table_name,
    document_id AS id,
    ((document_id >> 27) << 27) | "row" AS expected
FROM documents
WHERE run_id = $run_id AND document_id <> (((document_id >> 27) << 27) | "row")
ORDER BY table_name, id
