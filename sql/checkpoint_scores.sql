-- description: Score of each task at each checkpoint of a study, in the task's primary metric, by the newest protocol; features has it wide.
-- param: study text
WITH older_scores AS (
    SELECT found.task, found.protocol_id
    FROM (
        SELECT s.task, s.protocol_id, max(s.protocol_id) OVER (PARTITION BY s.task) AS newest
        FROM (SELECT p.id, count(*) OVER () AS rivals FROM protocol AS p WHERE p.lens = 'downstream') AS suites
        CROSS JOIN downstream_score AS s
        JOIN checkpoint ON checkpoint.id = s.checkpoint_id
        JOIN run ON run.id = checkpoint.run_id
        JOIN study ON study.id = run.study_id
        WHERE suites.rivals > 1 AND s.protocol_id = suites.id AND study.name = :study
        GROUP BY s.task, s.protocol_id
    ) AS found
    WHERE found.protocol_id < found.newest
)
SELECT s.checkpoint_id, s.task, s.metric, 'score_' || s.task AS name, s.value, s.value_kind, s.protocol_id
FROM downstream_score AS s
-- of each task the metric that its protocol names, acc where it names none
LEFT JOIN primary_metric_view AS m ON m.protocol_id = s.protocol_id AND m.task = s.task
WHERE s.metric = coalesce(m.metric, 'acc')
  AND (NOT EXISTS (SELECT 1 FROM older_scores) OR (s.task, s.protocol_id) NOT IN (SELECT task, protocol_id FROM older_scores))
  AND s.checkpoint_id IN (SELECT c.checkpoint_id FROM checkpoint_view AS c WHERE c.study = :study)  -- by itself
ORDER BY s.checkpoint_id, s.task, s.protocol_id, s.filter
