"""A trained network ready to label images, from a checkpoint or from exported files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

from gluon_resnest.data.augment.transforms import EvaluationTransform
from gluon_resnest.deploy.card import CARD
from gluon_resnest.deploy.exporting import run_exported
from gluon_resnest.deploy.symbol import on_device
from gluon_resnest.errors import InputError
from gluon_resnest.models import ResNeSt, check_input_size, find_variant, get_model
from gluon_resnest.models.weights.files import classes_in, load_arrays, read_params
from gluon_resnest.plain_text import read_lines

CROP_RATIO = 0.875


@dataclass(frozen=True)
class Classifier:
    """Network, preprocessing and class names that belong together.

    Calling it gives logits (N, classes) for pixels (N, H, W, 3), uint8, RGB; both are of NumPy.

    Attributes
    ----------
    forward
        What a call does.
    net
        The network of this package that computes it: normalised images (N, 3, H, W) to logits.
        None for exported files.
    """

    name: str
    forward: Callable[[np.ndarray], np.ndarray]
    classes: int
    class_names: tuple[str, ...] | None
    input_size: int
    crop_ratio: float
    net: ResNeSt | None = None

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        return self.forward(pixels)

    def class_name(self, label: int) -> str:
        """Name of a class, or its number where no names are known."""
        return self.class_names[label] if self.class_names else f"class {label}"

    @property
    def transform(self) -> EvaluationTransform:
        """From an image (H, W, 3) of any size to the network's crop."""
        return EvaluationTransform(self.input_size, self.crop_ratio)

    def probabilities(self, crops: np.ndarray) -> np.ndarray:
        """Class probabilities (N, classes) of crops (N, H, W, 3), uint8."""
        logits = self(crops)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)


def load_classifier(
    model: str,
    params: Path | None = None,
    classes: int | None = None,
    input_size: int | None = None,
    crop_ratio: float | None = None,
    class_names: Path | None = None,
    ctx: mx.Context | None = None,
) -> Classifier:
    """Make a classifier from the common command-line flags.

    Parameters
    ----------
    model, params
        Name of a network and its ``.params`` file; or the path of exported files: their folder,
        their ``model.json``, or one that stands beside it.
    classes, input_size, crop_ratio
        Instead of those of the weights, the variant or the ``model.json``.
    class_names
        Text file with one name a line. By default ``classes.txt`` beside the parameters.

    Raises
    ------
    InputError
        If something is missing or contradicts something else.
    """
    ctx = ctx or mx.cpu()
    if is_exported(model):
        if params is not None:
            raise InputError(f"--params {params} is for a network's name; {model} is exported and "
                             "has its own")
        (card, forward), net = run_exported(Path(model), ctx), None
        beside = Path(model)
        if input_size not in (None, card["input_size"]) and not card["input"].get("any_size"):
            raise InputError(f"--test-size {input_size} is not the {card['input_size']} px that "
                             f"{model} takes: export the model again with it")
    else:
        card, net = _checkpoint(model, params, classes, ctx)
        net.hybridize(static_alloc=True)
        forward, beside = on_device(net, ctx), Path(params)
    if classes is not None and classes != card["classes"]:
        raise InputError(
            f"--classes {classes} contradicts the {card['classes']} classes of {model}")
    size = card["input_size"] if input_size is None else input_size
    check_input_size(size, "--test-size")
    names = _names(class_names, beside.with_name("classes.txt"), card)
    return Classifier(card["model"], forward, card["classes"], names, size,
                      crop_ratio or card["crop_ratio"], net)


def is_exported(model: str) -> bool:
    """Whether `model` is the path of exported files and not the name of a network."""
    return model.endswith((".json", ".onnx", "-0000.params")) or Path(model).is_dir()


def _checkpoint(
    model: str, params: Path | None, classes: int | None, ctx: mx.Context
) -> tuple[dict[str, Any], HybridBlock]:
    variant = find_variant(model)
    if params is None:
        raise InputError(f"--params is missing: give the .params file of {model}'s weights")
    arrays = read_params(params)
    if classes is None:
        classes = classes_in(arrays, params)
    net = get_model(model, classes=classes)
    load_arrays(net, arrays, params, ctx)  # not by get_model: another classifier is an error here
    card = {"model": variant.name, "classes": classes,
            "input_size": variant.published.test_size, "crop_ratio": CROP_RATIO}
    return card, net


def _names(
    given: Path | None, beside: Path, card: dict[str, Any]
) -> tuple[str, ...] | None:
    """Class names from the file given, from the card, from the file beside, or None."""
    if given is None and card.get("class_names"):
        names, origin = card["class_names"], CARD
    elif given is None and not beside.is_file():
        return None
    else:
        origin = given or beside
        names = read_lines(origin, "the class names in")
    if len(names) != card["classes"]:
        raise InputError(f"{origin} names {len(names)} classes, the network has "
                         f"{card['classes']}: give the right list with --class-names")
    return tuple(names)
