-- description: Downstream scores of each checkpoint, with standard error, number of items and chance level.
-- param: study text default ''
-- param: scale text default ''
-- param: task text default ''
-- param: metric text default ''
SELECT c.study, c.scale, c.method, c.variant, c.seed, c.step, c.kind, protocol.name AS protocol, protocol.lens, s.task, s.category,
       s.metric, CASE WHEN m.metric IS NULL THEN 0 ELSE 1 END AS is_primary, s.filter,
       s.value, s.value_kind, s.standard_error, s.standard_error_kind, s.n, s.chance, s.task_version,
       s.harness_version, s.note, c.run_id, c.checkpoint_id, s.protocol_id
FROM downstream_score AS s
JOIN checkpoint_view AS c ON c.checkpoint_id = s.checkpoint_id
JOIN protocol ON protocol.id = s.protocol_id
LEFT JOIN primary_metric_view AS m ON m.protocol_id = s.protocol_id AND m.task = s.task AND m.metric = s.metric
WHERE (:study = '' OR c.study = :study)
  AND (:scale = '' OR c.scale = :scale)
  AND (:task = '' OR s.task = :task)
  AND (:metric = '' OR s.metric = :metric)
ORDER BY c.study, c.scale, c.run_id, c.step, s.protocol_id, s.category, s.task, s.metric, s.filter
