#!/usr/bin/env python
"""Measure accuracy, ROC AUC and calibration on a RecordIO file, each image counted once."""

from __future__ import annotations

import json
import math
import sys
import time

from gluon_resnest import command_line
from gluon_resnest.classifier import load_classifier
from gluon_resnest.data.class_names import check_class_names
from gluon_resnest.data.loading.labelled_images import EvaluationLoader
from gluon_resnest.data.records.record_file import RecordFile
from gluon_resnest.drawing.calibration_picture import draw_calibration
from gluon_resnest.drawing.confusion_picture import draw_confusion
from gluon_resnest.drawing.figure import check_picture
from gluon_resnest.progress_bar import progress_bar
from gluon_resnest.tasks.classification.assessment import Assessor
from gluon_resnest.tasks.classification.evaluation import evaluate
from gluon_resnest.workers import Workers, device

EXAMPLES = """
  python scripts/evaluate.py --model resnest50 --params resnest50.params --rec-val val.rec
  python scripts/evaluate.py --model resnest50 --params resnest50.params --rec-val val.rec \\
      --confusion confusion.png --calibration calibration.png
  python scripts/evaluate.py --model exported/resnest50-symbol.json --rec-val val.rec --json
"""


def main() -> None:
    parser = command_line.parser(__doc__, EXAMPLES)
    command_line.add_network_flags(parser)
    parser.add_argument("--rec-val", type=command_line.path, required=True, metavar="FILE",
                        help="images to evaluate, made by scripts/pack_records.py or im2rec")
    parser.add_argument("--rec-val-idx", type=command_line.path, metavar="FILE",
                        help="its index (default: the .idx beside it)")
    command_line.add_batch_flags(parser, 32, "images at a time (default: 32)")
    command_line.add_thread_flag(parser)
    command_line.add_skip_flag(parser)
    parser.add_argument("--confusion", type=command_line.path, metavar="FILE.png",
                        help="draw which classes are taken for which others")
    parser.add_argument("--calibration", type=command_line.path, metavar="FILE.png",
                        help="draw a reliability diagram: accuracy by confidence")
    parser.add_argument("--json", action="store_true",
                        help="print one JSON object instead, with figures of each class")
    args = parser.parse_args()
    pictures = [(flag, path, draw) for flag, path, draw in (
        ("--confusion", args.confusion, draw_confusion),
        ("--calibration", args.calibration, draw_calibration)) if path is not None]
    for flag, path, _ in pictures:
        check_picture(flag, path)

    ctx = device(Workers(), args.no_cuda)
    with RecordFile(args.rec_val, args.rec_val_idx) as records:
        classifier = load_classifier(args.model, args.params, args.classes, args.test_size,
                                     args.crop_ratio, args.class_names, ctx)
        check_class_names(records, classifier.class_names)
        loader = EvaluationLoader(records, classifier.transform, args.batch_size,
                                  classes=classifier.classes, threads=args.data_nthreads,
                                  skip_bad_records=args.skip_bad_records)
        names = classifier.class_names or records.class_names or [
            classifier.class_name(label) for label in range(classifier.classes)]
        assessor = Assessor(names)
        started = time.perf_counter()
        result = evaluate(classifier, progress_bar(loader, desc="evaluating",
                                                       unit="batch", leave=True),
                          expected_images=len(records), batch_size=args.batch_size,
                          skipped=loader.bad_records, observe=assessor.observe)
        seconds = time.perf_counter() - started
    assessment = assessor.assessment()
    for _, path, draw in pictures:
        draw(assessment, path, f"{classifier.name} on {args.rec_val.name}")
    figures = {"model": classifier.name, "input_size": classifier.input_size,
               "classes": classifier.classes, **result.as_dict(),
               "images_per_second": result.images / seconds, **assessment.as_dict()}
    for _, fault in sorted(loader.bad_records.items()):
        print(f"left out: {fault}", file=sys.stderr)
    if args.json:
        if not math.isfinite(result.loss):
            figures["loss"] = None  # JSON has no NaN
        print(json.dumps(figures, indent=2, allow_nan=False))
        return
    left_out = f" ({result.skipped} left out)" if result.skipped else ""
    print(f"{classifier.name} at {classifier.input_size} px on {result.images} images{left_out}: "
          f"top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %, "
          f"cross entropy {result.loss:.4f}, {figures['images_per_second']:.1f} images/s")
    for line in assessment.as_text():
        print(line)


if __name__ == "__main__":
    command_line.run(main)
