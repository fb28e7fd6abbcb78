# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Set a run up: config, datasets, classes, logging."""

import argparse
import json
import os
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

import wsis_d2.data.datasets
import wsis_d2.modeling  # noqa: F401  (registers the models)
from wsis_d2.config import read_config
from wsis_d2.config_checks.runs import choose_device
from wsis_d2.data.datasets import register_own_datasets
from wsis_d2.engine.run_classes import METADATA, fill_classes, run_classes
from wsis_d2.utils.files import atomic_write, write_bytes


def load_cfg(
    config_file: str | None = None,
    opts: list[str] | None = None,
    *,
    evaluates: bool = False,
    resumes: bool = False,
) -> CfgNode:
    """Return the config of a file with overrides, datasets registered and classes filled in.

    Args:
        config_file: a YAML file; None takes the defaults.
        opts: alternating keys and values.
        evaluates, resumes: see :func:`wsis_d2.engine.run_classes.run_classes`.

    Raises:
        InputError: an unknown key, a value of the wrong type, an unreadable file, or classes that
            contradict the datasets'.
    """
    cfg = read_config(config_file, opts)
    register_own_datasets(cfg)
    complete_config(cfg, evaluates=evaluates, resumes=resumes)
    return cfg


def complete_config(cfg: CfgNode, *, evaluates: bool = False, resumes: bool = False) -> None:
    """Fill in, from the datasets, the class keys that a stand-alone model needs.

    Sets MODEL.WSIS.THING_IDS, MODEL.ROI_HEADS.NUM_CLASSES and MODEL.SEM_SEG_HEAD.NUM_CLASSES from
    the classes of the run (:func:`wsis_d2.engine.run_classes.run_classes`), which its datasets
    share from then on; where none is registered here, the config must have them. MODEL.DEVICE
    becomes "cpu" where no GPU is visible.

    Args:
        cfg: changed in place.
        evaluates, resumes: see :func:`wsis_d2.engine.run_classes.run_classes`.

    Raises:
        InputError: a device that is not here, datasets of different classes, or a config made for
            other classes.
    """
    choose_device(cfg)
    classes = run_classes(cfg, evaluates=evaluates, resumes=resumes)
    if classes is not None:
        fill_classes(cfg, classes)


def setup(args: argparse.Namespace) -> CfgNode:
    """Set a command-line run up: :func:`load_cfg` and logging.

    A config.yaml and metadata.json that are in OUTPUT_DIR stay: they tell what its model was
    trained with, which an evaluation, or a training that is refused, must not change;
    :func:`write_run_files` writes them anew when training begins.

    Args:
        args: of Detectron2's ``default_argument_parser``.
    """
    evaluates = bool(getattr(args, "eval_only", False))
    cfg = load_cfg(
        args.config_file or None,
        args.opts,
        evaluates=evaluates,
        resumes=bool(getattr(args, "resume", False)) and not evaluates,
    )
    cfg.freeze()
    files = [os.path.join(cfg.OUTPUT_DIR, name) for name in ("config.yaml", METADATA)]
    main = comm.is_main_process()
    kept = {path: Path(path).read_bytes() for path in files if main and os.path.isfile(path)}
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="wsis_d2")
    if main:
        write_metadata(cfg)
        for path, content in kept.items():
            with atomic_write(Path(path)) as file:
                file.write(content)
    return cfg


def write_run_files(cfg: CfgNode) -> None:
    """Write OUTPUT_DIR/config.yaml and metadata.json: what is trained from now on."""
    if comm.is_main_process():
        with atomic_write(Path(cfg.OUTPUT_DIR) / "config.yaml") as file:
            file.write(cfg.dump().encode())
        write_metadata(cfg)


def write_metadata(cfg: CfgNode) -> str | None:
    """Write OUTPUT_DIR/metadata.json, the classes a trained model speaks of.

    Returns:
        The file, or None where no dataset of the config is registered here.
    """
    names = [n for n in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if n in DatasetCatalog.list()]
    if not names:
        return None
    metadata = MetadataCatalog.get(names[0])
    if metadata.get("thing_ids") is None:
        return None
    keys = ("thing_classes", "stuff_classes", "thing_colors", "stuff_colors", "thing_ids",
            "stuff_ids", "ignore_label", "label_divisor", "categories",
            "thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id")  # fmt: skip
    content = {key: metadata.get(key) for key in keys}
    content["dataset"] = names[0]
    path = os.path.join(cfg.OUTPUT_DIR, METADATA)
    write_bytes(path, json.dumps(content, indent=1, default=list).encode())
    return path
