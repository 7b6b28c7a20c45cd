"""What `pip install .` installs: the wheel's files and metadata, and a network made from it."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

import gluon_resnest

NOT_IN_GIT = {".git", ".venv", "build", "dist", "runs", "demo/data", "demo/run",
              "clients/classify"}
NOT_SHIPPED = {".ci/run", ".gitignore"}  # for the repository alone


def run_python(*arguments: str, folder: Path, **environment: str) -> str:
    """Run Python in `folder`, without this checkout on its path; gives what it prints."""
    environment = {**os.environ, "PYTHONPATH": "", **environment}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, text=True,
                          capture_output=True, timeout=300)
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the checkout, so that neither an old build/ nor a new one is in the way."""
    def ignore(folder: str, names: list[str]) -> list[str]:
        inside = Path(folder).relative_to(ROOT)
        return [name for name in names if (inside / name).as_posix() in NOT_IN_GIT
                or name.endswith((".egg-info", "_cache", "__pycache__", ".ipynb_checkpoints"))]

    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("wheel") / "tree", ignore=ignore))


@pytest.fixture(scope="module")
def sdist(tree) -> Path:
    code = "from setuptools.build_meta import build_sdist; build_sdist('../sdist')"
    run_python("-c", code, folder=tree)
    return next(tree.parent.glob("sdist/*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist) -> Path:
    """Made from the source distribution, as package indexes want it."""
    run_python("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index",
               "--disable-pip-version-check", "--wheel-dir", ".", sdist.name, folder=sdist.parent)
    return next(sdist.parent.glob("*.whl"))


@pytest.fixture(scope="module")
def metadata(wheel) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_the_source_distribution_is_the_whole_tree(tree, sdist):
    here = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    here = {name for name in here if not name.startswith("gluon_resnest.egg-info/")}
    with tarfile.open(sdist) as archive:
        shipped = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert here - shipped == NOT_SHIPPED
    assert {name for name in shipped - here if ".egg-info/" not in name} == {
        "PKG-INFO", "setup.cfg"}


def test_the_wheel_holds_the_package_its_marker_and_the_license(tree, wheel):
    package = {path.relative_to(tree).as_posix() for path in tree.glob("gluon_resnest/**/*.py")}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        information = [name for name in archive.namelist() if ".dist-info/" in name]
        license_file = next(name for name in information if name.endswith("LICENSE"))
        assert archive.read(license_file) == (ROOT / "LICENSE").read_bytes()
    assert names == package | {"gluon_resnest/py.typed"}
    assert {name.partition("/")[0] for name in names} == {"gluon_resnest"}
    assert [name for name in sorted(names) if "benchmark" in name or "/tests" in name] == []


def test_the_metadata_say_what_it_is(metadata):
    assert metadata["Name"] in ("gluon-resnest", "gluon_resnest")
    assert metadata["Version"] == gluon_resnest.__version__
    assert metadata["License"] == "Apache-2.0"
    assert "License :: OSI Approved :: Apache Software License" in metadata.get_all("Classifier")
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text(
        encoding="utf-8").strip()


def test_the_version_is_written_once():
    version = gluon_resnest.__version__
    files = [ROOT / name for name in ("setup.py", "pyproject.toml", "docker/Dockerfile")]
    files += [*ROOT.glob("gluon_resnest/**/*.py"), *ROOT.glob("toolchain/*.py")]
    found = [path.relative_to(ROOT).as_posix() for path in files
             if f'"{version}"' in path.read_text(encoding="utf-8")]
    assert found == ["gluon_resnest/version.py"]


def test_the_wheel_makes_networks_away_from_the_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = """
import importlib, pkgutil
import gluon_resnest
import mxnet as mx
net = gluon_resnest.get_model("resnest14", classes=10)
net.initialize()
images = mx.nd.random.uniform(shape=(2, 3, 64, 64))
eager = net(images)
net.hybridize(static_alloc=True)
print(eager.shape, float((net(images) - eager).abs().max().asscalar()) < 1e-4)
for module in pkgutil.walk_packages(gluon_resnest.__path__, "gluon_resnest."):
    importlib.import_module(module.name)  # none needs what the wheel does not hold
print(gluon_resnest.__file__)
"""
    printed = run_python("-W", "ignore", "-c", code, folder=tmp_path,
                         PYTHONPATH=str(tmp_path / "site"))
    assert printed.splitlines() == [
        "(2, 10) True", str(tmp_path / "site/gluon_resnest/__init__.py")]
