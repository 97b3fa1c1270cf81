-- description: Final checkpoints against a reference method of their scale and seed on the same downstream items, paired.
-- param: study text
-- param: reference text default 'full_rank'
-- param: metric text default ''
SELECT p.name AS suite, d.scale, d.seed, d.method, d.variant, d.reference_variant, d.task, d.metric, d.n, d.mean, d.reference_mean,
       d.difference,
       CASE WHEN d.clusters > 1 THEN sqrt(d.squares * d.clusters / (d.clusters - 1)) / d.n END AS standard_error,
       d.checkpoint_id, d.reference_checkpoint_id, d.protocol_id
FROM (
    SELECT max(g.scale) AS scale, max(g.seed) AS seed, max(g.method) AS method, max(g.variant) AS variant,
           max(g.reference_variant) AS reference_variant, g.checkpoint_id, g.reference_checkpoint_id, g.protocol_id, g.task,
           g.metric, CAST(sum(g.n) AS INTEGER) AS n, count(*) AS clusters, avg(g.grand_mean) AS mean,
           avg(g.grand_reference) AS reference_mean, avg(g.grand) AS difference,
           sum((g.total - g.n * g.grand) * (g.total - g.n * g.grand)) AS squares
    FROM (
        SELECT i.checkpoint_id, i.reference_checkpoint_id, i.protocol_id, i.task, i.metric, substr(i.item, 1, 16) AS cluster,
               max(i.scale) AS scale, max(i.seed) AS seed, max(i.method) AS method, max(i.variant) AS variant,
               max(i.reference_variant) AS reference_variant, count(*) AS n, sum(i.difference) AS total, max(i.grand) AS grand,
               max(i.grand_mean) AS grand_mean, max(i.grand_reference) AS grand_reference
        FROM (
            SELECT c.scale, c.seed, c.method, c.variant, r.variant AS reference_variant, c.checkpoint_id,
                   r.checkpoint_id AS reference_checkpoint_id, y.protocol_id, y.task, y.metric, y.item,
                   y.value - x.value AS difference, avg(y.value - x.value) OVER task AS grand,
                   avg(y.value) OVER task AS grand_mean, avg(x.value) OVER task AS grand_reference
            FROM checkpoint_view AS c
            JOIN checkpoint_view AS r ON r.study = c.study AND r.scale = c.scale AND r.seed = c.seed AND r.method = :reference
                                     AND r.kind = 'final' AND r.checkpoint_id <> c.checkpoint_id
            JOIN downstream_item AS y ON y.checkpoint_id = c.checkpoint_id
            JOIN downstream_item AS x ON x.checkpoint_id = r.checkpoint_id AND x.protocol_id = y.protocol_id AND x.task = y.task
                                     AND x.metric = y.metric AND x.item = y.item
            WHERE c.study = :study AND c.kind = 'final' AND c.method <> :reference AND (:metric = '' OR y.metric = :metric)
            WINDOW task AS (PARTITION BY c.checkpoint_id, r.checkpoint_id, y.protocol_id, y.task, y.metric)
        ) AS i
        GROUP BY i.checkpoint_id, i.reference_checkpoint_id, i.protocol_id, i.task, i.metric, substr(i.item, 1, 16)
    ) AS g
    GROUP BY g.checkpoint_id, g.reference_checkpoint_id, g.protocol_id, g.task, g.metric
) AS d
JOIN protocol AS p ON p.id = d.protocol_id
ORDER BY p.name, d.scale, d.seed, d.method, d.variant, d.task, d.metric, d.reference_checkpoint_id
