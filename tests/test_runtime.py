"""gluon_resnest/runtime.py: each check in a Python of its own, since MXNet is imported once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gluon_resnest import runtime

# The environment's own repair (toolchain/numpy_aliases.py) out of the way, and NumPy as from 1.24
# on, whichever version is installed: without its old aliases.
BARE_NUMPY = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, "__name__", "") != "_BeforeMXNet"]
import numpy
others = numpy.__getattr__
def without_aliases(name):
    if name in ("bool", "int", "float", "complex", "object", "str"):
        raise AttributeError(f"module 'numpy' has no attribute {name!r}")
    return others(name)
numpy.__getattr__ = without_aliases
assert "bool" not in numpy.__dict__
"""

SMALL_NET = """
import mxnet as mx
import numpy as np
net = mx.gluon.nn.HybridSequential()
net.add(mx.gluon.nn.Conv2D(4, 3), mx.gluon.nn.BatchNorm(), mx.gluon.nn.Activation("relu"),
        mx.gluon.nn.Dense(3))
net.initialize()
net.hybridize()
with mx.autograd.record():
    loss = net(mx.nd.random.uniform(shape=(2, 3, 8, 8))).square().sum()
loss.backward()
weight = net[0].weight.grad().asnumpy()
assert np.isfinite(weight).all() and np.abs(weight).max() > 0
print("trained")
"""

OPENMP = "__import__('ctypes').CDLL('libgomp.so.1').omp_get_max_threads"
# As a thread of MXNet's engine finds it; Python's own thread is kept at 1.
OPENMP_THREADS = (f"__import__('concurrent.futures').futures.ThreadPoolExecutor()"
                  f".submit({OPENMP}).result()")


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    inherited = {name: value for name, value in os.environ.items()
                 if name != "OMP_NUM_THREADS" and not name.startswith("HOROVOD_")}
    return subprocess.run([sys.executable, "-c", code], env={**inherited, **environment},
                          capture_output=True, text=True, timeout=120)


def output(code: str, **environment: str) -> str:
    done = python(code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_mxnet_alone_cannot_use_numpy_without_aliases():
    done = python(BARE_NUMPY + "import mxnet")
    assert done.returncode == 1
    assert "has no attribute 'bool'" in done.stderr


def test_trains_with_numpy_without_aliases():
    assert output(BARE_NUMPY + "import gluon_resnest\n" + SMALL_NET) == "trained"


def test_trains_with_the_installed_numpy():
    assert output("import gluon_resnest\n" + SMALL_NET) == "trained"


def test_restored_aliases_are_the_builtins():
    assert output(BARE_NUMPY + "import gluon_resnest\n"
                  "print([numpy.bool, numpy.int, numpy.float, numpy.complex, numpy.object, "
                  "numpy.str] == [bool, int, float, complex, object, str])") == "True"


@pytest.mark.parametrize("version", ["2.0.0", "2.3.1"])
def test_numpy_2_is_refused_in_one_line_before_mxnet(version):
    done = python(f"import sys, numpy\nnumpy.__version__ = {version!r}\n"
                  "try:\n    import gluon_resnest\n"
                  "except ImportError as error:\n    print(error, 'mxnet' in sys.modules)")
    assert done.stdout == (f"NumPy {version} cannot run MXNet 1.9.1; install one that can: "
                           "pip install 'numpy>=1.23,<2' False\n")


@pytest.mark.parametrize("ranks", [1, 2, 3, 1000])
def test_threads_are_cores_shared_by_the_ranks_of_this_host(ranks):
    expected = max(1, runtime.usable_cores() // ranks)
    told = output(f"import os, gluon_resnest\n"
                  f"print(os.environ['OMP_NUM_THREADS'], {OPENMP_THREADS})",
                  HOROVOD_SIZE="1000", HOROVOD_LOCAL_SIZE=str(ranks))
    assert told == f"{expected} {expected}"


def test_a_thread_count_of_the_user_is_left_alone():
    told = output(f"import os, gluon_resnest\n"
                  f"print(os.environ['OMP_NUM_THREADS'], {OPENMP_THREADS})",
                  OMP_NUM_THREADS="3", HOROVOD_LOCAL_SIZE="2")
    assert told == "3 3"


@pytest.mark.parametrize(("engine", "threads"), [
    ("ThreadedEnginePerDevice", 1), ("NaiveEngine", 3)])
def test_pythons_thread_computes_only_if_there_is_no_engine_to_do_it(engine, threads):
    """A second OpenMP team would have the engine's go to sleep between operators."""
    told = output("import os, gluon_resnest, mxnet as mx, numpy as np\n"
                  "mx.nd.random.uniform(shape=(1000, 1000)).wait_to_read()\n"
                  "before = len(os.listdir('/proc/self/task'))\n"
                  "mx.nd.array(np.zeros((1000, 1000))).wait_to_read()  # float64: converted\n"
                  f"print(len(os.listdir('/proc/self/task')) - before, {OPENMP}())",
                  OMP_NUM_THREADS="3", MXNET_ENGINE_TYPE=engine)
    assert told == f"0 {threads}"


@pytest.mark.parametrize("ranks", [1, 1000])
def test_warns_when_mxnet_was_imported_first_and_took_another_number_of_threads(ranks):
    told = output("import os, warnings, mxnet\n"
                  "with warnings.catch_warnings(record=True) as caught:\n"
                  "    warnings.simplefilter('always')\n    import gluon_resnest\n"
                  "print('OMP_NUM_THREADS' in os.environ,"
                  " *[w.message for w in caught if w.category is RuntimeWarning])",
                  HOROVOD_LOCAL_SIZE=str(ranks))
    taken = max(1, len(os.sched_getaffinity(0)) // 2)
    due = max(1, runtime.usable_cores() // ranks)
    if taken == due:
        assert told == "False"
    else:
        assert told == (f"False MXNet was imported before gluon_resnest and took {taken} of {due} "
                        f"threads: import gluon_resnest first, or set OMP_NUM_THREADS={due}")


def test_cores_follow_the_affinity_of_the_process():
    told = output("import os\nfrom gluon_resnest import runtime\n"
                  "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
                  "print(runtime.usable_cores())")
    assert told == "1"


@pytest.mark.parametrize(("content", "cores"), [
    ("max 100000\n", 8), ("250000 100000\n", 2), ("50000 100000\n", 1), ("", 8),
])
def test_cores_follow_the_quota_of_the_container(tmp_path, content, cores):
    (tmp_path / "cpu.max").write_text(content)
    assert runtime._container_quota(8, tmp_path / "cpu.max") == cores


def test_no_quota_file_is_no_quota(tmp_path):
    assert runtime._container_quota(8, tmp_path / "absent") == 8


@pytest.mark.parametrize(("environment", "place"), [
    ({}, (0, 1, 1)),
    ({"HOROVOD_RANK": "5", "HOROVOD_SIZE": "8", "HOROVOD_LOCAL_SIZE": "4"}, (5, 8, 4)),
    ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4",
      "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, (3, 4, 2)),
    ({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALNRANKS": "2"}, (1, 2, 2)),
    # Within a Slurm allocation, but not started by a launcher: alone.
    ({"SLURM_PROCID": "7"}, (0, 1, 1)),
    ({"HOROVOD_RANK": "one", "HOROVOD_SIZE": ""}, (0, 1, 1)),
])
def test_place_among_the_ranks(monkeypatch, environment, place):
    for name in (*runtime._RANK, *runtime._SIZE, *runtime._LOCAL_SIZE):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (runtime.launched_rank(), runtime.launched_size(),
            runtime.launched_local_size()) == place


def test_import_needs_mxnet_and_numpy_alone_and_no_network():
    others = ("gluoncv", "matplotlib", "onnx", "onnxruntime", "tensorboardX", "horovod", "cv2",
              "PIL", "yaml", "tqdm", "scipy", "sklearn", "pandas")
    code = f"""
import sys
def no_network(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        raise SystemExit(f"network: {{event}} {{arguments}}")
sys.addaudithook(no_network)
for name in {others!r}:
    sys.modules[name] = None  # any import of it, even one that is caught, now fails
import gluon_resnest
print(sorted(name for name in {others!r} if sys.modules.get(name)), gluon_resnest.__version__)
"""
    assert output(code).startswith("[] ")


def test_the_network_check_can_fail():
    done = python("import sys, socket\n"
                  "sys.addaudithook(lambda event, a: event == 'socket.connect' and sys.exit(9))\n"
                  "socket.socket().connect(('127.0.0.1', 9))")
    assert done.returncode == 9


@pytest.mark.parametrize(("given", "on_gpu", "expected"), [
    ({"OMP_NUM_THREADS": "1"}, False, ("300", "600", "20")),
    ({"OMP_NUM_THREADS": "8"}, False, ("300", "600", "2")),
    ({"OMP_NUM_THREADS": "64"}, False, ("300", "600", "1")),
    ({"OMP_NUM_THREADS": "1"}, True, ("300", "600", None)),
    ({"OMP_NUM_THREADS": "1", "HOROVOD_AUTOTUNE": "1"}, False, ("300", "600", None)),
    ({"HOROVOD_CYCLE_TIME": "3", "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "9",
      "HOROVOD_GLOO_TIMEOUT_SECONDS": "7"}, False, ("9", "7", "3")),
])
def test_what_horovod_is_told_before_it_starts(given, on_gpu, expected, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(given))
    runtime.prepare_horovod(300.0, on_gpu)
    assert (os.environ["HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"],
            os.environ["HOROVOD_GLOO_TIMEOUT_SECONDS"],
            os.environ.get("HOROVOD_CYCLE_TIME")) == expected


def test_nothing_but_runtime_touches_environment_variables():
    package = Path(runtime.__file__).parent
    users = sorted(str(file.relative_to(package)) for file in package.rglob("*.py")
                   if "os.environ" in file.read_text() or "getenv" in file.read_text())
    assert users == ["runtime.py"]
