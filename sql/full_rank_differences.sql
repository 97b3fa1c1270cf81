-- description: Validation loss and metrics minus those of full_rank at the same scale, seed and step.
-- param: study text
-- param: metric text default '%'
WITH quantity AS (
    SELECT 'validation_loss' AS metric, '' AS protocol, 0 AS protocol_id, c.scale, c.method, c.variant, c.seed, c.step, c.run_id,
           c.validation_loss AS value
    FROM checkpoint_view AS c
    JOIN current_run_view AS kept ON kept.run_id = c.run_id
    WHERE c.study = :study AND c.validation_loss IS NOT NULL
    UNION ALL
    SELECT m.metric, m.protocol, m.protocol_id, m.scale, m.method, m.variant, m.seed, m.step, m.run_id, m.value
    FROM metric_view AS m
    JOIN current_run_view AS kept ON kept.run_id = m.run_id
    WHERE m.study = :study AND m.layer = -2 AND m.module = '' AND m.value IS NOT NULL AND m.metric NOT LIKE 'imbh%'
)
SELECT q.metric, q.protocol, q.scale, q.method, q.variant, q.seed, q.step, q.value, reference.value AS full_rank,
       q.value - reference.value AS difference
FROM quantity AS q
JOIN quantity AS reference
  ON reference.method = 'full_rank' AND reference.variant = '' AND reference.metric = q.metric AND reference.protocol_id = q.protocol_id
 AND reference.scale = q.scale AND reference.seed = q.seed AND reference.step = q.step
WHERE q.run_id <> reference.run_id AND q.metric LIKE :metric
ORDER BY q.metric, q.protocol_id, q.scale, q.method, q.variant, q.seed, q.step
