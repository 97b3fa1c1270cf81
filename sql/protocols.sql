-- description: The protocols behind the values of a study, with their evaluation sets.
-- param: study text
SELECT p.lens, p.name, p.metric_revision, p.space, p.normalization, p.direction_seed, p.precision, p.parameters, p.parameters_hash,
       e.name AS evaluation_set, e.split, e.examples, e.tokens, e.max_length, e.packing, e.sha256 AS evaluation_sha256,
       p.id AS protocol_id
FROM protocol AS p
LEFT JOIN evaluation_set AS e ON e.id = p.evaluation_set_id
WHERE p.id IN (
    SELECT v.protocol_id FROM metric_value AS v JOIN checkpoint_view AS c ON c.checkpoint_id = v.checkpoint_id WHERE c.study = :study
    UNION
    SELECT v.protocol_id FROM curve_point AS v JOIN checkpoint_view AS c ON c.checkpoint_id = v.checkpoint_id WHERE c.study = :study
    UNION
    SELECT v.protocol_id FROM singular_value AS v JOIN checkpoint_view AS c ON c.checkpoint_id = v.checkpoint_id WHERE c.study = :study
    UNION
    SELECT v.protocol_id FROM downstream_score AS v JOIN checkpoint_view AS c ON c.checkpoint_id = v.checkpoint_id WHERE c.study = :study
)
ORDER BY p.lens, p.id
