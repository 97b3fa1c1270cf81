-- description: Metrics layer by layer (-1: embedding output), aggregated over modules; the name may hold % for any text.
-- param: study text
-- param: metric text default '%'
SELECT metric, protocol, lens, scale, method, variant, seed, step, layer, value, value_kind, standard_error,
       standard_error_kind, note, reference_method, reference_seed, reference_step, protocol_id, run_id
FROM metric_view
WHERE study = :study AND metric LIKE :metric AND layer > -2 AND module = ''
ORDER BY metric, protocol_id, scale, run_id, step, layer
