-- description: Loss along directions and between checkpoints, the mean over directions with its variance.
-- param: study text
SELECT point.curve, protocol.name AS protocol, protocol.lens, c.scale, c.method, c.variant, c.seed, c.step,
       r.method AS reference_method, r.variant AS reference_variant, r.seed AS reference_seed, r.step AS reference_step,
       point.position, point.offset_value, point.mean, point.mean_kind, point.variance, point.variance_kind, point.n,
       point.protocol_id, c.run_id, r.run_id AS reference_run_id
FROM curve_point AS point
JOIN protocol ON protocol.id = point.protocol_id
JOIN checkpoint_view AS c ON c.checkpoint_id = point.checkpoint_id
LEFT JOIN checkpoint_view AS r ON r.checkpoint_id = point.reference_checkpoint_id
WHERE c.study = :study AND point.direction_index = -1
ORDER BY point.curve, point.protocol_id, c.scale, c.run_id, c.step, point.reference_checkpoint_id, point.position
