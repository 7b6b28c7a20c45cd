"""CPU time of this process and of all that it has started; standard library only."""

from __future__ import annotations

import os
import resource


def cpu_seconds() -> float:
    """User and system time so far: this process's, its ended children's, its living descendants'.

    A descendant that ended counts when its parent has waited for it. Linux tells the time of
    living ones in steps of 10 ms; where it does not tell at all, they are left out.
    """
    ticks = sum(_ticks_of_descendants(os.getpid()))
    own, ended = (resource.getrusage(who)
                  for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return (ticks / os.sysconf("SC_CLK_TCK")
            + sum(usage.ru_utime + usage.ru_stime for usage in (own, ended)))


def _ticks_of_descendants(ancestor: int) -> list[int]:
    """For each descendant, a zombie too, its own ticks and those of its ended children."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    # The command before the last bracket may hold anything. Then, by proc(5):
                    # state, parent, 9 others, utime, stime, cutime, cstime.
                    fields = file.read().rpartition(")")[2].split()
            except OSError:  # gone meanwhile
                continue
            children.setdefault(int(fields[1]), []).append(int(name))
            ticks[int(name)] = sum(map(int, fields[11:15]))
    found, waiting = [], [ancestor]
    while waiting:
        below = children.get(waiting.pop(), [])
        waiting += below
        found += [ticks[child] for child in below]
    return found
