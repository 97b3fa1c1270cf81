"""How long the feature table of a large study takes to query.

Fills a store with synthetic checkpoints (one run has ten), every aggregate metric of the feature
table for each, three layers of one metric besides, and five downstream scores; then times the named
queries, rows fetched.

    python benchmarks/features_query.py --db sqlite:////tmp/features.db [--checkpoints 100000]
"""

from __future__ import annotations

import argparse
import json
import time

import sqlalchemy as sa

from lowrank.predict.features import columns
from lowrank.store import Store, queries
from lowrank.store.engine import create_engine, parse_url, writing

PER_RUN, TASKS, LAYERS = 10, 5, 3
NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count)"
PARENTS = [
    "INSERT INTO study (id, name, config, config_hash, root) VALUES (1, 'large', '{}', 'x', '')",
    """INSERT INTO protocol (id, name, lens, metric_revision, space, normalization, precision, parameters, parameters_hash)
       VALUES (1, 'exact', 'all', 1, '', '', 'float32', '{}', 'x')""",
]
RUNS = """
INSERT INTO run (id, study_id, config_hash, method, scale, seed, data_seed, init_seed, variant, kind, status, config, total_steps,
                 precision, world_size, attempts, error, init_hash, dataset_fingerprint, tokenizer_hash)
{numbers}
SELECT i, 1, CAST(i AS VARCHAR), 'method' || CAST(i % 6 AS VARCHAR), 'scale' || CAST(i % 3 AS VARCHAR), i / 6, 0, 0, '', 'trained',
       'done', '{{}}', 100, 'float32', 1, 1, '', '', '', '' FROM n"""
CHECKPOINTS = """
INSERT INTO checkpoint (id, run_id, step, kind, tokens_seen, path, sha256, bytes, validation_loss, validation_loss_kind,
                        validation_tokens)
{numbers}
SELECT i, (i + {per_run} - 1) / {per_run}, i % {per_run}, 'training', 0, '', '', 0, 3.0 + (i % 997) / 997.0, 'finite', 0 FROM n"""
VALUES = """
INSERT INTO metric_value (checkpoint_id, protocol_id, metric, layer, module, value, value_kind, standard_error_kind, note)
SELECT c.id, 1, m.name, m.layer, '', ((c.id * 7919 + m.k * 104729) % 9973) / 9973.0, 'finite', 'absent', ''
FROM checkpoint AS c, ({metrics}) AS m"""
SCORES = """
INSERT INTO downstream_score (checkpoint_id, protocol_id, task, category, metric, filter, value, value_kind, standard_error_kind, n,
                              task_version, harness_version, note)
SELECT c.id, 1, m.name, 'c', 'acc', 'none', ((c.id * 7919 + m.k * 104729) % 9973) / 9973.0, 'finite', 'absent', 300, '1', '1', ''
FROM checkpoint AS c, ({metrics}) AS m"""


def metric_names() -> list[str]:
    """The metrics that the feature table reads."""
    return list(columns())


def union(rows: list[tuple[str, int]]) -> str:
    """(name, layer) pairs as a derived table with a number each."""
    return " UNION ALL ".join(
        f"SELECT '{name}' AS name, {layer} AS layer, {k} AS k"
        for k, (name, layer) in enumerate(rows)
    )


def fill(url: str, checkpoints: int) -> None:
    """Write the synthetic rows by statements of the database itself."""
    rows = [(name, -2) for name in metric_names()] + [
        ("activation_cka", layer) for layer in range(LAYERS)
    ]
    tasks = [(f"task{k}", 0) for k in range(TASKS)]
    with writing(create_engine(parse_url(url), foreign_keys=False)).begin() as connection:
        for statement in PARENTS:
            connection.exec_driver_sql(statement)
        connection.execute(sa.text(RUNS.format(numbers=NUMBERS)), {"count": checkpoints // PER_RUN})
        connection.execute(
            sa.text(CHECKPOINTS.format(numbers=NUMBERS, per_run=PER_RUN)), {"count": checkpoints}
        )
        connection.exec_driver_sql(
            VALUES.format(metrics=union(rows)).replace("%", "%%" if "postgresql" in url else "%")
        )
        connection.exec_driver_sql(
            SCORES.format(metrics=union(tasks)).replace("%", "%%" if "postgresql" in url else "%")
        )
    with (
        create_engine(parse_url(url))
        .connect()
        .execution_options(isolation_level="AUTOCOMMIT") as connection
    ):
        connection.exec_driver_sql("ANALYZE")


def main() -> None:
    """Fill, time, print one JSON line for each query."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--db", required=True, help="an empty database, sqlite:///FILE or postgresql://…"
    )
    parser.add_argument("--checkpoints", type=int, default=100_000)
    parser.add_argument("--keep", action="store_true", help="the database is filled already")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with Store.open(arguments.db, create=True) as store:
        if not arguments.keep:
            started = time.perf_counter()
            fill(arguments.db, arguments.checkpoints)
            print(
                json.dumps(
                    {
                        "filled": arguments.checkpoints,
                        "seconds": round(time.perf_counter() - started, 2),
                    }
                )
            )
        for name in ("features_published", "features"):
            seconds, rows = [], 0
            for _ in range(arguments.repeats):
                started = time.perf_counter()
                rows = len(queries.get(name).run(store, {"study": "large"})[1])
                seconds.append(round(time.perf_counter() - started, 3))
            print(
                json.dumps(
                    {"query": name, "database": store.dialect, "rows": rows, "seconds": seconds}
                )
            )


if __name__ == "__main__":
    main()
