"""The estimate of a worker's memory: by hand on a small network, and beside what was measured."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mxnet as mx
import pytest
from conftest import ROOT, run_tool
from mxnet.gluon import nn

from gluon_resnest.models import get_model, list_models
from gluon_resnest.planning.activations import KNOWN_OPERATORS, activations, inference_maps
from gluon_resnest.tasks.classification.planning import worker_memory
from gluon_resnest.tasks.classification.recipe import recipe_of

# docs/performance.md: peak memory, MB, of a process that trains on random images.
MEASURED = [
    ("resnest50", 8, 1937), ("resnest50", 16, 3249), ("resnest101", 8, 2851),
    ("resnest200", 4, 2863), ("resnest269", 4, 3712), ("resnest50_fast_4s2x40d", 8, 2636),
]


@pytest.mark.parametrize(("model", "batch", "megabytes"), MEASURED)
def test_estimate_is_near_what_was_measured(model: str, batch: int, megabytes: float) -> None:
    recipe = recipe_of(model, train_size=224, batch_size=batch, dropblock_prob=0.0)
    found = worker_memory(recipe)
    # No loader and no checkpoints there.
    assert (found.total - found.images_ahead - found.checkpoint) / 1e6 == pytest.approx(
        megabytes, rel=0.10)


MEASURE = """
import json, resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(json.dumps(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024))
"""


@pytest.mark.slow
def test_estimate_of_a_run_is_within_15_percent(digits, tmp_path) -> None:
    done = run_tool("-c", MEASURE, sys.executable, "train_imagenet.py", "--model", "resnest26",
                    "--rec-train", digits / "train.rec", "--input-size", 64, "--batch-size", 40,
                    "--num-epochs", 1, "--warmup-epochs", 0, "--steps", 2, "--save-dir",
                    tmp_path / "run")
    recipe = recipe_of("resnest26", classes=4, train_size=64, batch_size=40)
    assert worker_memory(recipe).total == pytest.approx(json.loads(done.stdout), rel=0.15)


def bytes_by_epoch(folder: Path, leak: int, epochs: int) -> list[int]:
    """Bytes that a run has allocated after each epoch, of which it keeps `leak` in each."""
    records = folder / "few.rec"
    done = subprocess.run(
        [str(word) for word in (
            sys.executable, "tests/programs/memory_by_epoch.py", leak, "--model", "resnest14",
            "--no-cuda", "--input-size", 32, "--rec-train", records, "--rec-val", records,
            "--batch-size", 8, "--num-epochs", epochs, "--warmup-epochs", 0, "--log-interval", 1,
            "--save-dir", folder / f"run-{leak}")],
        cwd=ROOT, capture_output=True, text=True, timeout=1200,
        # One thread, as NaiveEngine is slow with more. Python's objects by malloc, which counts.
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
             "PYTHONMALLOC": "malloc", "MXNET_ENGINE_TYPE": "NaiveEngine"})
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_run_keeps_no_memory_from_epoch_to_epoch(digit_folders, tmp_path) -> None:
    """Validation, checkpoints, metrics and pictures among it; and a leak would be seen."""
    for folder in (digit_folders / "val").iterdir():
        (tmp_path / "few" / folder.name).mkdir(parents=True)
        for image in sorted(folder.iterdir())[:4]:
            shutil.copy(image, tmp_path / "few" / folder.name)
    run_tool("scripts/pack_records.py", tmp_path / "few", tmp_path / "few")
    allowed, leak = 0.5e6, 1.5e6  # bytes an epoch
    found = bytes_by_epoch(tmp_path, 0, epochs=16)
    if found is None:
        pytest.skip("this C library does not count what it has allocated")
    assert growth(found) < allowed, found
    leaking = bytes_by_epoch(tmp_path, int(leak), epochs=10)
    assert growth(leaking) > 0.9 * leak, leaking


def growth(found: list[int]) -> float:
    """Bytes an epoch, from the middle to the end; the least of four epochs, as threads are busy."""
    middle = len(found) // 2
    return (min(found[-4:]) - min(found[middle - 4:middle])) / (len(found) - middle)


def small_network() -> nn.HybridSequential:
    net = nn.HybridSequential()
    net.add(nn.Conv2D(16, 3, padding=1, in_channels=3, use_bias=False),
            nn.BatchNorm(in_channels=16), nn.Activation("relu"),
            nn.Conv2D(16, 3, padding=1, in_channels=16, use_bias=False),
            nn.Flatten(), nn.Dense(5, in_units=16 * 8 * 8))
    return net


def test_activations_by_hand() -> None:
    batch, image_map = 6, 4 * 6 * 16 * 8 * 8  # bytes of a map of 16 channels, 8x8
    found = activations(small_network(), (batch, 3, 8, 8))
    # The normalisation reads what the first convolution puts out, the second convolution what ReLU
    # does, the dense layer what the second does. (Gradients never read the data's own memory.)
    assert found.kept == 3 * image_map
    # Forward: what the normalisation puts out, until ReLU has read it. Backward: the gradients of
    # a layer's output and of its input.
    assert found.passing == image_map + 2 * image_map
    assert found.largest == image_map
    # In inference two neighbours at a time.
    assert inference_maps(small_network(), (batch, 3, 8, 8)) == 2 * image_map


def test_an_unknown_operator_counts_with_all_that_its_gradient_could_read() -> None:
    batch, image_map = 6, 4 * 6 * 16 * 8 * 8
    usual = activations(small_network(), (batch, 3, 8, 8))
    net = nn.HybridSequential()
    for block in small_network()._children.values():
        net.add(block)
        if isinstance(block, nn.Activation):
            net.add(nn.HybridLambda("arcsinh"))
    assert "arcsinh" not in KNOWN_OPERATORS
    # Its output is also the second convolution's input; ReLU's output was kept for that before.
    assert activations(net, (batch, 3, 8, 8)).kept == usual.kept + image_map


def test_split_attention_by_hand() -> None:
    """A block of stage 1 of ResNeSt-50: what its 16 siblings keep differs in size alone."""
    pixels, batch = 56 * 56, 2
    with_block, without = (activations(_of_blocks(count), (batch, 3, 224, 224)) for count in (3, 2))
    # Behind the block's input, in channels: conv1 64 and its ReLU 64; the splits 128, masks of a
    # byte an element of both; their sum, difference, spread attention and weighed sum 64 each;
    # conv3 256; and ReLU 256.
    channels = 64 + 64 + 128 + (64 + 128) / 4 + 4 * 64 + 256 + 256
    block = 4 * batch * pixels * channels
    assert with_block.kept - without.kept == pytest.approx(block, rel=0.01)


def _of_blocks(stage1: int):
    return get_model("resnest50", layers=(stage1, 1, 1, 1))


@pytest.mark.parametrize("for_cpu", [True, False])
@pytest.mark.parametrize("model", list_models())
def test_every_operator_is_known(model: str, for_cpu: bool) -> None:
    net = get_model(model, dropblock_prob=0.1, final_drop=0.2)
    data = mx.sym.var("data")
    graph = net._get_graph(data)[1] if for_cpu else net(data)
    operators = {node["op"] for node in json.loads(graph.tojson())["nodes"]}
    assert operators - {"null"} <= KNOWN_OPERATORS


@pytest.mark.parametrize("for_cpu", [True, False])
def test_maps_grow_with_the_batch_and_the_pixels(for_cpu: bool) -> None:
    def kept(batch: int, side: int) -> int:
        net = get_model("resnest26")  # (DropBlock's noise is wider than the map)
        return activations(net, (batch, 3, side, side), for_cpu).kept

    assert kept(24, 64) == pytest.approx(3 * kept(8, 64), rel=1e-4)
    assert kept(8, 128) == pytest.approx(4 * kept(8, 64), rel=0.02)  # the attention has one pixel


def test_parts_follow_the_recipe() -> None:
    def bytes_of(world_size: int = 1, for_cpu: bool = True, **changes):
        recipe = recipe_of("resnest14", train_size=64, batch_size=32, **changes)
        return worker_memory(recipe, world_size, for_cpu)

    usual = bytes_of()
    trained, statistics = 10_611_688, 22_336
    assert usual.gradients == usual.momentum == 4 * trained
    assert usual.weights == 4 * (trained + statistics)
    assert usual.checkpoint == usual.weights + usual.momentum
    assert (usual.ema, usual.teacher, usual.fusion_buffer) == (0, 0, 0)
    parts = usual.as_dict()
    assert parts.pop("total") == usual.total == parts.pop("host") + parts.pop("device")
    assert sum(parts.values()) == usual.total

    averaged = bytes_of(ema=0.999)
    assert averaged.ema == usual.weights
    assert averaged.checkpoint == usual.checkpoint + usual.weights
    assert bytes_of(momentum=0.0).momentum == 0
    assert bytes_of(world_size=2).fusion_buffer == 128 * 2**20
    assert bytes_of(accumulate=4).activations == pytest.approx(usual.activations / 4, rel=1e-3)
    assert bytes_of(accumulate=4).images_ahead == usual.images_ahead == 3 * 32 * 64 * 64 * 3
    taught = bytes_of(teacher="resnest50").teacher
    weights = 4 * (27_483_240 + 64_576)
    assert weights < taught < weights + usual.activations
    on_gpu = bytes_of(for_cpu=False)
    assert (on_gpu.workspace, on_gpu.process) == (0, 0)
    assert on_gpu.weights == usual.weights
    assert on_gpu.host == on_gpu.images_ahead + on_gpu.checkpoint
