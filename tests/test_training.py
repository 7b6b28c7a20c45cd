"""The whole way: pack, train under Horovod, evaluate, export, predict; and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
import yaml
from conftest import DIGIT_CLASSES, ROOT, run_horovod, run_tool

import gluon_resnest
from gluon_resnest.runs.metrics import read_metrics

PNG = b"\x89PNG\r\n\x1a\n"
SMALL = ("--model", "resnest14", "--input-size", 32, "--no-auto-aug", "--no-cuda")


def train_arguments(digits: Path, save_dir: Path, epochs: int = 1) -> list:
    return ["train_imagenet.py", *SMALL, "--rec-train", digits / "train.rec", "--rec-val",
            digits / "val.rec", "--batch-size", 16, "--num-epochs", epochs, "--warmup-epochs", 0,
            "--save-dir", save_dir]


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    """A run of two ranks, six epochs, and what it printed."""
    save_dir = tmp_path_factory.mktemp("runs") / "digits"
    done = run_horovod(*train_arguments(digits, save_dir, epochs=6), "--log-interval", 2,
                       "--no-mixup", "--label-smoothing", 0, timeout=400)
    return save_dir, done


def test_run_directory_is_complete(run):
    save_dir, _ = run
    assert sorted(path.name for path in save_dir.iterdir()) == [
        "best.params", "checkpoints", "classes.txt", "config.yaml", "last.params",
        "learning_curve.png", "metrics.jsonl", "result.json", "tensorboard"]
    assert (save_dir / "learning_curve.png").read_bytes().startswith(PNG)
    assert (save_dir / "classes.txt").read_text().split() == ["digit0", "digit1", "digit2",
                                                              "digit3"]
    config = yaml.safe_load((save_dir / "config.yaml").read_text())
    assert config["workers"] == 2
    assert config["recipe"]["classes"] == DIGIT_CLASSES
    assert config["recipe"]["train_size"] == config["recipe"]["test_size"] == 32
    assert config["recipe"]["wd"] == 1e-4


def test_metrics_follow_the_plan(run):
    save_dir, _ = run
    epochs = read_metrics(save_dir / "metrics.jsonl", "epoch")
    steps_per_epoch = 8  # 240 images / 2 ranks / 16, rounded up
    assert [record["step"] for record in epochs] == [8, 16, 24, 32, 40, 48]
    assert epochs[-1]["lr"] == 0
    steps = read_metrics(save_dir / "metrics.jsonl", "step")
    assert [record["step"] for record in steps] == list(range(2, 6 * steps_per_epoch + 1, 2))
    peak = 0.1 * 32 / 256
    for record in steps:
        expected = peak * (1 + np.cos(np.pi * record["step"] / 48)) / 2
        assert record["lr"] == pytest.approx(expected, abs=1e-12)
    validations = read_metrics(save_dir / "metrics.jsonl", "validation")
    assert [(record["epoch"], record["images"]) for record in validations] == [
        (epoch, 61) for epoch in range(1, 7)]


def test_it_learns(run):
    """Far better than chance, 25 %, if for an epoch: 48 steps leave the batch statistics rough."""
    save_dir, _ = run
    validations = read_metrics(save_dir / "metrics.jsonl", "validation")
    assert max(record["top1"] for record in validations) > 50
    losses = [record["loss"] for record in read_metrics(save_dir / "metrics.jsonl", "epoch")]
    assert losses[-1] < 0.7 * losses[0]


def test_only_rank_0_speaks(run):
    _, done = run
    assert "[0]<stdout>:run directory" in done.stdout
    assert "[1]<stdout>" not in done.stdout
    assert not re.search(r"\[1\]<stderr>:.*(images/s|epoch)", done.stderr)


def test_evaluate_repeats_the_runs_validation(run, digits):
    """One process, other batch size: the figures of the two ranks at the last epoch."""
    save_dir, _ = run
    done = run_tool("scripts/evaluate.py", "--model", "resnest14", "--params",
                    save_dir / "last.params", "--rec-val", digits / "val.rec", "--input-size", 32,
                    "--batch-size", 7, "--json", "--no-cuda")
    found = json.loads(done.stdout)
    logged = read_metrics(save_dir / "metrics.jsonl", "validation")[-1]
    assert found["images"] == logged["images"] == 61
    assert found["top1"] == pytest.approx(logged["top1"])
    assert found["top5"] == 100
    assert found["loss"] == pytest.approx(logged["loss"], rel=1e-4)


def test_exported_files_predict_what_the_checkpoint_predicts(run, digit_folders, tmp_path):
    save_dir, _ = run
    photos = sorted((digit_folders / "val").glob("*/*.png"))[:5]
    common = ("--params", save_dir / "best.params", "--input-size", 32)
    done = run_tool("scripts/export_model.py", "--model", "resnest14", *common, "--format",
                    "symbol", "--output", tmp_path / "out")
    assert done.stdout.splitlines()[0].endswith("resnest14-symbol.json")
    answers = [
        json.loads(run_tool("scripts/predict.py", *flags, "--json", "--top-k", 2, *photos).stdout)
        for flags in (("--model", "resnest14", *common),
                      ("--model", tmp_path / "out" / "resnest14-symbol.json"))]
    assert [answer["image"] for answer in answers[0]] == [str(photo) for photo in photos]
    for checkpoint, exported in zip(*answers):
        assert len(checkpoint["top"]) == 2
        assert [row["class"] for row in checkpoint["top"]] == [
            row["class"] for row in exported["top"]]
        assert checkpoint["top"][0]["class"].startswith("digit")
        assert exported["top"][0]["probability"] == pytest.approx(
            checkpoint["top"][0]["probability"], abs=1e-5)


@pytest.mark.slow
def test_two_ranks_start_from_the_same_seed_alike(digits, tmp_path):
    """Same seed, same weights, bit for bit, under the engine that computes in order."""
    os.environ["MXNET_ENGINE_TYPE"] = "NaiveEngine"
    try:
        for name in ("one", "two"):
            run_horovod(*train_arguments(digits, tmp_path / name), timeout=300)
    finally:
        del os.environ["MXNET_ENGINE_TYPE"]
    one, two = (mx.nd.load(str(tmp_path / name / "last.params")) for name in ("one", "two"))
    for key in one:
        np.testing.assert_array_equal(one[key].asnumpy(), two[key].asnumpy(), err_msg=key)


def bad_inputs(folder: Path, digits: Path) -> dict:
    """Command lines with one fault each, and words of the answer."""
    weights = folder / "weights.params"
    net = gluon_resnest.get_model("resnest14", classes=DIGIT_CLASSES)
    net.initialize()
    net.save_parameters(str(weights))
    (folder / "alone.rec").write_bytes((digits / "train.rec").read_bytes())
    (folder / "page.params").write_text("<html>")
    (folder / "text.png").write_text("no image")
    for suffix in (".rec", ".idx"):
        shutil.copy(digits / f"train{suffix}", folder / f"unlisted{suffix}")
    for suffix in (".rec", ".idx"):
        shutil.copy(digits / f"val{suffix}", folder / f"renamed{suffix}")
    (folder / "renamed.classes.txt").write_text("digit0\none\ndigit2\ndigit3\n")
    train = ("train_imagenet.py", "--model", "resnest14", "--no-cuda", "--save-dir", folder / "run")
    data = ("--rec-train", digits / "train.rec")
    evaluate = ("scripts/evaluate.py", "--rec-val", digits / "val.rec", "--no-cuda", "--model")
    predict = ("scripts/predict.py", "--model", "resnest14", "--params", weights)
    export = ("scripts/export_model.py", "--output", folder / "out", "--model")
    return {
        "unknown model": (("train_imagenet.py", "--model", "resnest55", *data),
                          "unknown model 'resnest55': did you mean resnest50"),
        "no training file": (train, "--rec-train is missing"),
        "missing .rec": ((*train, "--rec-train", folder / "none.rec"), "none.rec does not exist"),
        "missing .idx": ((*train, "--rec-train", folder / "alone.rec", "--rec-train-idx",
                          folder / "alone.idx"), "alone.idx does not exist"),
        "share above 1": ((*train, *data, "--max-bad-records", 2),
                          "--max-bad-records: '2' must be a share from 0 to 1"),
        "no patience": ((*train, *data, "--data-timeout", 0), "argument --data-timeout"),
        "unknown sharding": ((*train, *data, "--sharding", "both"), "argument --sharding"),
        "missing validation": ((*train, *data, "--rec-val", folder / "none.rec"), "none.rec"),
        "zero batch": ((*train, *data, "--batch-size", 0),
                       "'0' must be a whole number of at least 1"),
        "zero log interval": ((*train, *data, "--log-interval", 0), "argument --log-interval"),
        "no number": ((*train, *data, "--lr", "fast"), "argument --lr: invalid float value"),
        "infinite rate": ((*train, *data, "--lr", "inf"), "--lr inf must be a number"),
        "negative threads": ((*evaluate, "resnest14", "--data-nthreads", -1),
                             "argument --data-nthreads"),
        "negative step": ((*train, "--dry-run", "--lr-at=-5"), "--lr-at '-5' must be steps"),
        "other classes": ((*train, *data, "--rec-val", folder / "renamed.rec"),
                          "has 'one', which the network does not know and lacks 'digit1'"),
        "save dir is a file": ((*train, *data, "--save-dir", weights, "--input-size", 32),
                               "cannot write"),
        "class count": ((*train, *data, "--classes", 7), "4 classes by its class list"),
        "label out of range": ((*train, "--rec-train", folder / "unlisted.rec", "--classes", 2,
                                "--input-size", 32, "--batch-size", 8, "--num-epochs", 1,
                                "--warmup-epochs", 0),
                               "which is no class of 0 to 1"),
        "size too small": ((*train, *data, "--input-size", 16), "--input-size 16 is too small"),
        "two rates": ((*train, *data, "--lr", 1, "--base-lr", 1), "--lr and --base-lr"),
        "world size in a run": ((*train, *data, "--world-size", 4),
                                "--world-size is for --dry-run"),
        "lr-at": ((*train, "--dry-run", "--lr-at", "a,b"), "--lr-at 'a,b' must be steps"),
        "weights of another model": ((*evaluate, "resnest26", "--params", weights),
                                     "is not of this model"),
        "weights of other classes": ((*evaluate, "resnest14", "--params", weights, "--classes", 9),
                                     "fc.weight is (4, 2048) in the file"),
        "no weights": ((*evaluate, "resnest14"), "--params is missing"),
        "web page": ((*evaluate, "resnest14", "--params", folder / "page.params"),
                     "page.params is a web page"),
        "crop ratio": ((*evaluate, "resnest14", "--params", weights, "--crop-ratio", 2),
                       "argument --crop-ratio: '2' must be above 0 and at most 1"),
        "evaluation size": ((*evaluate, "resnest14", "--params", weights, "--input-size", 8),
                            "--test-size 8 is too small"),
        "missing image": ((*predict, folder / "none.png"), "none.png"),
        "no image": ((*predict, folder / "text.png"), "text.png"),
        "class names": ((*predict, "--class-names", folder / "text.png", folder / "text.png"),
                        "names 1 classes, the network has 4"),
        "exported twice": ((*export, "x-symbol.json"), "is exported already"),
        "output is a file": ((*export, "resnest14", "--params", weights, "--input-size", 32,
                              "--output", weights), "cannot be written to"),
    }


FAULTS = [
    "zero batch", "zero log interval", "no number", "infinite rate", "negative threads",
    "negative step", "other classes", "save dir is a file",
    "unknown model", "no training file", "missing .rec", "missing .idx", "missing validation",
    "class count", "label out of range", "size too small", "two rates", "world size in a run",
    "lr-at", "weights of another model", "weights of other classes", "no weights", "web page",
    "crop ratio", "evaluation size", "missing image", "no image", "class names",
    "exported twice", "output is a file", "share above 1", "no patience", "unknown sharding",
]


@pytest.fixture(scope="module")
def faults(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("faults")
    return folder, bad_inputs(folder, digits)


def test_every_fault_is_tried(faults):
    assert set(faults[1]) == set(FAULTS)


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_one_line_and_code_2(fault, faults, tool):
    folder, cases = faults
    command, words = cases[fault]
    code, stderr = tool(*command)
    lines = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert code == 2, stderr
    assert len(lines) == 1, stderr
    assert words in lines[0]
    assert "Traceback" not in stderr
    assert not (folder / "out").exists()
    assert not (folder / "run").exists()


def missing_on_rank_1(digits: Path, folder: Path) -> list:
    """Arguments with a training file that only rank 0 finds: each rank has its own folder."""
    program = folder / "start.py"
    program.write_text(
        "import os, runpy, sys\n"
        "if os.environ['HOROVOD_RANK'] == '1':\n"
        "    sys.argv = [a.replace('train.rec', 'none.rec') for a in sys.argv]\n"
        f"runpy.run_path({str(ROOT / 'train_imagenet.py')!r}, run_name='__main__')\n")
    return [program, *train_arguments(digits, folder / "run")[1:]]


def bad_label_on_rank_1(digits: Path, folder: Path) -> list:
    """Arguments with records whose only label out of range lies in the last shard."""
    listing = digits / "train.lst"
    lines = listing.read_text().splitlines()
    key, _, path = lines[-1].split("\t")
    (folder / "bad.lst").write_text("\n".join([*lines[:-1], f"{key}\t9\t{path}"]) + "\n")
    run_tool("scripts/pack_records.py", folder / "bad.lst", folder / "packed", "--no-shuffle",
             "--root", digits / "train")
    (folder / "packed.classes.txt").unlink(missing_ok=True)
    return ["train_imagenet.py", *SMALL, "--rec-train", folder / "packed.rec", "--classes",
            DIGIT_CLASSES, "--batch-size", 16, "--num-epochs", 1, "--warmup-epochs", 0,
            "--save-dir", folder / "run"]


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "words"), [
    (lambda digits, _: ["train_imagenet.py", "--model", "resnest55", "--rec-train",
                        digits / "train.rec"], "unknown model 'resnest55'"),
    (missing_on_rank_1, "none.rec does not exist"),
    (bad_label_on_rank_1, "has label 9, which is no class of 0 to 3"),
], ids=["on all ranks", "on rank 1", "on rank 1, in the first epoch"])
def test_a_fault_under_horovod_is_said_and_leaves_nothing(arguments, words, digits, tmp_path):
    done = run_horovod(*arguments(digits, tmp_path), code=1, timeout=120)
    said = [line for line in done.stderr.splitlines() if "error: " in line and words in line]
    assert len(said) == 1, done.stderr[-3000:]
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_not_overwritten_by_chance(run, digits, tool):
    save_dir, _ = run
    before = (save_dir / "best.params").read_bytes()
    code, stderr = tool(*train_arguments(digits, save_dir), "--resume", "never")
    assert code == 2
    assert "holds a run already" in stderr
    assert "--overwrite" in stderr
    assert (save_dir / "best.params").read_bytes() == before
