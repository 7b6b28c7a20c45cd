"""The plan of a classifier's run, from its recipe alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gluon_resnest.data.loading.sampling import Sampling
from gluon_resnest.models import get_model
from gluon_resnest.planning.cost import summary as cost_of
from gluon_resnest.planning.memory import WorkerMemory, memory_of
from gluon_resnest.planning.plan import plan_of
from gluon_resnest.planning.planned import Planned
from gluon_resnest.tasks.classification.recipe import Recipe


def planned(recipe: Recipe, images: int) -> Planned:
    """What `recipe` trains, on `images` images, before there are any."""
    network = get_model(recipe.model, classes=recipe.classes, final_drop=recipe.final_drop,
                        dropblock_prob=recipe.dropblock_prob)
    teacher = recipe.teacher and get_model(recipe.teacher, classes=recipe.classes)
    # DropBlock counts as nothing, as it does in inference.
    plain = get_model(recipe.model, classes=recipe.classes)
    return Planned(
        recipe, Sampling(images, recipe.seed, recipe.sharding),
        lambda world_size: recipe.schedule(images, world_size), network,
        (3, recipe.train_size, recipe.train_size),
        cost_of(plain, recipe.train_size).multiply_adds,
        optimizer_arrays=1 if recipe.momentum else 0, teacher=teacher or None)


def plan(recipe: Recipe, images: int, world_size: int, lr_at: Iterable[int] = (),
         **flags: Any) -> dict[str, Any]:
    """:func:`~gluon_resnest.planning.plan.plan_of` a run on `images` images, with its `flags`."""
    return plan_of(planned(recipe, images), world_size, lr_at, **flags)


def worker_memory(recipe: Recipe, world_size: int = 1, for_cpu: bool = True) -> WorkerMemory:
    """:func:`~gluon_resnest.planning.memory.memory_of` a worker that trains by `recipe`."""
    return memory_of(planned(recipe, images=1), world_size, for_cpu)
