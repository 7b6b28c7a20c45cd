"""What must be true before MXNet is imported: NumPy's old aliases and the number of threads.

MXNet 1.9.1 was the last release (2022). It uses names that NumPy removed in 1.24, and it takes
half of the cores unless OMP_NUM_THREADS is set. Both are mended here, once, and nowhere else does
the package touch environment variables.
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from pathlib import Path

import numpy as np

# Removed in NumPy 1.24; each was an alias of the builtin of the same name.
_NUMPY_ALIASES = {"bool": bool, "int": int, "float": float, "complex": complex,
                  "object": object, "str": str}

# Launchers name the rank differently: Horovod's Gloo launcher, Open MPI, MPICH or Intel MPI, Slurm.
_RANK = ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")
_SIZE = ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_GLUONCV_STORE = "https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/"
_RESNEST_STORE = "https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step2/"
_LOCAL_SIZE = ("HOROVOD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")


def _first_integer(names: tuple[str, ...], default: int) -> int:
    for name in names:
        value = os.environ.get(name, "")
        if value.isdigit():
            return int(value)
    return default


def launched_rank() -> int:
    """Rank that the launcher gave this process; 0 when it runs alone."""
    return _first_integer(_RANK, 0) if launched_size() > 1 else 0


def launched_size() -> int:
    """Number of processes that the launcher started; 1 when this one runs alone."""
    # `srun --mpi=pmix` gives the rank alone; without it Slurm's number may be of other processes.
    tasks = _first_integer(("SLURM_STEP_NUM_TASKS",), 1) if "PMIX_RANK" in os.environ else 1
    return max(1, _first_integer(_SIZE, tasks))


def launched_local_size() -> int:
    """Number of processes that the launcher started on this host."""
    return max(1, _first_integer(_LOCAL_SIZE, 1))


def usable_cores() -> int:
    """Physical cores that this process may run on, by its affinity and its container's quota.

    Two hardware threads of one core count once: oneDNN's kernels fill a core by themselves.
    """
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    cores = set()
    for cpu in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            package = (topology / "physical_package_id").read_text().strip()
            cores.add((package, (topology / "core_id").read_text().strip()))
        except OSError:
            cores.add(("cpu", str(cpu)))
    return max(1, min(len(cores), _container_quota(len(allowed))))


def _container_quota(default: int, limit: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Whole CPUs that the container's cgroup (version 2) grants, or `default` without a quota."""
    try:
        quota, period = limit.read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return default


def restore_numpy_aliases() -> None:
    """Give NumPy 1.24 to 1.26 back the aliases that MXNet 1.9.1 uses at import."""
    for name, builtin in _NUMPY_ALIASES.items():
        # Not hasattr(): it would set off NumPy's own deprecation warning.
        if name not in np.__dict__:
            setattr(np, name, builtin)


def set_thread_count() -> None:
    """Let MXNet use every core of this host, shared evenly between the ranks on it.

    A value of OMP_NUM_THREADS that the user set is left alone. MXNet reads the variable when it
    is imported, and its engine cannot be told later: MXSetNumOMPThreads reaches the calling
    thread alone, not those that run the operators. So if MXNet was first, all that is left is to
    warn.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    threads = max(1, usable_cores() // launched_local_size())
    if "mxnet" not in sys.modules:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    elif threads != _default_threads():
        warnings.warn(
            f"MXNet was imported before gluon_resnest and took {_default_threads()} of "
            f"{threads} threads: import gluon_resnest first, or set OMP_NUM_THREADS={threads}",
            RuntimeWarning, stacklevel=4)


def thread_count() -> int:
    """Threads that a runtime other than MXNet should take: as many as MXNet does."""
    return max(1, _first_integer(("OMP_NUM_THREADS",), usable_cores()))


def engine_drops_errors() -> bool:
    """Whether MXNet runs on NaiveEngine, which loses the errors of asynchronous operations."""
    return os.environ.get("MXNET_ENGINE_TYPE") == "NaiveEngine"


def leave_cores_to_the_engine() -> None:
    """Keep this thread from an OpenMP team of its own; MXNet's engine has one that computes.

    Python's thread needs a team for next to nothing (to round a large array to float32, say). But
    once there are more threads in teams than cores, libgomp stops waiting actively, and the
    engine's team goes to sleep and is woken for each operator: with a batch of one image that
    took a fifth of the time. Under NaiveEngine this thread computes itself, and keeps its team.
    """
    if not engine_drops_errors():
        from mxnet.base import _LIB  # MXNet may be imported after `prepare` only

        _LIB.MXSetNumOMPThreads(ctypes.c_int(1))


def _default_threads() -> int:
    """What MXNet 1.9.1 takes on x86 by itself: half of the logical processors it may use."""
    return max(1, len(os.sched_getaffinity(0)) // 2)


def prepare_mxnet() -> None:
    """Make `import mxnet` work and use all cores. Called by `import gluon_resnest`.

    Raises
    ------
    ImportError
        With NumPy 2, which MXNet 1.9.1 cannot use.
    """
    if int(np.__version__.split(".")[0]) >= 2:
        raise ImportError(
            f"NumPy {np.__version__} cannot run MXNet 1.9.1; install one that can: "
            "pip install 'numpy>=1.23,<2'"
        )
    restore_numpy_aliases()
    set_thread_count()


def prepare_horovod(stall_seconds: float, on_gpu: bool) -> None:
    """Set what Horovod reads when it starts; values that the user or `horovodrun` set stay.

    * HOROVOD_STALL_SHUTDOWN_TIME_SECONDS: a run of which one rank has been silent for
      `stall_seconds` ends. By itself Horovod warns after a minute, and waits for ever.
    * HOROVOD_GLOO_TIMEOUT_SECONDS: Gloo by itself gives up on a peer after 30 s by the clock, and a
      job that Slurm suspends for longer ends as soon as it goes on. Twice `stall_seconds`, so that
      the watchdogs, which do not count pauses, are the first to speak of a rank that hangs.
    * HOROVOD_CYCLE_TIME, on CPUs: its thread asks the other ranks every millisecond whether there
      is anything to do, at 0.13 ms of CPU time each. On a rank with one thread that is an eighth
      of all it has; asking every 20 ms costs a training step less than that.
    """
    os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", str(round(stall_seconds)))
    os.environ.setdefault("HOROVOD_GLOO_TIMEOUT_SECONDS", str(round(2 * stall_seconds)))
    if not on_gpu and "HOROVOD_AUTOTUNE" not in os.environ:  # which leaves set values alone
        os.environ.setdefault("HOROVOD_CYCLE_TIME", str(max(1, 20 // thread_count())))


def onednn_is_on() -> bool:
    """Whether MXNet computes with oneDNN, as it does unless MXNET_MKLDNN_ENABLED is 0."""
    return os.environ.get("MXNET_MKLDNN_ENABLED", "1") != "0"


def model_mirror() -> str | None:
    """Folder of published weights that takes the place of all others: MXNET_GLUON_REPO."""
    mirror = os.environ.get("MXNET_GLUON_REPO")
    return f"{mirror.rstrip('/')}/gluon/models/" if mirror else None


def gluoncv_store() -> str:
    """Address of the folder in which GluonCV's authors published weights."""
    return f"{_GLUONCV_STORE}gluon/models/"


def resnest_store() -> str:
    """Address of the folder of the ResNeSt repository's weights; another by ENCODING_REPO."""
    return (os.environ.get("ENCODING_REPO") or _RESNEST_STORE).rstrip("/") + "/"


def model_folder() -> Path:
    """Folder of downloaded weights, shared with GluonCV: ``$MXNET_HOME/models``."""
    return Path(os.environ.get("MXNET_HOME") or "~/.mxnet").expanduser() / "models"


def cache_folder() -> Path:
    """Folder for what can be made again: ``$XDG_CACHE_HOME/gluon-resnest`` (``~/.cache/...``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gluon-resnest"


def child_environment(threads: int | None, **variables: str) -> dict[str, str]:
    """Environment variables for a process that computes with `threads` threads.

    They are this process's, with `variables` in addition. None leaves the number of threads to
    the other process's libraries.
    """
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    return {**environment, **variables}
