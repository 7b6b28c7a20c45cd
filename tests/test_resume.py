"""Runs that are killed at any moment end as if nothing had happened."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import mxnet as mx
import numpy as np
import psutil
import pytest
from conftest import DIGIT_CLASSES, run_tool
from jobs import Job, checkpoints, records, run_to_end

KILLS = {1: 10, 2: 6}  # by number of ranks
EPOCHS, STEPS = 3, 15
EXACT = {"MXNET_ENGINE_TYPE": "NaiveEngine",  # the other engines add up in changing orders
         # It waits for each gradient by itself, so for a cycle of Horovod's, which are 20 ms else.
         "HOROVOD_CYCLE_TIME": "1"}


def arguments(digits: Path, save_dir: Path, *more, ranks: int = 1) -> list:
    """Fifteen steps an epoch, with everything that has a state of its own."""
    return ["train_imagenet.py", "--model", "resnest14", "--no-cuda", "--input-size", 32,
            "--rec-train", digits / "train.rec", "--rec-val", digits / "val.rec",
            "--batch-size", 16 // ranks, "--num-epochs", EPOCHS, "--warmup-epochs", 0,
            "--dropblock-prob", 0.1, "--final-drop", 0.1, "--ema", 0.9, "--log-interval", 1,
            "--checkpoint-steps", 5, "--save-dir", save_dir, *more]


@pytest.fixture(scope="module", params=[1, 2], ids=["alone", "two ranks"])
def whole(request, digits, tmp_path_factory):
    """Number of ranks, and a run that was never interrupted."""
    save_dir = tmp_path_factory.mktemp("whole") / "run"
    run_to_end(*arguments(digits, save_dir, ranks=request.param), ranks=request.param, **EXACT)
    return request.param, save_dir


def being_written(save_dir: Path) -> set[str]:
    return {path.name for path in save_dir.glob("checkpoints/.step-*.tmp")}


def assert_equal_runs(found: Path, whole: Path, steps: int = EPOCHS * STEPS) -> None:
    """The same bytes in every file of arrays, and every step and validation told of once."""
    last = f"checkpoints/step-{steps:08d}"
    names = sorted(path.name for path in (whole / last).glob("*.params"))
    assert names == ["ema-statistics.params", "ema.params", "optimizer.params",
                     "statistics.params", "weights.params"]
    for name in [*(f"{last}/{name}" for name in names), "last.params", "best.params",
                 "best-ema.params"]:
        assert (found / name).read_bytes() == (whole / name).read_bytes(), name
    for event, fields in (("step", ("step", "epoch", "lr", "loss")),
                          ("epoch", ("epoch", "step", "loss")),
                          ("validation", ("epoch", "step", "images", "top1", "loss")),
                          ("validation_ema", ("epoch", "step", "images", "top1", "loss"))):
        told = [[[record[name] for name in fields] for record in records(run, event)]
                for run in (found, whole)]
        assert told[0] == told[1], event
    assert [record["step"] for record in records(found, "step")] == list(range(1, steps + 1))


@pytest.mark.slow
def test_kill_9_at_any_moment(whole, digits, tmp_path, seed):
    ranks, uninterrupted = whole
    rng = np.random.default_rng(seed)
    save_dir = tmp_path / "run"
    moments = []
    for number in range(KILLS[ranks]):
        halves = being_written(save_dir)  # the next start removes them
        with Job(*arguments(digits, save_dir, ranks=ranks), ranks=ranks, **EXACT) as job:
            if number == 3:
                # While a checkpoint is being written: its folder has another name until then.
                job.wait_until(lambda job=job, old=halves: being_written(save_dir) - old
                               or job.process.poll() is not None, "a checkpoint")
            else:
                job.wait_until(job.has_begun, "its start")
                reached = max(job.steps(), default=0)
                job.wait_for_step(reached + int(rng.integers(0, 6)))
                time.sleep(rng.uniform(0, 0.2))
            ended = job.process.poll() is not None
            job.kill()
            assert number != 3 or being_written(save_dir) - halves
            moments.append((max(job.steps(), default=0), checkpoints(save_dir), ended))
    print(moments)
    assert sum(not ended for _, _, ended in moments) >= KILLS[ranks] - 2
    run_to_end(*arguments(digits, save_dir, ranks=ranks), ranks=ranks, **EXACT)
    assert_equal_runs(save_dir, uninterrupted)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(whole, digits, tmp_path, rng):
    ranks, uninterrupted = whole
    save_dir = tmp_path / "run"
    # A little beyond an epoch: --steps validates where it ends, which is not to be repeated.
    stop = STEPS + 5
    with Job(*arguments(digits, save_dir, ranks=ranks), ranks=ranks, **EXACT) as job:
        job.wait_for_step(stop)
        job.wait_until(lambda: len(checkpoints(save_dir)) > 1, "two checkpoints")
        job.kill()
    *_, before, newest = checkpoints(save_dir)
    damaged = save_dir / f"checkpoints/step-{newest:08d}/weights.params"
    content = bytearray(damaged.read_bytes())
    content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    damaged.unlink()  # it may be one file with last.params
    damaged.write_bytes(content)
    job = run_to_end(*arguments(digits, save_dir, ranks=ranks), ranks=ranks, **EXACT)
    (warning,) = [line for line in job.output.splitlines() if "is damaged" in line]
    assert damaged.parent.name in warning
    assert "weights.params" in warning
    assert f"after step {before} " in job.output
    assert job.output.count("is damaged") == 1
    assert_equal_runs(save_dir, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_pauses_and_checkpoints_by_signal_change_nothing(ranks, digits, tmp_path):
    """One rank is paused, then all of them for longer than --hang-timeout, as Slurm does it."""
    timeout = 60  # seconds, more than Gloo's own 30; on a busy machine a picture took 35

    def command(save_dir: Path) -> list:
        return arguments(digits, save_dir, "--rec-train", digits / "val.rec", "--hang-timeout",
                         timeout, ranks=ranks)

    steps = EPOCHS * 4
    run_to_end(*command(tmp_path / "whole"), ranks=ranks, **EXACT)
    with Job(*command(tmp_path / "run"), ranks=ranks, **EXACT) as job:
        job.wait_for_step(2)
        processes = job.rank_processes()
        for paused, seconds in ((processes[-1:], 2), (processes, timeout + 3)):
            for process in paused:
                process.suspend()
            job.wait_until(lambda paused=paused: all(
                process.status() == psutil.STATUS_STOPPED for process in paused), "the pause")
            reached = max(job.steps())
            assert reached < steps
            time.sleep(seconds)
            # The other rank ends a step that the paused one has done its share of.
            assert max(job.steps()) <= reached + (paused != processes)
            for process in paused:
                process.resume()
            for process in processes:
                process.send_signal(signal.SIGUSR1)
            job.wait_for_step(min(reached + 3, steps))
        assert job.end() == 0, job.output[-4000:]
    assert_equal_runs(tmp_path / "run", tmp_path / "whole", steps)


def test_a_finished_run_is_left_as_it_is(whole, digits):
    ranks, save_dir = whole
    if ranks == 2:
        pytest.skip("one is enough")
    before = {path: path.stat().st_mtime_ns for path in save_dir.rglob("*") if path.is_file()}
    job = run_to_end(*arguments(digits, save_dir))
    assert "is complete" in job.output
    best = json.loads((save_dir / "result.json").read_text())["best"]
    assert f"best validation top-1: {best['top1']:.2f} %" in job.output
    assert {path: path.stat().st_mtime_ns for path in save_dir.rglob("*")
            if path.is_file()} == before


@pytest.mark.parametrize(("flags", "words"), [
    (("--base-lr", 0.2), "--base-lr 0.1 (now 0.2)"),
    (("--seed", 3, "--wd", 0.5), "--wd 0.0001 (now 0.5), --seed 0 (now 3)"),
])
def test_another_recipe_is_refused(flags, words, whole, digits, tool):
    ranks, save_dir = whole
    if ranks == 2:
        pytest.skip("one is enough")
    code, stderr = tool(*arguments(digits, save_dir, *flags))
    assert code == 2
    assert words in stderr
    assert "--override" in stderr


def test_another_network_is_refused_whatever_is_overridden(whole, digits, tool):
    ranks, save_dir = whole
    if ranks == 2:
        pytest.skip("one is enough")
    before = sorted(path.name for path in save_dir.rglob("*"))
    code, stderr = tool(*arguments(digits, save_dir, "--model", "resnest26", "--override"))
    assert code == 2
    assert "is of another network: its layer1.1." in stderr
    assert sorted(path.name for path in save_dir.rglob("*")) == before


def test_a_file_of_ones_own_is_not_deleted(digits, tmp_path, tool):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("base-lr: 0.2\n")
    code, stderr = tool(*arguments(digits, tmp_path / "run"))
    assert code == 2
    assert "holds a run already (config.yaml)" in stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["fixed", "global"])
def test_one_worker_goes_on_with_the_images_that_two_have_left(
        sharding, digit_folders, tmp_path, digits):
    """Labels are numbers of the images here, so that a run can be asked which ones it saw."""
    lines = (digits / "train.lst").read_text().splitlines()
    paths = [line.split("\t")[2] for line in lines]
    (tmp_path / "list.lst").write_text("".join(
        f"{number}\t{number}\t{path}\n" for number, path in enumerate(paths)))
    run_tool("scripts/pack_records.py", tmp_path / "list.lst", tmp_path / "own", "--no-shuffle",
             "--root", digit_folders / "train")
    (tmp_path / "own.classes.txt").unlink(missing_ok=True)

    def command(stop: int) -> list:
        return ["tests/programs/log_labels.py", tmp_path / "seen", stop, "--model", "resnest14",
                "--no-cuda", "--input-size", 32, "--rec-train", tmp_path / "own.rec",
                "--classes", len(paths), "--batch-size", 8, "--num-epochs", 2,
                "--warmup-epochs", 0, "--sharding", sharding, "--save-dir", tmp_path / "run"]

    with Job(*command(5), ranks=2) as job:
        assert job.end() != 0
    first = [line for path in tmp_path.glob("seen.*") for line in path.read_text().splitlines()]
    assert len(first) == 5 * 16
    job = run_to_end(*command(0))
    assert "with 1 workers, where there were 2" in job.output
    seen: dict[str, list[int]] = {}
    for path in tmp_path.glob("seen.*"):
        for line in path.read_text().splitlines():
            epoch, label = line.split()
            seen.setdefault(epoch, []).append(int(label))
    assert sorted(seen["0"]) == list(range(len(paths)))
    assert sorted(seen["1"]) == list(range(len(paths)))


def test_weights_of_a_checkpoint_are_weights(whole):
    """Of the checkpoint: the mean of the ranks' running statistics, and each rank's own."""
    ranks, save_dir = whole
    folder = save_dir / f"checkpoints/step-{EPOCHS * STEPS:08d}"
    weights = mx.nd.load(str(folder / "weights.params"))
    statistics = mx.nd.load(str(folder / "statistics.params"))
    assert weights["fc.weight"].shape[0] == DIGIT_CLASSES
    assert statistics["bn1.running_mean"].shape == (ranks, *weights["bn1.running_mean"].shape)
    np.testing.assert_allclose(statistics["bn1.running_mean"].asnumpy().mean(axis=0),
                               weights["bn1.running_mean"].asnumpy(), rtol=1e-6)
