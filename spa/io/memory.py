"""How much memory this process may still take."""

from __future__ import annotations

import re
from pathlib import Path

from spa.kernels.backend import host_memory

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_memory(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Bytes that can be taken without swapping: of the machine, and of the container or batch job if that is less.

    Files that the system keeps in memory count as free, as they give way.
    """
    free = [host_memory()]
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _text(meminfo), re.MULTILINE)
    if found:
        free = [1024 * int(found[1])]
    limit, used = _text(cgroup / "memory.max").strip(), _text(cgroup / "memory.current").strip()
    if limit.isdigit() and used.isdigit():
        cached = re.search(r"^inactive_file (\d+)$", _text(cgroup / "memory.stat"), re.MULTILINE)
        free.append(int(limit) - int(used) + (int(cached[1]) if cached else 0))
    return max(0, min(free))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
