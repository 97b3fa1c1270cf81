-- description: Numbers of the literature with their source.
-- param: quantity text default ''
SELECT source, source_table, scale, method, quantity, item, value, standard_error, note
FROM published_value
WHERE :quantity = '' OR quantity = :quantity
ORDER BY id
