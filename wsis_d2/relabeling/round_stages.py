# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The stages of a round, as each process runs them: train, evaluate, make labels."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from wsis_d2.checkpoint.parts import load_for_evaluation
from wsis_d2.data.datasets import register_own_datasets
from wsis_d2.engine.run_classes import run_classes
from wsis_d2.engine.trainer import WSISTrainer
from wsis_d2.evaluation.label_quality import evaluate_store
from wsis_d2.modeling.build import build_model
from wsis_d2.relabeling.round_labels import relabel
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.json_io import write_json

logger = logging.getLogger(__name__)


def train_round(cfg: CfgNode) -> None:
    """Train one round, or what is left of it; what each process does.

    Args:
        cfg: of the round.
    """
    register_own_datasets(cfg)
    run_classes(cfg)
    trainer = WSISTrainer(cfg)
    # The last round's weights and labels lie below a folder that may have been moved; labels are
    # known by their recipe.
    trainer.identity["config"]["MODEL"].pop("WEIGHTS")
    trainer.identity["config"]["DATASETS"].pop("LABEL_STORES")
    trainer.resume_or_load(resume=True)
    trainer.train()


def evaluate_round(cfg: CfgNode, output: Path) -> None:
    """Evaluate a round's network; what each process does.

    Args:
        cfg: of the evaluation.
        output: file that the main process writes the figures of the first set to.
    """
    register_own_datasets(cfg)
    run_classes(cfg)
    model = build_model(cfg)
    load_for_evaluation(cfg, model)
    results = WSISTrainer.test(cfg, model)
    if comm.is_main_process():
        if len(cfg.DATASETS.TEST) > 1:
            results = results[cfg.DATASETS.TEST[0]]
        numbers = {task: _numbers(values) for task, values in results.items() if task != "bbox"}
        write_json(output, numbers)


def label_round(cfg: CfgNode, jobs: Sequence[Mapping]) -> None:
    """Label the weak sets anew; what each process does: its share of each.

    Args:
        cfg: of the run.
        jobs: arguments of :func:`relabel` for each set.
    """
    register_own_datasets(cfg)
    run_classes(cfg)
    for job in jobs:
        relabel(cfg, **job)


def store_quality(name: str, store: Path) -> dict | None:
    """Compare a store with the truth of its dataset, where that is registered and there.

    Args:
        name: the dataset; its metadata tells ``panoptic_json`` and ``panoptic_root``.
        store: a label store.

    Returns:
        Summary figures, or None without truth.
    """
    metadata = MetadataCatalog.get(name)
    truth, folder = metadata.get("panoptic_json"), metadata.get("panoptic_root")
    if not truth or not folder or not os.path.isfile(truth):
        return None
    try:
        return _numbers(evaluate_store(store, truth, folder)["summary"])
    except (InputError, OSError) as error:
        logger.warning("no label quality of %s: %s", store, error)
        return None


def _numbers(values: Mapping) -> dict:
    """Keep the finite numbers of a result."""
    kept = {}
    for key, value in values.items():
        if isinstance(value, (int, float)) and value == value and abs(value) != float("inf"):
            kept[key] = round(float(value), 4)
    return kept
