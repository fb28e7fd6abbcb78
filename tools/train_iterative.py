#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Train in rounds: each trains on the labels that the last round's network made and cleaned."""

import argparse
import os
import sys
from collections.abc import Sequence

# Threads that wait must not spin: several processes may share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from detectron2.utils.logger import setup_logger

from wsis_d2.utils.cli import main_with_errors

EPILOG = """examples:
  # three rounds on the embedded sample, from labels of boxes and tags
  tools/train_net.py --config-file configs/Sample-TagClassifier/tag_classifier_R_18.yaml
  tools/make_weak_labels.py all --dataset sample_train_weak --output output/labels \\
      --config-file configs/Sample-TagClassifier/tag_classifier_R_18.yaml \\
      --classifier output/sample_tag_classifier/model_final.pth
  tools/train_net.py --config-file configs/Sample-Panoptic/detector.yaml
  tools/train_iterative.py --config-file configs/Sample-Iterative/semantic.yaml --rounds 3 \\
      DATASETS.LABEL_STORES "[['sample_train_weak', 'output/labels']]"

  # take a network that tools/train_net.py trained on round 0's labels instead of training it
  tools/train_iterative.py --config-file F --rounds 2 \\
      ITERATIVE.FIRST_WEIGHTS output/semantic/model_final.pth

  # on two machines of 8 GPUs that see the same folders; the same on the second, --machine-rank 1
  tools/train_iterative.py --config-file F --rounds 6 --num-gpus 8 --num-machines 2 \\
      --machine-rank 0 --dist-url tcp://first:29500

  # continue a run that was stopped, or add rounds to it
  tools/train_iterative.py --config-file F --rounds 5 --resume OUTPUT_DIR output/iterative

Each round's training, the labels that its network makes and results.json are in OUTPUT_DIR/round_K,
K from 0 as in the paper; its config.yaml trains or evaluates it alone with tools/train_net.py. IoU
and PQ by round are in OUTPUT_DIR/rounds.json and rounds.png. With a semantic config, PQ needs a
detector: MODEL.WSIS.DETECTOR_WEIGHTS.
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="F", help="what a round trains")
    parser.add_argument(
        "--rounds", required=True, type=int, metavar="N", help="rounds, with round 0"
    )
    parser.add_argument(
        "--num-gpus", type=int, default=1, metavar="N",
        help="GPUs of each machine that train, evaluate and label (processes where there is none)",
    )  # fmt: skip
    parser.add_argument("--num-machines", type=int, default=1, metavar="N")
    parser.add_argument("--machine-rank", type=int, default=0, metavar="K", help="of this machine")
    parser.add_argument(
        "--dist-url", default="auto", metavar="URL", help="tcp://HOST:PORT that all machines reach"
    )
    parser.add_argument("--resume", action="store_true", help="continue what OUTPUT_DIR holds")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE ...", help="config overrides"
    )
    args = parser.parse_args(argv)
    from wsis_d2.engine import load_cfg
    from wsis_d2.relabeling.rounds import train_iterative

    cfg = load_cfg(args.config_file, args.opts)
    cfg.freeze()
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    for name in ("detectron2", "fvcore", "wsis_d2"):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=args.machine_rank, name=name)
    train_iterative(
        cfg, args.rounds, args.resume, args.num_gpus, num_machines=args.num_machines,
        machine_rank=args.machine_rank, dist_url=args.dist_url,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    main_with_errors(main, sys.argv[1:])
