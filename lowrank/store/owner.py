"""The owner of a claim: a name of a process by which others on its machine can find out whether it
still runs.
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
    """Return a unique name for a claim of this process: machine, process id, start of the process,
    a random token.
    """
    pid = os.getpid()
    return SEPARATOR.join((machine(), str(pid), started(pid) or "", uuid.uuid4().hex[:12]))


def is_dead(owner: str) -> bool:
    """Return whether the process of ``owner`` is known to have ended; False where this machine
    cannot find out.
    """
    parts = owner.split(SEPARATOR)
    if len(parts) != 4 or parts[0] != machine() or not parts[1].isdigit():
        return False
    return started(int(parts[1])) != parts[2]


def describe(owner: str) -> str:
    """Return ``owner`` for messages: host and process."""
    parts = owner.split(SEPARATOR)
    return (
        f"process {parts[1]} on {parts[0].partition('@')[0]}"
        if len(parts) == 4
        else owner or "nobody"
    )


@cache
def machine() -> str:
    """Return the host, with a hash that distinguishes boots and containers of the same name:
    process ids are comparable only within it.
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
    """Return when a process began, as text to compare; None where it has ended, '' where the system
    does not report it.
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
