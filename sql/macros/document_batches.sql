-- question: How is a run cut into batches, so that the spread between them gives intervals?
-- reads: tokens
-- parameters:
--   of_run VARCHAR - the run
--   n_batches BIGINT - batches that are asked for; a run of few documents has fewer
-- grain: one document with analysed tokens
-- columns:
--   document_id BIGINT - the document
--   batch BIGINT - its batch: the batches follow each other in the corpus and hold about as many tokens each
--   tokens BIGINT - its analysed tokens [tokens]
--
-- Tokens of one document resemble each other, so a document is never cut.
WITH sizes AS (
    SELECT
        document_id,
        count(*) AS tokens
    FROM tokens
    WHERE run_id = of_run
    GROUP BY document_id
)

SELECT
    document_id,
    -- The middle of the document among all tokens.
    floor(
        (2 * sum(tokens) OVER (ORDER BY document_id) - tokens) * n_batches / (2 * sum(tokens) OVER ())
    )::BIGINT AS batch,
    tokens
FROM sizes
