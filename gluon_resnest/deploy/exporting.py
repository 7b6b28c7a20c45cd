"""Exporting: a network becomes files, which must give the network's own answers to be kept."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import mxnet as mx
import numpy as np

from gluon_resnest import __version__
from gluon_resnest.deploy.card import (
    describe_input,
    describe_preprocessing,
    read_card,
    refuse_other_exports,
    sha256,
    write_card,
)
from gluon_resnest.deploy.comparison import Comparison, DisagreementError, compare
from gluon_resnest.deploy.graph import check_initialized
from gluon_resnest.deploy.onnx_file import normalized, onnx_runner, write_int8_onnx, write_onnx
from gluon_resnest.deploy.rounding import ROUNDING_MULTIPLE, rounding_of
from gluon_resnest.deploy.symbol import (
    on_device,
    symbol_runner,
    write_int8_symbol,
    write_symbol,
)
from gluon_resnest.errors import InputError
from gluon_resnest.models.resnest import ResNeSt


@dataclass(frozen=True)
class Format:
    """What runs the files, and how far they may be from the network.

    Attributes
    ----------
    runtime
        ``"mxnet"`` or ``"onnxruntime"``.
    tolerance
        Largest difference of logits, over the largest logit; None where rounding is coarse by
        design: the classes are compared then. Networks that amplify rounding have more, see
        :mod:`~gluon_resnest.deploy.rounding`.
    """

    runtime: str
    tolerance: float | None


FORMATS = {
    "symbol": Format("mxnet", 1e-4),
    "onnx": Format("onnxruntime", 1e-4),
    "int8": Format("mxnet", None),
    "onnx-int8": Format("onnxruntime", None),
}
# Of the 8-bit formats. Among a thousand classes several percent change although accuracy hardly
# does; ranges that do not fit change far more.
LEAST_AGREEMENT = 0.9
_CALIBRATION_BATCH = 16
_PLAIN_TOLERANCE = 1e-5  # the network's own operators


@dataclass(frozen=True)
class Description:
    """What a client has to know beside the graph.

    Attributes
    ----------
    name
        Of the model; files are called after it.
    input_size, crop_ratio
        Side of the crop in pixels, and over the shorter side of the resized image.
    class_names
        One a class, if they are known.
    source
        File of the weights.
    images
        In words, what the export was checked with.
    """

    name: str
    input_size: int
    crop_ratio: float
    class_names: tuple[str, ...] | None = None
    source: Path | None = None
    images: str = "images given by the caller"


def export(
    net: ResNeSt,
    directory: Path,
    description: Description,
    images: np.ndarray,
    form: str = "symbol",
    graph: str = "deployed",
    pixels: bool = False,
    calibration: np.ndarray | None = None,
    least_agreement: float = LEAST_AGREEMENT,
) -> list[Path]:
    """Write `net` in a format that runs without this package, and prove it equal to `net`.

    Parameters
    ----------
    directory
        Of this export alone; made if it is not there.
    images
        Crops (N, H, W, 3) uint8, RGB, on which the files must agree with the network.
    form
        A key of `FORMATS`.
    graph
        For ``"symbol"``, see :func:`~.symbol.write_symbol`.
    pixels
        Bake the normalisation in: clients send crops as uint8.
    calibration
        Crops (N, H, W, 3) uint8 of real images, a hundred or so, from which the 8-bit formats take
        their ranges. Not those that accuracy is measured on.
    least_agreement
        Share of `images` to which the 8-bit formats must give the network's class.

    Returns
    -------
    list of Path
        The files; the last is ``model.json``.

    Raises
    ------
    DisagreementError
        An InputError: the files, read back, compute something else; nothing is left behind then.
    InputError
        The folder cannot be written to or holds another export, or the network has no weights, no
        such form, or is not for RGB images.
    """
    directory = Path(directory)
    kind = FORMATS[form]
    check_initialized(net)
    if net.variant.in_channels != 3:
        raise InputError(f"{net.variant.name} takes images of {net.variant.in_channels} channels, "
                         "and exported files are for RGB photographs: write MXNet's files with "
                         "net.export(PATH)")
    refuse_other_exports(directory, description.name, form)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".export-") as scratch:
            prefix = Path(scratch) / description.name
            files = _write(net, prefix, description.input_size, form, graph, pixels, calibration)
            card = _card(net, description, form, graph, pixels, files)
            written = write_card(Path(scratch), card)
            any_size = kind.runtime == "mxnet"
            agreement = compare(on_device(net, mx.cpu()), run_exported(written)[1], images,
                                any_size)
            tolerance = _PLAIN_TOLERANCE if graph == "plain" else kind.tolerance
            if tolerance is None:
                _check_classes(agreement, least_agreement)
                rounding = None
            else:
                rounding = _check_logits(agreement, tolerance, net, images, any_size)
            write_card(Path(scratch), {**card, "agreement": {
                **agreement.as_dict(), "checked_with": description.images,
                **({} if rounding is None else {"rounding_alone": rounding.as_dict()})}})
            return [path.replace(directory / path.name) for path in (*files, written)]
    except OSError as error:
        raise InputError(f"--output {directory} cannot be written to: {error.strerror}") from None


def _write(net: ResNeSt, prefix: Path, size: int, form: str, graph: str, pixels: bool,
           calibration: np.ndarray | None) -> list[Path]:
    if form == "symbol":
        return write_symbol(net, prefix, graph, pixels)
    if form == "onnx":
        return write_onnx(net, prefix, size, pixels)
    if calibration is None:
        raise InputError(f"--format {form} needs real images to take its ranges from: give "
                         "--calibration with a .rec or a folder of training images")
    batches = [normalized(calibration[start:start + _CALIBRATION_BATCH])
               for start in range(0, len(calibration), _CALIBRATION_BATCH)]
    if form == "int8":
        return write_int8_symbol(net, prefix, batches, pixels)
    return write_int8_onnx(net, prefix, size, batches, pixels)


def run_exported(
    path: Path, ctx: mx.Context | None = None
) -> tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray]]:
    """The card of exported files and what they compute.

    Parameters
    ----------
    path
        Their folder, their ``model.json``, or one of them.
    ctx
        Device, for files that MXNet runs.

    Returns
    -------
    card
        Content of ``model.json``.
    forward
        From pixels (N, H, W, 3) uint8, RGB, to logits (N, classes) float32.

    Raises
    ------
    InputError
        Something is missing, damaged or of another export.
    """
    card, folder = read_card(Path(path))
    kind, given = FORMATS[card["format"]], card["input"]
    files = [folder / name for name in card["files"]]
    pixels, image_shape = given["dtype"] == "uint8", tuple(given["shape"][1:])
    if kind.runtime == "mxnet":
        return card, symbol_runner(*files, given["name"], pixels, ctx,
                                   fused=kind.tolerance is not None, image_shape=image_shape,
                                   classes=card["classes"])
    return card, onnx_runner(files[0], pixels, image_shape, card["classes"])


def _card(net: ResNeSt, description: Description, form: str, graph: str, pixels: bool,
          files: list[Path]) -> dict[str, Any]:
    size, classes = description.input_size, net.fc.weight.shape[0]
    source = description.source
    return {
        "model": description.name,
        "format": form,
        **({"graph": graph} if form == "symbol" else {}),
        "files": {path.name: sha256(path) for path in files},
        "classes": classes,
        "class_names": description.class_names,
        "input_size": size,
        "crop_ratio": description.crop_ratio,
        "preprocessing": describe_preprocessing(size, description.crop_ratio),
        "input": describe_input(size, pixels, FORMATS[form].runtime == "mxnet"),
        "output": {"dtype": "float32", "shape": ["N", classes], "values": "logits"},
        "weights": source and {"file": Path(source).name, "sha256": sha256(source)},
        "written_by": f"gluon_resnest {__version__}, mxnet {mx.__version__}",
    }


def _check_logits(agreement: Comparison, tolerance: float, net: ResNeSt, images: np.ndarray,
                  any_size: bool) -> Comparison | None:
    """Refuse logits that differ by more than `tolerance`, and by more than rounding explains.

    Returns what rounding alone does to `net`, where that was needed.
    """
    if agreement.largest_relative_difference <= tolerance:
        return None
    rounding = rounding_of(net, images, any_size)
    # The largest difference may come from one image whose attention is saturated; half of the
    # images must agree better, if they do so in the network itself.
    for which in ("largest", "median"):
        found, alone = (getattr(one, f"{which}_relative_difference")
                        for one in (agreement, rounding))
        # Logits that differ by as much as the largest have nothing in common.
        allowed = max(tolerance, min(1.0, ROUNDING_MULTIPLE * alone))
        if not found <= allowed:
            raise DisagreementError(
                f"exported logits differ from the network's by {found:.2g} of the largest "
                f"({which} of the images; allowed: {allowed:.2g}, rounding alone does "
                f"{alone:.2g}); nothing was written. This is a fault of the export: please report "
                "it with the name of the model")
    return rounding


def _check_classes(agreement: Comparison, least_agreement: float) -> None:
    same = agreement.top1_agreement
    if not same >= least_agreement:
        raise DisagreementError(
            f"the exported files give the network's class to {same:.1%} of {agreement.images} "
            f"images (at least {least_agreement:.1%} are asked for); nothing was written. More "
            "calibration images help, or ask for less with --least-agreement")
