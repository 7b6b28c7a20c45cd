"""Virtual environments of the peers, made on first use and kept in the cache folder.

The peers cannot share one: GluonCV refuses to be imported beside PyTorch, and needs a NumPy that
PyTorch's companions do not take.
"""

from __future__ import annotations

import fcntl
import json
import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contest import PROGRAMS
from gluon_resnest import runtime
from gluon_resnest.errors import InputError

_STAMP = "installed.json"


@dataclass(frozen=True)
class Environment:
    """What a virtual environment holds.

    Attributes
    ----------
    serves
        For messages: the libraries that it is made for.
    requirements
        Installed with all they depend on.
    unmanaged
        Installed without: what they declare would replace or bloat the others.
    check
        Python that must run in the folder of the programs before the environment counts as made.
    pythons
        Oldest version of Python that can hold it, and the first that cannot any more.
    """

    serves: str
    requirements: tuple[str, ...]
    unmanaged: tuple[str, ...]
    check: str
    pythons: tuple[tuple[int, int], tuple[int, int]]


ENVIRONMENTS = {
    # What GluonCV declares names opencv-python, whose wheels need libGL. NumPy 1.23 is the last
    # that MXNet takes as it is; the others are the newest for it and for Python 3.8 to 3.11.
    "gluoncv": Environment(
        serves="GluonCV",
        requirements=("mxnet==1.9.1", "numpy==1.23.5", "autocfg==0.0.8", "matplotlib==3.7.5",
                      "opencv-python-headless==4.11.0.86", "pandas==2.0.3", "Pillow==10.4.0",
                      "portalocker==3.0.0", "PyYAML==6.0.3", "requests==2.32.4",
                      "scipy==1.10.1", "tqdm==4.70.1", "yacs==0.1.8"),
        unmanaged=("gluoncv==0.10.5.post0",),
        check="import run_gluoncv",
        pythons=((3, 8), (3, 12)),
    ),
    # PyTorch's common wheel brings gigabytes of CUDA along; pip takes a CPU build instead where
    # PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL offers one. torchvision may be of another build: its
    # Python is all that is needed.
    "torch": Environment(
        serves="timm and torchvision on PyTorch, and ONNX Runtime",
        requirements=("torch==2.13.0", "numpy==2.4.6", "Pillow==13.0.0", "PyYAML==6.0.3",
                      "huggingface_hub==2.4.0", "safetensors==0.8.0", "onnx==1.23.2",
                      "onnxscript==0.7.2", "onnxruntime==1.32.0"),
        unmanaged=("torchvision==0.28.0", "timm==1.0.31"),
        check="import run_onnxruntime, run_timm, run_torchvision, onnxscript",
        pythons=((3, 11), (3, 14)),
    ),
}


def python(name: str) -> Path:
    """The Python of an environment of :data:`ENVIRONMENTS`, which is made if it is not there.

    Raises
    ------
    InputError
        If this version of Python cannot hold it, or if it cannot be made, as without a network.
    """
    return made(ENVIRONMENTS[name], name, runtime.cache_folder() / "peers")


def is_made(name: str) -> bool:
    """Whether :func:`python` finds the environment there; it could change in the meantime."""
    folder = _folder(name, runtime.cache_folder() / "peers")
    return (fits(name) and _stamp_of(folder) == _stamp(ENVIRONMENTS[name])
            and (folder / "bin/python").exists())


def fits(name: str) -> bool:
    """Whether this version of Python can hold the environment."""
    oldest, too_new = ENVIRONMENTS[name].pythons
    return oldest <= sys.version_info[:2] < too_new


def made(environment: Environment, name: str, root: Path) -> Path:
    """The Python of `environment`, in a folder of its own in `root`."""
    version = sys.version_info[:2]
    oldest, too_new = environment.pythons
    if not oldest <= version < too_new:
        raise InputError(
            f"{environment.serves} needs Python {_dotted(oldest)} or later and below "
            f"{_dotted(too_new)}, this is {_dotted(version)}: leave that peer out, or make .venv "
            "with another Python")
    folder = _folder(name, root)
    interpreter = folder / "bin/python"
    with _alone(folder):
        if _stamp_of(folder) != _stamp(environment) or not interpreter.exists():
            _make(environment, folder, interpreter)
    return interpreter


def _folder(name: str, root: Path) -> Path:
    return root / f"{name}-{_dotted(sys.version_info[:2])}"


def _stamp(environment: Environment) -> dict[str, object]:
    return {"python": sys.version, "requirements": list(environment.requirements),
            "unmanaged": list(environment.unmanaged)}


def _stamp_of(folder: Path) -> dict[str, object] | None:
    """What `folder` was made from, or None if its making never came to an end."""
    try:
        return json.loads((folder / _STAMP).read_text())
    except (OSError, ValueError):
        return None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process makes or judges `folder` meanwhile; the lock ends with this process."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = open(f"{folder}.lock", "w")
    except OSError as error:
        raise InputError(f"cannot write {folder.parent} ({error.strerror}): name another cache "
                         "folder with XDG_CACHE_HOME") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"waiting for another process that sets up {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(environment: Environment, folder: Path, interpreter: Path) -> None:
    """Make `folder` anew, in its place: scripts in it hold its path. The stamp comes last."""
    _say(f"making the environment of {environment.serves} in {folder}, once; this takes minutes")
    try:
        # Without pip: ours installs into it, also where Python comes without ensurepip.
        venv.EnvBuilder(clear=True, symlinks=True, with_pip=False).create(folder)
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(f"cannot make a virtual environment in {folder} ({error})") from error
    _install(environment, folder, interpreter, environment.requirements)
    _install(environment, folder, interpreter, ("--no-deps", *environment.unmanaged))
    answer = subprocess.run([str(interpreter), "-c", environment.check], text=True, cwd=PROGRAMS,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if answer.returncode:
        reason = (answer.stderr.strip() or f"exit code {answer.returncode}").splitlines()[-1]
        raise InputError(f"{environment.serves} was installed in {folder} but cannot be imported: "
                         f"{reason}")
    (folder / _STAMP).write_text(json.dumps(_stamp(environment), indent=2) + "\n")


def _install(
    environment: Environment, folder: Path, interpreter: Path, words: tuple[str, ...]
) -> None:
    log = folder / "pip.log"
    command = [sys.executable, "-m", "pip", "--python", str(interpreter), "--log", str(log),
               "--disable-pip-version-check", "install", *words]
    # pip's own progress, but on stderr: stdout is for results.
    if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=2).returncode:
        errors: list[str] = []
        with suppress(OSError):
            errors = re.findall(r"ERROR: (.*)", log.read_text(errors="replace"))
        reason = errors[-1] if errors else "pip gave no reason"
        raise InputError(
            f"cannot install {environment.serves} ({reason}): check the network or pip's index, "
            f"or leave that peer out; the whole log is {log}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
