"""Feed a reader mutated files: each must be accepted or refused in one line, quickly.

A fuzzer is a test that names a target, a function of its own file that takes the path of an input,
returns if it accepts the file, and raises InputError if it refuses it:

    def read(path: Path) -> None:
        json.loads(path.read_bytes())

    def test_json(tmp_path, seed):
        counts = fuzz(read, mutations([b'{"a": 1}'], inputs(), seed), tmp_path)
        assert counts["accepted"] > 0

The target runs in a process of its own (`worker.py`), because what is tested may crash. Anything
but these two outcomes is a failure: another exception, a signal, more than ten seconds, or more
than a gigabyte. Inputs that fail are kept, and named by the test's error.

GLUON_FUZZ_INPUTS is the number of inputs (150), GLUON_TEST_SEED chooses them.
"""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Callable

WORKER = Path(__file__).with_name("worker.py")
DEFAULT_INPUTS = 150
SECONDS = 10.0
START_SECONDS = 120.0  # imports, on a machine that is busy
MOST_FAILURES = 20  # then it is clear enough

# What readers take for sizes, offsets and counts.
NUMBERS = (0, 1, 2, 7, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000,
           0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)


def inputs() -> int:
    """Inputs that each fuzzer is to try."""
    return int(os.environ.get("GLUON_FUZZ_INPUTS", DEFAULT_INPUTS))


def mutate(content: bytes, rng: random.Random, samples: Sequence[bytes]) -> bytes:
    """One to four changes of a file: bits, bytes, numbers, blocks, its end, another file's part."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        # Headers matter most, and are short.
        place = min(int(rng.random() ** rng.choice((1, 3)) * len(changed)), len(changed) - 1)
        length = rng.choice((1, 2, 4, 8, 16, 64, 512))
        kind = rng.randrange(8) if changed else 7
        if kind == 0:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[place : place + length] = rng.getrandbits(8 * length).to_bytes(length, "big")
        elif kind == 2:
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice(NUMBERS) & ((1 << 8 * size) - 1)
            changed[place : place + size] = number.to_bytes(size, rng.choice(("big", "little")))
        elif kind == 3:
            del changed[place : place + length]
        elif kind == 4:
            changed[place:place] = changed[place : place + length]
        elif kind == 5:
            del changed[place:]
        elif kind == 6:
            changed[place : place + length] = bytes(length)
        else:
            other = rng.choice(samples)
            start = rng.randrange(len(other) + 1)
            changed[max(place, 0) :] = other[start:]
    return bytes(changed)


def mutate_text(content: bytes, rng: random.Random, words: Sequence[str]) -> bytes:
    """Changes of a text file's words and lines, by what readers of text stumble over."""
    lines = content.split(b"\n")
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.randrange(len(lines))
        fields = lines[place].split(b"\t")
        fields[rng.randrange(len(fields))] = rng.choice(words).encode("utf-8", "surrogateescape")
        lines[place] = rng.choice((b"\t", b"\t", b"\t", b" ", b"\t\t")).join(fields)
        if rng.random() < 0.2:
            lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    return rng.choice((b"\n", b"\n", b"\n", b"\r\n", b"\r")).join(lines)


def mutate_json(content: bytes, rng: random.Random, values: Sequence[object]) -> bytes:
    """Bytes changed; or entries left out, added, exchanged, or replaced by one of `values`."""
    if rng.random() < 0.25:
        return mutate(content, rng, [content])
    whole = json.loads(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(whole))
        if not places:
            break
        section, key = rng.choice(places)
        kind = rng.randrange(10)
        if kind == 0:
            del section[key]
        elif kind == 1 and isinstance(section, dict):
            section[rng.choice([value for value in values if isinstance(value, str)])] = (
                copy.deepcopy(section[key]))
        elif kind == 1:
            section.insert(key, copy.deepcopy(section[key]))
        elif kind in (2, 3):
            other, place = rng.choice(places)
            section[key] = copy.deepcopy(other[place])
        else:
            section[key] = copy.deepcopy(rng.choice(values))
    return json.dumps(whole).encode()


def _places(value: dict | list) -> Iterator[tuple]:
    """Each section or list in a value, with each key in it."""
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from _places(inner)


def mutations(
    samples: Sequence[bytes], count: int, seed: int,
    change: Callable[[bytes, random.Random], bytes] | None = None,
) -> Iterator[bytes]:
    """`count` mutations of the samples, the same ones for a seed; `change` makes one of them."""
    rng = random.Random(seed)
    for number in range(count):
        sample = samples[number % len(samples)]
        yield change(sample, rng) if change else mutate(sample, rng, samples)


def fuzz(target: Callable[[Path], None], contents: Iterable[bytes], folder: Path,
         suffix: str = "") -> Counter:
    """Run a target on each content.

    Parameters
    ----------
    target
        A function of a module's top level; its file is run by the worker.
    folder
        Where inputs lie, one after the other as `input<suffix>`. What the target needs beside them
        may be put there before.

    Returns
    -------
    Counter
        How many were "accepted" and "refused".

    Raises
    ------
    AssertionError
        Some failed; the message has the first of them, and where the inputs are kept.
    """
    counts, failures = Counter(), []
    path = folder / f"input{suffix}"
    with _Worker(target, folder) as worker:
        for number, content in enumerate(contents):
            path.write_bytes(content)
            outcome, reason = worker.run(path)
            counts[outcome] += 1
            if outcome == "failure":
                kept = folder / "failures" / f"{number}{suffix}"
                kept.parent.mkdir(exist_ok=True)
                kept.write_bytes(content)
                failures.append(f"{kept}: {reason}")
                if len(failures) == MOST_FAILURES:
                    break
    print(f"{target.__name__}: {dict(counts)}")
    assert not failures, f"{len(failures)} of {sum(counts.values())}:\n" + "\n".join(failures)
    return counts


class _Worker:
    """The process that runs a target; started anew where an input has ended it."""

    def __init__(self, target: Callable[[Path], None], folder: Path) -> None:
        self._command = [sys.executable, str(WORKER), target.__code__.co_filename, target.__name__]
        self._log = folder / "worker.log"
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def run(self, path: Path) -> tuple[str, str]:
        """Outcome of an input ("accepted", "refused" or "failure") and, of a failure, why."""
        if self._process is None:
            with open(self._log, "w") as log:
                self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE,
                                                 stdout=subprocess.PIPE, stderr=log, text=True)
            ready = self._answer(START_SECONDS)
            assert ready == '"ready"\n', self._log.read_text()[-4000:]
        self._process.stdin.write(f"{json.dumps(str(path))}\n")
        self._process.stdin.flush()
        answer = self._answer(SECONDS)
        if answer:
            return tuple(json.loads(answer))
        code = self._stop()
        if code is None:
            return "failure", f"still at it after {SECONDS:.0f} seconds"
        return "failure", f"ended the process with code {code}: {self._log.read_text()[-500:]}"

    def _answer(self, seconds: float) -> str:
        """A line, or "" where the process ended or said nothing in time."""
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.append(self._process.stdout.readline()),
                                  daemon=True)
        reader.start()
        reader.join(seconds)
        return lines[0] if lines else ""

    def _stop(self) -> int | None:
        """Exit code of the process; None where it had to be killed."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.stdin.close()
        try:
            return process.wait(1)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return None
        finally:
            process.stdout.close()
