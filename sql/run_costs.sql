-- description: Size, memory, time and throughput of each run of a study, and how it ended.
-- param: study text
SELECT run.scale, run.method, run.variant, run.seed, run.kind, run.status, run.rank, run.precision, run.world_size,
       run.parameters_total, run.parameters_trainable, run.parameter_bytes, run.gradient_bytes, run.optimizer_state_bytes,
       run.peak_memory_bytes, run.train_seconds, log.tokens_per_second, log.last_step, run.total_steps, run.attempts,
       run.failed_step, run.last_finite_loss, run.error, run.base_learning_rate, run.effective_learning_rate,
       run.config_hash, run.init_hash, run.dataset_fingerprint, run.tokenizer_hash, run.id AS run_id
FROM run
JOIN study ON study.id = run.study_id
LEFT JOIN (
    SELECT run_id, avg(tokens_per_second) AS tokens_per_second, max(step) AS last_step
    FROM training_log
    GROUP BY run_id
) AS log ON log.run_id = run.id
WHERE study.name = :study
ORDER BY run.scale, run.id
