"""Build Horovod 0.28.1 for MXNet with Gloo, and keep the wheel for the next clone.

Horovod compiles against the MXNet that it can import, so MXNet is installed first and pip's build
isolation is off. It needs a C++14 compiler, make and CMake 3 (Gloo's CMakeLists asks for a policy
that CMake 4 dropped); CMake comes from PyPI where the machine has none that fits.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from toolchain.install_progress import InstallError, InstallProgress

VERSION = "0.28.1"
CMAKE_REQUIREMENT = "cmake>=3.18,<4"
_GIB_PER_JOB = 1.5  # what one compilation of Horovod's largest sources takes, generously
_REQUIRED = ("[X] MXNet", "[X] Gloo")


def build_flags(mxnet: str) -> dict[str, str]:
    """Environment variables that decide what is built; the user's own HOROVOD_* win."""
    flags = {
        "HOROVOD_WITH_MXNET": "1",
        "HOROVOD_WITH_GLOO": "1",
        "HOROVOD_WITHOUT_MPI": "1",
        "HOROVOD_WITHOUT_TENSORFLOW": "1",
        "HOROVOD_WITHOUT_PYTORCH": "1",
        "HOROVOD_BUILD_ARCH_FLAGS": " ".join(f"-m{name}" for name in _vector_extensions()),
        # By default the path of this environment's MXNet would be written into the library;
        # relative to itself, the wheel can be installed anywhere. Without symbols: 14 -> 1 MB.
        "LDFLAGS": " ".join(["-Wl,-rpath,$ORIGIN/../../mxnet -Wl,--strip-all",
                             *os.environ.get("LDFLAGS", "").split()]),
    }
    if mxnet != "cpu":
        flags["HOROVOD_GPU_OPERATIONS"] = "NCCL"
    chosen = {name: value for name, value in os.environ.items()
              if name.startswith("HOROVOD_") or name in ("CFLAGS", "CXXFLAGS")}
    return {**flags, **chosen}


def _vector_extensions() -> list[str]:
    """Those of the extensions that Horovod's kernels can use which this processor has."""
    try:
        line = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        line = None
    present = line.group(1).split() if line else []
    return [name for name in ("f16c", "avx", "fma") if name in present]


def find_compiler() -> str:
    """Path and version of the C++ compiler, once it has compiled and linked a program.

    Raises
    ------
    InstallError
        Without a compiler that works, or without make.
    """
    name = os.environ.get("CXX", "g++")
    path = shutil.which(name)
    if path is None:
        raise InstallError(f"no C++ compiler `{name}`, and Horovod has to be compiled: install "
                           "one, as with `apt-get install g++`, or name yours in CXX")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cc")
        source.write_text("#include <memory>\nint main() { return *std::make_unique<int>(0); }\n")
        probe = subprocess.run([path, "-std=c++14", "-o", f"{folder}/probe", str(source)],
                               capture_output=True, text=True)
    if probe.returncode != 0:
        reason = (probe.stderr.strip() or f"exit code {probe.returncode}").splitlines()[0]
        raise InstallError(f"the C++ compiler {path} cannot compile C++14 ({reason}): install "
                           "one that can, as with `apt-get install g++`, or name yours in CXX")
    if shutil.which("make") is None:
        raise InstallError("no `make`, and Horovod is built with it: `apt-get install make`")
    version = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
    return f"{path} {version.splitlines()[0] if version else ''}"


def cached_wheel(python: Path, mxnet: str, compiler: str) -> Path:
    """Where the wheel of exactly this build is kept, whether it is there yet or not."""
    tag = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_config_var('SOABI'))"],
        capture_output=True, text=True, check=True).stdout.strip()
    mxnet_version = subprocess.run(
        [str(python), "-c", "import mxnet; print(mxnet.__version__)"],
        capture_output=True, text=True, check=True).stdout.strip()
    everything = {
        "python": tag, "mxnet": [mxnet, mxnet_version], "horovod": VERSION,
        "flags": build_flags(mxnet), "compiler": compiler,
        "machine": [platform.machine(), *platform.libc_ver()],
    }
    digest = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "gluon-resnest" / f"horovod-{VERSION}-{tag}-{digest}"
    built = sorted(folder.glob("*.whl"))
    return built[0] if built else folder / "none.whl"


def build(python: Path, mxnet: str, folder: Path, progress: InstallProgress) -> Path:
    """Compile the wheel and move it into `folder`, whole or not at all."""
    with tempfile.TemporaryDirectory(prefix="horovod-") as scratch:
        environment = {
            **os.environ, **build_flags(mxnet),
            "HOROVOD_CMAKE": str(_find_cmake(python, Path(scratch), progress)),
            # Not those of the `make` that runs this.
            "MAKEFLAGS": f"-j{_jobs()}", "MFLAGS": "", "MAKELEVEL": "",
        }
        progress.run([python, "-m", "pip", "--disable-pip-version-check", "wheel", "-v",
                      "--no-build-isolation", "--no-deps", "--no-cache-dir", "--no-binary",
                      "horovod", "--wheel-dir", scratch, f"horovod=={VERSION}"], env=environment)
        built = next(Path(scratch).glob("*.whl"))
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{os.getpid()}.partial"
        shutil.copyfile(built, partial)
        os.replace(partial, folder / built.name)
    return folder / built.name


def _find_cmake(python: Path, scratch: Path, progress: InstallProgress) -> Path:
    chosen = os.environ.get("HOROVOD_CMAKE") or shutil.which("cmake")
    if chosen:
        answer = subprocess.run([chosen, "--version"], capture_output=True, text=True).stdout
        version = re.search(r"version (\d+)\.(\d+)", answer)
        if version and (3, 13) <= tuple(map(int, version.groups())) < (4, 0):
            return Path(chosen)
    progress.run([python, "-m", "pip", "--disable-pip-version-check", "install",
                  "--target", scratch / "cmake", CMAKE_REQUIREMENT])
    # The program itself: bin/cmake is a script that would need PYTHONPATH.
    return scratch / "cmake/cmake/data/bin/cmake"


def _jobs() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return max(1, min(cores or 1, int(memory / _GIB_PER_JOB)))


def check(python: Path) -> str | None:
    """None when `horovodrun --check-build` shows MXNet and Gloo, else what it showed."""
    answer = subprocess.run([str(python.parent / "horovodrun"), "--check-build"],
                            capture_output=True, text=True, timeout=300)
    if answer.returncode == 0 and all(mark in answer.stdout for mark in _REQUIRED):
        return None
    why = subprocess.run([str(python), "-c", "import horovod.mxnet"],
                         capture_output=True, text=True, timeout=300)
    return "\n".join((answer.stdout, answer.stderr, why.stderr)).strip()
