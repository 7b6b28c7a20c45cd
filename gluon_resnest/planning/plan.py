"""The resolved plan of a run, without data or devices: what `--dry-run` prints."""

from __future__ import annotations

from typing import Any, Iterable

from gluon_resnest.planning.memory import memory_of
from gluon_resnest.planning.planned import Planned
from gluon_resnest.planning.simulation import simulate_epochs, simulation_summary
from gluon_resnest.training.task import Schedule

BYTES_PER_GRADIENT = 4  # fp32

# A training step computes the forward pass, and as much again for the gradients of the maps and
# of the weights each.
_PASSES = 3


def plan_of(
    planned: Planned,
    world_size: int,
    lr_at: Iterable[int] = (),
    *,
    prove: bool = False,
    record_bytes: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """What a run would do.

    Parameters
    ----------
    planned
        What would be trained, and on how many images.
    world_size
        Number of workers.
    lr_at
        Global steps whose learning rate is wanted, under the key ``lr``.
    prove
        Deal the images to every worker and count them, and say what the whole run takes: the
        further keys of :func:`proof`. That takes a second for ImageNet and 64 workers.
    record_bytes
        Size of the training file, if there is one: with `prove`, its bytes that a worker reads,
        under the key ``data``.
    progress
        With `prove`: show a progress line on standard error if it takes some seconds.

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
    RuntimeError
        With `prove`, if an image were read twice or not at all.
    """
    recipe, images, trainable = planned.recipe, planned.sampling.length, planned.parameters
    steps = planned.sampling.steps(recipe.batch_size, world_size)
    schedule = planned.schedule(world_size)
    settings = recipe.as_dict()
    if "lr" in settings:
        settings["lr_per_worker"] = settings.pop("lr")  # the key lr is the schedule's
    found = {
        **settings,
        "world_size": world_size,
        "global_batch": recipe.batch_size * world_size,
        "peak_lr": schedule.peak_lr,
        "train_images": images,
        "images_per_rank": -(-images // world_size),
        "steps_per_epoch": steps,
        "warmup_steps": schedule.warmup_steps,
        "total_steps": schedule.total_steps,
        "parameters": trainable,
        "gradient_bytes": trainable * BYTES_PER_GRADIENT,
        "lr": {str(step): schedule(step) for step in lr_at},
    }
    if prove:
        found.update(proof(planned, world_size, progress))
        if record_bytes is not None:
            found["data"] = _data(record_bytes, planned, found["simulation"])
    return found


def proof(planned: Planned, world_size: int, progress: bool = False) -> dict[str, Any]:
    """What `prove` adds to a plan.

    Returns
    -------
    dict
        ``simulation``: :func:`~.simulation.simulation_summary` of the epochs that stand for all.
        ``schedule``: learning rate at some updates; the last one is made with 0.
        ``worker_memory``: estimates in bytes for a worker on a ``cpu`` or, as a lower bound, a
        ``gpu`` (:class:`~gluon_resnest.planning.memory.WorkerMemory`). ``all_reduce``: bytes of
        gradients that a worker gives and, in a ring, sends; a ring of n workers sends
        2 (n - 1) / n of them. ``compute``: multiply-adds; those of training are three times those
        of the forward pass. Validation is not counted.
    """
    recipe, sampling, parameters = planned.recipe, planned.sampling, planned.parameters
    simulated = simulate_epochs(
        sampling, recipe.batch_size, world_size, recipe.epochs, progress)
    per_image = _PASSES * planned.multiply_adds
    return {
        "simulation": simulation_summary(simulated),
        "schedule": _points(planned.schedule(world_size)),
        "worker_memory": {
            name: memory_of(planned, world_size, for_cpu=name == "cpu").as_dict()
            for name in ("cpu", "gpu")},
        "all_reduce": {
            "dtype": "float16" if recipe.fp16_allreduce else "float32",
            **{f"float{8 * width}": _traffic(
                width * parameters, world_size, simulated[0].steps, recipe.epochs)
               for width in (4, 2)}},
        "compute": {
            "multiply_adds_per_image": per_image,
            "multiply_adds_per_worker_and_step": per_image * simulated[0].largest_batch,
            "multiply_adds_of_all": per_image * sampling.length * recipe.epochs,
        },
    }


def _points(schedule: Schedule) -> dict[str, dict[str, float]]:
    steps = {"before_the_first": 0, "first": 1, "end_of_warmup": schedule.warmup_steps,
             "half": schedule.total_steps // 2, "last_but_one": schedule.total_steps - 1,
             "last": schedule.total_steps}
    return {name: {"step": step, "lr": schedule(step)} for name, step in steps.items()}


def _traffic(given: int, world_size: int, steps: int, epochs: int) -> dict[str, int]:
    """Bytes that a worker gives to an all-reduce and sends in a ring."""
    sent = 2 * given * (world_size - 1) // world_size
    return {"given_per_step": given, "sent_per_step": sent,
            "given_per_epoch": given * steps, "sent_per_epoch": sent * steps,
            "given_in_all": given * steps * epochs, "sent_in_all": sent * steps * epochs}


def _data(record_bytes: int, planned: Planned, simulation: dict[str, Any]) -> dict[str, int]:
    """Bytes of the training file that a worker reads, if all its records are equally large."""
    sampling = planned.sampling
    per_epoch = record_bytes * simulation["largest_rank_images"] // sampling.length
    return {"file_bytes": record_bytes, "read_per_worker_and_epoch": per_epoch,
            # What its page cache should hold to read the disk once only.
            "read_per_worker_at_all": per_epoch if sampling.sharding == "fixed" else record_bytes}
