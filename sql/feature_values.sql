-- description: Features and downstream scores of each checkpoint of the current runs, one row a checkpoint and name; the predictor's input.
-- param: study text
-- param: protocol text default 'exact'
SELECT c.run_id, c.scale, c.method, c.variant, c.seed, c.step, c.kind, 'loss' AS role, 'log_perplexity' AS name,
       c.validation_loss AS value, c.validation_loss_kind AS value_kind, 0 AS protocol_id, 0 AS own_reference, c.checkpoint_id
FROM checkpoint_view AS c
JOIN current_run_view AS kept ON kept.run_id = c.run_id
WHERE c.study = :study AND c.status <> 'failed'
UNION ALL
-- a barrier between two runs belongs to the pair and to neither of the two, so it is no feature of a checkpoint
SELECT c.run_id, c.scale, c.method, c.variant, c.seed, c.step, c.kind, 'feature', v.metric, v.value, v.value_kind, v.protocol_id,
       CASE WHEN v.reference_checkpoint_id = v.checkpoint_id THEN 1 ELSE 0 END, c.checkpoint_id
FROM metric_value AS v
JOIN protocol ON protocol.id = v.protocol_id
JOIN checkpoint_view AS c ON c.checkpoint_id = v.checkpoint_id
JOIN current_run_view AS kept ON kept.run_id = c.run_id
WHERE c.study = :study AND c.status <> 'failed' AND protocol.name = :protocol
  AND v.layer = -2 AND v.module = '' AND v.metric NOT LIKE 'imbh%'
UNION ALL
SELECT c.run_id, c.scale, c.method, c.variant, c.seed, c.step, c.kind, CASE WHEN m.metric IS NULL THEN 'score' ELSE 'primary' END,
       s.task || ':' || s.metric, s.value, s.value_kind, s.protocol_id, 0, c.checkpoint_id
FROM downstream_score AS s
JOIN checkpoint_view AS c ON c.checkpoint_id = s.checkpoint_id
JOIN current_run_view AS kept ON kept.run_id = c.run_id
LEFT JOIN primary_metric_view AS m ON m.protocol_id = s.protocol_id AND m.task = s.task AND m.metric = s.metric
WHERE c.study = :study AND c.status <> 'failed'
ORDER BY 1, 6, 8, 9, 12
