-- description: The feature table: one row a checkpoint with loss, published features, other scalars, mean score and each task's.
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
           avg(v.value) FILTER (WHERE v.metric = 'stable_rank_w') AS stable_rank_w,
           avg(v.value) FILTER (WHERE v.metric = 'ccbh_excess') AS ccbh_excess,
           avg(v.value) FILTER (WHERE v.metric = 'activation_cosine') AS activation_cosine_mean,
           avg(v.value) FILTER (WHERE v.metric = 'activation_cka_debiased') AS activation_cka_debiased_mean,
           avg(v.value) FILTER (WHERE v.metric = 'effective_rank_w') AS effective_rank_w,
           avg(v.value) FILTER (WHERE v.metric = 'spectral_gap_w') AS spectral_gap_w,
           avg(v.value) FILTER (WHERE v.metric = 'threshold_rank_dw') AS threshold_rank_dw,
           avg(v.value) FILTER (WHERE v.metric = 'delta_norm') AS delta_norm,
           avg(v.value) FILTER (WHERE v.metric = 'delta_norm_relative') AS delta_norm_relative,
           avg(v.value) FILTER (WHERE v.metric = 'sharpness_random') AS sharpness_random,
           avg(v.value) FILTER (WHERE v.metric = 'direction_variance') AS direction_variance,
           avg(v.value) FILTER (WHERE v.metric = 'sharpness_pca_1') AS sharpness_pca_1,
           avg(v.value) FILTER (WHERE v.metric = 'sharpness_pca_5') AS sharpness_pca_5,
           avg(v.value) FILTER (WHERE v.metric = 'sharpness_pca_10') AS sharpness_pca_10,
           avg(v.value) FILTER (WHERE v.metric = 'sharpness_pca_20') AS sharpness_pca_20,
           avg(v.value) FILTER (WHERE v.metric = 'sharpness_pca_100') AS sharpness_pca_100,
           avg(v.value) FILTER (WHERE v.metric = 'sharpness_pca_mean_5') AS sharpness_pca_mean_5,
           avg(v.value) FILTER (WHERE v.metric = 'sigma_pca_1') AS sigma_pca_1,
           avg(v.value) FILTER (WHERE v.metric = 'sigma_pca_5') AS sigma_pca_5,
           avg(v.value) FILTER (WHERE v.metric = 'sigma_pca_10') AS sigma_pca_10,
           avg(v.value) FILTER (WHERE v.metric = 'sigma_pca_20') AS sigma_pca_20,
           avg(v.value) FILTER (WHERE v.metric = 'sigma_pca_100') AS sigma_pca_100,
           avg(v.value) FILTER (WHERE v.metric = 'sharpness_trajectory_1') AS sharpness_trajectory_1,
           avg(v.value) FILTER (WHERE v.metric = 'sharpness_trajectory_2') AS sharpness_trajectory_2,
           avg(v.value) FILTER (WHERE v.metric = 'trajectory_share_1') AS trajectory_share_1,
           avg(v.value) FILTER (WHERE v.metric = 'trajectory_share_2') AS trajectory_share_2,
           avg(v.value) FILTER (WHERE v.metric = 'hessian_trace') AS hessian_trace,
           avg(v.value) FILTER (WHERE v.metric = 'hessian_top_eigenvalue') AS hessian_top_eigenvalue,
           avg(v.value) FILTER (WHERE v.metric = 'held_out_loss') AS held_out_loss
    FROM metric_value AS v
    WHERE v.protocol_id IN (SELECT p.id FROM protocol AS p WHERE p.name = :protocol)
      AND (NOT EXISTS (SELECT 1 FROM older) OR (v.metric, v.protocol_id) NOT IN (SELECT metric, protocol_id FROM older))
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
    SELECT s.checkpoint_id, avg(s.value) AS downstream_mean, count(s.value) AS tasks,
           avg(s.value) FILTER (WHERE s.task = 'arc_easy') AS score_arc_easy,
           avg(s.value) FILTER (WHERE s.task = 'blimp') AS score_blimp,
           avg(s.value) FILTER (WHERE s.task = 'copa') AS score_copa,
           avg(s.value) FILTER (WHERE s.task = 'hellaswag') AS score_hellaswag,
           avg(s.value) FILTER (WHERE s.task = 'logiqa') AS score_logiqa,
           avg(s.value) FILTER (WHERE s.task = 'logiqa2') AS score_logiqa2,
           avg(s.value) FILTER (WHERE s.task = 'openbookqa') AS score_openbookqa,
           avg(s.value) FILTER (WHERE s.task = 'piqa') AS score_piqa,
           avg(s.value) FILTER (WHERE s.task = 'qa4mre_2013') AS score_qa4mre_2013,
           avg(s.value) FILTER (WHERE s.task = 'record') AS score_record,
           avg(s.value) FILTER (WHERE s.task = 'swag') AS score_swag,
           avg(s.value) FILTER (WHERE s.task = 'agreement') AS score_agreement,
           avg(s.value) FILTER (WHERE s.task = 'cloze') AS score_cloze,
           avg(s.value) FILTER (WHERE s.task = 'continuation') AS score_continuation,
           avg(s.value) FILTER (WHERE s.task = 'definition') AS score_definition,
           avg(s.value) FILTER (WHERE s.task = 'ordering') AS score_ordering,
           avg(s.value) FILTER (WHERE s.task = 'term') AS score_term,
           avg(s.value) FILTER (WHERE s.task = 'word_order') AS score_word_order
    FROM downstream_score AS s
    LEFT JOIN primary_metric_view AS m ON m.protocol_id = s.protocol_id AND m.task = s.task
    WHERE s.metric = coalesce(m.metric, 'acc')
      AND (NOT EXISTS (SELECT 1 FROM older_scores) OR (s.task, s.protocol_id) NOT IN (SELECT task, protocol_id FROM older_scores))
    GROUP BY s.checkpoint_id
)
-- a metric or task that is no column here, such as those of a lens of one's own, is a row of feature_values
SELECT c.scale, c.method, c.variant, c.seed, c.step, c.kind, c.validation_loss AS log_perplexity,
       c.validation_loss_kind AS log_perplexity_kind,
       metrics.ccbh, metrics.activation_cka_mean, metrics.activation_l2_mean, metrics.stable_rank_dw,
       metrics.effective_rank_dw, metrics.threshold_rank_w, metrics.spectral_gap_dw, metrics.stable_rank_w,
       metrics.ccbh_excess, metrics.activation_cosine_mean, metrics.activation_cka_debiased_mean, metrics.effective_rank_w,
       metrics.spectral_gap_w, metrics.threshold_rank_dw, metrics.delta_norm, metrics.delta_norm_relative,
       metrics.sharpness_random, metrics.direction_variance, metrics.sharpness_pca_1, metrics.sharpness_pca_5,
       metrics.sharpness_pca_10, metrics.sharpness_pca_20, metrics.sharpness_pca_100, metrics.sharpness_pca_mean_5, metrics.sigma_pca_1,
       metrics.sigma_pca_5, metrics.sigma_pca_10, metrics.sigma_pca_20, metrics.sigma_pca_100,
       metrics.sharpness_trajectory_1, metrics.sharpness_trajectory_2, metrics.trajectory_share_1,
       metrics.trajectory_share_2, metrics.hessian_trace, metrics.hessian_top_eigenvalue, metrics.held_out_loss,
       scores.downstream_mean, scores.tasks,
       scores.score_arc_easy, scores.score_blimp, scores.score_copa, scores.score_hellaswag, scores.score_logiqa,
       scores.score_logiqa2, scores.score_openbookqa, scores.score_piqa, scores.score_qa4mre_2013, scores.score_record,
       scores.score_swag, scores.score_agreement, scores.score_cloze, scores.score_continuation,
       scores.score_definition, scores.score_ordering, scores.score_term, scores.score_word_order,
       c.status, c.run_id, c.checkpoint_id
FROM checkpoint_view AS c
JOIN current_run_view AS kept ON kept.run_id = c.run_id
LEFT JOIN metrics ON metrics.checkpoint_id = c.checkpoint_id
LEFT JOIN scores ON scores.checkpoint_id = c.checkpoint_id
WHERE c.study = :study
ORDER BY c.scale, c.run_id, c.step
