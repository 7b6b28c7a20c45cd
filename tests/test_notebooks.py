"""The notebooks: their code is run as it stands, and what it reaches is checked."""

from __future__ import annotations

import json

import cv2
import pytest
from conftest import ROOT, run_tool

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# What a notebook shows is saved instead; its variables that JSON can hold are written down.
EPILOGUE = """
import json, pathlib
for number in plt.get_fignums():
    plt.figure(number).savefig({folder!r} + f"/figure{{number}}.png")
figures = {{name: float(value) for name, value in list(globals().items())
           if isinstance(value, (int, float, np.number)) and not name.startswith("_")}}
pathlib.Path({folder!r}, "figures.json").write_text(json.dumps(figures))
"""


def cells(path, kind: str) -> list[str]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def run_notebook(path, folder, monkeypatch) -> tuple[dict[str, float], list]:
    """Run the code cells, one after the other, in a process; its variables and its pictures."""
    program = folder / "notebook.py"
    program.write_text("\n\n".join([*cells(path, "code"), EPILOGUE.format(folder=str(folder))]),
                       encoding="utf-8")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    run_tool(program, timeout=600)
    pictures = [cv2.imread(str(file)) for file in sorted(folder.glob("figure*.png"))]
    return json.loads((folder / "figures.json").read_text()), pictures


@pytest.mark.slow
def test_fine_tuning_learns_new_classes(tmp_path, monkeypatch):
    found, pictures = run_notebook(ROOT / "notebooks" / "finetune.ipynb", tmp_path, monkeypatch)
    assert found["old_accuracy"] > 0.6  # of six classes
    assert found["accuracy_before"] < 0.5  # of four: the classifier is new
    assert found["accuracy_after"] > 0.75
    assert len(pictures) == 1
    assert pictures[0].std() > 40  # white digits on black, on a white page


@pytest.mark.slow
def test_deployed_files_say_what_the_network_says(tmp_path, monkeypatch):
    found, pictures = run_notebook(ROOT / "notebooks" / "deploy.ipynb", tmp_path, monkeypatch)
    assert found["least_accuracy"] > 0.75
    assert found["least_same"] > 0.95
    assert 3.5 < found["smaller"] < 4.5  # a quarter of the size
    assert len(pictures) == 2
    assert all(picture.std() > 20 for picture in pictures)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_committed_clean(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
    assert cells(path, "code")[0].startswith("import gluon_resnest")  # before MXNet
    assert cells(path, "markdown")[0].startswith("# ")
