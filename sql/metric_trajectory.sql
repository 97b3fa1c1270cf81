-- description: One metric over the steps of each run; by default the aggregate over layers (-2) and modules ('').
-- param: metric text
-- param: study text default ''
-- param: method text default ''
-- param: scale text default ''
-- param: protocol text default ''
-- param: layer integer default -2
-- param: module text default ''
SELECT study, scale, method, variant, seed, step, protocol, space, normalization, metric, layer, module,
       value, value_kind, standard_error, standard_error_kind, n, note,
       reference_method, reference_seed, reference_step, protocol_id
FROM metric_view
WHERE metric = :metric AND layer = :layer AND module = :module
  AND (:study = '' OR study = :study)
  AND (:method = '' OR method = :method)
  AND (:scale = '' OR scale = :scale)
  AND (:protocol = '' OR protocol = :protocol)
ORDER BY study, scale, method, variant, seed, protocol, protocol_id, step, reference_method, reference_seed, reference_step
