-- description: A spectral metric of every layer and module (q, k, v, o, gate, up, down) at each step.
-- param: study text default ''
-- param: metric text default 'effective_rank_w'
-- param: method text default ''
-- param: scale text default ''
-- param: protocol text default ''
SELECT study, scale, method, variant, seed, step, protocol, space, metric, layer, module,
       value, value_kind, note, reference_step, protocol_id
FROM metric_view
WHERE metric = :metric AND layer >= 0 AND module <> ''
  AND (:study = '' OR study = :study)
  AND (:method = '' OR method = :method)
  AND (:scale = '' OR scale = :scale)
  AND (:protocol = '' OR protocol = :protocol)
ORDER BY study, scale, method, variant, seed, protocol, protocol_id, step, layer, module
