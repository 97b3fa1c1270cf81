-- description: The checkpoints, with validation loss in nats per token and the folder that holds the weights.
-- param: study text default ''
-- param: method text default ''
-- param: scale text default ''
-- param: seed integer default null
SELECT c.study, c.scale, c.method, c.variant, c.seed, c.step, c.kind, c.tokens_seen, c.validation_loss,
       c.validation_loss_kind, checkpoint.validation_tokens, checkpoint.bytes, c.path, checkpoint.sha256, c.checkpoint_id,
       c.run_id, c.evaluation_set_id
FROM checkpoint_view AS c
JOIN checkpoint ON checkpoint.id = c.checkpoint_id
WHERE (:study = '' OR c.study = :study)
  AND (:method = '' OR c.method = :method)
  AND (:scale = '' OR c.scale = :scale)
  AND (:seed IS NULL OR c.seed = :seed)
ORDER BY c.study, c.scale, c.method, c.variant, c.seed, c.run_id, c.step
