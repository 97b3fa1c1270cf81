-- description: The ten numbers of the published predictor, one row a checkpoint: loss, eight features, mean score.
-- param: study text
-- param: protocol text default 'exact'
WITH older AS (
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
), metrics AS (
    SELECT v.checkpoint_id,
           avg(v.value) FILTER (WHERE v.metric = 'ccbh') AS ccbh,
           avg(v.value) FILTER (WHERE v.metric = 'activation_cka') AS activation_cka_mean,
           avg(v.value) FILTER (WHERE v.metric = 'activation_l2') AS activation_l2_mean,
           avg(v.value) FILTER (WHERE v.metric = 'stable_rank_dw') AS stable_rank_dw,
           avg(v.value) FILTER (WHERE v.metric = 'effective_rank_dw') AS effective_rank_dw,
           avg(v.value) FILTER (WHERE v.metric = 'threshold_rank_w') AS threshold_rank_w,
           avg(v.value) FILTER (WHERE v.metric = 'spectral_gap_dw') AS spectral_gap_dw,
           avg(v.value) FILTER (WHERE v.metric = 'stable_rank_w') AS stable_rank_w
    FROM metric_value AS v
    WHERE v.protocol_id IN (SELECT p.id FROM protocol AS p WHERE p.name = :protocol)
      AND (NOT EXISTS (SELECT 1 FROM older) OR (v.metric, v.protocol_id) NOT IN (SELECT metric, protocol_id FROM older))
      AND v.layer = -2 AND v.module = ''
      AND v.metric IN ('ccbh', 'activation_cka', 'activation_l2', 'stable_rank_dw',
                       'effective_rank_dw', 'threshold_rank_w', 'spectral_gap_dw', 'stable_rank_w')
    GROUP BY v.checkpoint_id
), older_scores AS (
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
), scores AS (
    -- of each task the metric that its protocol names, acc where it names none
    SELECT s.checkpoint_id, avg(s.value) AS downstream_mean
    FROM downstream_score AS s
    LEFT JOIN primary_metric_view AS m ON m.protocol_id = s.protocol_id AND m.task = s.task
    WHERE s.metric = coalesce(m.metric, 'acc')
      AND (NOT EXISTS (SELECT 1 FROM older_scores) OR (s.task, s.protocol_id) NOT IN (SELECT task, protocol_id FROM older_scores))
    GROUP BY s.checkpoint_id
)
SELECT c.scale, c.method, c.variant, c.seed, c.step, c.validation_loss AS log_perplexity,
       metrics.ccbh, metrics.activation_cka_mean, metrics.activation_l2_mean, metrics.stable_rank_dw,
       metrics.effective_rank_dw, metrics.threshold_rank_w, metrics.spectral_gap_dw, metrics.stable_rank_w,
       scores.downstream_mean, c.run_id, c.checkpoint_id
FROM checkpoint_view AS c
JOIN current_run_view AS kept ON kept.run_id = c.run_id
LEFT JOIN metrics ON metrics.checkpoint_id = c.checkpoint_id
LEFT JOIN scores ON scores.checkpoint_id = c.checkpoint_id
WHERE c.study = :study
ORDER BY c.scale, c.run_id, c.step
