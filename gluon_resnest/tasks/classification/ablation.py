"""The paper's ablation study ("Ablation Study" and Table 1) as named recipes.

Two lists: Table 1, radix against cardinality in networks of one cost, and the ladder that leads
from ResNet-D-50 to ResNeSt-50. A row that stands in both has both names. All are trained by the
paper's recipe for their model but for `overrides`; the paper names no other difference.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Any, Mapping

from gluon_resnest.errors import InputError
from gluon_resnest.models import Variant, find_variant
from gluon_resnest.tasks.classification.recipe import Recipe, recipe_of

_PAPER = "paper, Ablation Study"


@dataclass(frozen=True)
class NamedRecipe:
    """One row of the ablation study.

    Attributes
    ----------
    name
        As the paper writes it: ``2s1x64d`` in Table 1, ``resnest-50-fast`` in the ladder.
    model
        The network that it trains.
    changes
        What it changes, in words.
    overrides
        Fields of the model's recipe that it changes.
    paper_top1
        ImageNet top-1 accuracy, %, that the paper's text reports; None where only Table 1 itself
        holds the figure, which could not be checked and is therefore not quoted.
    """

    name: str
    model: str
    changes: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    paper_top1: float | None = None

    @property
    def published_top1(self) -> float | None:
        """Accuracy that the paper reports or else that of the weights its authors published."""
        return self._published()[0]

    @property
    def published_source(self) -> str | None:
        """Where :attr:`published_top1` is from."""
        return self._published()[1]

    def _published(self) -> tuple[float | None, str | None]:
        if self.paper_top1 is not None:
            return self.paper_top1, _PAPER
        return published_weights_accuracy(find_variant(self.model))

    def resolve(self, **overrides: Any) -> Recipe:
        """The whole recipe, with further `overrides` (those that are None change nothing)."""
        given = {name: value for name, value in overrides.items() if value is not None}
        return recipe_of(self.model, recipe=self.name, **{**self.overrides, **given})


_NO_MIXUP = {"mixup_alpha": 0.0}
_NO_AUTO_AUG = {"auto_aug": False}

TABLE_1 = (
    NamedRecipe("0s1x64d", "resnest50_fast_0s1x64d", "plain block of ResNet-D", paper_top1=79.41),
    NamedRecipe("1s1x64d", "resnest50_fast_1s1x64d", "radix 1"),
    NamedRecipe("2s1x64d", "resnest50_fast_2s1x64d", "radix 2", paper_top1=80.64),
    NamedRecipe("4s1x64d", "resnest50_fast_4s1x64d", "radix 4"),
    # Of the weights trained again after the authors had corrected the layout of radix and
    # cardinality: a figure older than that is of another network.
    NamedRecipe("2s2x40d", "resnest50_fast_2s2x40d", "radix 2, cardinality 2"),
)

LADDER = (
    NamedRecipe("resnet-d-50", "resnest50_fast_0s1x64d", "neither mixup nor AutoAugment",
                {**_NO_MIXUP, **_NO_AUTO_AUG}, 78.31),
    NamedRecipe("resnet-d-50+mixup", "resnest50_fast_0s1x64d", "+ mixup", _NO_AUTO_AUG, 79.15),
    NamedRecipe("resnet-d-50+mixup+autoaugment", "resnest50_fast_0s1x64d", "+ AutoAugment",
                paper_top1=79.41),
    NamedRecipe("resnest-50-fast", "resnest50_fast_2s1x64d", "+ split attention",
                paper_top1=80.64),
    NamedRecipe("resnest-50", "resnest50", "+ pooling behind the 3x3 convolution",
                paper_top1=81.13),
)

RECIPES: dict[str, NamedRecipe] = {row.name: row for row in (*TABLE_1, *LADDER)}


def find_recipe(name: str) -> NamedRecipe:
    """The row called `name`.

    Raises
    ------
    InputError
        If there is none, naming the nearest.
    """
    row = RECIPES.get(name.lower())
    if row is None:
        near = difflib.get_close_matches(name.lower(), RECIPES, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(RECIPES)}"
        raise InputError(f"unknown --recipe '{name}': {hint} (--recipe list shows all)")
    return row


def published_weights_accuracy(variant: Variant) -> tuple[float | None, str | None]:
    """Top-1, %, of the weights that the authors published for `variant`, and whose table says so.

    GluonCV has the plain networks, the ResNeSt repository the ablation's.
    """
    if variant.published.top1 is None:
        return None, None
    owner = "ResNeSt repository" if variant.avd_first else "GluonCV"
    return variant.published.top1, f"{owner}'s published weights"


def published(recipe: Recipe) -> dict[str, Any]:
    """What was published for the run that `recipe` describes, ready for a plan in JSON.

    ``overridden`` names the fields in which `recipe` is not that run: with any of them the figure
    is of another run.
    """
    if recipe.recipe is None:
        own = recipe_of(recipe.model)
        top1, source = published_weights_accuracy(find_variant(recipe.model))
    else:
        row = find_recipe(recipe.recipe)
        own, top1, source = row.resolve(), row.published_top1, row.published_source
    now, then = recipe.as_dict(), own.as_dict()
    return {"published_top1": top1, "published_source": source,
            "overridden": [name for name in now if now[name] != then[name]]}


def recipe_table() -> str:
    """The rows as a table in Markdown: what `--recipe list` prints and docs/models.md holds."""
    lines = ["| `--recipe` | `--model` | what it changes | top-1, % | source |",
             "|---|---|---|--:|---|"]
    for title, rows in (("Table 1", TABLE_1), ("the ladder", LADDER)):
        lines += [f"| *{title}* | | | | |"]
        lines += [f"| `{row.name}` | `{row.model}` | {row.changes} | "
                  f"{'-' if row.published_top1 is None else format(row.published_top1, '.2f')} | "
                  f"{row.published_source or '-'} |" for row in rows]
    return "\n".join(lines)
