"""SHA-256 of content: of plain values by their JSON, and of files.

JSON has two canonical forms here, and both have to stay as they are, byte for byte: their hashes
stand in databases and on disks. A hash that changes makes finished work count as missing, or an
intact file as damaged.

- :func:`content_hash` writes ``{"a":1,"b":[2,3]}``, without blanks. Studies, runs, units of work
  and the entries of a cache are known by it.
- :func:`spaced_hash` writes ``{"a": 1, "b": [2, 3]}``, with the separators that ``json.dumps`` has
  by default. Protocols, provenance, fits, manifests and resume points are known by it.

Both sort keys and escape everything outside ASCII. New kinds of content use :func:`content_hash`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def content_hash(value: Any) -> str:
    """Hash the JSON of ``value`` without blanks.

    Raises ValueError for nan and infinities, TypeError for what JSON cannot hold.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def spaced_hash(value: Any, *, allow_nan: bool = False) -> str:
    """Hash the JSON of ``value`` with a blank after every comma and colon.

    ``allow_nan`` writes NaN and Infinity, which strict JSON lacks: the counters of a resume point
    may hold them. Raises ValueError for them otherwise, TypeError for what JSON cannot hold.
    """
    text = json.dumps(value, sort_keys=True, allow_nan=allow_nan)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hash the bytes of a file; raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
