"""Paths on command lines: an empty one is not the current folder."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from conftest import ROOT

from gluon_resnest import command_line, runtime
from gluon_resnest.errors import InputError
from gluon_resnest.tasks.classification.flags import parse_arguments
from toolchain import install

# Every flag and argument of every tool that takes a path.
COMMANDS = {
    "train_imagenet.py": ["--rec-train", "--rec-train-idx", "--rec-val", "--rec-val-idx",
                          "--save-dir", "--params", "-c", "--teacher-params"],
    "scripts/pack_records.py": ["", "x ", "--root", "--verify", "--index"],
    "scripts/evaluate.py": ["--params", "--class-names", "--rec-val", "--rec-val-idx",
                            "--confusion", "--calibration"],
    "scripts/predict.py": ["", "--params", "--class-names", "--explain"],
    "scripts/export_model.py": ["--params", "--images", "--calibration", "--output"],
    "scripts/convert_weights.py": ["--model resnest14 ", "--model resnest14 x"],
    "scripts/plot_run.py": ["", "-o"],
    "scripts/show_augmentation.py": ["samples --image", "samples --rec-train", "samples --output",
                                     "samples --rec-train-idx"],
    "scripts/run_resilient.py": ["--hostfile", "--log"],
    "scripts/benchmark.py": ["data --rec-train"],
    "demo/picture.py": ["", "x ", "x y "],
    "demo/solar_cells.py": ["prepare"],
}


@pytest.mark.parametrize(("script", "words"), [
    (script, words) for script, commands in COMMANDS.items() for words in commands])
def test_an_empty_path_is_refused(script, words, tool, tmp_path):
    code, stderr = tool(script, *words.split(), "")
    assert code == 2
    assert stderr.startswith("error: ")
    assert "the path is empty" in stderr
    assert stderr.count("\n") == 0


def test_the_list_here_is_whole():
    """No tool reads a path by another type: an empty one would pass."""
    for source in (*ROOT.glob("*.py"), *ROOT.glob("scripts/*.py"), *ROOT.glob("demo/*.py"),
                   *ROOT.glob("gluon_resnest/**/*.py")):
        assert "type=Path" not in source.read_text(encoding="utf-8"), source


def test_an_empty_path_in_a_file_of_settings(tmp_path):
    (tmp_path / "a.yaml").write_text("save-dir: ''\n")
    with pytest.raises(InputError, match=r"a.yaml has save_dir: .*the path is empty"):
        parse_arguments(["-c", str(tmp_path / "a.yaml")])
    (tmp_path / "a.yaml").write_text('rec-train: "a\\0b"\n')
    with pytest.raises(InputError, match=r"rec_train: .*the path has a zero byte"):
        parse_arguments(["-c", str(tmp_path / "a.yaml")])


def test_paths_are_kept_as_they_are():
    assert command_line.path(" a/b ") == Path(" a/b ")
    assert parse_arguments(["--teacher-params", "./t.params"]).teacher_params == "./t.params"
    with pytest.raises(argparse.ArgumentTypeError, match="empty"):
        command_line.path(" ")


def test_empty_variables_are_no_folders(monkeypatch):
    monkeypatch.setenv("MXNET_HOME", "")
    monkeypatch.setenv("ENCODING_REPO", "")
    assert runtime.model_folder() == Path("~/.mxnet/models").expanduser()
    assert runtime.resnest_store().startswith("https://")


def test_an_environment_in_the_current_folder_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["install", "--venv", ""])
    with pytest.raises(SystemExit) as stop:
        install.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: --venv must name a folder, and it is empty\n"
