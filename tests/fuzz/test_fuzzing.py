"""The harness: what it takes for a failure, and that it goes on afterwards."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import fuzzing
import pytest
from fuzzing import fuzz, mutations

from gluon_resnest.errors import InputError


def misbehave(path: Path) -> None:
    """Do what the file says."""
    what = path.read_bytes()
    if what == b"refuse":
        raise InputError("no")
    if what == b"bug":
        raise KeyError("missing")
    if what == b"several lines":
        raise InputError("no\nand no")
    if what == b"crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == b"hang":
        time.sleep(60)
    if what == b"memory":
        len(b"\1" * (1200 << 20))
    if what == b"print":
        print('["accepted", ""]')


FAILURES = {b"bug": "KeyError: 'missing'", b"several lines": "not one short line",
            b"crash": "code -11", b"hang": "still at it", b"memory": "MB ("}


@pytest.mark.slow
def test_failures_are_found_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzzing, "SECONDS", 10.0)
    contents = [content for what in FAILURES for content in (what, b"fine", b"refuse")]
    with pytest.raises(AssertionError) as caught:
        fuzz(misbehave, contents, tmp_path, ".txt")
    said = str(caught.value)
    assert said.startswith(f"5 of 15:\n{tmp_path}/failures/0.txt: ")
    for number, (what, words) in enumerate(FAILURES.items()):
        kept = tmp_path / "failures" / f"{3 * number}.txt"
        assert kept.read_bytes() == what
        assert words in said.partition(f"{kept}: ")[2].partition(f"{tmp_path}/failures")[0]
    assert len(list((tmp_path / "failures").iterdir())) == 5


def test_accepted_and_refused_are_counted(tmp_path):
    counts = fuzz(misbehave, [b"fine", b"refuse", b"print", b"refuse"], tmp_path)
    assert counts == {"accepted": 2, "refused": 2}
    assert not (tmp_path / "failures").exists()


def test_a_seed_gives_the_same_inputs():
    samples = [bytes(range(200)), b"short", b""]
    first, again, other = (list(mutations(samples, 300, seed)) for seed in (5, 5, 6))
    assert first == again != other
    assert len(set(first)) > 200
    assert sum(content in samples for content in first) < 60
