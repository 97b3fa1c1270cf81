-- description: Training loss of each update, in nats per token, with learning rate, gradient norm and speed.
-- param: study text default ''
-- param: method text default ''
-- param: scale text default ''
-- param: seed integer default null
SELECT study.name AS study, run.scale, run.method, run.variant, run.seed, point.step, point.tokens_seen,
       point.loss, point.loss_kind, point.learning_rate, point.gradient_norm, point.gradient_norm_kind,
       point.tokens_per_second, run.id AS run_id
FROM training_log AS point
JOIN run ON run.id = point.run_id
JOIN study ON study.id = run.study_id
WHERE (:study = '' OR study.name = :study)
  AND (:method = '' OR run.method = :method)
  AND (:scale = '' OR run.scale = :scale)
  AND (:seed IS NULL OR run.seed = :seed)
ORDER BY study.name, run.scale, run.method, run.variant, run.seed, run.id, point.step
