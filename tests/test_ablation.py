"""The paper's ablation study as recipes: accuracies, what each row changes, the command line."""

from __future__ import annotations

import json
import runpy
import shlex

import pytest
from conftest import ROOT, run_tool

from gluon_resnest.errors import InputError
from gluon_resnest.models import find_variant
from gluon_resnest.tasks.classification.ablation import (
    LADDER,
    RECIPES,
    TABLE_1,
    find_recipe,
    published,
)
from gluon_resnest.tasks.classification.recipe import recipe_of

TRAINER = runpy.run_path(str(ROOT / "train_imagenet.py"))

# The paper's text: "improves the accuracy of ResNetD-50 from 78.31% to 79.15%", "by 0.26%",
# "boosted to 80.64%", "ResNeSt-50 achieves 81.13%"; mixup and AutoAugment as they come in.
CHAIN = [
    ("resnet-d-50", 78.31, False, False, 0),
    ("resnet-d-50+mixup", 79.15, True, False, 0),
    ("resnet-d-50+mixup+autoaugment", round(79.15 + 0.26, 2), True, True, 0),
    ("resnest-50-fast", 80.64, True, True, 2),
    ("resnest-50", 81.13, True, True, 2),
]


def resolve(command: str, classes: int = 1000):
    return TRAINER["resolve_recipe"](TRAINER["parse_arguments"](shlex.split(command)), classes)


def test_ladder_is_the_papers():
    found = []
    for row in LADDER:
        recipe = row.resolve()
        found.append((row.name, row.paper_top1, recipe.mixup_alpha > 0, recipe.auto_aug,
                      find_variant(row.model).radix))
    assert found == CHAIN


def test_neighbours_in_the_ladder_differ_in_one_thing():
    steps = []
    for below, above in zip(LADDER, LADDER[1:]):
        old, new = below.resolve().as_dict(), above.resolve().as_dict()
        steps.append({name for name in old if old[name] != new[name]} - {"recipe"})
    assert steps == [{"mixup_alpha"}, {"auto_aug"}, {"model"}, {"model"}]


@pytest.mark.parametrize("row", TABLE_1, ids=lambda row: row.name)
def test_table_1_is_named_by_radix_cardinality_and_width(row):
    variant = find_variant(row.model)
    assert row.name == f"{variant.radix}s{variant.cardinality}x{variant.width}d"
    assert (variant.depth, variant.avd_first) == (50, True)
    assert row.resolve() == recipe_of(row.model, recipe=row.name)


def test_table_1_has_the_papers_rows():
    assert [row.name for row in TABLE_1] == ["0s1x64d", "1s1x64d", "2s1x64d", "4s1x64d", "2s2x40d"]


def test_a_figure_that_the_text_lacks_is_not_quoted_as_the_papers():
    assert {row.name: row.paper_top1 for row in TABLE_1} == {
        "0s1x64d": 79.41, "1s1x64d": None, "2s1x64d": 80.64, "4s1x64d": None, "2s2x40d": None}
    # The ResNeSt repository's README, Gluon column.
    for name, top1 in (("1s1x64d", 80.35), ("4s1x64d", 80.90), ("2s2x40d", 80.84)):
        assert find_recipe(name).published_top1 == top1
        assert find_recipe(name).published_source == "ResNeSt repository's published weights"
    assert find_recipe("0s1x64d").published_source == "paper, Ablation Study"


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_as_the_paper_does(name):
    recipe = find_recipe(name).resolve()
    assert (recipe.peak_lr(64), recipe.batch_size * 64, recipe.epochs) == (3.2, 8192, 270)
    assert (recipe.train_size, recipe.test_size, recipe.wd) == (224, 224, 1e-4)


def test_dry_run_prints_the_recipe_and_the_accuracy():
    done = run_tool("train_imagenet.py", "--recipe", "resnet-d-50+mixup", "--dry-run",
                    "--world-size", "64", "--epochs", "90")
    found = json.loads(done.stdout)
    assert (found["recipe"], found["model"]) == ("resnet-d-50+mixup", "resnest50_fast_0s1x64d")
    assert (found["published_top1"], found["published_source"]) == (79.15, "paper, Ablation Study")
    assert (found["mixup_alpha"], found["auto_aug"], found["epochs"]) == (0.2, False, 90)
    assert found["overridden"] == ["epochs"]
    assert found["parameters"] == 25_576_264  # GluonCV's resnet50_v1d


def test_flags_override_a_recipe():
    recipe = resolve("--recipe resnet-d-50 --mixup --auto-aug --batch-size 32", classes=10)
    assert (recipe.mixup_alpha, recipe.auto_aug, recipe.batch_size) == (0.2, True, 32)
    assert published(recipe)["overridden"] == ["classes", "mixup_alpha", "auto_aug", "batch_size"]
    assert resolve("--recipe resnest-50 --no-mixup").mixup_alpha == 0
    assert resolve("--recipe resnet-d-50 --mixup --mixup-alpha 0.4").mixup_alpha == 0.4


def test_a_model_alone_has_its_weights_accuracy():
    assert published(resolve("--model resnest269")) == {
        "published_top1": 84.53, "published_source": "GluonCV's published weights",
        "overridden": []}
    unpublished = published(resolve("--model resnest50_fast_2s4x24d"))
    assert (unpublished["published_top1"], unpublished["published_source"]) == (None, None)


@pytest.mark.parametrize(("command", "words"), [
    ("--recipe resnest50", "did you mean resnest-50"),
    ("--recipe 3s1x64d", "did you mean"),
    ("--recipe zzz", "known: 0s1x64d"),
    ("--recipe 2s1x64d --model resnest14", "trains resnest50_fast_2s1x64d: leave --model"),
    ("--dry-run", "--model is missing"),
])
def test_bad_names_are_explained(command, words):
    with pytest.raises(InputError, match=words):
        resolve(command)


def test_recipe_and_its_own_model_agree():
    assert resolve("--recipe 2s1x64d --model resnest50_fast_2s1x64d").recipe == "2s1x64d"


def test_unknown_recipe_ends_with_code_2_and_help_lists_all():
    done = run_tool("train_imagenet.py", "--recipe", "2s1x46d", "--dry-run", code=2)
    assert done.stderr.startswith("error: unknown --recipe '2s1x46d': did you mean 2s1x64d")
    words = " ".join(run_tool("train_imagenet.py", "--help").stdout.split())
    assert all(name in words for name in ("0s1x64d", "4s1x64d", "resnest-50-fast"))
