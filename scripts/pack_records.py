#!/usr/bin/env python
"""Pack image files into the RecordIO files that train_imagenet.py reads."""

from __future__ import annotations

import argparse

from gluon_resnest import command_line
from gluon_resnest.data.packing import PackOptions, default_threads, pack

EXAMPLE = """\
example: ImageNet's training and validation images, unpacked into a folder a class
  python scripts/pack_records.py imagenet/train records/train
  python scripts/pack_records.py imagenet/val records/val
The same at a quarter of the size, for a small disk:
  python scripts/pack_records.py imagenet/train records/train --resize 256 --quality 90

Writes OUT_PREFIX.rec (the images), .idx (where each begins), .lst (index, label and path of each,
in order) and .classes.txt (the classes' names, a line a label).
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", metavar="SOURCE",
        help="folder with one folder of images a class (sorted names become the labels 0, 1, ...), "
             "or an im2rec list: index <tab> label <tab> path in each line")
    parser.add_argument("prefix", metavar="OUT_PREFIX",
                        help="path of the files to write, without their endings")
    parser.add_argument("--root", metavar="DIR",
                        help="folder that the paths of a .lst start from (default: the list's own)")
    parser.add_argument("--resize", type=int, metavar="SHORT_SIDE",
                        help="shrink larger images to this shorter side in pixels "
                             "(default: keep the size)")
    parser.add_argument("--quality", type=int, metavar="Q",
                        help="encode every image as JPEG of this quality, 1 to 100 "
                             "(default: copy the files' bytes; 95 where --resize shrinks)")
    parser.add_argument("--num-thread", type=int, default=default_threads(), metavar="N",
                        help="images prepared at a time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0,
                        help="chooses the order of the records (default: %(default)s)")
    parser.add_argument("--no-shuffle", action="store_true",
                        help="keep the source's order; for validation files only, since a worker "
                             "trains on one contiguous part of the file")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    options = PackOptions(
        resize=arguments.resize,
        quality=arguments.quality,
        threads=arguments.num_thread,
        seed=arguments.seed,
        shuffle=not arguments.no_shuffle,
        overwrite=arguments.overwrite,
    )
    packed = pack(arguments.source, arguments.prefix, options, arguments.root)
    classes = f" of {len(packed.class_names):,} classes" if packed.class_names else ""
    print(f"packed {packed.images:,} images{classes}, {packed.size / 1e6:,.1f} MB, "
          f"into {packed.record_file}")


if __name__ == "__main__":
    command_line.run(main)
