"""Which tests `make test-fast` leaves out: the costliest, by a list that one command writes anew.

tests/slow_tests.txt names test functions; each gets the marker `slow` as if it were written at the
function. `pytest --write-slow-tests` runs every test, measures, and names so many of the costliest
that the others take BUDGET seconds together. A function that is in no list counts as fast, so a
new test is run by both commands until somebody measures it.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

BUDGET = 150.0  # seconds on an idle machine; collecting the tests comes on top
LIST = Path(__file__).with_suffix(".txt")
HEADER = "# Left out by `make test-fast`; written by `pytest --write-slow-tests`.\n"


def listed() -> set[str]:
    lines = LIST.read_text(encoding="utf-8").splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def function_of(item: pytest.Item) -> str:
    """tests/test_x.py::test_name, the same for all of its parameters."""
    return item.nodeid.partition("[")[0]


def choose(own: dict[str, float], needs: dict[str, set], shared: dict, budget: float) -> list[str]:
    """The costliest functions, so that the others take at most `budget` seconds.

    Parameters
    ----------
    own : seconds of each function, over all of its parameters.
    needs : shared fixtures of each function. Each counts in full for every function that needs it,
        since it costs nothing only where none of them runs.
    shared : seconds of each shared fixture.
    """
    def cost(function: str) -> float:
        return own[function] + sum(shared[fixture] for fixture in needs[function])

    kept = sorted(own, key=cost)
    slow = []
    while kept:
        fixtures = set().union(*(needs[function] for function in kept))
        if (sum(own[function] for function in kept)
                + sum(shared[fixture] for fixture in fixtures) <= budget):
            break
        slow.append(kept.pop())
    return sorted(slow)


class Stopwatch:
    """Measures every test function and every fixture that several tests share."""

    def __init__(self) -> None:
        self.own: Counter[str] = Counter()
        self.needs: defaultdict[str, set] = defaultdict(set)
        self.shared: Counter[tuple[str, str]] = Counter()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef, request):
        start = time.monotonic()
        yield
        seconds = time.monotonic() - start
        if fixturedef.scope == "function":
            self.own[function_of(request.node)] += seconds
        else:
            self.shared[fixturedef.baseid, fixturedef.argname] += seconds

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item):
        start = time.monotonic()
        yield
        function = function_of(item)
        self.own[function] += time.monotonic() - start
        self.needs[function] |= {(place, name) for place, name in self.shared
                                 if name in item.fixturenames and item.nodeid.startswith(place)}

    def pytest_sessionfinish(self) -> None:
        slow = choose(self.own, self.needs, self.shared, BUDGET)
        LIST.write_text(HEADER + "".join(f"{name}\n" for name in slow), encoding="utf-8")
