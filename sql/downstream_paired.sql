-- description: Two checkpoints on the same downstream items: mean difference b - a with its paired standard error, task by task.
-- param: a integer
-- param: b integer
-- param: task text default ''
-- param: metric text default ''
SELECT p.name AS suite, d.task, d.metric, d.n, d.mean_a, d.mean_b, d.difference,
       CASE WHEN d.clusters > 1 THEN sqrt(d.squares * d.clusters / (d.clusters - 1)) / d.n END AS standard_error,
       d.better, d.worse, d.protocol_id
FROM (
    SELECT g.protocol_id, g.task, g.metric, CAST(sum(g.n) AS INTEGER) AS n, count(*) AS clusters,
           avg(g.grand_a) AS mean_a, avg(g.grand_b) AS mean_b, avg(g.grand) AS difference,
           sum((g.total - g.n * g.grand) * (g.total - g.n * g.grand)) AS squares,
           CAST(sum(g.better) AS INTEGER) AS better, CAST(sum(g.worse) AS INTEGER) AS worse
    FROM (
        SELECT i.protocol_id, i.task, i.metric, substr(i.item, 1, 16) AS cluster, count(*) AS n, sum(i.difference) AS total,
               max(i.grand) AS grand, max(i.grand_a) AS grand_a, max(i.grand_b) AS grand_b,
               sum(CASE WHEN i.difference > 0 THEN 1 ELSE 0 END) AS better,
               sum(CASE WHEN i.difference < 0 THEN 1 ELSE 0 END) AS worse
        FROM (
            SELECT x.protocol_id, x.task, x.metric, x.item, y.value - x.value AS difference,
                   avg(y.value - x.value) OVER task AS grand, avg(x.value) OVER task AS grand_a, avg(y.value) OVER task AS grand_b
            FROM downstream_item AS x
            JOIN downstream_item AS y ON y.checkpoint_id = :b AND y.protocol_id = x.protocol_id AND y.task = x.task
                                     AND y.metric = x.metric AND y.item = x.item
            WHERE x.checkpoint_id = :a
              AND (:task = '' OR x.task = :task)
              AND (:metric = '' OR x.metric = :metric)
            WINDOW task AS (PARTITION BY x.protocol_id, x.task, x.metric)
        ) AS i
        GROUP BY i.protocol_id, i.task, i.metric, substr(i.item, 1, 16)
    ) AS g
    GROUP BY g.protocol_id, g.task, g.metric
) AS d
JOIN protocol AS p ON p.id = d.protocol_id
ORDER BY p.name, d.task, d.metric
