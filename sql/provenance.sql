-- description: Code and machine behind the rows: how many runs, metric values and scores each made.
-- param: study text default ''
SELECT provenance.lowrank_version, provenance.git_commit, provenance.device, provenance.threads,
       provenance.library_versions, made.what, made.study, made.number, provenance.hash
FROM provenance
JOIN (
    SELECT run.provenance_id, 'run' AS what, study.name AS study, count(*) AS number
    FROM run JOIN study ON study.id = run.study_id
    GROUP BY run.provenance_id, study.name
    UNION ALL
    SELECT v.provenance_id, 'metric_value', c.study, count(*)
    FROM metric_value AS v JOIN checkpoint_view AS c ON c.checkpoint_id = v.checkpoint_id
    GROUP BY v.provenance_id, c.study
    UNION ALL
    SELECT s.provenance_id, 'downstream_score', c.study, count(*)
    FROM downstream_score AS s JOIN checkpoint_view AS c ON c.checkpoint_id = s.checkpoint_id
    GROUP BY s.provenance_id, c.study
) AS made ON made.provenance_id = provenance.id
WHERE (:study = '' OR made.study = :study)
ORDER BY made.study, made.what, provenance.hash
