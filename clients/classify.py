#!/usr/bin/env python
"""Label images with exported files and one runtime, without gluon_resnest.

    python classify.py [--trusted] FOLDER IMAGE [IMAGE ...]

FOLDER is what scripts/export_model.py wrote. Its model.json says how to prepare an image; this
program does no more than that, and is meant to be copied and changed. Needed are NumPy, Pillow,
OpenCV (opencv-python-headless), and

* for `onnx` and `onnx-int8`: ONNX Runtime;
* for `symbol` and `int8`: MXNet.

Images are decoded as for training: docs/data.md of gluon_resnest says what each kind becomes.

Wrong values in model.json and damaged files (SHA-256) are refused. That does not help against a
hostile `symbol` or `int8`: MXNet follows whatever addresses it holds. Where gluon_resnest is
installed, its check goes first; without it, say --trusted for what you exported yourself.
"""

import hashlib
import json
import os
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


def whole(value, low, high):
    return type(value) is int and low <= value <= high


def three(values, low, high):
    return len(values) == 3 and all(type(value) in (int, float) and low <= value <= high
                                    for value in values)


# What each field of model.json must be; a key or type that is missing makes it wrong, too.
FIELDS = {
    "format": lambda card: card["format"] in ("symbol", "onnx", "int8", "onnx-int8"),
    "files": lambda card: len(card["files"]) == (1 if "onnx" in card["format"] else 2) and all(
        Path(name).name == name and not set(name) & set("/\\:\0") for name in card["files"]),
    "classes": lambda card: whole(card["classes"], 1, 1 << 20),
    "class_names": lambda card: card["class_names"] is None or (
        isinstance(card["class_names"], list) and len(card["class_names"]) == card["classes"]
        and all(isinstance(name, str) for name in card["class_names"])),
    "input": lambda card: (card["input"]["dtype"], card["input"]["name"]) in (
        ("float32", "data"), ("uint8", "pixels")) and card["input"]["color"] == "RGB",
    "input.normalization": lambda card: (
        three(card["input"]["normalization"]["mean"], 0, 1)
        and three(card["input"]["normalization"]["std"], 0.01, 10)
        and card["input"]["normalization"]["in_the_graph"] is (card["input"]["dtype"] == "uint8")),
    "preprocessing.crop": lambda card: (
        card["preprocessing"]["crop"]["where"] == "centre"
        and whole(card["preprocessing"]["crop"]["size"], 32, 1 << 13)
        and card["preprocessing"]["crop"]["size"] == card["input_size"]),
    "input.shape": lambda card: card["input"]["shape"] == (
        ["N", card["input_size"], card["input_size"], 3] if card["input"]["dtype"] == "uint8"
        else ["N", 3, card["input_size"], card["input_size"]]),
    "preprocessing.resize": lambda card: (
        whole(card["preprocessing"]["resize"]["shorter_side"], card["input_size"], 1 << 18)
        and whole(card["preprocessing"]["resize"]["longest_sides_ratio"], 1, 16)
        and card["preprocessing"]["resize"]["interpolation"] in ("bilinear", "bicubic")),
    "output": lambda card: (card["output"]["shape"] == ["N", card["classes"]]
                            and card["output"]["values"] == "logits"),
}


def object_of(pairs):
    """An object of JSON. Of a key that is there twice each reader would take another value."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it has a key twice in one object")
    return found


def read_card(folder):
    """model.json, checked."""
    path = folder / "model.json"
    try:
        if (path.exists() and not path.is_file()) or path.stat().st_size > 4 << 20:
            raise ValueError("it is no file, or larger than 4 MB")
        card = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=object_of)
    except (OSError, ValueError, RecursionError) as error:
        raise Problem(f"{path} cannot be read: {error}") from None
    for field, is_right in FIELDS.items():
        try:
            right = is_right(card)
        except (KeyError, TypeError, AttributeError):
            right = False
        if not right:
            raise Problem(f"{path} lacks {field} or has a wrong value in it: export the model "
                          "again")
    return card


def read_files(folder, card):
    """Contents of the exported files, which must be those that were exported."""
    contents = []
    for name, digest in card["files"].items():
        if not (folder / name).is_file():
            raise Problem(f"{folder / name} is missing")
        contents.append((folder / name).read_bytes())
        if hashlib.sha256(contents[-1]).hexdigest() != digest:
            raise Problem(f"{folder / name} is not the file that was exported: its SHA-256 is "
                          "another")
    return contents


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


def load(folder, card, trusted):
    """A function from inputs to logits (N, classes)."""
    contents, name = read_files(folder, card), card["input"]["name"]
    if card["format"] in ("onnx", "onnx-int8"):
        import onnxruntime

        try:
            session = onnxruntime.InferenceSession(contents[0], providers=["CPUExecutionProvider"])
        except Exception as error:  # they have no common base
            raise Problem(f"ONNX Runtime cannot load {folder}: {error}") from None
        return lambda inputs: session.run(None, {name: inputs})[0]
    network = load_symbol([folder / file for file in card["files"]], card, trusted)
    import mxnet as mx

    network.hybridize(static_alloc=True, static_shape=True)
    return lambda inputs: network(mx.nd.array(inputs, dtype=inputs.dtype)).asnumpy()


def load_symbol(files, card, trusted):
    """A network of MXNet, by the package's check or, if they are trusted, as the files are."""
    if not trusted:
        try:
            from gluon_resnest.deploy.symbol import import_symbol
        except ImportError:
            raise Problem(f"{files[0]} could make MXNet do anything, and gluon_resnest, which "
                          "checks it, is not installed: give --trusted if you exported it "
                          "yourself, or take the format onnx") from None
        try:
            return import_symbol(*files, input_name=card["input"]["name"],
                                 image_shape=tuple(card["input"]["shape"][1:]),
                                 classes=card["classes"])
        except ValueError as error:
            raise Problem(error) from None
    import mxnet as mx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it cannot tell the type of the input yet
        return mx.gluon.SymbolBlock.imports(str(files[0]), [card["input"]["name"]], str(files[1]))


def probabilities(logits):
    """Softmax."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def main():
    words = [word for word in sys.argv[1:] if word != "--trusted"]
    if len(words) < 2:
        raise Problem("usage: python classify.py [--trusted] FOLDER IMAGE [IMAGE ...]")
    folder, paths = Path(words[0]), words[1:]
    card = read_card(folder)
    names = card["class_names"] or [f"class {number}" for number in range(card["classes"])]
    network = load(folder, card, trusted="--trusted" in sys.argv)
    for start in range(0, len(paths), BATCH_SIZE):
        part = paths[start:start + BATCH_SIZE]
        found = probabilities(network(as_input([prepare(path, card) for path in part], card)))
        for path, row in zip(part, found):
            best = np.argsort(-row, kind="stable")[:SHOWN]
            print(path, *(f"{names[number]} {row[number]:.2%}" for number in best), sep="\t")


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # what a terminal cannot show must not end the program
        stream.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
