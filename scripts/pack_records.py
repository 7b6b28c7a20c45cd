#!/usr/bin/env python
"""Pack image files into the RecordIO files that train_imagenet.py reads, or verify such files.

Packing writes OUT_PREFIX.rec (the images), .idx (where each begins), .lst (index, label and path
of each, in order) and .classes.txt (the classes' names, a line a label). Verifying writes nothing;
its exit code is 0 without faults, 1 with faults, 2 for what cannot be verified.
"""

from __future__ import annotations

import argparse
import json
import sys

from gluon_resnest import command_line
from gluon_resnest.data.records.packing import PackOptions, pack, packing_threads
from gluon_resnest.data.records.verification import verify

FAULTS_FOUND = 1

EXAMPLES = """
  ImageNet's training and validation images, unpacked into a folder a class:
    python scripts/pack_records.py imagenet/train records/train
    python scripts/pack_records.py imagenet/val records/val
  The same at a quarter of the size, for a small disk:
    python scripts/pack_records.py imagenet/train records/train --resize 256 --quality 90
  Read and decode all of a file, from here or from im2rec, and list what is wrong with it:
    python scripts/pack_records.py --verify records/train.rec
"""


def parse_arguments() -> argparse.Namespace:
    parser = command_line.parser(__doc__, EXAMPLES)
    parser.add_argument(
        "source", type=command_line.path, metavar="SOURCE", nargs="?",
        help="folder with one folder of images a class (sorted names become the labels 0, 1, ...), "
             "or an im2rec list: index <tab> label <tab> path in each line")
    parser.add_argument("prefix", type=command_line.path, metavar="OUT_PREFIX", nargs="?",
                        help="path of the files to write, without their endings")
    parser.add_argument("--root", type=command_line.path, metavar="DIR",
                        help="folder that the paths of a .lst start from (default: the list's own)")
    parser.add_argument("--resize", type=int, metavar="SHORT_SIDE",
                        help="shrink larger images to this shorter side in pixels "
                             "(default: keep the size)")
    parser.add_argument("--quality", type=int, metavar="Q",
                        help="encode every image as JPEG of this quality, 1 to 100 "
                             "(default: copy the files' bytes; 95 where --resize shrinks)")
    # --num-thread is im2rec's name for it; --data-nthreads what all tools call it here.
    parser.add_argument("--data-nthreads", "--num-thread", type=command_line.threads,
                        dest="threads", default=packing_threads(), metavar="N",
                        help="images prepared or verified at a time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0,
                        help="chooses the order of the records (default: %(default)s)")
    parser.add_argument("--no-shuffle", action="store_true",
                        help="keep the source's order; for validation files only, since a worker "
                             "trains on one contiguous part of the file")
    parser.add_argument("--classes-of", type=command_line.path, metavar="TRAIN.rec",
                        help="give the classes the labels that they have in this file: for a "
                             "validation set that lacks some of them")
    parser.add_argument("--folders-are-classes", action="store_true",
                        help="take folders called train, val and so on for classes")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    group = parser.add_argument_group("verifying, instead of packing")
    group.add_argument("--verify", type=command_line.path, metavar="FILE.rec",
                       help="print each fault of a record file, its index, labels and images")
    group.add_argument("--index", type=command_line.path, metavar="FILE.idx",
                       help="its index (default: the .idx beside it)")
    group.add_argument("--classes", type=command_line.positive, metavar="N",
                       help="number of classes that the labels are of (default: as many as "
                            ".classes.txt beside it names, else any)")
    group.add_argument("--json", action="store_true", help="print one JSON object instead")
    args = parser.parse_args()
    if args.verify is None:
        if args.prefix is None:
            parser.error("the following arguments are required: SOURCE, OUT_PREFIX")
        if args.index or args.classes or args.json:
            parser.error("--index, --classes and --json go with --verify")
    elif args.source is not None:
        parser.error(f"--verify packs nothing: leave {args.source} out")
    return args


def verify_file(args: argparse.Namespace) -> None:
    report = verify(args.verify, args.index, args.classes, args.threads)
    if args.json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        print("\n".join(map(str, [*report.faults, report])))
    if report.faults:
        sys.exit(FAULTS_FOUND)


def pack_files(args: argparse.Namespace) -> None:
    options = PackOptions(
        resize=args.resize,
        quality=args.quality,
        threads=args.threads,
        seed=args.seed,
        shuffle=not args.no_shuffle,
        overwrite=args.overwrite,
        classes_of=args.classes_of,
        folders_are_classes=args.folders_are_classes,
    )
    packed = pack(args.source, args.prefix, options, args.root)
    classes = f" of {len(packed.class_names):,} classes" if packed.class_names else ""
    print(f"packed {packed.images:,} images{classes}, {packed.size / 1e6:,.1f} MB, "
          f"into {packed.record_file}")


def main() -> None:
    args = parse_arguments()
    if args.verify is not None:
        verify_file(args)
    else:
        pack_files(args)


if __name__ == "__main__":
    command_line.run(main)
