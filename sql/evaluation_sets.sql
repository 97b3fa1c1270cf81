-- description: The evaluation sets of a study: of its validation losses (how many checkpoints) and of its metrics' protocols.
-- param: study text
WITH scored AS (
    SELECT c.evaluation_set_id AS id, count(*) AS checkpoints
    FROM checkpoint_view AS c
    WHERE c.study = :study AND c.evaluation_set_id IS NOT NULL
    GROUP BY c.evaluation_set_id
),
measured AS (
    SELECT DISTINCT p.evaluation_set_id AS id
    FROM protocol AS p
    WHERE p.evaluation_set_id IS NOT NULL AND p.id IN (
        SELECT v.protocol_id FROM metric_value AS v JOIN checkpoint_view AS c ON c.checkpoint_id = v.checkpoint_id
        WHERE c.study = :study
    )
)
SELECT e.id AS evaluation_set_id, e.name, e.split, e.seed, e.examples, e.tokens, e.max_length, e.packing,
       e.dataset_fingerprint, e.tokenizer_hash, e.sha256, coalesce(scored.checkpoints, 0) AS checkpoints
FROM evaluation_set AS e
LEFT JOIN scored ON scored.id = e.id
LEFT JOIN measured ON measured.id = e.id
WHERE scored.id IS NOT NULL OR measured.id IS NOT NULL
ORDER BY e.id
