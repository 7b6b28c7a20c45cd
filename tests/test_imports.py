"""Imports run the ways that docs/architecture.md names: the contracts of pyproject.toml."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from conftest import ROOT


def lint_imports(folder: Path) -> subprocess.CompletedProcess:
    tool = Path(sys.executable).with_name("lint-imports")
    return subprocess.run([str(tool), "--no-cache"], cwd=folder, capture_output=True, text=True,
                          env={"PYTHONPATH": str(folder), "PYTHONIOENCODING": "utf-8"},
                          timeout=120)


def test_contracts_are_kept():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Contracts: 6 kept, 0 broken." in done.stdout


def test_each_contract_can_be_broken(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "gluon_resnest", tmp_path / "gluon_resnest",
                    ignore=shutil.ignore_patterns("__pycache__"))
    for file, line in [
        ("layers/split_attention.py", "from gluon_resnest.models import resnest"),
        ("training/schedules.py", "from gluon_resnest.drawing import figure"),
        ("data/images/decoding.py", "def f():\n    import mxnet"),
        ("checkpoints/checkpoint.py", "from gluon_resnest import workers"),
        ("jobs/hosts.py", "import numpy"),
        ("training/signals.py", "import horovod.mxnet"),
        ("tasks/classification/assessment.py", "import matplotlib"),
        ("models/zoo.py", "import gluoncv"),
        ("new_room.py", ""),
    ]:
        with (tmp_path / "gluon_resnest" / file).open("a") as opened:
            opened.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert "Contracts: 0 kept, 6 broken." in done.stdout
    words = " ".join(done.stdout.split())
    for importer, imported in [
        ("layers", "gluon_resnest.models"), ("training", "gluon_resnest.drawing"),
        ("data", "mxnet"), ("checkpoints", "gluon_resnest.workers"), ("jobs", "numpy"),
        ("training", "horovod"), ("tasks", "matplotlib"),
    ]:
        assert f"gluon_resnest.{importer} is not allowed to import {imported}" in words
    assert "gluon_resnest is not allowed to import gluoncv" in words
    assert "new_room" in words
