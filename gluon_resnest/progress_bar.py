"""How far a long task is: a bar on a terminal, and a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from gluon_resnest.plain_text import duration

EVERY = 30.0  # seconds between two lines of a log


def progress_bar(
    iterable: Iterable | None = None,
    *,
    total: int | None = None,
    desc: str = "",
    unit: str = "step",
    initial: int = 0,
    leave: bool = False,
    enabled: bool = True,
    delay: float = 0,
) -> Any:
    """A tqdm bar if standard error is a terminal, else :class:`ProgressLines`.

    Parameters
    ----------
    iterable, total, desc, initial
        As tqdm's.
    unit
        What is counted, in the singular; ``"B"`` is bytes.
    leave
        Whether the bar stays when it is done; a log gets a last line.
    enabled
        Whether anything is shown.
    delay
        Seconds before the bar appears.
    """
    if not enabled or sys.stderr.isatty():
        from tqdm import tqdm  # `import gluon_resnest` needs MXNet and NumPy alone

        return tqdm(iterable, total=total, desc=desc, unit=unit, unit_scale=unit == "B",
                    initial=initial, leave=leave, delay=delay, disable=not enabled,
                    dynamic_ncols=True, mininterval=0.5)
    return ProgressLines(iterable, total, desc, unit, initial, leave)


class ProgressLines:
    """A line on standard error about every half minute, with the calls of tqdm that are used here.

    A log is no terminal: a bar drawn over and over again would be thousands of fragments in it.
    """

    def __init__(self, iterable: Iterable | None, total: int | None, desc: str, unit: str,
                 initial: int = 0, leave: bool = False) -> None:
        if total is None and hasattr(iterable, "__len__"):
            total = len(iterable)
        self._iterable, self._total, self._unit, self._leave = iterable, total, unit, leave
        self._desc, self._postfix = desc, ""
        self.n = self._initial = initial
        self._said: int | None = None
        self._started = self._last = time.monotonic()

    def update(self, count: int = 1) -> None:
        """Count on; say a line if it is time."""
        self.n += count
        if time.monotonic() - self._last >= EVERY:
            self.say()

    def set_description(self, desc: str) -> None:
        self._desc = desc

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Figures that take the place of the rate and of the time left."""
        self._postfix = text

    def say(self) -> None:
        """Say where things stand, once."""
        self._last = time.monotonic()
        if self.n != self._said:
            self._said = self.n
            print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        scale, unit = (1e6, "MB") if self._unit == "B" else (1, self._unit)
        count = f"{self.n / scale:,.0f}"
        if self._total is not None:
            count += f"/{self._total / scale:,.0f}"
        figures = [f"{unit} {count}"]
        seconds, done = self._last - self._started, self.n - self._initial
        if self._postfix:
            figures.append(self._postfix)
        elif done and seconds > 0:
            plural = unit if unit == "MB" else f"{unit}s" if unit[-1] != "h" else f"{unit}es"
            rate = done / seconds / scale
            figures.append(f"{rate:,.0f} {plural}/s" if rate >= 100 else f"{rate:.3g} {plural}/s")
            if self._total is not None and self.n < self._total:
                figures.append(f"{duration(seconds / done * (self._total - self.n))} left")
        return f"{self._desc}: {', '.join(figures)}" if self._desc else ", ".join(figures)

    def close(self) -> None:
        if self._leave:
            self.say()

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self._iterable:
                yield item
                self.update()

    def __len__(self) -> int:
        return self._total

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
