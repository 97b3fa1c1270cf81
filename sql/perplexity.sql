-- description: Final validation loss (nats per token) and perplexity of each run, beside the published perplexity.
-- param: study text default ''
-- param: scale text default ''
SELECT final.study, final.scale, final.method, final.variant, final.seed, final.status, final.step, final.tokens_seen,
       final.validation_loss, final.validation_loss_kind, final.perplexity,
       published.value AS published_perplexity, final.perplexity - published.value AS difference, published.source
FROM (
    SELECT c.*, CASE WHEN c.validation_loss < 700 THEN exp(c.validation_loss) END AS perplexity
    FROM checkpoint_view AS c
    JOIN current_run_view AS kept ON kept.run_id = c.run_id
    WHERE c.kind = 'final' OR c.run_kind = 'imported'
) AS final
LEFT JOIN published_value AS published
       ON published.quantity = 'validation_perplexity' AND published.scale = final.scale AND published.method = final.method
WHERE (:study = '' OR final.study = :study)
  AND (:scale = '' OR final.scale = :scale)
ORDER BY final.study, final.scale, final.method, final.variant, final.seed, final.run_id
