"""``state.json`` with a manifest that is right: what a run that goes on reads of it."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from values import NUMBERS, WORDS, mutated

from gluon_resnest.checkpoints.checkpoint import Checkpoints, Snapshot
from gluon_resnest.data.position import Position
from gluon_resnest.data.sampling import Leg, Sampling
from gluon_resnest.evaluation import Result
from gluon_resnest.training import start
from gluon_resnest.training.distributed import Workers
from gluon_resnest.training.progress import EpochSums, Progress
from gluon_resnest.training.recipe import recipe_of
from gluon_resnest.training.saving import Saver
from gluon_resnest.training.setup import RunOptions

_STEP = 7
_RECIPE = recipe_of("resnest14", batch_size=8, epochs=5, warmup_epochs=1)
_SAMPLING = Sampling(240, _RECIPE.seed, _RECIPE.sharding)


def _state() -> dict:
    progress = Progress(
        _STEP, Position(0, (Leg(1, 8, _STEP),)), EpochSums(56, 70.5, 3.5, 0.5), 0,
        Result(61, 20, 50, 100.5), None, 1, 0, 9)
    return {"progress": progress.as_dict(_SAMPLING), "loss_scale": None,
            "recipe": _RECIPE.as_dict(), "workers": 1}


def _places(value: object) -> list[tuple]:
    """The way to each section and list, and the key of each entry in them."""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, of in list(entries):
        found.append((value, key))
        if isinstance(of, (dict, list)):
            found += _places(of)
    return found


def _text(rng: random.Random) -> bytes:
    state = _state()
    if rng.random() < 0.25:
        return mutated(json.dumps(state).encode(), rng)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        section, key = rng.choice(_places(state))
        kind = rng.randrange(8)
        if kind == 0:
            del section[key]
        elif kind == 1 and isinstance(section, dict):
            section[rng.choice(WORDS)] = rng.choice(NUMBERS)
        else:
            section[key] = rng.choice((
                *NUMBERS, *WORDS, None, True, [], {}, [[]], [[1, 8, 1]] * 2000, {"": None},
                float("nan"), float("inf"), float("-inf")))
    return json.dumps(state).encode()


def make(rng: random.Random, folder: Path) -> Path:
    run = folder / "run"
    checkpoints = Checkpoints(run / "checkpoints")
    path = checkpoints.path(_STEP)
    (run / "result.json").unlink() if (run / "result.json").exists() else None
    if not path.exists():
        checkpoints.write(Snapshot(_STEP, {"weights": {"a": np.zeros(1, np.float32)}}, _state()))
    text = _text(rng)
    (path / "state.json").write_bytes(text)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["state.json"] = {"size": len(text),
                                       "sha256": hashlib.sha256(text).hexdigest()}
    del manifest["sha256"]
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_bytes(json.dumps(
        {**manifest, "sha256": digest}, indent=1, sort_keys=True).encode())
    if rng.random() < 0.2:  # of a run that is complete
        result = json.loads(json.dumps(_state()["progress"]))
        section, key = rng.choice(_places(result))
        section[key] = rng.choice((*NUMBERS, *WORDS, None, True, [], {}))
        (run / "result.json").write_text(json.dumps({"complete": True, **result}))
    return run


def read(run: Path) -> None:
    workers = Workers()
    trainer = SimpleNamespace(
        save_dir=run, workers=workers, recipe=_RECIPE, warn=lambda text: None,
        options=RunOptions(Path("t.rec"), run, override=True),
        loader=SimpleNamespace(sampling=_SAMPLING),
        arrays=SimpleNamespace(check=lambda arrays, source: None))
    saver = Saver(run, workers, _RECIPE, 2, 0, 0, trainer.warn)
    found = start._look(trainer, saver)
    try:
        state = found.snapshot.state
        if found.result is not None:
            state = {**state, "progress": found.result}
        progress = start._progress(trainer, saver, state)
        json.dumps(progress.as_dict(_SAMPLING), allow_nan=False)  # it can be saved again
        start._resumed(trainer, state, progress)
    finally:
        found.lock.release()
