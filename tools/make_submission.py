#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Convert saved predictions into files for the VOC 2012 and Cityscapes evaluation servers."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from wsis_d2.evaluation.submission import SERVERS, write_submission
from wsis_d2.utils.cli import main_with_errors

EXAMPLES = """examples:
  # predict on the test set first; nothing is measured there
  tools/train_net.py --config-file configs/PascalVOC-PanopticSegmentation/wsis_R_101_weak.yaml \\
      --eval-only MODEL.WEIGHTS W.pth DATASETS.TEST "('voc_2012_test',)" OUTPUT_DIR output/test
  tools/make_submission.py voc --predictions output/test/inference/voc_2012_test --output out/voc
  # Cityscapes: semantic labels, and instances with their scores
  tools/make_submission.py cityscapes-semantic --predictions DIR --output out/semantic
  tools/make_submission.py cityscapes-instance --predictions DIR --output out/instance

Upload the archive next to the folder (.tgz for VOC, .zip for Cityscapes).
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("server", choices=sorted(SERVERS))
    parser.add_argument(
        "--predictions", required=True, type=Path,
        help="folder of an evaluation: panoptic_pred.json, panoptic_pred/, semantic_pred/",
    )  # fmt: skip
    parser.add_argument("--output", required=True, type=Path, help="new folder")
    parser.add_argument(
        "--source", choices=("semantic", "panoptic"), default="semantic",
        help="semantic servers: the semantic output (default) or the segments' union",
    )  # fmt: skip
    parser.add_argument(
        "--score-mode", choices=("score", "detection", "mean_confidence", "both"),
        default="score", help="what is an instance's confidence",
    )  # fmt: skip
    args = parser.parse_args(argv)
    archive, count = write_submission(
        args.predictions, args.output, args.server,
        source=args.source, score_mode=args.score_mode,
    )  # fmt: skip
    print(f"{count} images; upload {archive}")
    expected = SERVERS[args.server].test_images
    if count != expected:
        print(f"note: the test set has {expected} images, the server refuses another number")


if __name__ == "__main__":
    main_with_errors(main)
