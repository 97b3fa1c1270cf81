-- description: Barriers: between consecutive checkpoints (kind step), between methods (method) and between seeds (seed, the null).
-- param: study text
-- param: metric text default '%'
SELECT v.metric, CASE WHEN v.run_id = v.reference_run_id THEN 'step'
                      WHEN v.method = v.reference_method AND v.variant = v.reference_variant THEN 'seed'
                      ELSE 'method' END AS pair,
       v.scale, v.step, v.method, v.variant, v.seed, v.reference_method, v.reference_variant, v.reference_seed, v.reference_step,
       v.value, v.value_kind, v.standard_error, v.standard_error_kind, v.protocol,
       CASE WHEN reference.init_hash = run.init_hash AND run.init_hash <> '' THEN 1 ELSE 0 END AS shared_initialisation,
       v.note, v.protocol_id
FROM metric_view AS v
JOIN run ON run.id = v.run_id
JOIN run AS reference ON reference.id = v.reference_run_id
WHERE v.study = :study AND v.layer = -2 AND v.module = '' AND v.metric LIKE :metric
  AND (v.metric LIKE 'ccbh%' OR v.metric LIKE 'imbh%')
ORDER BY v.metric, v.protocol_id, v.scale, v.step, v.run_id, v.reference_run_id
