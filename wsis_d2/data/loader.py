# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Data loaders for training and testing."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset, MetadataCatalog
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader

from wsis_d2.data.mappers import build_mapper
from wsis_d2.data.records import count_supervision, load_records, supervision_of
from wsis_d2.data.sampling import SeededDataset, TrainingStream
from wsis_d2.structures.annotation import whole_image_groups
from wsis_d2.structures.stages import stage_of
from wsis_d2.utils.errors import InputError


def build_train_loader(
    cfg: CfgNode,
    mapper: Callable[[dict], dict] | None = None,
    *,
    seed: int | None = None,
    start_iter: int = 0,
) -> DataLoader:
    """Build the endless training loader of DATASETS.TRAIN.

    Args:
        cfg: the config.
        mapper: default: the one INPUT.DATASET_MAPPER_NAME names.
        seed: of order and augmentation; default SEED.
        start_iter: iterations already trained on; their samples are skipped.

    Returns:
        Batches as lists of samples, SOLVER.IMS_PER_BATCH over all processes.

    Raises:
        InputError: a dataset, a label or a key that cannot be used.
    """
    logger = logging.getLogger(__name__)
    if not cfg.DATASETS.TRAIN:
        raise InputError("DATASETS.TRAIN is empty; name at least one dataset to train on")
    world_size = comm.get_world_size()
    batch = cfg.SOLVER.IMS_PER_BATCH
    if batch % world_size or batch < world_size:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH is {batch}, expected a multiple of the {world_size} processes"
        )
    records = load_records(cfg.DATASETS.TRAIN)
    detector_stage = "detector" in stage_of(cfg).trained
    for name in cfg.DATASETS.TRAIN if detector_stage else ():
        if not MetadataCatalog.get(name).get("has_boxes", True):
            raise InputError(
                f"DATASETS.TRAIN: {name!r} cannot train a detector, as its boxes are not "
                "complete: objects without one would count as background; leave it out"
            )
    if detector_stage and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        kept = [r for r in records if any(not a.get("iscrowd", 0) for a in r["annotations"])]
        if not kept:
            raise InputError(f"DATASETS.TRAIN: no image of {list(cfg.DATASETS.TRAIN)} has a box")
        logger.info("%d images without a box left out", len(records) - len(kept))
        records = kept
    if detector_stage:
        # What has no box would count as background: objects of marks alone, and tagged things.
        things = cfg.MODEL.WSIS.THING_IDS
        kept = [r for r in records if not whole_image_groups(r, things)]
        if len(kept) < len(records):
            logger.info("%d images with objects without a box left out", len(records) - len(kept))
        if not kept:
            raise InputError(
                f"DATASETS.TRAIN: every image of {list(cfg.DATASETS.TRAIN)} has objects without a "
                "box, and a detector learns from boxes; give some images all their boxes, or train "
                "a stock model from the labels (tools/train_stock.py)"
            )
        records = kept
    counts = count_supervision(records)
    logger.info(
        "Training images: %s",
        ", ".join(f"{counts[kind]} {kind}" for kind in ("weak", "full") if kind in counts),
    )
    mapper = mapper or build_mapper(cfg, is_train=True)
    if hasattr(mapper, "check"):
        mapper.check(records)
    seed = max(cfg.SEED, 0) if seed is None else seed
    stream = TrainingStream(
        [supervision_of(record) == "full" for record in records],
        seed=seed,
        full_fraction=cfg.DATALOADER.FULL_FRACTION,
        start=start_iter * batch,
        rank=comm.get_rank(),
        world_size=world_size,
    )
    if cfg.DATALOADER.FULL_FRACTION >= 0:
        logger.info("Share of full images in training: %.3f", cfg.DATALOADER.FULL_FRACTION)
    return DataLoader(
        SeededDataset(records, mapper, seed),
        batch_size=batch // world_size,
        sampler=stream,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=_as_list,
        drop_last=True,
        # Copies to a GPU go on beside its work from memory that stays in its place.
        pin_memory=torch.cuda.is_available() and cfg.MODEL.DEVICE.startswith("cuda"),
    )


def build_test_loader(
    cfg: CfgNode, dataset_name: str, mapper: Callable[[dict], dict] | None = None
) -> DataLoader:
    """Build the loader that goes once through a dataset, TEST.IMS_PER_BATCH images at a time."""
    records = load_records([dataset_name])
    mapper = mapper or build_mapper(cfg, is_train=False)
    return DataLoader(
        MapDataset(DatasetFromList(records, copy=False), mapper),
        batch_size=cfg.TEST.IMS_PER_BATCH,
        sampler=InferenceSampler(len(records)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=_as_list,
    )


def compare_with_tests(records: Iterable[Mapping], tested: Mapping[str, Sequence[str]]) -> None:
    """Warn of images that are trained on and tested on.

    Args:
        records: those that are trained on.
        tested: the images' files, by test set.
    """
    trained = {os.path.abspath(record["file_name"]) for record in records}
    for name, files in tested.items():
        shared = [file for file in files if os.path.abspath(file) in trained]
        if shared:
            logging.getLogger(__name__).warning(
                "DATASETS.TEST: %d of %d images of %s are trained on too, so its results tell "
                "nothing of other images; the first is %s",
                len(shared), len(files), name, shared[0],
            )  # fmt: skip


def _as_list(batch: list[dict]) -> list[dict]:
    return batch
