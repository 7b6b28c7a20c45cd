"""Fuzzers of what a run reads: files of settings, and the state and result of an earlier run."""

from __future__ import annotations

import hashlib
import json
import random
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from fuzzing import fuzz, inputs, mutate, mutate_json, mutations

from gluon_resnest.checkpoints.checkpoint import Checkpoints, Snapshot
from gluon_resnest.data.loading.position import Position
from gluon_resnest.data.loading.sampling import Leg, Sampling
from gluon_resnest.tasks.classification.flags import _parser, parse_arguments
from gluon_resnest.tasks.classification.planning import plan
from gluon_resnest.tasks.classification.recipe import recipe_of
from gluon_resnest.tasks.classification.task import ClassificationTask, Source, upgraded
from gluon_resnest.training import resume
from gluon_resnest.training.console import Console
from gluon_resnest.training.options import RunOptions, as_settings
from gluon_resnest.training.run_state import EpochSums, Progress
from gluon_resnest.training.saving import Saver
from gluon_resnest.workers import Workers

ROOT = Path(__file__).parents[2]
NUMBERS = (0, 1, -1, 2, 3, 255, 2**31 - 1, 2**31, 2**63, 2**64, 10**30, 0.5, -0.0, 1e-320, 1e308)
WORDS = ("", " ", "null", "~", "true", "false", "yes", "nan", ".nan", "inf", ".inf", "-.inf",
         "1e999", "1e3", "0x10", "0o17", "0b1", "1_000", "1:30", "2024-01-01", "\u00b2", "\u0661",
         "9" * 5000, "a" * 100_000, "../../x", "/dev/zero", "\0", "caf\u00e9", "\u2028", "{", "[",
         "*a", "&a x", "!!int abc", "!!python/name:os.system", "- 1", "? x", "|", ">", "'", '"',
         "%", "@", "`", "#", "<<", "resnest50", "resnest50_9999s1x64d", "resnest50_1s99x99d",
         "resnest269_fast_4s2x40d", "resnest" + "9" * 400)

# ---- settings ----

FLAGS = sorted({action.dest for action in _parser(None)._actions} - {"help"})
COMMON = ("lr", "epochs", "classes", "seed", "momentum", "wd", "keep", "batch_size", "model")
NESTED = [
    *(f"lr: {left * depth}{right * depth}" for depth in (2, 30, 900, 20_000)
      for left, right in (("[", ""), ("[", "]"), ("{a: ", ""), ("- ", ""), ("? ", ""))),
    "&a [*a]", "recipe: &r {lr: *r}", "x: &x {lr: 1}\n<<: *x", "recipe: {1: 2}", "lr: 1\nlr: 2",
    "a: &a [x, y]\n" + "".join(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
                               for before, name in zip("abcdefghi", "bcdefghij")) + "lr: *j"]


def read_settings(path: Path) -> None:
    """By way of the whole plan, which computes with all of them."""
    args = parse_arguments(["-c", str(path)])
    resolve = runpy.run_path(str(ROOT / "train_imagenet.py"))["resolve_recipe"]
    plan(resolve(args, args.classes or 10), 100_000, world_size=2, prove=True)


def hostile_settings(content: bytes, rng: random.Random) -> bytes:
    kind = rng.randrange(10)
    if kind < 3:
        return mutate(content, rng, [content])
    if kind == 3:
        return rng.choice(NESTED).encode()
    lines = ["model: resnest14"] if rng.random() < 0.7 else []
    for _ in range(rng.choice((1, 1, 2, 6))):
        value = rng.choice((
            lambda: str(rng.choice(NUMBERS)), lambda: rng.choice(WORDS),
            lambda: str(rng.randrange(1, 300)), lambda: rng.choice(("0.5", "12", "1e-1", "true")),
            lambda: yaml.safe_dump(rng.choice(WORDS)).strip(), lambda: "[1, {2: 3}]"))()
        lines.append(f"{rng.choice(FLAGS if rng.random() < 0.6 else COMMON)}: {value}")
    return "\n".join(lines).encode()


@pytest.mark.slow
def test_settings(tmp_path, seed):
    options = {**as_settings(Source(Path("t.rec"))), **RunOptions(Path("run")).as_dict()}
    whole = {"recipe": recipe_of("resnest14").as_dict(), "run": options, "workers": 2}
    sample = yaml.safe_dump(whole, sort_keys=False).encode()
    counts = fuzz(read_settings, mutations([sample], inputs(), seed, hostile_settings), tmp_path,
                  ".yaml")
    assert min(counts["accepted"], counts["refused"]) > 0


# ---- the state of a run that goes on ----

STEP = 7
RECIPE = recipe_of("resnest14", batch_size=8, epochs=5, warmup_epochs=1)
SAMPLING = Sampling(240, RECIPE.seed, RECIPE.sharding)
PROGRESS = Progress(STEP, Position(0, (Leg(1, 8, STEP),)), EpochSums(56, 70.5, 3.5, 0.5), 0,
                    {"images": 61, "top1": 32.8, "loss": 1.6}, None, 1, 0, 9).as_dict(SAMPLING)
STATE = {"progress": PROGRESS, "loss_scale": None, "updates": 7, "recipe": RECIPE.as_dict(),
         "workers": 1}


VALUES = (*NUMBERS, *WORDS, None, True, [], {}, [[]], [[1, 8, 1]] * 2000, {"": None},
          float("nan"), float("inf"), float("-inf"))


def read_state(path: Path) -> None:
    go_on(path.with_name("run"), path.read_bytes(), None)


def read_result(path: Path) -> None:
    go_on(path.with_name("run"), json.dumps(STATE).encode(), path.read_bytes())


def go_on(run: Path, state: bytes, result: bytes | None) -> None:
    """What a run does before its first step with a checkpoint whose manifest is right."""
    checkpoints = Checkpoints(run / "checkpoints")
    folder = checkpoints.path(STEP)
    if not folder.exists():
        checkpoints.write(Snapshot(STEP, {"weights": {"a": np.zeros(1, np.float32)}}, STATE))
    (folder / "state.json").write_bytes(state)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["files"]["state.json"] = {"size": len(state),
                                       "sha256": hashlib.sha256(state).hexdigest()}
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_bytes(json.dumps(
        {**manifest, "sha256": digest}, indent=1, sort_keys=True).encode())
    if result is not None:
        (run / "result.json").write_bytes(result)

    task = SimpleNamespace(recipe=RECIPE, training=SimpleNamespace(sampling=SAMPLING),
                           score=ClassificationTask.score, upgraded=upgraded)
    parts = resume.Parts(
        task, RunOptions(run, override=True), Workers(), Console(1), run, None, None,
        SimpleNamespace(check=lambda arrays, source: None))  # not what is tried here
    saver = Saver(run, parts.workers, RECIPE, 2, 0, 0, parts.console.warn)
    found = resume._look(parts, saver)
    try:
        read = found.snapshot.state
        if found.result is not None:
            read = {**read, "progress": found.result}
        progress = resume._progress(parts, saver, read)
        json.dumps(progress.as_dict(SAMPLING), allow_nan=False)  # it can be saved again
        resume._resumed(parts, read, progress)
    finally:
        found.lock.release()


@pytest.mark.slow
@pytest.mark.parametrize(("target", "sample"), [
    (read_state, STATE), (read_result, {"complete": True, **PROGRESS})])
def test_state(target, sample, tmp_path, seed):
    contents = mutations([json.dumps(sample).encode()], inputs(), seed,
                         lambda content, rng: mutate_json(content, rng, VALUES))
    counts = fuzz(target, contents, tmp_path, ".json")
    assert min(counts["accepted"], counts["refused"]) > 0
