-- description: Each recipe of each method over seeds; chosen by the mean loss on the split 'selection', reported on 'validation'.
-- param: study text
-- param: scale text default ''
SELECT scale, method, variant, learning_rate, runs, finished, selection_loss, validation_loss,
       CASE WHEN finished > 1 THEN sqrt(loss_squares / (finished - 1)) END AS validation_loss_sd,
       perplexity, CASE WHEN finished > 1 THEN sqrt(perplexity_squares / (finished - 1)) END AS perplexity_sd,
       -- a recipe that some seed did not finish is chosen only where no other is whole
       CASE WHEN selection_loss IS NOT NULL
                 AND row_number() OVER (PARTITION BY scale, method
                                        ORDER BY CASE WHEN selection_loss IS NULL THEN 1 ELSE 0 END, runs - finished,
                                                 selection_loss, variant) = 1
            THEN 1 ELSE 0 END AS chosen
FROM (
    SELECT scale, method, variant, min(learning_rate) AS learning_rate, count(*) AS runs, count(validation_loss) AS finished,
           avg(selection_loss) AS selection_loss, avg(validation_loss) AS validation_loss, avg(perplexity) AS perplexity,
           sum((validation_loss - loss_centre) * (validation_loss - loss_centre)) AS loss_squares,
           sum((perplexity - perplexity_centre) * (perplexity - perplexity_centre)) AS perplexity_squares
    FROM (
        SELECT one.*, avg(validation_loss) OVER (PARTITION BY scale, method, variant) AS loss_centre,
               avg(perplexity) OVER (PARTITION BY scale, method, variant) AS perplexity_centre
        FROM (
            SELECT run.id AS run_id, run.scale, run.method, run.variant, run.base_learning_rate AS learning_rate,
                   c.validation_loss, CASE WHEN c.validation_loss < 700 THEN exp(c.validation_loss) END AS perplexity,
                   (SELECT v.value
                    FROM metric_value AS v
                    JOIN protocol ON protocol.id = v.protocol_id
                    JOIN evaluation_set ON evaluation_set.id = protocol.evaluation_set_id
                    WHERE v.checkpoint_id = c.id AND v.metric = 'held_out_loss' AND v.layer = -2 AND v.module = ''
                          AND evaluation_set.split = 'selection'
                    ORDER BY v.protocol_id DESC
                    LIMIT 1) AS selection_loss
            FROM run
            JOIN study ON study.id = run.study_id
            LEFT JOIN checkpoint AS c ON c.run_id = run.id AND c.kind = 'final'
            WHERE study.name = :study AND (:scale = '' OR run.scale = :scale) AND run.status <> 'cancelled'
        ) AS one
    ) AS centred
    GROUP BY scale, method, variant
) AS recipe
ORDER BY scale, method, chosen DESC, selection_loss, variant
