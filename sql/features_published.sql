-- description: The ten numbers of the published predictor, one row a checkpoint: loss, eight features, mean score.
-- param: study text
-- param: protocol text default 'exact'
-- pivot: checkpoint_metrics by checkpoint_id: metric -> value, columns lowrank.predict.features:published_columns
-- pivot: checkpoint_scores by checkpoint_id: name -> value
SELECT c.scale, c.method, c.variant, c.seed, c.step, c.validation_loss AS log_perplexity,
       checkpoint_metrics.*,
       checkpoint_scores.mean AS downstream_mean, c.run_id, c.checkpoint_id
FROM checkpoint_view AS c
JOIN current_run_view AS kept ON kept.run_id = c.run_id
LEFT JOIN checkpoint_metrics ON checkpoint_metrics.checkpoint_id = c.checkpoint_id
LEFT JOIN checkpoint_scores ON checkpoint_scores.checkpoint_id = c.checkpoint_id
WHERE c.study = :study
ORDER BY c.scale, c.run_id, c.step
