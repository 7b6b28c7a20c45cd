#!/usr/bin/env python
"""Label images with exported files and one runtime, without gluon_resnest.

    python classify.py FOLDER IMAGE [IMAGE ...]

FOLDER is what scripts/export_model.py wrote. Its model.json says how to prepare an image; this
program does no more than that, and is meant to be copied and changed. Needed are NumPy, Pillow,
OpenCV (opencv-python-headless), and

* for `onnx` and `onnx-int8`: ONNX Runtime;
* for `symbol` and `int8`: MXNet.

Images are decoded as for training: docs/data.md of gluon_resnest says what each kind becomes.
"""

import json
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

BATCH_SIZE = 16
SHOWN = 5

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000")
MOST_PIXELS = 1 << 27
Image.MAX_IMAGE_PIXELS = None  # the limit above is instead of Pillow's
ORIENTATION = 0x0112  # EXIF
TURNS = {2: Image.FLIP_LEFT_RIGHT, 3: Image.ROTATE_180, 4: Image.FLIP_TOP_BOTTOM,
         5: Image.TRANSPOSE, 6: Image.ROTATE_270, 7: Image.TRANSVERSE, 8: Image.ROTATE_90}
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # TIFF


class Problem(Exception):
    """What a person can mend, in one line."""


def read(path):
    """Pixels (height, width, 3), uint8, RGB, of an image file, turned as its EXIF data says."""
    if not Path(path).is_file():
        raise Problem(f"{path} is no file")
    try:
        with warnings.catch_warnings(), Image.open(path, formats=FORMATS) as image:
            warnings.simplefilter("ignore")  # of odd metadata
            if image.width * image.height > MOST_PIXELS:
                raise Problem(f"{path} has more than {MOST_PIXELS:,} pixels; shrink it")
            return decode(path, image)
    except Problem:
        raise
    except Exception as error:  # Pillow raises many kinds
        raise Problem(f"{path} is no image that can be read: {error}") from None


def decode(path, image):
    """The same, of an image that Pillow has opened."""
    picture = image
    if image.format in ("PNG", "TIFF") and image.mode[0] in "RL" and ";16" in str(image.tile):
        # Pillow would read the upper 8 of 16 bits. OpenCV gives grey or B, G, R, and opacity.
        turn = image.getexif().get(ORIENTATION)
        values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
        picture = Image.fromarray(eight_bits(np.ascontiguousarray(values[..., 2::-1])))
    else:
        image.load()  # turns a TIFF
        turn = image.getexif().get(ORIENTATION)
        if image.mode[0] == "F" or (image.mode == "I" and image.format == "TIFF"):
            raise Problem(f"{path} has 32 bits a channel; convert it to 8 or 16")
        if image.mode[0] == "I":
            grey = eight_bits(np.asarray(image))
            if image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO:
                grey = ~grey
            picture = Image.fromarray(grey)
    picture.info.pop("transparency", None)  # the colours below it count
    picture = picture.convert("RGB")
    return np.asarray(picture.transpose(TURNS[turn]) if turn in TURNS else picture)


def eight_bits(values):
    """The upper 8 of the 8, 12 or 16 bits that hold the largest value."""
    largest = values.max()
    return (values >> (0 if largest < 256 else 4 if largest < 4096 else 8)).astype(np.uint8)


def prepare(path, card):
    """The crop (size, size, 3), uint8, RGB, that the network sees of an image file."""
    image = read(path)
    resize, size = card["preprocessing"]["resize"], card["preprocessing"]["crop"]["size"]
    longest = resize["longest_sides_ratio"] * min(image.shape[:2])
    image = centre(image, min(image.shape[0], longest), min(image.shape[1], longest))
    height, width = image.shape[:2]
    shorter = min(height, width)
    new_height = height * resize["shorter_side"] // shorter
    new_width = width * resize["shorter_side"] // shorter
    if resize["interpolation"] == "bicubic":
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
