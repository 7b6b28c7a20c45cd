"""Fixtures that more than one room uses: seeds, real images, and a small record file of digits."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import gluon_resnest  # noqa: F401 (prepares NumPy and threads before MXNet is imported)

# isort: split
import cv2
import mxnet as mx
import numpy as np
import slow_tests
from sklearn.datasets import load_digits, load_sample_images

ROOT = Path(__file__).resolve().parents[1]
DIGIT_CLASSES = 4


def pytest_addoption(parser) -> None:
    parser.addoption("--write-slow-tests", action="store_true",
                     help="measure all tests and write tests/slow_tests.txt")


def pytest_configure(config) -> None:
    if config.getoption("--write-slow-tests"):
        config.pluginmanager.register(slow_tests.Stopwatch())


def pytest_collection_modifyitems(items) -> None:
    listed = slow_tests.listed()
    for item in items:
        if slow_tests.function_of(item) in listed:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def seed(request) -> int:
    """A seed for each test, from its name, printed if it fails; GLUON_TEST_SEED replaces it."""
    value = int(os.environ.get("GLUON_TEST_SEED", sum(map(ord, request.node.nodeid)) % 100_000))
    print(f"seed {value}: repeat with GLUON_TEST_SEED={value}")
    mx.random.seed(value)
    return value


@pytest.fixture
def rng(seed) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray]:
    """Two photographs (427, 640, 3), uint8, RGB."""
    return [np.ascontiguousarray(image) for image in load_sample_images().images]


@pytest.fixture(scope="session")
def digit_folders(tmp_path_factory) -> Path:
    """PNG files, 32 px, four classes of digits: folders train/ (240 images) and val/ (61)."""
    root = tmp_path_factory.mktemp("digits")
    images, labels = load_digits(n_class=DIGIT_CLASSES, return_X_y=True)
    for index, (image, label) in enumerate(zip(images[:301], labels)):
        folder = root / ("train" if index < 240 else "val") / f"digit{label}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = cv2.resize((image.reshape(8, 8) * 15.9).astype(np.uint8), (32, 32))
        cv2.imwrite(str(folder / f"{index:04d}.png"), pixels)
    return root


@pytest.fixture(scope="session")
def digits(digit_folders) -> Path:
    """Folder with train.rec and val.rec of :func:`digit_folders`, packed by the command line."""
    for part in ("train", "val"):
        run_tool("scripts/pack_records.py", digit_folders / part, digit_folders / part)
    return digit_folders


@pytest.fixture
def tool(capsys, monkeypatch):
    """Run a tool in this process: `tool(script, *arguments)` gives (exit code, stderr)."""
    def call(script, *arguments):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        return stop.value.code, capsys.readouterr().err.strip()

    return call


def run_tool(*command, code: int = 0, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run a command-line tool of the checkout in a process of its own, and check its exit code."""
    return run_process(sys.executable, *command, code=code, timeout=timeout)


def run_horovod(*command, ranks: int = 2, code: int = 0, timeout: float = 300):
    """Run a Python program under `horovodrun`, one thread a rank."""
    launcher = Path(sys.executable).with_name("horovodrun")
    return run_process(launcher, "-np", ranks, sys.executable, *command, code=code,
                       timeout=timeout)


def run_process(*command, code: int, timeout: float) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([str(part) for part in command], cwd=ROOT, env=environment, text=True,
                          capture_output=True, timeout=timeout)
    assert done.returncode == code, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done


def randomize(net, rng: np.random.Generator | int = 0, branch_gamma=(0.5, 1.5)) -> None:
    """Random values for every parameter: gammas, statistics and biases too, none at its default.

    `branch_gamma` bounds the gammas that end a residual branch; small ones keep the activations
    of a deep network near 1.
    """
    rng = np.random.default_rng(rng)  # a generator is taken as it is
    for name, parameter in net._collect_params_with_prefix().items():
        shape = parameter.shape
        if name.endswith("weight"):
            fan_in = int(np.prod(shape[1:]))
            value = rng.normal(0, np.sqrt(2 / fan_in), shape)
        elif name.endswith("bn3.gamma"):
            value = rng.uniform(*branch_gamma, shape)
        elif name.endswith(("gamma", "running_var")):
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.uniform(-0.3, 0.3, shape)
        parameter.set_data(mx.nd.array(value, dtype=np.float32))
