"""``model.json``: what a client needs to know of the exported files beside it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from gluon_resnest.errors import InputError

CARD = "model.json"
# What a card must have, and of which type.
_FIELDS = {"model": str, "format": str, "files": dict, "classes": int, "input_size": int,
           "crop_ratio": float, "input": dict}


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
        There is none, it is damaged, or a file is missing or not the one that was exported.
    """
    folder = path if path.is_dir() else path.parent
    card_path = folder / CARD
    try:
        card = json.loads(card_path.read_text(encoding="utf-8"))
        broken = [name for name, kind in _FIELDS.items() if not isinstance(card.get(name), kind)]
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{card_path}, the card of the exported files, cannot be read "
                         f"({_reason(error)}): export the model again") from None
    if broken:
        raise InputError(f"{card_path} lacks {', '.join(broken)}: export the model again")
    if path.is_file() and path.name not in (CARD, *card["files"]):
        raise InputError(f"{card_path} describes {', '.join(card['files'])}, not {path.name}: "
                         "export the model again, into a folder of its own")
    for name, digest in card["files"].items():
        file = folder / name
        if Path(name).name != name:
            raise InputError(f"{card_path} names the file '{name}', which is not beside it")
        if not file.is_file():
            raise InputError(f"{file} is missing: scripts/export_model.py writes it")
        if sha256(file) != digest:
            raise InputError(f"{file} is not the file that was exported: its SHA-256 is not the "
                             f"one in {card_path}; export the model again")
    return card, folder


def refuse_other_exports(folder: Path, model: str, form: str) -> None:
    """One folder, one card, one export: a second would get the first one's description."""
    try:
        other = json.loads((folder / CARD).read_text(encoding="utf-8"))
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
