-- description: Out-of-fold predictions of the predictor fits of a study.
-- param: study text
SELECT f.feature_set, f.selection, f.scheme, f.model, f.target AS target_name, q.row_label, q.fold, q.target, q.predicted,
       c.scale, c.method, c.variant, c.seed, c.step, q.checkpoint_id, q.fit_id
FROM prediction AS q
JOIN predictor_fit AS f ON f.id = q.fit_id
JOIN study ON study.id = f.study_id
LEFT JOIN checkpoint_view AS c ON c.checkpoint_id = q.checkpoint_id
WHERE study.name = :study
ORDER BY q.fit_id, q.id
