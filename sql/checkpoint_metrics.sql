-- description: Aggregate of each metric at each checkpoint of a study, by the newest protocol of a name; features has it wide.
-- param: study text
-- param: protocol text default 'exact'
WITH older_metrics AS (
    -- what a newer protocol of the same name has replaced in this study; without rivals no value is looked at
    SELECT found.metric, found.protocol_id
    FROM (
        SELECT v.metric, v.protocol_id, max(v.protocol_id) OVER (PARTITION BY v.metric) AS newest
        FROM (SELECT p.id, count(*) OVER (PARTITION BY p.lens) AS rivals FROM protocol AS p WHERE p.name = :protocol) AS named
        CROSS JOIN metric_value AS v
        JOIN checkpoint ON checkpoint.id = v.checkpoint_id
        JOIN run ON run.id = checkpoint.run_id
        JOIN study ON study.id = run.study_id
        WHERE named.rivals > 1 AND v.protocol_id = named.id AND study.name = :study AND v.layer = -2 AND v.module = ''
        GROUP BY v.metric, v.protocol_id
    ) AS found
    WHERE found.protocol_id < found.newest
)
SELECT v.checkpoint_id, v.metric, v.value, v.value_kind, v.reference_checkpoint_id, v.protocol_id
FROM metric_value AS v
WHERE v.protocol_id IN (SELECT p.id FROM protocol AS p WHERE p.name = :protocol)
  AND (NOT EXISTS (SELECT 1 FROM older_metrics) OR (v.metric, v.protocol_id) NOT IN (SELECT metric, protocol_id FROM older_metrics))
  AND v.layer = -2 AND v.module = ''
  AND v.checkpoint_id IN (SELECT c.checkpoint_id FROM checkpoint_view AS c WHERE c.study = :study)  -- by itself
ORDER BY v.checkpoint_id, v.metric, v.protocol_id, v.reference_key
