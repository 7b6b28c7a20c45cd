"""The history of a classifier's run, beside what was published for its recipe."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from gluon_resnest.runs.history import Reference, RunHistory, read_history
from gluon_resnest.runs.run_directory import CONFIG
from gluon_resnest.strict_yaml import read_yaml
from gluon_resnest.tasks.classification.ablation import published
from gluon_resnest.tasks.classification.recipe import Recipe

_IMAGENET_CLASSES = 1000


def read_run(folder: Path) -> RunHistory:
    """The run in `folder`, as :func:`~gluon_resnest.runs.history.read_history` reads it."""
    return read_history(folder, published_reference(folder))


def published_reference(folder: Path) -> Reference | None:
    """What was published for a recipe on ImageNet, if its run has it in its settings."""
    try:
        saved = read_yaml(folder / CONFIG, "settings")["recipe"]
        known = {of.name for of in fields(Recipe)}
        recipe = Recipe(**{name: value for name, value in saved.items() if name in known})
        found = published(recipe)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # of another version, or no run of ours: there is nothing to compare with
    if recipe.classes != _IMAGENET_CLASSES or found["published_top1"] is None:
        return None
    return Reference(found["published_top1"], recipe.recipe or recipe.model,
                     found["published_source"], tuple(found["overridden"]))
