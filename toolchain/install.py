"""Set up .venv: this package in editable form, MXNet, Horovod and what the extras need.

A stamp inside the environment says what it was made from and what is in it. As long as nothing
of that changed, a further call costs a few milliseconds and prints nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from toolchain import horovod_wheel, virtual_environment
from toolchain.install_progress import InstallError, InstallProgress

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
MXNET = ("cpu", "cu112", "cu117")
EXTRAS = ("horovod", "onnx", "lint", "dev", "demo")
# Installed without their dependencies. GluonCV's name opencv-python, whose wheels need libGL (what
# it really imports is in setup.py). The photographs declare Python 3.9, but they are just files.
UNMANAGED = {"dev": "gluoncv==0.10.5.post0", "demo": "elpv-dataset==1.0.0.post1"}
HOROVOD_NEEDS = ("cloudpickle", "packaging", "psutil", "PyYAML")


@dataclass(frozen=True)
class Stamp:
    """What an environment was made from, and what is in it."""

    fingerprint: str  # of the files that say what to install and how
    python: str
    folder: str  # scripts in an environment hold its path: it can't be moved
    mxnet: str
    extras: tuple[str, ...]

    @classmethod
    def read(cls, venv: Path) -> Stamp | None:
        """The stamp of `venv`, or None if its setting-up never came to an end."""
        try:
            fields = json.loads((venv / "installed.json").read_text())
            return cls(**{**fields, "extras": tuple(fields["extras"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(self, venv: Path) -> None:
        (venv / "installed.json").write_text(json.dumps(asdict(self), indent=2) + "\n")

    def serves(self, wanted: Stamp) -> bool:
        """Whether nothing has to be done for `wanted`."""
        return (self.shares_base(wanted) and self.fingerprint == wanted.fingerprint
                and set(wanted.extras) <= set(self.extras))

    def shares_base(self, wanted: Stamp) -> bool:
        """Whether `wanted` can be had by installing into this environment."""
        return (self.python, self.folder, self.mxnet) == (
            wanted.python, wanted.folder, wanted.mxnet)


def fingerprint(root: Path = ROOT) -> str:
    """SHA-256 over the files that decide what is installed, and how."""
    digest = hashlib.sha256()
    files = [root / "setup.py", root / "gluon_resnest/version.py", root / "pyproject.toml",
             root / "constraints.txt", *sorted((root / "toolchain").glob("*.py"))]
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def main() -> None:
    for stream in (sys.stdout, sys.stderr):  # a path may have letters that a terminal lacks
        stream.reconfigure(errors="backslashreplace")
    try:
        try:
            _install_what_is_asked_for()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _install_what_is_asked_for() -> None:
    options = _parser().parse_args()
    if not options.venv:
        print("error: --venv must name a folder, and it is empty", file=sys.stderr)
        sys.exit(2)
    extras = tuple(sorted(set(options.extras.split(",")) - {""}))
    unknown = set(extras) - set(EXTRAS)
    if unknown:
        print(f"error: --extras: unknown {', '.join(sorted(unknown))}; choose from "
              f"{', '.join(EXTRAS)}", file=sys.stderr)
        sys.exit(2)
    venv = Path(options.venv).resolve()
    found = Stamp.read(venv)
    wanted = Stamp(fingerprint(), platform.python_version(), str(venv),
                   options.mxnet or (found.mxnet if found else "cpu"), extras)
    if found and found.serves(wanted):
        return
    try:
        install(venv, found, wanted)
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to set up the environment", file=sys.stderr)
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", default=str(ROOT / ".venv"), metavar="FOLDER")
    parser.add_argument("--mxnet", choices=MXNET,
                        help="build of MXNet 1.9.1; with cu112 or cu117 Horovod is built for NCCL "
                             "(default: what FOLDER has already, else cpu)")
    parser.add_argument("--extras", default="horovod,onnx", metavar="LIST",
                        help=f"comma-separated, of {', '.join(EXTRAS)} (default: %(default)s); "
                             "what FOLDER has already stays")
    return parser


def install(venv: Path, found: Stamp | None, wanted: Stamp) -> None:
    """Bring `venv` from `found` to `wanted`, step by step, and stamp it."""
    start = time.monotonic()
    reuse = found is not None and found.shares_base(wanted)
    extras = tuple(sorted({*wanted.extras, *(found.extras if reuse else ())}))
    print(f"setting up {venv.name} (Python {wanted.python}): {wanted.mxnet}, "
          f"{', '.join(extras)}; log: {_short(venv)}/install.log", flush=True)
    compiler = horovod_wheel.find_compiler() if "horovod" in extras else ""
    progress = InstallProgress(venv / "install.log")
    if not reuse:
        with progress.step("virtual environment"):
            virtual_environment.create(venv, progress)
    (venv / "installed.json").unlink(missing_ok=True)  # valid again when all is done
    python = venv / "bin/python"
    with progress.step("pip, setuptools and wheel"):
        _pip(progress, python, "--upgrade", "pip", "setuptools", "wheel")
    with progress.step(f"MXNet 1.9.1 ({wanted.mxnet}) and the packages of the extras"):
        # Small, and of use wherever a network is trained: no flag chooses it.
        named = ",".join([wanted.mxnet, "tensorboard", *(set(extras) & {"onnx", "lint", "dev"})])
        needs = HOROVOD_NEEDS if "horovod" in extras else ()
        _pip(progress, python, "--no-build-isolation", "--editable", f"{ROOT}[{named}]", *needs)
        unmanaged = [UNMANAGED[extra] for extra in extras if extra in UNMANAGED]
        if unmanaged:
            _pip(progress, python, "--no-deps", "--ignore-requires-python", *unmanaged)
        _restore_numpy_aliases(python)
    _check_mxnet(python)
    if "horovod" in extras:
        _install_horovod(python, wanted.mxnet, compiler, progress)
    Stamp(wanted.fingerprint, wanted.python, wanted.folder, wanted.mxnet, extras).write(venv)
    print(f"  ready after {time.monotonic() - start:.0f} s", flush=True)


def _pip(progress: InstallProgress, python: Path, *arguments: str) -> None:
    progress.run([python, "-m", "pip", "--disable-pip-version-check", "install",
                  "--constraint", CONSTRAINTS, *arguments])


def _short(path: Path) -> str:
    return path.name if path.parent == Path.cwd() else str(path)


def _restore_numpy_aliases(python: Path) -> None:
    """Make `import mxnet` work in the environment with any NumPy from 1.23 to 1.26."""
    folder = Path(subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True).stdout.strip())
    source = ROOT / "toolchain/numpy_aliases.py"
    (folder / "gluon_resnest_numpy_aliases.py").write_text(source.read_text())
    (folder / "gluon_resnest_numpy_aliases.pth").write_text("import gluon_resnest_numpy_aliases\n")


def _check_mxnet(python: Path) -> None:
    answer = subprocess.run([str(python), "-c", "import mxnet"], capture_output=True, text=True,
                            timeout=300)
    if answer.returncode == 0:
        return
    reason = (answer.stderr.strip() or f"exit code {answer.returncode}").splitlines()[-1]
    remedy = ""
    if "libgomp" in reason or "libquadmath" in reason:
        remedy = ": `apt-get install libgomp1 libquadmath0`"
    elif "libcu" in reason or "libnccl" in reason or "libnvrtc" in reason:
        remedy = ": the CUDA build needs that library on LD_LIBRARY_PATH, see docs/installation.md"
    raise InstallError(f"MXNet was installed but cannot be imported ({reason}){remedy}")


def _install_horovod(python: Path, mxnet: str, compiler: str, progress: InstallProgress) -> None:
    wheel = horovod_wheel.cached_wheel(python, mxnet, compiler)
    was_cached = wheel.is_file()
    if was_cached:
        with progress.step(f"Horovod {horovod_wheel.VERSION}, built before ({wheel.parent})"):
            problem = _install_wheel(python, wheel, progress)
        if problem is None:
            return
        wheel.unlink()
    with progress.step(f"compiling Horovod {horovod_wheel.VERSION} with MXNet and Gloo, once: "
                       "takes 2 to 6 minutes on 2 cores"):
        wheel = horovod_wheel.build(python, mxnet, wheel.parent, progress)
    with progress.step("installing and checking Horovod"):
        problem = _install_wheel(python, wheel, progress)
    if problem is not None:
        wheel.unlink()
        print(problem)
        raise InstallError("Horovod was built, but `horovodrun --check-build` does not show "
                           f"MXNet and Gloo; the whole log is {progress.log}")


def _install_wheel(python: Path, wheel: Path, progress: InstallProgress) -> str | None:
    progress.run([python, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps",
                  "--force-reinstall", wheel])
    return horovod_wheel.check(python)
