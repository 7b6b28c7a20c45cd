#!/usr/bin/env python
"""Draw a contact sheet of the training augmentation: what the network sees, and why.

SHEET is 'operations' (one photo under every operation, with the crops drawn in) or 'samples' (a
grid of training samples, as the network sees them in an epoch, with what was drawn for each).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from gluon_resnest import command_line
from gluon_resnest.data.augment.random_streams import mixup_generator, sample_generator
from gluon_resnest.data.augment.transforms import TrainTransform
from gluon_resnest.data.images.decoding import decode
from gluon_resnest.data.images.image_files import read_image
from gluon_resnest.data.records.record_file import RecordFile
from gluon_resnest.drawing import contact_page, contact_sheet
from gluon_resnest.errors import InputError
from gluon_resnest.models import list_models
from gluon_resnest.settings import add_settings
from gluon_resnest.tasks.classification.mixup import draw_lambdas
from gluon_resnest.tasks.classification.recipe import Recipe, recipe_of
from gluon_resnest.tasks.classification.task import train_transform

EXAMPLES = """
  python scripts/show_augmentation.py operations --image photo.jpg
  python scripts/show_augmentation.py samples --rec-train records/train.rec --mixup
  python scripts/show_augmentation.py samples --image photo.jpg --model resnest200 --no-auto-aug

Samples of --rec-train are its records from --index on, as they are in --epoch; those of --image
are the one photo, as it would be if it were record --index, in --epoch and the epochs after it.
"""

CROPS, SAMPLES, MOST_SAMPLES = 6, 24, 240


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = command_line.parser(__doc__, EXAMPLES)
    parser.add_argument("sheet", choices=["operations", "samples"], metavar="SHEET",
                        help="operations or samples")
    parser.add_argument("--image", type=command_line.path, metavar="FILE", help="one photo")
    parser.add_argument("--rec-train", type=command_line.path, metavar="FILE",
                        help="or training images, made by scripts/pack_records.py or im2rec")
    parser.add_argument("--rec-train-idx", type=command_line.path, metavar="FILE",
                        help="its index (default: the .idx beside it)")
    parser.add_argument("--index", type=command_line.not_negative, default=0, metavar="N",
                        help="place in the file of the first record shown (default: 0)")
    parser.add_argument("--epoch", type=command_line.not_negative, default=0, metavar="N",
                        help="whose draws are shown; 0 is the first (default)")
    parser.add_argument("--count", type=command_line.positive, metavar="N",
                        help=f"crops or samples (default: {CROPS} or {SAMPLES})")
    parser.add_argument("--output", type=command_line.path, default=Path("augmentation.jpg"),
                        metavar="FILE", help="a .jpg of about 1 MB at most, or an exact .png "
                             "(default: augmentation.jpg)")

    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--model", default="resnest50", metavar="NAME",
                        help=f"whose recipe: one of {', '.join(list_models())} "
                             "(default: resnest50)")
    add_settings(recipe, Recipe, "train_size", "seed", "auto_aug", "crop_area", "color_jitter",
                 "lighting", "mixup_alpha", "mixup_lambda", defaults=False)
    command_line.add_switch(recipe, "mixup", "mixup",
                            "show the samples mixed too, as if they were a batch (default: not)")
    return parser.parse_args(arguments)


def resolve(args: argparse.Namespace) -> tuple[Recipe, TrainTransform]:
    """The recipe with the flags that were given, and its transform."""
    if (args.image is None) == (args.rec_train is None):
        raise InputError("give one of --image and --rec-train")
    if args.count is not None and args.count > MOST_SAMPLES:
        raise InputError(f"--count {args.count} is more than a sheet holds: at most "
                         f"{MOST_SAMPLES}")
    contact_page.check_output(args.output)
    recipe = recipe_of(args.model, **{
        name: getattr(args, name) for name in (
            "train_size", "seed", "auto_aug", "crop_area", "color_jitter", "lighting",
            "mixup_alpha", "mixup_lambda")})
    if args.mixup and recipe.mixup_alpha == 0:
        raise InputError("--mixup-alpha 0 mixes nothing: leave --mixup out")
    return recipe, train_transform(recipe)


def labelled_image(records: RecordFile, position: int) -> tuple[np.ndarray, str]:
    """Pixels (H, W, 3), uint8, of a record, and its class by the class list, or its label."""
    if position >= len(records):
        raise InputError(f"--index {position} is beyond the end of {records.path}, which has "
                         f"{len(records)} records")
    record = records.read(position)
    names = records.class_names or []
    named = 0 <= record.label < len(names) and record.label == int(record.label)
    try:
        image = decode(record.payload)
    except InputError as error:
        raise InputError(f"record {record.key} of {records.path}: {error}") from None
    return image, names[int(record.label)] if named else f"label {record.label:g}"


def samples(
    args: argparse.Namespace, recipe: Recipe, transform: TrainTransform, count: int
) -> tuple[list[contact_sheet.Tile], str]:
    """Tiles of the samples, and what they are."""
    if args.image is not None:
        image = read_image(args.image)
        epochs = range(args.epoch, args.epoch + count)
        tiles = [
            contact_sheet.sample_tile(f"epoch {epoch}", image, transform,
                                      sample_generator(recipe.seed, epoch, args.index))
            for epoch in epochs]
        return tiles, "the photo in epochs counted from 0"
    tiles = []
    with RecordFile(args.rec_train, args.rec_train_idx) as records:
        stop = max(args.index + 1, min(args.index + count, len(records)))
        for position in range(args.index, stop):
            image, label = labelled_image(records, position)
            rng = sample_generator(recipe.seed, args.epoch, position)
            tile = contact_sheet.sample_tile(f"record {position}", image, transform, rng)
            tiles.append(tile._replace(notes=(label, *tile.notes)))
    return tiles, f"records in epoch {args.epoch}, counted from 0"


def main() -> None:
    args = parse_arguments()
    recipe, transform = resolve(args)
    source = args.image or args.rec_train
    if args.sheet == "operations":
        if args.mixup:
            raise InputError("--mixup is for the sheet of samples")
        if args.image is not None:
            image = read_image(args.image)
        else:
            with RecordFile(args.rec_train, args.rec_train_idx) as records:
                image, _ = labelled_image(records, args.index)
        generators = [sample_generator(recipe.seed, epoch, args.index)
                      for epoch in range(args.epoch, args.epoch + (args.count or CROPS))]
        page = contact_page.operations_page(image, transform, generators)
    else:
        tiles, what = samples(args, recipe, transform, args.count or SAMPLES)
        mixed = []
        if args.mixup:
            rng = mixup_generator(recipe.seed, args.epoch, step=0, rank=0)
            lambdas = draw_lambdas(len(tiles), recipe.mixup_alpha, rng, recipe.mixup_lambda)
            mixed = contact_sheet.mixed_tiles(tiles, lambdas)
        if recipe.color_jitter:
            what += "; B, C, S are the factors of brightness, contrast and saturation"
        page = contact_page.samples_page(tiles, what, mixed)
    title = (f"Augmentation of {source.name}: {recipe.model}, {recipe.train_size} pixels, "
             f"seed {recipe.seed}")
    picture = contact_page.render(title, page)
    contact_page.save(picture, args.output)
    print(f"{args.output}: {picture.shape[1]} x {picture.shape[0]} pixels, "
          f"{args.output.stat().st_size / 1000:,.0f} kB")


if __name__ == "__main__":
    command_line.run(main)
