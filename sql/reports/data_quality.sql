-- question: What went into the run, what was left out, and do both SAEs work on this text?
-- reads: runs, documents, tokens, active_latents
-- parameters:
--   run_id VARCHAR - the run
-- grain: one measure
-- columns:
--   measure VARCHAR - what is counted
--   measured DOUBLE - its value; null: not known
--   unit VARCHAR - what it is counted in
WITH of_documents AS (
    SELECT
        count(*) AS documents,
        count(*) FILTER (WHERE truncated) AS truncated
    FROM documents
    WHERE run_id = $run_id
),

of_tokens AS (
    SELECT
        count(*) AS tokens,
        avg(in_active) AS in_active,
        avg(out_active) AS out_active,
        count(*) FILTER (WHERE in_active = 0) AS without_in,
        count(*) FILTER (WHERE out_active = 0) AS without_out
    FROM tokens
    WHERE run_id = $run_id
),

of_latents AS (
    -- A run that keeps no active latents counts them at its end.
    SELECT
        CASE WHEN any_value(r.complete OR r.keep <> 'aggregates') THEN count(*) FILTER (WHERE a.side = 'in') END
            AS in_seen,
        CASE WHEN any_value(r.complete OR r.keep <> 'aggregates') THEN count(*) FILTER (WHERE a.side = 'out') END
            AS out_seen
    FROM runs AS r
    LEFT JOIN active_latents AS a ON r.run_id = a.run_id
    WHERE r.run_id = $run_id
),

gathered AS (
    SELECT
        [
            {'measure': 'documents', 'measured': d.documents::DOUBLE, 'unit': 'documents'},
            {'measure': 'documents truncated', 'measured': d.truncated::DOUBLE, 'unit': 'documents'},
            {'measure': 'lines and documents skipped', 'measured': r.skipped_documents::DOUBLE, 'unit': 'documents'},
            {'measure': 'tokens', 'measured': t.tokens::DOUBLE, 'unit': 'tokens'},
            {'measure': 'FVU of the input SAE', 'measured': r.fvu_in, 'unit': 'share of variance'},
            {'measure': 'FVU of the output SAE', 'measured': r.fvu_out, 'unit': 'share of variance'},
            {
                'measure': 'FVU of the input SAE, median block',
                'measured': r.block_fvu_in,
                'unit': 'share of variance'
            },
            {
                'measure': 'FVU of the input SAE, worst block',
                'measured': r.block_fvu_in_max,
                'unit': 'share of variance'
            },
            {
                'measure': 'FVU of the output SAE, median block',
                'measured': r.block_fvu_out,
                'unit': 'share of variance'
            },
            {
                'measure': 'FVU of the output SAE, worst block',
                'measured': r.block_fvu_out_max,
                'unit': 'share of variance'
            },
            {'measure': 'active input latents per token', 'measured': t.in_active, 'unit': 'latents'},
            {'measure': 'active output latents per token', 'measured': t.out_active, 'unit': 'latents'},
            {'measure': 'tokens without an active input latent', 'measured': t.without_in::DOUBLE, 'unit': 'tokens'},
            {'measure': 'tokens without an active output latent', 'measured': t.without_out::DOUBLE, 'unit': 'tokens'},
            {'measure': 'input latents seen active', 'measured': l.in_seen::DOUBLE, 'unit': 'latents'},
            {
                'measure': 'input latents never active',
                'measured': (r.n_in_latents - l.in_seen)::DOUBLE,
                'unit': 'latents'
            },
            {'measure': 'output latents seen active', 'measured': l.out_seen::DOUBLE, 'unit': 'latents'},
            {
                'measure': 'output latents never active',
                'measured': (r.n_out_latents - l.out_seen)::DOUBLE,
                'unit': 'latents'
            },
            {
                'measure': 'entries dropped by thresholds',
                'measured': 1 - r.entries_stored / nullif(r.entries_total, 0),
                'unit': 'share of entries'
            },
            {
                'measure': 'sum of |J| dropped by thresholds',
                'measured': 1 - r.abs_sum_stored / nullif(r.abs_sum_total, 0),
                'unit': 'share of the sum'
            }
        ] AS measures
    FROM runs AS r
    CROSS JOIN of_documents AS d
    CROSS JOIN of_tokens AS t
    CROSS JOIN of_latents AS l
    WHERE r.run_id = $run_id
),

numbered AS (
    SELECT
        unnest(measures) AS entry,
        unnest(range(len(measures))) AS rank
    FROM gathered
)

SELECT
    entry.measure,
    entry.measured,
    entry.unit
FROM numbered
ORDER BY rank
