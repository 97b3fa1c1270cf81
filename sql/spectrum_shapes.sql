-- description: Singular values of W and of the last ΔW by projection type and position, mean and range over layers.
-- param: study text
SELECT s.matrix, s.module, protocol.name AS protocol, protocol.lens, c.scale, c.method, c.variant, c.seed, c.step, s.position,
       avg(s.value) AS mean, min(s.value) AS lowest, max(s.value) AS highest, count(*) AS matrices, s.protocol_id, c.run_id
FROM singular_value AS s
JOIN protocol ON protocol.id = s.protocol_id
JOIN checkpoint_view AS c ON c.checkpoint_id = s.checkpoint_id
WHERE c.study = :study
GROUP BY s.matrix, s.module, s.protocol_id, protocol.name, protocol.lens, c.run_id, c.method, c.variant, c.scale, c.seed, c.step, s.position
ORDER BY s.matrix, s.module, s.protocol_id, c.scale, c.run_id, c.step, s.position
