#!/usr/bin/env python
"""Label images with exported files and one runtime, without gluon_resnest.

    python classify.py FOLDER IMAGE [IMAGE ...]

FOLDER is what scripts/export_model.py wrote. Its model.json says how to prepare an image; this
program does no more than that, and is meant to be copied and changed. Needed are NumPy, OpenCV
(opencv-python-headless), and

* for `onnx` and `onnx-int8`: ONNX Runtime;
* for `symbol` and `int8`: MXNet;
* for networks that take more than 256 pixels: Pillow, whose bicubic filter they were trained with.
"""

import json
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np

BATCH_SIZE = 16
SHOWN = 5


class Problem(Exception):
    """What a person can mend, in one line."""


def prepare(path, card):
    """The crop (size, size, 3), uint8, RGB, that the network sees of an image file."""
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise Problem(f"{path} cannot be read: {error.strerror}") from None
    # Turned as its EXIF data says.
    image = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    if image is None:
        raise Problem(f"{path} is no image that OpenCV reads")
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    resize, size = card["preprocessing"]["resize"], card["preprocessing"]["crop"]["size"]
    longest = resize["longest_sides_ratio"] * min(image.shape[:2])
    image = centre(image, min(image.shape[0], longest), min(image.shape[1], longest))
    height, width = image.shape[:2]
    shorter = min(height, width)
    new_height = height * resize["shorter_side"] // shorter
    new_width = width * resize["shorter_side"] // shorter
    if resize["interpolation"] == "bicubic":
        from PIL import Image

        image = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.BICUBIC))
    else:
        shrinks = min(height / new_height, width / new_width) >= 1
        halves = max(height / new_height, width / new_width) >= 2
        image = cv2.resize(image, (new_width, new_height), interpolation=(
            cv2.INTER_AREA if shrinks and halves else cv2.INTER_LINEAR))
    return centre(image, size, size)


def centre(image, height, width):
    """The middle (height, width) of an image."""
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top:top + height, left:left + width]


def as_input(crops, card):
    """Crops (N, size, size, 3) as the graph takes them."""
    crops = np.stack(crops)
    if card["input"]["dtype"] == "uint8":
        return crops
    normalization = card["input"]["normalization"]
    mean, std = (np.array(normalization[name], np.float32) for name in ("mean", "std"))
    return ((crops.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)


def load(folder, card):
    """A function from inputs to logits (N, classes)."""
    files, name = [str(folder / file) for file in card["files"]], card["input"]["name"]
    if card["format"] in ("onnx", "onnx-int8"):
        import onnxruntime

        session = onnxruntime.InferenceSession(files[0], providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(None, {name: inputs})[0]
    import mxnet as mx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it cannot tell the type of the input yet
        network = mx.gluon.SymbolBlock.imports(files[0], [name], files[1])
    network.hybridize(static_alloc=True, static_shape=True)
    return lambda inputs: network(mx.nd.array(inputs, dtype=inputs.dtype)).asnumpy()


def probabilities(logits):
    """Softmax."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def main():
    if len(sys.argv) < 3:
        raise Problem("usage: python classify.py FOLDER IMAGE [IMAGE ...]")
    folder, paths = Path(sys.argv[1]), sys.argv[2:]
    try:
        card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Problem(f"{folder / 'model.json'} cannot be read: {error}") from None
    names = card["class_names"] or [f"class {number}" for number in range(card["classes"])]
    network = load(folder, card)
    for start in range(0, len(paths), BATCH_SIZE):
        part = paths[start:start + BATCH_SIZE]
        found = probabilities(network(as_input([prepare(path, card) for path in part], card)))
        for path, row in zip(part, found):
            best = np.argsort(-row, kind="stable")[:SHOWN]
            print(path, *(f"{names[number]} {row[number]:.2%}" for number in best), sep="\t")


if __name__ == "__main__":
    try:
        main()
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
