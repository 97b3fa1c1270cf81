-- description: A method's final checkpoints against another's on the same downstream items, over all seeds, task by task.
-- param: study text
-- param: method text
-- param: reference text default 'full_rank'
-- param: variant text default ''
-- param: reference_variant text default ''
-- param: scale text default ''
-- param: task text default ''
-- param: metric text default ''
WITH final AS (  -- the newest run of each scale and seed
    SELECT c.scale, c.seed, c.checkpoint_id, CASE WHEN c.method = :method AND c.variant = :variant THEN 1 ELSE 0 END AS ours,
           rank() OVER (PARTITION BY c.method, c.variant, c.scale, c.seed ORDER BY c.run_id DESC) AS age
    FROM checkpoint_view AS c
    WHERE c.study = :study AND c.kind = 'final' AND (:scale = '' OR c.scale = :scale)
      AND ((c.method = :reference AND c.variant = :reference_variant) OR (c.method = :method AND c.variant = :variant))
),
cell AS (  -- one seed and one cluster of items that depend on each other
    SELECT x.protocol_id, x.task, x.metric, p.scale, p.seed, substr(x.item, 1, 16) AS cluster, count(*) AS n,
           sum(y.value - x.value) AS total, sum(x.value) AS total_reference, sum(y.value) AS total_method
    FROM (
        SELECT a.scale, a.seed, a.checkpoint_id AS a, b.checkpoint_id AS b
        FROM final AS a
        JOIN final AS b ON b.scale = a.scale AND b.seed = a.seed
        WHERE a.ours = 0 AND b.ours = 1 AND a.age = 1 AND b.age = 1
    ) AS p
    JOIN downstream_item AS x ON x.checkpoint_id = p.a
    JOIN downstream_item AS y ON y.checkpoint_id = p.b AND y.protocol_id = x.protocol_id AND y.task = x.task
                             AND y.metric = x.metric AND y.item = x.item
    WHERE (:task = '' OR x.task = :task) AND (:metric = '' OR x.metric = :metric)
    GROUP BY x.protocol_id, x.task, x.metric, p.scale, p.seed, substr(x.item, 1, 16)
),
centred AS (
    SELECT c.*, sum(c.n) OVER whole AS answers, sum(c.total) OVER whole / sum(c.n) OVER whole AS grand
    FROM cell AS c
    WINDOW whole AS (PARTITION BY c.protocol_id, c.task, c.metric, c.scale)
),
by_cell AS (
    SELECT protocol_id, task, metric, scale, max(answers) AS answers, max(grand) AS difference,
           sum(total_reference) / sum(n) AS reference_mean, sum(total_method) / sum(n) AS mean, count(*) AS cells,
           sum((total - n * grand) * (total - n * grand)) AS squares
    FROM centred
    GROUP BY protocol_id, task, metric, scale
),
by_item AS (
    SELECT protocol_id, task, metric, scale, count(*) AS clusters, sum(e * e) AS squares
    FROM (
        SELECT protocol_id, task, metric, scale, sum(total - n * grand) AS e
        FROM centred
        GROUP BY protocol_id, task, metric, scale, cluster
    ) AS item
    GROUP BY protocol_id, task, metric, scale
),
by_seed AS (
    SELECT protocol_id, task, metric, scale, count(*) AS seeds, sum(e * e) AS squares
    FROM (
        SELECT protocol_id, task, metric, scale, sum(total - n * grand) AS e
        FROM centred
        GROUP BY protocol_id, task, metric, scale, seed
    ) AS one
    GROUP BY protocol_id, task, metric, scale
),
errors AS (
    SELECT c.*, s.seeds,
           CASE WHEN i.clusters > 1 THEN i.squares * i.clusters / (i.clusters - 1) END AS items_squared,
           CASE WHEN s.seeds > 1 THEN s.squares * s.seeds / (s.seeds - 1) END AS seeds_squared,
           CASE WHEN c.cells > 1 THEN c.squares * c.cells / (c.cells - 1) END AS cells_squared
    FROM by_cell AS c
    JOIN by_item AS i ON i.protocol_id = c.protocol_id AND i.task = c.task AND i.metric = c.metric AND i.scale = c.scale
    JOIN by_seed AS s ON s.protocol_id = c.protocol_id AND s.task = c.task AND s.metric = c.metric AND s.scale = c.scale
)
SELECT protocol.name AS suite, e.scale, e.task, e.metric, e.seeds, CAST(e.answers / e.seeds AS INTEGER) AS n, e.mean,
       e.reference_mean, e.difference, sqrt(e.items_squared) / e.answers AS items_error,
       sqrt(e.seeds_squared) / e.answers AS seeds_error,
       CASE
           WHEN e.seeds_squared IS NULL THEN sqrt(e.items_squared)
           WHEN e.seeds_squared > e.cells_squared THEN sqrt(e.items_squared + e.seeds_squared - e.cells_squared)
           ELSE sqrt(e.items_squared)
       END / e.answers AS standard_error,
       e.protocol_id
FROM errors AS e
JOIN protocol ON protocol.id = e.protocol_id
ORDER BY protocol.name, e.scale, e.task, e.metric
