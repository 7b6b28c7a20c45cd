"""tests/slow_tests.py: what is chosen, and that the list names tests that exist."""

from __future__ import annotations

import subprocess
import sys

import slow_tests
from conftest import ROOT

TESTS = """
import time
import pytest

@pytest.fixture(scope="module")
def costly():
    time.sleep(0.4)

def test_needs_it(costly):
    pass

@pytest.mark.parametrize("number", range(3))
def test_many(number):
    time.sleep(0.1)

def test_quick():
    pass
"""


def test_the_costliest_are_left_out_until_the_others_fit():
    own, needs = {"a": 5.0, "b": 1.0, "c": 3.0}, {name: set() for name in "abc"}
    assert slow_tests.choose(own, needs, {}, budget=9.0) == []
    assert slow_tests.choose(own, needs, {}, budget=8.9) == ["a"]
    assert slow_tests.choose(own, needs, {}, budget=3.9) == ["a", "c"]
    assert slow_tests.choose(own, needs, {}, budget=0.0) == ["a", "b", "c"]


def test_a_shared_fixture_counts_until_nobody_needs_it():
    own, shared = {"a": 1.0, "b": 2.0, "c": 3.0}, {"training": 20.0}
    needs = {"a": {"training"}, "b": {"training"}, "c": set()}
    assert slow_tests.choose(own, needs, shared, budget=26.0) == []
    assert slow_tests.choose(own, needs, shared, budget=25.0) == ["b"]
    assert slow_tests.choose(own, needs, shared, budget=23.0) == ["a", "b"]


def test_a_run_measures_functions_and_what_they_share(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "slow_tests.py").write_text(
        (ROOT / "tests/slow_tests.py").read_text(encoding="utf-8").replace(
            "BUDGET = 150.0", "BUDGET = 0.2"))
    (tmp_path / "conftest.py").write_text(
        "import slow_tests\n\ndef pytest_configure(config):\n"
        "    config.pluginmanager.register(slow_tests.Stopwatch())\n")
    subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=tmp_path,
                   check=True, capture_output=True, timeout=120)
    assert (tmp_path / "slow_tests.txt").read_text().splitlines()[1:] == [
        "test_some.py::test_many", "test_some.py::test_needs_it"]


def test_the_list_names_tests_that_exist():
    def exists(name: str) -> bool:
        file, *names = name.split("::")
        path = ROOT / file
        return path.is_file() and f"def {names[-1]}(" in path.read_text(encoding="utf-8")

    names = slow_tests.listed()
    assert names
    assert [name for name in sorted(names) if not exists(name)] == []
