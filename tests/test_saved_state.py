"""state.json and result.json as a stranger's: each entry of the right type and within its range."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest

from gluon_resnest.checkpoints.checkpoint_folder import CheckpointDamage, _manifest, read_folder
from gluon_resnest.data.loading.position import Position
from gluon_resnest.data.loading.sampling import Leg, Sampling
from gluon_resnest.errors import InputError
from gluon_resnest.models import get_model
from gluon_resnest.tasks.classification.recipe import recipe_of
from gluon_resnest.tasks.classification.task import ClassificationTask, upgraded
from gluon_resnest.training.run_arrays import RunArrays
from gluon_resnest.training.run_state import EpochSums, Progress
from gluon_resnest.training.saved_state import check_progress, check_state
from gluon_resnest.training.updater import Updater
from gluon_resnest.workers import Workers

SAMPLING = Sampling(240, 0, "fixed")


def state() -> dict:
    progress = Progress(7, Position(1, (Leg(2, 8, 7),)), EpochSums(112, 150.5, 3.5, 0.5), 1,
                        {"images": 61, "top1": 32.8, "loss": 1.6},
                        {"images": 61, "top1": 32.8, "loss": math.nan}, 1, 2, 40)
    return json.loads(json.dumps({
        "progress": progress.as_dict(SAMPLING), "recipe": recipe_of("resnest14").as_dict(),
        "updates": {"fc.weight": 7, "fc.bias": 6},
        "loss_scale": {"_loss_scale": 65536.0, "_next_loss_scale": 32768.0, "_unskipped": 3},
        "workers": 2}))


def changed(path: str, value: object) -> dict:
    whole = section = state()
    *way, last = path.split(".")
    for name in way:
        section = section[name]
    if value is KeyError:
        del section[last]
    else:
        section[last] = value
    return whole


def test_what_this_program_writes_is_taken():
    check_state(state(), 7, "state.json")
    check_state(changed("loss_scale", None), 7, "state.json")
    check_state(changed("updates", 7), 7, "state.json")
    check_state(changed("updates", KeyError), 7, "state.json")  # of an earlier version
    check_state(changed("progress.best", {"top1_hits": 20, "images": 61}), 7, "state.json")  # too
    check_state(changed("recipe.of_a_later_version", 1), 7, "state.json")
    for name in ("validated", "best_ema", "skipped"):  # of an earlier one
        check_state(changed(f"progress.{name}", KeyError), 7, "state.json")


@pytest.mark.parametrize(("path", "value", "words"), [
    ("progress", math.inf, "has inf for progress, which must be a section"),
    ("progress", KeyError, "lacks progress"),
    ("progress.step", 8, "has 8 for progress.step, which must be 7"),
    ("progress.step", True, "has True for progress.step"),
    ("progress.validated", None, "has None for progress.validated, which must be a whole number"),
    ("progress.validated", -1, "of at least 0"),
    ("progress.skipped", math.inf, "has inf for progress.skipped"),
    ("progress.rollbacks", 0.5, "has 0.5 for progress.rollbacks"),
    ("progress.metrics_lines", 2**63, "for progress.metrics_lines"),
    ("progress.sums.loss_sum", math.nan, "progress.sums.loss_sum, which must be a finite number"),
    ("progress.sums.seconds", -1, "progress.sums.seconds, which must be a finite number of at"),
    ("progress.sums.images", "1", "has '1' for progress.sums.images"),
    ("progress.sums.more", 1, "has the unknown entry progress.sums.more"),
    ("progress.sums", [], "has [] for progress.sums"),
    ("progress.best", {}, "for progress.best, which must be null or the figures"),
    ("progress.best.top1", "32", "for progress.best, which must be null or the figures"),
    ("progress.best.loss", math.nan, "for progress.best,"),
    ("progress.best.loss", [1.6], "for progress.best,"),
    ("progress.best", {"figure" * 40: 1}, "for progress.best,"),
    ("updates", -1, "has -1 for updates, which must be a count of updates"),
    ("updates", True, "has True for updates"),
    ("updates.fc", 0.5, "for updates, which must be a count"),
    ("progress.best_ema", 3, "for progress.best_ema,"),
    ("progress.position.epoch", 1.0, "progress.position.epoch"),
    ("progress.position.legs", [[1, 8]], "progress.position.legs, which must be a list"),
    ("progress.position.legs", [[1, 8, 1]] * 1001, "a list of at most 1000 lists"),
    ("progress.position.legs", [[1, 8, 2**31]], "progress.position.legs"),
    ("recipe", [1], "has [1] for recipe"),
    ("recipe.lr", [1] * 10**6, "for recipe.lr, which must be a single value"),
    ("recipe.lr", math.inf, "for recipe.lr"),
    ("workers", 0, "has 0 for workers, which must be a whole number from 1 to 2147483647"),
    ("loss_scale", [], "for loss_scale, which must be null or a section"),
    ("loss_scale._unskipped", math.nan, "for loss_scale._unskipped"),
    ("loss_scale._loss_scale", KeyError, "lacks loss_scale._loss_scale"),
])
def test_what_cannot_be_is_named(path, value, words):
    with pytest.raises(InputError) as error:
        check_state(changed(path, value), 7, "step-00000007/state.json")
    assert str(error.value).startswith("step-00000007/state.json ")
    assert words in str(error.value)
    assert len(str(error.value)) < 500


def test_what_is_no_section_at_all():
    for value in (None, [], "x", 3):
        with pytest.raises(InputError, match="must be a section"):
            check_state(value, 7, "state.json")
        with pytest.raises(InputError, match="must be a section"):
            check_progress(value, 7, "the whole", "result.json")


@pytest.mark.parametrize("word", [b"NaN", b"Infinity", b"-Infinity"])
def test_words_that_are_no_json_are_damage(word, tmp_path):
    content = b'{"progress": ' + word + b"}"
    (tmp_path / "state.json").write_bytes(content)
    (tmp_path / "manifest.json").write_bytes(_manifest(7, {"state.json": {
        "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}}))
    with pytest.raises(CheckpointDamage, match=f"^state.json: {word.decode()} is not JSON$"):
        read_folder(tmp_path, 7)


def test_arrays_that_go_with_other_weights(tmp_path):
    """Swapped files: momentum, averages and statistics must have the shapes of the weights."""
    net = get_model("resnest14", classes=3)
    net.initialize()
    workers = Workers()
    optimizer = workers.trainer(net.collect_params(), mx.optimizer.NAG(momentum=0.9))
    arrays = RunArrays(Updater(net, lambda *_: {}, optimizer), None, workers)
    good = arrays.copy()
    arrays.check(good, Path("step-00000007"))
    for group, name, value in (
            ("optimizer", "fc.weight", np.zeros((4, 2048), np.float32)),
            ("optimizer", "none", np.zeros(3, np.float32)),
            ("statistics", "bn1.running_var", np.zeros((0, 64), np.float32)),
            ("statistics", "bn1.running_var", np.zeros((), np.float32)),
            ("ema", "fc.bias", np.zeros(4, np.float32))):
        bad = {**good, group: {**good.get(group, {}), name: value}}
        with pytest.raises(InputError, match=rf"^{group}.params in step-00000007 has \("):
            arrays.check(bad, Path("step-00000007"))
    with pytest.raises(InputError, match=r"^step-00000007 lacks optimizer.params"):
        arrays.check({"weights": good["weights"]}, Path("step-00000007"))


OLD = {"images": 50, "top1_hits": 20, "top5_hits": 45, "loss_sum": 100.5, "skipped": 1}


def progress_from(best: object) -> Progress:
    return Progress.from_dict({**state()["progress"], "best": best}, SAMPLING, "state.json", False,
                              ClassificationTask.score, upgraded)


def test_figures_of_the_first_version_are_read():
    upgraded = progress_from(OLD).best
    assert upgraded == {"images": 50, "skipped": 1, "top1": 40.0, "top5": 90.0, "loss": 2.01}
    assert progress_from(upgraded).best == upgraded
    assert math.isnan(progress_from({**OLD, "loss_sum": None}).best["loss"])


@pytest.mark.parametrize(("changes", "words"), [
    ({"images": 0}, "20 and 45 hits of 0 images, which cannot be"),
    ({"top1_hits": 46}, "46 and 45 hits of 50 images"),
    ({"top5_hits": None}, "20 and None hits"),
])
def test_old_figures_that_cannot_be(changes, words):
    with pytest.raises(InputError, match=words):
        progress_from({**OLD, **changes})


def test_figures_of_another_task():
    with pytest.raises(InputError, match="its best validation has no top1, but mIoU, loss: it is "
                                         "of another task"):
        progress_from({"mIoU": 40.1, "loss": 1.0})
