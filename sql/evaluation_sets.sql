-- description: The evaluation sets behind the validation losses of a study.
-- param: study text
SELECT DISTINCT e.id AS evaluation_set_id, e.name, e.split, e.seed, e.examples, e.tokens, e.max_length, e.packing,
       e.dataset_fingerprint, e.tokenizer_hash, e.sha256
FROM evaluation_set AS e
JOIN checkpoint_view AS c ON c.evaluation_set_id = e.id
WHERE c.study = :study
ORDER BY e.id
