"""The paper's recipe: its defaults by model, its learning rates, and the dry run's plan."""

from __future__ import annotations

import json
import math
import random
import runpy
import shlex

import pytest
from conftest import ROOT, run_tool

from gluon_resnest.errors import InputError
from gluon_resnest.tasks.classification.planning import plan
from gluon_resnest.tasks.classification.recipe import IMAGENET_TRAIN_IMAGES, Recipe, recipe_of
from gluon_resnest.tasks.classification.task import train_transform
from gluon_resnest.training.schedules import Schedule

TRAINER = runpy.run_path(str(ROOT / "train_imagenet.py"))

# Model, workers, images a worker, peak learning rate, steps an epoch, train and test size, final
# dropout: the paper, and the published training commands.
PUBLISHED = [
    ("resnest14", 8, 128, 0.4, 1252, 224, 224, 0),
    ("resnest26", 8, 128, 0.4, 1252, 224, 224, 0),
    ("resnest50", 64, 128, 3.2, 157, 224, 224, 0),
    ("resnest50_fast_2s1x64d", 64, 128, 3.2, 157, 224, 224, 0),
    ("resnest101", 64, 64, 1.6, 313, 224, 256, 0),
    ("resnest200", 64, 32, 0.8, 626, 256, 320, 0.2),
    ("resnest269", 64, 32, 0.8, 626, 320, 416, 0.2),
]

# Read off the published training log of resnest14 (8 workers x 128 images): epoch and batch there,
# learning rate printed. The log counts 1251 batches an epoch.
LOGGED = [
    (0, 100, 0.006390), (0, 200, 0.012780), (1, 100, 0.086326), (4, 1200, 0.396422),
    (5, 1200, 0.399987), (9, 1200, 0.399656), (49, 1200, 0.372306), (99, 1200, 0.286271),
    (134, 1200, 0.206279), (149, 1200, 0.170847), (199, 1200, 0.065355), (249, 1200, 0.005730),
    (269, 1200, 0.000001),
]


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row[0])
def test_plan_is_the_published_run(row):
    model, workers, batch, peak, steps, train_size, test_size, final_drop = row
    found = plan(recipe_of(model), IMAGENET_TRAIN_IMAGES, workers)
    assert found["peak_lr"] == pytest.approx(peak, rel=1e-12)
    assert (found["batch_size"], found["steps_per_epoch"]) == (batch, steps)
    assert (found["train_size"], found["test_size"]) == (train_size, test_size)
    assert found["final_drop"] == final_drop
    assert found["global_batch"] == workers * batch
    assert (found["epochs"], found["warmup_steps"]) == (270, 5 * steps)
    assert found["images_per_rank"] == math.ceil(IMAGENET_TRAIN_IMAGES / workers)


def test_learning_rate_follows_the_published_log_to_a_step():
    steps = [epoch * 1251 + batch for epoch, batch, _ in LOGGED]
    found = plan(recipe_of("resnest14"), IMAGENET_TRAIN_IMAGES, 8, lr_at=steps)["lr"]
    schedule = recipe_of("resnest14").schedule(IMAGENET_TRAIN_IMAGES, 8)
    for step, (epoch, batch, logged) in zip(steps, LOGGED):
        one_step = abs(schedule(step + 1) - schedule(step - 1)) / 2
        assert abs(found[str(step)] - logged) <= max(one_step, 5e-7), (epoch, batch)


def test_schedule_by_its_formula():
    schedule = Schedule(peak_lr=0.8, total_steps=1000, warmup_steps=100, warmup_lr=0.1)
    assert schedule(0) == 0.1
    assert schedule(50) == pytest.approx(0.45)
    assert schedule(100) == 0.8
    assert schedule(550) == pytest.approx(0.4)
    assert schedule(775) == pytest.approx(0.4 * (1 - math.sqrt(0.5)))
    assert schedule(1000) == schedule(2000) == 0
    assert Schedule(peak_lr=1.0, total_steps=10)(0) == 1.0


def test_defaults_are_the_papers():
    recipe = recipe_of("resnest50")
    assert recipe == Recipe(
        model="resnest50", epochs=270, base_lr=0.1, warmup_epochs=5, warmup_lr=0, momentum=0.9,
        wd=1e-4, wd_all=False, last_gamma=True, label_smoothing=0.1, smoothing_rule="paper",
        mixup_alpha=0.2, mixup_lambda="sample", auto_aug=True, color_jitter=0.4, lighting=0.1,
        dropblock_prob=0.1)
    assert recipe_of("resnest14").dropblock_prob == 0


def test_published_command_is_understood_and_is_the_recipe():
    command = ("--model resnest50 --lr 0.05 --num-epochs 270 --batch-size 128 --use-rec "
               "--dtype float32 --warmup-epochs 5 --last-gamma --no-wd --label-smoothing --mixup "
               "--save-dir params_resnest50 --log-interval 50 --eval-frequency 5 --auto_aug "
               "--data-nthreads 32 --rec-train train.rec --rec-train-idx train.idx "
               "--rec-val val.rec --rec-val-idx val.idx")
    args = TRAINER["parse_arguments"](shlex.split(command))
    resolved = TRAINER["resolve_recipe"](args, 1000)
    assert resolved.peak_lr(64) == pytest.approx(recipe_of("resnest50").peak_lr(64))
    assert Recipe(**{**resolved.as_dict(), "lr": None}) == recipe_of("resnest50")


def test_every_field_of_the_recipe_has_a_flag():
    args = TRAINER["parse_arguments"](["--model", "resnest14"])
    without = set(Recipe.__dataclass_fields__) - set(vars(args))
    assert without == set()


def test_flags_override_the_recipe():
    args = TRAINER["parse_arguments"](shlex.split(
        "--model resnest269 --input-size 128 --no-mixup --no-auto-aug --wd-all --base-lr 0.2 "
        "--final-drop 0 --label-smoothing 0 --no-last-gamma --mixup-lambda batch"))
    recipe = TRAINER["resolve_recipe"](args, 10)
    assert (recipe.train_size, recipe.test_size, recipe.classes) == (128, 128, 10)
    assert (recipe.mixup_alpha, recipe.mixup_lambda, recipe.label_smoothing) == (0, "batch", 0)
    assert (recipe.auto_aug, recipe.last_gamma, recipe.wd_all) == (False, False, True)
    assert recipe.final_drop == 0
    assert recipe.peak_lr(64) == pytest.approx(1.6)


def test_dry_run_prints_json():
    done = run_tool("train_imagenet.py", "--model", "resnest101", "--dry-run",
                    "--world-size", "64", "--lr-at", "0,1565,84510")
    found = json.loads(done.stdout)
    assert {"model", "classes", "train_size", "test_size", "batch_size", "world_size",
            "global_batch", "peak_lr", "epochs", "steps_per_epoch", "images_per_rank",
            "gradient_bytes", "lr"} <= set(found)
    assert found["lr"] == {"0": 0.0, "1565": pytest.approx(1.6), "84510": 0.0}
    assert found["gradient_bytes"] == 4 * 48_275_016


@pytest.mark.parametrize(("field", "value", "words"), [
    ("train_size", 16, "--input-size 16 is too small"),
    ("test_size", 31, "--test-size 31 is too small"),
    ("classes", 1, "--classes 1 must be a number of at least 2"),
    ("batch_size", 0, "--batch-size 0 must be a number of at least 1"),
    ("epochs", 0, "--num-epochs 0 must be a number of at least 1"),
    ("label_smoothing", 1.0, "--label-smoothing 1.0 is too large"),
    ("wd", -1e-4, "--wd -0.0001 must be a number of at least 0"),
    ("base_lr", math.inf, "--base-lr inf must be a number"),
    ("momentum", math.nan, "--momentum nan must be a number"),
    ("crop_ratio", 0.0, "--crop-ratio 0.0 must be above 0"),
    ("warmup_epochs", 270, "--warmup-epochs 270 leaves nothing of --num-epochs 270"),
])
def test_impossible_values_are_named(field, value, words):
    with pytest.raises(InputError, match=words):
        recipe_of("resnest50", **{field: value})


def test_naming_the_models_own_size_changes_nothing():
    assert recipe_of("resnest200", train_size=256) == recipe_of("resnest200")
    assert recipe_of("resnest200", train_size=224).test_size == 224


def test_more_workers_than_images_is_no_plan():
    with pytest.raises(InputError, match="37"):
        plan(recipe_of("resnest14"), 37, 50)


def test_a_misspelt_override_is_a_bug():
    with pytest.raises(TypeError, match="epoch"):
        recipe_of("resnest50", epoch=3)


def test_crop_area_is_the_smallest_share_of_a_training_crop(rng):
    assert train_transform(recipe_of("resnest14")).area is None
    transform = train_transform(recipe_of("resnest14", train_size=64, crop_area=0.7,
                                          auto_aug=False))
    source = random.Random(int(rng.integers(2**32)))
    boxes = [transform.draw(source, 300, 300).box for _ in range(200)]
    shares = [box.height * box.width / 300**2 for box in boxes]
    assert 0.69 < min(shares) < 0.75
    assert max(shares) > 0.9
    with pytest.raises(InputError, match=r"crop area \(1.5, 1.0\)"):
        train_transform(recipe_of("resnest14", crop_area=1.5))
