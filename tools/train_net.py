#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Train or evaluate any stage of a config."""

import contextlib
import logging
import os
import sys
from collections.abc import Sequence

# Threads that wait must not spin: several processes may share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.engine.hooks import CallbackHook
from detectron2.utils import comm

from wsis_d2.checkpoint.parts import load_for_evaluation
from wsis_d2.checkpoint.reader import trust_checkpoints
from wsis_d2.engine import WSISTrainer, launch, setup, write_run_files
from wsis_d2.engine.run_results import verify
from wsis_d2.modeling.build import build_model
from wsis_d2.utils.cli import main_with_errors
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.processes import only_writer

EPILOG = """
Examples:

The detector, the semantic subnetwork and the instance stage of the embedded sample:
    tools/train_net.py --config-file configs/Sample-Panoptic/detector.yaml
    tools/train_net.py --config-file configs/Sample-Panoptic/semantic_weak.yaml \\
        DATASETS.LABEL_STORES "[['sample_train_weak', 'output/labels']]"
    tools/train_net.py --config-file configs/Sample-Panoptic/instance_weak.yaml \\
        DATASETS.LABEL_STORES "[['sample_train_weak', 'output/labels']]"
Each recipe names the folder of its results and where the weights of the other stages are.

Continue a run that was stopped:
    tools/train_net.py --config-file F --resume OUTPUT_DIR output/run

Evaluate a trained model, with and without the CRF:
    tools/train_net.py --config-file output/run/config.yaml --eval-only \\
        MODEL.WEIGHTS output/run/model_final.pth
    tools/train_net.py --config-file output/run/config.yaml --eval-only \\
        MODEL.WEIGHTS output/run/model_final.pth MODEL.INSTANCE_HEAD.NAME BoxMergeHead \\
        OUTPUT_DIR output/run_without_crf RUN_NAME without_crf RUN_VARIANT no_crf_head

On two GPUs, or two processes where there is none:
    tools/train_net.py --config-file F --num-gpus 2
"""


def evaluate(cfg) -> None:
    """Evaluate MODEL.WEIGHTS, or the parts' weights where that is empty."""
    if not cfg.DATASETS.TEST:
        raise InputError("--eval-only: DATASETS.TEST is empty; name the sets to evaluate on")
    model = build_model(cfg)
    load_for_evaluation(cfg, model)
    results = WSISTrainer.test(cfg, model)
    if comm.is_main_process():
        verify(cfg, results)


def run(args) -> None:
    """What one process does."""
    cfg = setup(args)
    if args.eval_only:
        evaluate(cfg)
        return
    with only_writer(cfg.OUTPUT_DIR) if comm.is_main_process() else contextlib.nullcontext():
        train(cfg, args.resume)


def train(cfg: CfgNode, resume: bool) -> None:
    """Train in OUTPUT_DIR, from its last checkpoint or anew."""
    trainer = WSISTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    if trainer.start_iter == trainer.max_iter:
        logging.getLogger("wsis_d2").warning(
            "%s: training is finished, all %d iterations are done; raise SOLVER.MAX_ITER to train "
            "on",
            cfg.OUTPUT_DIR, trainer.max_iter,
        )  # fmt: skip
    # What is refused until then must not be written down.
    trainer.register_hooks([CallbackHook(before_train=lambda _: write_run_files(cfg))])
    trainer.train()


def main(argv: Sequence[str] | None = None) -> None:
    parser = default_argument_parser(epilog=EPILOG)
    parser.description = __doc__
    parser.add_argument(
        "--trust",
        action="store_true",
        help="read checkpoints that may contain code, from trusted sources",
    )
    args = parser.parse_args(argv)
    if args.trust:
        trust_checkpoints()
    if not args.config_file:
        parser.error("--config-file is missing; see the examples of --help")
    launch(
        run,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


if __name__ == "__main__":
    main_with_errors(main, sys.argv[1:])
