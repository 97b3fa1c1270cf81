-- description: Mean, sample variance, lowest and highest over seeds of the loss and of each metric, at each step with several seeds.
-- param: study text
-- param: metric text default '%'
SELECT metric, protocol, scale, method, variant, step, count(*) AS seeds, avg(value) AS mean,
       -- around the mean of the group, which keeps its digits where the values are large and close
       sum((value - centre) * (value - centre)) / (count(*) - 1) AS variance, min(value) AS lowest, max(value) AS highest
FROM (
    SELECT v.metric, v.protocol, v.protocol_id, v.scale, v.method, v.variant, v.step, v.value,
           avg(v.value) OVER (PARTITION BY v.metric, v.protocol_id, v.scale, v.method, v.variant, v.step) AS centre
    FROM (
        SELECT 'validation_loss' AS metric, '' AS protocol, 0 AS protocol_id, c.scale, c.method, c.variant, c.step,
               c.validation_loss AS value
        FROM checkpoint_view AS c
        JOIN current_run_view AS kept ON kept.run_id = c.run_id
        WHERE c.study = :study AND c.validation_loss IS NOT NULL
        UNION ALL
        SELECT m.metric, m.protocol, m.protocol_id, m.scale, m.method, m.variant, m.step, m.value
        FROM metric_view AS m
        JOIN current_run_view AS kept ON kept.run_id = m.run_id
        WHERE m.study = :study AND m.layer = -2 AND m.module = '' AND m.value IS NOT NULL AND m.metric NOT LIKE 'imbh%'
    ) AS v
    WHERE v.metric LIKE :metric
) AS w
GROUP BY metric, protocol, protocol_id, scale, method, variant, step
HAVING count(*) > 1
ORDER BY metric, protocol, protocol_id, scale, method, variant, step
