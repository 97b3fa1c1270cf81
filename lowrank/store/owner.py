"""Who holds a claim: a process named so that others on its machine can tell whether
it still lives.
"""

from __future__ import annotations

import hashlib
import os
import socket
import uuid
from functools import cache
from pathlib import Path

SEPARATOR = "/"


def new_owner() -> str:
    """A name for this process that no other claim has: machine, process, its start,
    a random token.
    """
    pid = os.getpid()
    return SEPARATOR.join((machine(), str(pid), started(pid) or "", uuid.uuid4().hex[:12]))


def is_dead(owner: str) -> bool:
    """Whether the process behind ``owner`` is known to have ended; False where that cannot be told
    from here.
    """
    parts = owner.split(SEPARATOR)
    if len(parts) != 4 or parts[0] != machine() or not parts[1].isdigit():
        return False
    return started(int(parts[1])) != parts[2]


def describe(owner: str) -> str:
    """``owner`` for people: host and process."""
    parts = owner.split(SEPARATOR)
    return (
        f"process {parts[1]} on {parts[0].partition('@')[0]}"
        if len(parts) == 4
        else owner or "nobody"
    )


@cache
def machine() -> str:
    """The host, and what tells apart hosts, boots and containers of one name: process numbers are
    compared within it alone.
    """
    seen = []
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            seen.append(
                os.readlink(path)
                if path.endswith("pid")
                else Path(path).read_text(encoding="ascii").strip()
            )
        except OSError:  # no Linux: the name of the host alone
            continue
    host = socket.gethostname().replace(SEPARATOR, "_")
    return f"{host}@{hashlib.sha256(' '.join(seen).encode()).hexdigest()[:8]}"


def started(pid: int) -> str | None:
    """When a process began, as text that is compared only; None where it has ended, '' where the
    system does not say.
    """
    try:
        state, *rest = (
            Path(f"/proc/{pid}/stat")
            .read_text(encoding="utf-8", errors="replace")
            .rpartition(")")[2]
            .split()
        )
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() or not _answers(pid) else ""
    except OSError:
        return None  # it ended while it was looked at
    return None if state in "ZX" else rest[18]


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
