-- question: How is a run cut into batches, so that the spread between them gives intervals?
-- reads: tokens
-- parameters:
--   of_run VARCHAR - the run
--   n_batches BIGINT - batches that are asked for; a run of few documents has fewer
--   of_share DOUBLE - only the first tokens of the corpus, this share of them; 1: all
-- grain: one document with analysed tokens
-- columns:
--   document_id BIGINT - the document
--   batch BIGINT - its batch: the batches follow each other in the corpus and hold about as many tokens each
--   tokens BIGINT - its analysed tokens [tokens]
--   last_token_id BIGINT - the last of them
--
-- Tokens of one document resemble each other, so a document is never cut (but by of_share).
WITH numbered AS (
    SELECT
        document_id,
        token_id,
        row_number() OVER (ORDER BY token_id) AS seen,
        count(*) OVER () AS n_tokens
    FROM tokens
    WHERE run_id = of_run
),

sizes AS (
    SELECT
        document_id,
        count(*) AS tokens,
        max(token_id) AS last_token_id
    FROM numbered
    WHERE seen <= ceil(n_tokens * of_share)
    GROUP BY document_id
)

SELECT
    document_id,
    -- The middle of the document among all tokens.
    floor(
        (2 * sum(tokens) OVER (ORDER BY document_id) - tokens) * n_batches / (2 * sum(tokens) OVER ())
    )::BIGINT AS batch,
    tokens,
    last_token_id
FROM sizes
