"""toolchain/: messages, stamp, download of pip; and that this environment is what was promised."""

from __future__ import annotations

import functools
import http.server
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import gluon_resnest
from toolchain import horovod_wheel, virtual_environment
from toolchain.install import CONSTRAINTS, ROOT, Stamp, fingerprint
from toolchain.install_progress import InstallError, InstallProgress

INSTALLER = ROOT / "scripts/install_environment.py"
STAMP = Stamp("abc", "3.11.2", "/somewhere/.venv", "cpu", ("dev", "horovod"))


def install(*arguments, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(INSTALLER), *map(str, arguments)],
                          env={**os.environ, **environment}, capture_output=True, text=True,
                          timeout=120)


# ---- this environment ----


def pinned() -> dict[str, str]:
    """Version of each package that constraints.txt names for the running Python."""
    requirements = [Requirement(line) for line in CONSTRAINTS.read_text().splitlines()
                    if line and not line.startswith("#")]
    apply = [r for r in requirements if r.marker is None or r.marker.evaluate()]
    names = [canonical(r.name) for r in apply]
    assert len(names) == len(set(names)), "two lines for one package and one Python"
    return {canonical(r.name): str(r.specifier).replace("==", "") for r in apply}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_constraints_name_everything_that_is_installed_with_its_version():
    # Not all of sys.path: setuptools adds a folder of copies to it.
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    installed = {canonical(d.metadata["Name"]): d.version
                 for d in importlib.metadata.distributions(path=list(folders))}
    version = installed.pop("gluon-resnest")
    assert version == gluon_resnest.__version__
    assert len(installed) > 40
    constraints = pinned()
    assert installed == {name: constraints.get(name) for name in installed}


def test_pip_is_the_one_that_is_bootstrapped():
    assert pinned()["pip"] == virtual_environment.PIP_VERSION


def test_horovod_was_built_with_mxnet_and_gloo():
    launcher = Path(sys.executable).with_name("horovodrun")
    shown = subprocess.run([launcher, "--check-build"], capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0
    assert "[X] MXNet" in shown.stdout
    assert "[X] Gloo" in shown.stdout


def test_horovod_finds_mxnet_beside_itself():
    import horovod.mxnet.mpi_ops as operations

    library = next(Path(operations.__file__).parent.glob("mpi_lib*.so"))
    runpath = re.search(rb"\0(\$ORIGIN/[^\0]*)\0", library.read_bytes())
    assert runpath is not None
    assert runpath.group(1).split(b":")[0] == b"$ORIGIN/../../mxnet"


def test_a_check_that_fails_says_what_is_missing(tmp_path):
    (tmp_path / "horovodrun").write_text("#!/bin/sh\necho '[ ] MXNet'\necho '[X] Gloo'\n")
    (tmp_path / "python").write_text("#!/bin/sh\necho 'no libmxnet.so' >&2\nexit 1\n")
    for file in tmp_path.iterdir():
        file.chmod(0o755)
    assert horovod_wheel.check(tmp_path / "python") == "[ ] MXNet\n[X] Gloo\n\n\nno libmxnet.so"


def test_mxnet_can_be_imported_alone_with_any_numpy():
    code = ("import numpy\nothers = numpy.__getattr__\ndef without(name):\n"
            "    if name in ('bool', 'int', 'float', 'object'):\n"
            "        raise AttributeError(name)\n    return others(name)\n"
            "numpy.__getattr__ = without\nimport mxnet\nprint(numpy.bool is bool)")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True,
                          text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_the_repair_of_numpy_costs_other_programs_nothing():
    code = "import sys; print('numpy' in sys.modules, 'mxnet' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False False\n"


# ---- stamp ----


def test_a_second_call_does_nothing():
    environment = Path(sys.prefix)
    stamp = Stamp.read(environment)
    assert stamp is not None
    assert stamp.fingerprint == fingerprint(), "setup.py or toolchain/ changed: run `make install`"
    done = install("--venv", environment, "--extras", ",".join(stamp.extras))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_stamp_survives_the_file(tmp_path):
    STAMP.write(tmp_path)
    assert Stamp.read(tmp_path) == STAMP


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"fingerprint": "a"}', '"text"', "7"])
def test_a_damaged_stamp_is_none(tmp_path, content):
    (tmp_path / "installed.json").write_text(content)
    assert Stamp.read(tmp_path) is None


@pytest.mark.parametrize(("change", "serves", "shares_base"), [
    ({}, True, True),
    ({"extras": ["dev"]}, True, True),
    ({"extras": ["dev", "horovod", "onnx"]}, False, True),
    ({"fingerprint": "abd"}, False, True),
    ({"python": "3.11.3"}, False, False),
    ({"folder": "/elsewhere/.venv"}, False, False),
    ({"mxnet": "cu112"}, False, False),
])
def test_when_an_environment_still_serves(tmp_path, change, serves, shares_base):
    STAMP.write(tmp_path)
    wanted = {**json.loads((tmp_path / "installed.json").read_text()), **change}
    (tmp_path / "installed.json").write_text(json.dumps(wanted))
    wanted = Stamp.read(tmp_path)
    assert (STAMP.serves(wanted), STAMP.shares_base(wanted)) == (serves, shares_base)


@pytest.mark.parametrize("changed", ["setup.py", "gluon_resnest/version.py", "pyproject.toml",
                                     "constraints.txt", "toolchain/install.py",
                                     "toolchain/new.py"])
def test_fingerprint_follows_what_decides_the_installation(tmp_path, changed):
    (tmp_path / "gluon_resnest").mkdir()
    for name in ("setup.py", "gluon_resnest/version.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "toolchain", tmp_path / "toolchain")
    assert fingerprint(tmp_path) == fingerprint()
    with (tmp_path / changed).open("a") as file:
        file.write("# changed\n")
    assert fingerprint(tmp_path) != fingerprint()


# ---- messages ----


@pytest.mark.parametrize(("compiler", "message"), [
    ("no-such-compiler", "error: no C++ compiler `no-such-compiler`, and Horovod has to be "),
    ("false", "error: the C++ compiler {} cannot compile C++14 (exit code 1): install "),
])
def test_without_a_compiler_one_line_and_nothing_made(tmp_path, compiler, message):
    done = install("--venv", tmp_path / "env", "--extras", "horovod", CXX=compiler)
    assert done.returncode == 2
    assert done.stderr.startswith(message.format(shutil.which(compiler)))
    assert "`apt-get install g++`" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "env").exists()


def test_a_compiler_that_works_is_named_with_its_version():
    path, version = horovod_wheel.find_compiler().split(" ", 1)
    assert path == shutil.which(os.environ.get("CXX", "g++"))
    assert re.search(r"\d+\.\d+", version)


def test_without_make_one_line(tmp_path, monkeypatch):
    for tool in ("g++", "as", "ld"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InstallError, match="`apt-get install make`"):
        horovod_wheel.find_compiler()


@pytest.mark.parametrize("version", [(2, 7), (3, 7), (3, 13), (4, 0)])
def test_python_out_of_range_is_one_line(version):
    code = (f"import sys, runpy\nsys.version_info = ({version[0]}, {version[1]}, 0, 'final', 0)\n"
            f"runpy.run_path({str(INSTALLER)!r}, run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: Python {version[0]}.{version[1]} cannot run MXNet 1.9.1 and Horovod 0.28.1; "
        "Python 3.8 to 3.12 can: choose one, as in `make PYTHON=python3.11 install`\n")


def test_an_unknown_extra_lists_the_known_ones():
    done = install("--extras", "horovod,gpu")
    assert done.returncode == 2
    assert done.stderr == ("error: --extras: unknown gpu; choose from "
                           "horovod, onnx, lint, dev, demo\n")


def test_a_failed_command_shows_its_errors_its_end_and_its_log(tmp_path, capsys):
    progress = InstallProgress(tmp_path / "install.log")
    script = "echo 'a.cc:3: error: boom'; seq 100; echo last; exit 3"
    message = re.escape(f"(exit code 3); the whole log is {progress.log}")
    with pytest.raises(InstallError, match=message), progress.step("building"):
        progress.run(["sh", "-c", script])
    printed = capsys.readouterr().out
    assert printed.startswith("  building ... failed\n    a.cc:3: error: boom\n    90\n")
    assert printed.endswith("    100\n    last\n")
    assert "50\n" in progress.log.read_text()


def test_gpu_builds_of_mxnet_get_nccl_and_the_user_has_the_last_word(monkeypatch):
    assert "HOROVOD_GPU_OPERATIONS" not in horovod_wheel.build_flags("cpu")
    assert horovod_wheel.build_flags("cu112")["HOROVOD_GPU_OPERATIONS"] == "NCCL"
    monkeypatch.setenv("HOROVOD_GPU_OPERATIONS", "MPI")
    assert horovod_wheel.build_flags("cu112")["HOROVOD_GPU_OPERATIONS"] == "MPI"


def test_the_cache_tells_builds_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    python = Path(sys.executable)
    plain = horovod_wheel.cached_wheel(python, "cpu", "g++ 12.2.0")
    others = {horovod_wheel.cached_wheel(python, "cpu", "g++ 13.1.0"),
              horovod_wheel.cached_wheel(python, "cu112", "g++ 12.2.0")}
    monkeypatch.setenv("HOROVOD_WITH_MPI", "1")
    others.add(horovod_wheel.cached_wheel(python, "cpu", "g++ 12.2.0"))
    assert len(others | {plain}) == 4
    assert all(tmp_path in wheel.parents for wheel in others)


# ---- pip without ensurepip, from an index on this machine ----


@pytest.fixture
def index(tmp_path):
    """Folder that is served as a package index, and its address."""
    folder = tmp_path / "simple"
    (folder / "pip").mkdir(parents=True)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_without_ensurepip_apt_and_index_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InstallError, match=r"no ensurepip .*`apt-get install python3-venv`"):
        virtual_environment.debian_pip(tmp_path, InstallProgress(tmp_path / "log"))


def test_a_failed_apt_get_names_the_remedy_and_leaves_nothing(tmp_path, monkeypatch):
    for name in ("apt-get", "dpkg-deb"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 100\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    folder = tmp_path / "venv"
    folder.mkdir()
    with pytest.raises(InstallError, match="python3-pip-whl cannot be downloaded: `apt-get inst"):
        virtual_environment.debian_pip(folder, InstallProgress(tmp_path / "log"))
    assert list(folder.iterdir()) == []


def test_a_pip_that_is_not_the_released_one_is_refused(index, tmp_path, monkeypatch):
    folder, address = index
    name = virtual_environment.PIP_WHEEL
    (folder / "pip/index.html").write_text(f'<a href="../files/{name}#sha256=0">{name}</a>')
    (folder / "files").mkdir()
    (folder / "files" / name).write_bytes(b"not pip")
    with pytest.raises(InstallError, match="it is not the file that was released"):
        virtual_environment.download_pip(address, tmp_path)
    assert not (tmp_path / name).exists()


def test_the_released_pip_is_kept(index, tmp_path, monkeypatch):
    folder, address = index
    monkeypatch.setattr(virtual_environment, "PIP_WHEEL_SHA256",
                        "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae")
    name = virtual_environment.PIP_WHEEL
    (folder / "pip/index.html").write_text(f'<a href="{name}">{name}</a>')
    (folder / "pip" / name).write_bytes(b"foo")
    assert virtual_environment.download_pip(f"{address}/", tmp_path).read_bytes() == b"foo"


def test_an_index_without_pip_is_named(index, tmp_path, monkeypatch):
    folder, address = index
    (folder / "pip/index.html").write_text("nothing")
    with pytest.raises(InstallError, match=f"^{address}/pip/ does not offer pip-"):
        virtual_environment.download_pip(address, tmp_path)


def test_an_index_that_does_not_answer_is_named(tmp_path, monkeypatch):
    with pytest.raises(InstallError, match=r"cannot download pip from http://127.0.0.1:9/simple/"):
        virtual_environment.download_pip("http://127.0.0.1:9/simple", tmp_path)
