-- description: How far each run is: checkpoints, and for each lens and protocol how many of them have values.
-- param: study text default ''
SELECT study.name AS study, run.scale, run.method, run.variant, run.seed, run.status, run.total_steps,
       progress.last_step, COALESCE(progress.checkpoints, 0) AS checkpoints,
       lens.lens, lens.protocol, lens.measured, run.error, run.id AS run_id
FROM run
JOIN study ON study.id = run.study_id
LEFT JOIN (
    SELECT run_id, max(step) AS last_step, count(*) AS checkpoints
    FROM checkpoint
    GROUP BY run_id
) AS progress ON progress.run_id = run.id
LEFT JOIN (
    SELECT checkpoint.run_id, protocol.lens, protocol.name AS protocol, count(DISTINCT checkpoint.id) AS measured
    FROM (
        SELECT checkpoint_id, protocol_id FROM metric_value
        UNION
        SELECT checkpoint_id, protocol_id FROM downstream_score
    ) AS done
    JOIN checkpoint ON checkpoint.id = done.checkpoint_id
    JOIN protocol ON protocol.id = done.protocol_id
    GROUP BY checkpoint.run_id, protocol.lens, protocol.name
) AS lens ON lens.run_id = run.id
WHERE (:study = '' OR study.name = :study)
ORDER BY study.name, run.scale, run.method, run.variant, run.seed, run.id, lens.lens, lens.protocol
