-- description: Final checkpoints against a reference method of their scale and seed on the same downstream items, paired.
-- param: study text
-- param: reference text default 'full_rank'
-- param: metric text default ''
SELECT p.name AS suite, d.scale, d.seed, d.method, d.variant, d.task, d.metric, d.n, d.mean, d.reference_mean, d.difference,
       CASE WHEN d.n > 1 THEN sqrt(CASE WHEN d.spread > 0 THEN d.spread ELSE 0 END / (d.n - 1)) END AS standard_error,
       d.checkpoint_id, d.reference_checkpoint_id, d.protocol_id
FROM (
    SELECT c.scale, c.seed, c.method, c.variant, y.protocol_id, y.task, y.metric, count(*) AS n, avg(y.value) AS mean,
           avg(x.value) AS reference_mean, avg(y.value - x.value) AS difference,
           avg((y.value - x.value) * (y.value - x.value)) - avg(y.value - x.value) * avg(y.value - x.value) AS spread,
           c.checkpoint_id, r.checkpoint_id AS reference_checkpoint_id
    FROM checkpoint_view AS c
    JOIN checkpoint_view AS r ON r.study = c.study AND r.scale = c.scale AND r.seed = c.seed AND r.method = :reference
                             AND r.kind = 'final' AND r.checkpoint_id <> c.checkpoint_id
    JOIN downstream_item AS y ON y.checkpoint_id = c.checkpoint_id
    JOIN downstream_item AS x ON x.checkpoint_id = r.checkpoint_id AND x.protocol_id = y.protocol_id AND x.task = y.task
                             AND x.metric = y.metric AND x.item = y.item
    WHERE c.study = :study AND c.kind = 'final' AND c.method <> :reference AND (:metric = '' OR y.metric = :metric)
    GROUP BY c.scale, c.seed, c.method, c.variant, c.checkpoint_id, r.checkpoint_id, y.protocol_id, y.task, y.metric
) AS d
JOIN protocol AS p ON p.id = d.protocol_id
ORDER BY p.name, d.scale, d.seed, d.method, d.variant, d.task, d.metric, d.reference_checkpoint_id
