"""``model.json``: what a client needs to know of the exported files beside it.

Every reader gives it one meaning: this package, which computes with one normalisation and one
preprocessing, refuses a card that asks for others; the programs in ``clients/`` obey it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

from gluon_resnest.data.augment.crops import LARGEST_BILINEAR_SIZE
from gluon_resnest.data.augment.transforms import LONGEST_SIDES_RATIO
from gluon_resnest.deploy.strict_json import RefusedError, read_json, shown
from gluon_resnest.errors import InputError
from gluon_resnest.layers import IMAGENET_MEAN, IMAGENET_STD

CARD = "model.json"
INPUT_NAMES = {"float32": "data", "uint8": "pixels"}
SUFFIXES = {"symbol": ("-symbol.json", "-0000.params"), "onnx": (".onnx",)}
SUFFIXES.update({"int8": SUFFIXES["symbol"], "onnx-int8": SUFFIXES["onnx"]})
_LARGEST_CARD = 4 << 20  # bytes; twenty thousand names of classes have one
_DEEPEST = 8
_MOST_CLASSES, _MOST_CHANNELS = 1 << 20, 1 << 10
_SIZES = range(32, 1 << 13)  # pixels


def describe_input(size: int, pixels: bool, any_size: bool, channels: int = 3) -> dict[str, Any]:
    """The card's ``input``: float32, normalised, (N, C, S, S), or `pixels`, uint8, (N, S, S, 3)."""
    dtype = "uint8" if pixels else "float32"
    return {
        "name": INPUT_NAMES[dtype], "dtype": dtype,
        "shape": ["N", size, size, 3] if pixels else ["N", channels, size, size], "color": "RGB",
        "normalization": {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD),
                          "formula": "(pixel / 255 - mean) / std", "in_the_graph": pixels},
        "any_size": any_size}


def describe_preprocessing(size: int, crop_ratio: float) -> dict[str, Any]:
    """The card's ``preprocessing``: what a client does with a photograph before the graph."""
    return {
        "orientation": "as its EXIF data says",
        "resize": {"longest_sides_ratio": LONGEST_SIDES_RATIO,  # longer: the ends are cut off
                   "shorter_side": math.ceil(round(size / crop_ratio, 6)),
                   "interpolation": "bilinear" if size <= LARGEST_BILINEAR_SIZE else "bicubic",
                   "antialias": "area averages from a reduction by 2 on (bilinear)"},
        "crop": {"where": "centre", "size": size},
    }


def write_card(folder: Path, card: dict[str, Any]) -> Path:
    """Write `card` into `folder`."""
    path = folder / CARD
    # Class names as they are: not every JSON reader knows \u0000.
    path.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read_card(path: Path) -> tuple[dict[str, Any], Path]:
    """The card of exported files, and its folder.

    Parameters
    ----------
    path
        The folder, the card or any of the files that it names.

    Raises
    ------
    InputError
        There is none, it is damaged or means what this package does not compute, or a file is
        missing or not the one that was exported.
    """
    folder = path if path.is_dir() else path.parent
    card_path = folder / CARD
    try:
        card = read_json(card_path, _LARGEST_CARD, _DEEPEST)
    except (OSError, RefusedError) as error:
        raise InputError(f"{card_path}, the card of the exported files, cannot be read "
                         f"({_reason(error)}): export the model again") from None
    try:
        check_card(card)
    except RefusedError as error:
        raise InputError(f"{card_path} {error}: export the model again") from None
    if path.is_file() and path.name not in (CARD, *card["files"]):
        raise InputError(f"{card_path} describes {', '.join(card['files'])}, not {path.name}: "
                         "export the model again, into a folder of its own")
    for name, digest in card["files"].items():
        file = folder / name
        if not file.is_file():
            raise InputError(f"{file} is missing: scripts/export_model.py writes it")
        if sha256(file) != digest:
            raise InputError(f"{file} is not the file that was exported: its SHA-256 is not the "
                             f"one in {card_path}; export the model again")
    return card, folder


def check_card(card: Any) -> None:
    """Refuse a card that is not as :func:`~.exporting.export` writes it, in any field that counts.

    Raises
    ------
    RefusedError
        With the field and what it holds.
    """
    if not isinstance(card, dict):
        raise RefusedError(f"holds {shown(card)} instead of an object")
    _known(card, "model", isinstance(card.get("model"), str) and 0 < len(card["model"]) <= 200,
           "a model's name")
    form = card.get("format")
    if not (isinstance(form, str) and form in SUFFIXES):
        raise RefusedError(f"has the format {shown(form)}, which this version does not know: it "
                           f"knows {', '.join(SUFFIXES)}")
    _check_files(card.get("files"), SUFFIXES[form])
    _known(card, "classes", _is_whole(card.get("classes"), range(1, _MOST_CLASSES)),
           "the number of classes")
    names = card.get("class_names")
    _known(card, "class_names", "class_names" in card and (names is None or (
        isinstance(names, list) and all(isinstance(name, str) for name in names))),
        "null or a list of texts")
    if names is not None and len(names) != card["classes"]:
        raise RefusedError(f"names {len(names)} classes and says it has {card['classes']}")
    _known(card, "input_size", _is_whole(card.get("input_size"), _SIZES),
           f"the input's side, {_SIZES[0]} to {_SIZES[-1]} pixels")
    ratio = card.get("crop_ratio")
    _known(card, "crop_ratio", type(ratio) in (int, float) and 0.05 <= ratio <= 1,
           "the crop's side over the image's, 0.05 to 1")
    _check_meaning(card)


def _check_files(files: Any, suffixes: tuple[str, ...]) -> None:
    if not (isinstance(files, dict) and all(
            isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)
            for digest in files.values())):
        raise RefusedError(f"has files = {shown(files)}, which must be names with their SHA-256")
    for name in files:
        if Path(name).name != name or re.search(r'[\x00-\x1f/\\:]', name):
            raise RefusedError(f"names the file {shown(name)}, which is not beside it")
    if len(files) != len(suffixes) or not all(
            name.endswith(suffix) for name, suffix in zip(files, suffixes)):
        raise RefusedError(f"names the files {', '.join(map(shown, files)) or 'of none'}; its "
                           f"format has one of each of {', '.join(suffixes)}, in this order")


def _check_meaning(card: dict[str, Any]) -> None:
    """Refuse an input, preprocessing or output other than this package computes with."""
    found, size = card.get("input"), card["input_size"]
    pixels = isinstance(found, dict) and found.get("dtype") == "uint8"
    any_size = card["format"] in ("symbol", "int8")
    shape = found.get("shape") if isinstance(found, dict) else None
    channels = (shape[1] if isinstance(shape, list) and len(shape) == 4
                and _is_whole(shape[1], range(1, _MOST_CHANNELS)) and not pixels else 3)
    _compare(found, describe_input(size, pixels, any_size, channels), "input",
             ("name", "dtype", "shape", "color", "normalization.mean", "normalization.std",
              "normalization.in_the_graph", "any_size"))
    _compare(card.get("preprocessing"), describe_preprocessing(size, card["crop_ratio"]),
             "preprocessing", ("resize.longest_sides_ratio", "resize.shorter_side",
                               "resize.interpolation", "crop.where", "crop.size"))
    _compare(card.get("output"), {"shape": ["N", card["classes"]], "values": "logits"}, "output",
             ("shape", "values"))


def _compare(found: Any, expected: dict[str, Any], section: str, fields: tuple[str, ...]) -> None:
    for field in fields:
        value, wanted = found, expected
        for key in field.split("."):
            value = value.get(key) if isinstance(value, dict) else None
            wanted = wanted[key]
        # As text, for 1 is not true.
        if json.dumps(value) != json.dumps(wanted):
            raise RefusedError(f"has {section}.{field} = {_text(value)}, where this version "
                               f"computes with {_text(wanted)}")


def _text(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _known(card: dict[str, Any], field: str, holds: bool, meaning: str) -> None:
    if not holds:
        found = f"has {field} = {shown(card[field])}" if field in card else f"lacks {field}"
        raise RefusedError(f"{found}, which must be {meaning}")


def _is_whole(value: Any, within: range) -> bool:
    return type(value) is int and value in within


def refuse_other_exports(folder: Path, model: str, form: str) -> None:
    """One folder, one card, one export: a second would get the first one's description."""
    try:
        other = read_json(folder / CARD, _LARGEST_CARD, _DEEPEST)
        found = other["model"], other["format"]
    except (OSError, ValueError, TypeError, KeyError):
        return
    if found != (model, form):
        raise InputError(f"{folder / CARD} describes an export of {found[0]} as {found[1]}: give "
                         f"{model} as {form} a folder of its own with --output")


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            digest.update(part)
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
