-- description: The feature table: one row a checkpoint with loss, published features, other scalars, mean score and each task's.
-- param: study text
-- param: protocol text default 'exact'
-- pivot: checkpoint_metrics by checkpoint_id: metric -> value, columns lowrank.predict.features:columns
-- pivot: checkpoint_scores by checkpoint_id: name -> value, columns lowrank.evaluate.suites:columns and found
SELECT c.scale, c.method, c.variant, c.seed, c.step, c.kind, c.validation_loss AS log_perplexity,
       c.validation_loss_kind AS log_perplexity_kind,
       checkpoint_metrics.*,
       checkpoint_scores.mean AS downstream_mean, checkpoint_scores.n AS tasks,
       checkpoint_scores.*,
       c.status, c.run_id, c.checkpoint_id
FROM checkpoint_view AS c
JOIN current_run_view AS kept ON kept.run_id = c.run_id
LEFT JOIN checkpoint_metrics ON checkpoint_metrics.checkpoint_id = c.checkpoint_id
LEFT JOIN checkpoint_scores ON checkpoint_scores.checkpoint_id = c.checkpoint_id
WHERE c.study = :study
ORDER BY c.scale, c.run_id, c.step
