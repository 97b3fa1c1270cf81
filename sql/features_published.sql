-- description: The ten numbers of the published predictor, one row a checkpoint: loss, eight features, mean score.
-- param: study text
-- param: protocol text default 'exact'
WITH metrics AS (
    SELECT v.checkpoint_id,
           avg(CASE WHEN v.metric = 'ccbh' THEN v.value END) AS ccbh,
           avg(CASE WHEN v.metric = 'activation_cka' THEN v.value END) AS activation_cka_mean,
           avg(CASE WHEN v.metric = 'activation_l2' THEN v.value END) AS activation_l2_mean,
           avg(CASE WHEN v.metric = 'stable_rank_dw' THEN v.value END) AS stable_rank_dw,
           avg(CASE WHEN v.metric = 'effective_rank_dw' THEN v.value END) AS effective_rank_dw,
           avg(CASE WHEN v.metric = 'threshold_rank_w' THEN v.value END) AS threshold_rank_w,
           avg(CASE WHEN v.metric = 'spectral_gap_dw' THEN v.value END) AS spectral_gap_dw,
           avg(CASE WHEN v.metric = 'stable_rank_w' THEN v.value END) AS stable_rank_w
    FROM metric_value AS v
    WHERE v.metric IN ('ccbh', 'activation_cka', 'activation_l2', 'stable_rank_dw', 'effective_rank_dw',
                       'threshold_rank_w', 'spectral_gap_dw', 'stable_rank_w')
      AND v.layer = -2 AND v.module = '' AND v.protocol_id IN (SELECT p.id FROM protocol AS p WHERE p.name = :protocol)
    GROUP BY v.checkpoint_id
), scores AS (
    -- the metric that stands for a task is acc, else f1
    SELECT s.checkpoint_id, avg(s.value) AS downstream_mean
    FROM downstream_score AS s
    WHERE s.metric = 'acc' OR s.metric = 'f1' AND NOT EXISTS (
        SELECT 1 FROM downstream_score AS o
        WHERE o.checkpoint_id = s.checkpoint_id AND o.protocol_id = s.protocol_id AND o.task = s.task AND o.metric = 'acc'
    )
    GROUP BY s.checkpoint_id
)
SELECT c.scale, c.method, c.variant, c.seed, c.step, c.validation_loss AS log_perplexity, metrics.ccbh, metrics.activation_cka_mean, metrics.activation_l2_mean,
       metrics.stable_rank_dw, metrics.effective_rank_dw, metrics.threshold_rank_w, metrics.spectral_gap_dw, metrics.stable_rank_w,
       scores.downstream_mean, c.run_id, c.checkpoint_id
FROM checkpoint_view AS c
LEFT JOIN metrics ON metrics.checkpoint_id = c.checkpoint_id
LEFT JOIN scores ON scores.checkpoint_id = c.checkpoint_id
WHERE c.study = :study
ORDER BY c.scale, c.run_id, c.step
