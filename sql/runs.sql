-- description: The runs: state, recipe, size, memory and time.
-- param: study text default ''
-- param: method text default ''
-- param: scale text default ''
SELECT study.name AS study, run.scale, run.method, run.variant, run.seed, run.kind, run.status, run.rank,
       run.base_learning_rate, run.effective_learning_rate, run.total_steps, run.precision, run.world_size,
       run.parameters_total, run.parameters_trainable, run.optimizer_state_bytes, run.peak_memory_bytes,
       run.train_seconds, run.attempts, run.failed_step, run.last_finite_loss, run.error, run.id AS run_id
FROM run
JOIN study ON study.id = run.study_id
WHERE (:study = '' OR study.name = :study)
  AND (:method = '' OR run.method = :method)
  AND (:scale = '' OR run.scale = :scale)
ORDER BY study.name, run.scale, run.method, run.variant, run.seed, run.id
