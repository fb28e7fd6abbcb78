# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A run's results: written for tables, and compared with those that are expected."""

import os

from detectron2.config import CfgNode
from detectron2.evaluation import verify_results

from wsis_d2.data.records import count_supervision, load_records
from wsis_d2.evaluation.results import git_commit, make_meta, write_results_json
from wsis_d2.utils.errors import InputError


def write_results(cfg: CfgNode, dataset: str, results: dict, seconds: float | None) -> None:
    """Write the results of one set into OUTPUT_DIR/results.json.

    Args:
        cfg: of the evaluation.
        dataset: the set.
        results: by task.
        seconds: training time, None where nothing was trained.
    """
    kinds = set()
    if cfg.DATASETS.TRAIN:
        kinds = set(count_supervision(load_records(cfg.DATASETS.TRAIN)))
    supervision = "mixed" if len(kinds) > 1 else (kinds.pop() if kinds else "full")
    meta = make_meta(
        supervision=supervision,
        dataset=dataset,
        variant=cfg.RUN_VARIANT,
        seed=cfg.SEED,
        config=os.path.join(cfg.OUTPUT_DIR, "config.yaml"),
        commit=git_commit(),
        device=cfg.MODEL.DEVICE,
        seconds=seconds,
    )
    name = cfg.RUN_NAME or supervision
    if len(cfg.DATASETS.TEST) > 1:
        name = f"{name}/{dataset}"
    write_results_json(os.path.join(cfg.OUTPUT_DIR, "results.json"), name, results, meta)


def verify(cfg: CfgNode, results: dict) -> None:
    """Compare results with TEST.EXPECTED_RESULTS, as Detectron2 does: exit status 1 if they differ.

    Raises:
        InputError: a task that was not evaluated.
        SystemExit: a value is missing, not finite, or further off than its tolerance.
    """
    for task, *_ in cfg.TEST.EXPECTED_RESULTS:
        if task not in results:
            raise InputError(
                f"TEST.EXPECTED_RESULTS: task {task!r} is not among the results; expected one of "
                f"{sorted(results)}"
            )
    verify_results(cfg, results)
