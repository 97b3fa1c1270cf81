-- description: Two checkpoints on the same downstream items: mean difference b - a with its paired standard error, task by task.
-- param: a integer
-- param: b integer
-- param: task text default ''
-- param: metric text default ''
SELECT p.name AS suite, d.task, d.metric, d.n, d.mean_a, d.mean_b, d.difference,
       CASE WHEN d.n > 1 THEN sqrt(CASE WHEN d.spread > 0 THEN d.spread ELSE 0 END / (d.n - 1)) END AS standard_error,
       d.better, d.worse, d.protocol_id
FROM (
    SELECT x.protocol_id, x.task, x.metric, count(*) AS n, avg(x.value) AS mean_a, avg(y.value) AS mean_b,
           avg(y.value - x.value) AS difference,
           avg((y.value - x.value) * (y.value - x.value)) - avg(y.value - x.value) * avg(y.value - x.value) AS spread,
           sum(CASE WHEN y.value > x.value THEN 1 ELSE 0 END) AS better,
           sum(CASE WHEN y.value < x.value THEN 1 ELSE 0 END) AS worse
    FROM downstream_item AS x
    JOIN downstream_item AS y ON y.checkpoint_id = :b AND y.protocol_id = x.protocol_id AND y.task = x.task
                             AND y.metric = x.metric AND y.item = x.item
    WHERE x.checkpoint_id = :a
      AND (:task = '' OR x.task = :task)
      AND (:metric = '' OR x.metric = :metric)
    GROUP BY x.protocol_id, x.task, x.metric
) AS d
JOIN protocol AS p ON p.id = d.protocol_id
ORDER BY p.name, d.task, d.metric
