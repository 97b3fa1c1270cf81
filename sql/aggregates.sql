-- description: Every metric of a study aggregated over layers and modules, one row a checkpoint, reference and protocol.
-- param: study text
SELECT v.metric, v.protocol, v.lens, v.scale, v.method, v.variant, v.seed, v.step, v.value, v.value_kind,
       v.standard_error, v.standard_error_kind, v.n, v.note,
       v.reference_method, v.reference_variant, v.reference_seed, v.reference_step,
       CASE WHEN reference.init_hash = run.init_hash AND run.init_hash <> '' THEN 1 ELSE 0 END AS shared_initialisation,
       v.protocol_id, v.checkpoint_id, v.reference_checkpoint_id, v.run_id, v.reference_run_id
FROM metric_view AS v
JOIN run ON run.id = v.run_id
LEFT JOIN run AS reference ON reference.id = v.reference_run_id
WHERE v.study = :study AND v.layer = -2 AND v.module = ''
ORDER BY v.metric, v.protocol_id, v.scale, v.run_id, v.step, v.reference_checkpoint_id
