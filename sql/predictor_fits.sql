-- description: The cross-validated predictor fits of a study, newest last.
-- param: study text
SELECT f.feature_set, f.selection, f.scheme, f.model, f.target, f.n, f.n_excluded, f.pearson, f.pearson_low, f.pearson_high,
       f.spearman, f.r2, f.r2_in_sample, f.ranking_accuracy, f.permutation_p, f.features, f.details, f.input_hash, f.id AS fit_id
FROM predictor_fit AS f
JOIN study ON study.id = f.study_id
WHERE study.name = :study
ORDER BY f.id
