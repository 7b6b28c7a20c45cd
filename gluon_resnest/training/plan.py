"""The resolved plan of a run, from its recipe alone: what `--dry-run` prints."""

from __future__ import annotations

from math import prod
from typing import Any, Iterable

from gluon_resnest.data.sampling import Sampling
from gluon_resnest.models import get_model
from gluon_resnest.training.recipe import Recipe

BYTES_PER_GRADIENT = 4  # fp32


def plan(
    recipe: Recipe, images: int, world_size: int, lr_at: Iterable[int] = ()
) -> dict[str, Any]:
    """What a run would do, without data or devices.

    Parameters
    ----------
    recipe
        Of the run.
    images
        Number of training images.
    world_size
        Number of workers.
    lr_at
        Global steps whose learning rate is wanted, under the key ``lr``.

    Returns
    -------
    dict
        Ready for JSON: the recipe (its `lr` as ``lr_per_worker``) and what follows from it.
        ``images_per_rank`` is the largest shard; shards differ by one image at most. (With global
        sharding a rank's images of an epoch may differ by one a step.)
        ``gradient_bytes`` is what each worker gives to an all-reduce at each step.

    Raises
    ------
    InputError
        For more workers than images.
    """
    net = get_model(recipe.model, classes=recipe.classes, final_drop=recipe.final_drop)
    trainable = sum(prod(parameter.shape) for parameter in net.collect_params().values()
                    if parameter.grad_req != "null")
    steps = Sampling(images, sharding=recipe.sharding).steps(recipe.batch_size, world_size)
    schedule = recipe.schedule(images, world_size)
    settings = recipe.as_dict()
    settings["lr_per_worker"] = settings.pop("lr")  # the key lr is the schedule's
    return {
        **settings,
        "world_size": world_size,
        "global_batch": recipe.batch_size * world_size,
        "peak_lr": recipe.peak_lr(world_size),
        "train_images": images,
        "images_per_rank": -(-images // world_size),
        "steps_per_epoch": steps,
        "warmup_steps": schedule.warmup_steps,
        "total_steps": schedule.total_steps,
        "parameters": trainable,
        "gradient_bytes": trainable * BYTES_PER_GRADIENT,
        "lr": {str(step): schedule(step) for step in lr_at},
    }
