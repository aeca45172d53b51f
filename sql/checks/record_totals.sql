-- invariant: the run's records (manifest, or markers of its blocks so far) name the sums that are in its tables
-- reads: runs, tokens, documents, latents, jacobian_entries
-- parameters:
--   run_id VARCHAR - the run
-- grain: one total that differs
-- columns:
--   total VARCHAR - which total
--   recorded DOUBLE - as the records say
--   found DOUBLE - as the tables say
--
-- A run that does not keep entries has no rows of jacobian_entries, and one that does not keep its active latents none
-- of latents: these are counted by token.
-- Counts are whole numbers below 2^53, so 1e-9 of less than 10^9 rows asks for equality; sums differ by their order.
WITH of_tokens AS (
    SELECT
        count(*)::DOUBLE AS tokens,
        coalesce(sum(in_active::BIGINT + out_active), 0)::DOUBLE AS active,
        coalesce(sum(entries_total), 0)::DOUBLE AS entries_total,
        coalesce(sum(entries_stored), 0)::DOUBLE AS entries_stored,
        coalesce(sum(abs_sum_total), 0) AS abs_sum_total,
        coalesce(sum(abs_sum_stored), 0) AS abs_sum_stored,
        coalesce(sum(sq_sum_total), 0) AS sq_sum_total
    FROM tokens
    WHERE run_id = $run_id
),

of_rows AS (
    SELECT
        (SELECT count(*) FROM documents WHERE run_id = $run_id)::DOUBLE AS documents,
        (SELECT count(*) FROM latents WHERE run_id = $run_id)::DOUBLE AS latents,
        (SELECT count(*) FROM jacobian_entries WHERE run_id = $run_id)::DOUBLE AS entries
),

compared AS (
    SELECT
        unnest([
            {'total': 'tokens', 'recorded': r.tokens::DOUBLE, 'found': t.tokens},
            {'total': 'documents', 'recorded': r.documents::DOUBLE, 'found': n.documents},
            {
                'total': 'latents',
                'recorded': r.latents::DOUBLE,
                'found': CASE r.keep WHEN 'aggregates' THEN t.active ELSE n.latents END
            },
            {
                'total': 'rows of latents',
                'recorded': CASE r.keep WHEN 'aggregates' THEN 0 ELSE r.latents END::DOUBLE,
                'found': n.latents
            },
            {'total': 'entries_total', 'recorded': r.entries_total::DOUBLE, 'found': t.entries_total},
            {'total': 'entries_stored', 'recorded': r.entries_stored::DOUBLE, 'found': t.entries_stored},
            {
                'total': 'rows of jacobian_entries',
                'recorded': CASE r.keep WHEN 'entries' THEN r.entries_stored ELSE 0 END::DOUBLE,
                'found': n.entries
            },
            {'total': 'abs_sum_total', 'recorded': r.abs_sum_total, 'found': t.abs_sum_total},
            {'total': 'abs_sum_stored', 'recorded': r.abs_sum_stored, 'found': t.abs_sum_stored},
            {'total': 'sq_sum_total', 'recorded': r.sq_sum_total, 'found': t.sq_sum_total}
        ]) AS pair
    FROM runs AS r
    CROSS JOIN of_tokens AS t
    CROSS JOIN of_rows AS n
    WHERE r.run_id = $run_id
)

SELECT
    pair.total,
    pair.recorded,
    pair.found
FROM compared
WHERE NOT abs(pair.recorded - pair.found) <= 1e-9 * pair.recorded
ORDER BY pair.total
