-- description: The feature table: one row a checkpoint with loss, the published features, the other scalars and the mean score.
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
           avg(CASE WHEN v.metric = 'ccbh' THEN v.value END) AS ccbh,
           avg(CASE WHEN v.metric = 'activation_cka' THEN v.value END) AS activation_cka_mean,
           avg(CASE WHEN v.metric = 'activation_l2' THEN v.value END) AS activation_l2_mean,
           avg(CASE WHEN v.metric = 'stable_rank_dw' THEN v.value END) AS stable_rank_dw,
           avg(CASE WHEN v.metric = 'effective_rank_dw' THEN v.value END) AS effective_rank_dw,
           avg(CASE WHEN v.metric = 'threshold_rank_w' THEN v.value END) AS threshold_rank_w,
           avg(CASE WHEN v.metric = 'spectral_gap_dw' THEN v.value END) AS spectral_gap_dw,
           avg(CASE WHEN v.metric = 'stable_rank_w' THEN v.value END) AS stable_rank_w,
           avg(CASE WHEN v.metric = 'sharpness_random' THEN v.value END) AS sharpness_random,
           avg(CASE WHEN v.metric = 'direction_variance' THEN v.value END) AS direction_variance,
           avg(CASE WHEN v.metric = 'sharpness_pca_1' THEN v.value END) AS sharpness_pca_1,
           avg(CASE WHEN v.metric = 'sigma_pca_1' THEN v.value END) AS sigma_pca_1,
           avg(CASE WHEN v.metric = 'ccbh_excess' THEN v.value END) AS ccbh_excess,
           avg(CASE WHEN v.metric = 'effective_rank_w' THEN v.value END) AS effective_rank_w,
           avg(CASE WHEN v.metric = 'spectral_gap_w' THEN v.value END) AS spectral_gap_w,
           avg(CASE WHEN v.metric = 'threshold_rank_dw' THEN v.value END) AS threshold_rank_dw,
           avg(CASE WHEN v.metric = 'delta_norm' THEN v.value END) AS delta_norm,
           avg(CASE WHEN v.metric = 'delta_norm_relative' THEN v.value END) AS delta_norm_relative,
           avg(CASE WHEN v.metric = 'activation_cosine' THEN v.value END) AS activation_cosine_mean,
           avg(CASE WHEN v.metric = 'activation_cka_debiased' THEN v.value END) AS activation_cka_debiased_mean,
           avg(CASE WHEN v.metric = 'hessian_trace' THEN v.value END) AS hessian_trace,
           avg(CASE WHEN v.metric = 'hessian_top_eigenvalue' THEN v.value END) AS hessian_top_eigenvalue
    FROM metric_value AS v
    WHERE v.protocol_id IN (SELECT p.id FROM protocol AS p WHERE p.name = :protocol)
      AND (v.metric, v.protocol_id) NOT IN (SELECT metric, protocol_id FROM older)
      AND v.layer = -2 AND v.module = ''
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
    SELECT s.checkpoint_id, avg(s.value) AS downstream_mean, count(s.value) AS tasks
    FROM downstream_score AS s
    LEFT JOIN primary_metric_view AS m ON m.protocol_id = s.protocol_id AND m.task = s.task
    WHERE s.metric = coalesce(m.metric, 'acc') AND (s.task, s.protocol_id) NOT IN (SELECT task, protocol_id FROM older_scores)
    GROUP BY s.checkpoint_id
)
SELECT c.scale, c.method, c.variant, c.seed, c.step, c.kind, c.validation_loss AS log_perplexity,
       c.validation_loss_kind AS log_perplexity_kind,
       metrics.ccbh, metrics.activation_cka_mean, metrics.activation_l2_mean, metrics.stable_rank_dw,
       metrics.effective_rank_dw, metrics.threshold_rank_w, metrics.spectral_gap_dw, metrics.stable_rank_w,
       metrics.sharpness_random, metrics.direction_variance, metrics.sharpness_pca_1, metrics.sigma_pca_1,
       metrics.ccbh_excess, metrics.effective_rank_w, metrics.spectral_gap_w, metrics.threshold_rank_dw, metrics.delta_norm,
       metrics.delta_norm_relative, metrics.activation_cosine_mean, metrics.activation_cka_debiased_mean,
       metrics.hessian_trace, metrics.hessian_top_eigenvalue,
       scores.downstream_mean, scores.tasks, c.status, c.run_id, c.checkpoint_id
FROM checkpoint_view AS c
JOIN current_run_view AS kept ON kept.run_id = c.run_id
LEFT JOIN metrics ON metrics.checkpoint_id = c.checkpoint_id
LEFT JOIN scores ON scores.checkpoint_id = c.checkpoint_id
WHERE c.study = :study
ORDER BY c.scale, c.run_id, c.step
