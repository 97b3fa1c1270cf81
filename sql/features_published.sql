-- description: The ten numbers of the published predictor, one row a checkpoint: loss, eight features, mean score.
-- param: study text
-- param: protocol text default 'exact'
SELECT c.scale, c.method, c.variant, c.seed, c.step, c.validation_loss AS log_perplexity,
       -- one lookup a feature in the covering index of aggregate rows
       (SELECT avg(v.value) FROM metric_value AS v JOIN protocol AS p ON p.id = v.protocol_id AND p.name = :protocol
        WHERE v.checkpoint_id = c.checkpoint_id AND v.metric = 'ccbh' AND v.layer = -2 AND v.module = '') AS ccbh,
       (SELECT avg(v.value) FROM metric_value AS v JOIN protocol AS p ON p.id = v.protocol_id AND p.name = :protocol
        WHERE v.checkpoint_id = c.checkpoint_id AND v.metric = 'activation_cka' AND v.layer = -2 AND v.module = '') AS activation_cka_mean,
       (SELECT avg(v.value) FROM metric_value AS v JOIN protocol AS p ON p.id = v.protocol_id AND p.name = :protocol
        WHERE v.checkpoint_id = c.checkpoint_id AND v.metric = 'activation_l2' AND v.layer = -2 AND v.module = '') AS activation_l2_mean,
       (SELECT avg(v.value) FROM metric_value AS v JOIN protocol AS p ON p.id = v.protocol_id AND p.name = :protocol
        WHERE v.checkpoint_id = c.checkpoint_id AND v.metric = 'stable_rank_dw' AND v.layer = -2 AND v.module = '') AS stable_rank_dw,
       (SELECT avg(v.value) FROM metric_value AS v JOIN protocol AS p ON p.id = v.protocol_id AND p.name = :protocol
        WHERE v.checkpoint_id = c.checkpoint_id AND v.metric = 'effective_rank_dw' AND v.layer = -2 AND v.module = '') AS effective_rank_dw,
       (SELECT avg(v.value) FROM metric_value AS v JOIN protocol AS p ON p.id = v.protocol_id AND p.name = :protocol
        WHERE v.checkpoint_id = c.checkpoint_id AND v.metric = 'threshold_rank_w' AND v.layer = -2 AND v.module = '') AS threshold_rank_w,
       (SELECT avg(v.value) FROM metric_value AS v JOIN protocol AS p ON p.id = v.protocol_id AND p.name = :protocol
        WHERE v.checkpoint_id = c.checkpoint_id AND v.metric = 'spectral_gap_dw' AND v.layer = -2 AND v.module = '') AS spectral_gap_dw,
       (SELECT avg(v.value) FROM metric_value AS v JOIN protocol AS p ON p.id = v.protocol_id AND p.name = :protocol
        WHERE v.checkpoint_id = c.checkpoint_id AND v.metric = 'stable_rank_w' AND v.layer = -2 AND v.module = '') AS stable_rank_w,
       -- the metric that stands for a task is acc, else f1
       (SELECT avg(s.value) FROM downstream_score AS s
        WHERE s.checkpoint_id = c.checkpoint_id
          AND (s.metric = 'acc' OR s.metric = 'f1' AND NOT EXISTS (
              SELECT 1 FROM downstream_score AS o
              WHERE o.checkpoint_id = s.checkpoint_id AND o.protocol_id = s.protocol_id AND o.task = s.task AND o.metric = 'acc'
          ))) AS downstream_mean,
       c.run_id, c.checkpoint_id
FROM checkpoint_view AS c
WHERE c.study = :study
ORDER BY c.scale, c.run_id, c.step
