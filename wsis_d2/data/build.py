# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Data loaders for training and testing."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.utils import comm
from detectron2.utils.registry import Registry
from torch.utils.data import DataLoader

from wsis_d2.data.sampling import SeededDataset, TrainingStream
from wsis_d2.utils.errors import InputError

DATASET_MAPPER_REGISTRY = Registry("DATASET_MAPPER")
DATASET_MAPPER_REGISTRY.__doc__ = """
Mappers from a dataset dict to a sample: classes made with (cfg, is_train) and named by
INPUT.DATASET_MAPPER_NAME. One may have ``check(records)``, called once before training.
"""


def build_mapper(cfg: CfgNode, is_train: bool) -> Callable[[dict], dict]:
    """Build the mapper named by INPUT.DATASET_MAPPER_NAME."""
    import wsis_d2.data.mappers  # noqa: F401  (registers them)

    return DATASET_MAPPER_REGISTRY.get(cfg.INPUT.DATASET_MAPPER_NAME)(cfg, is_train)


def load_records(names: Iterable[str]) -> list[dict]:
    """Load datasets and note in each record, for the mapper, which one it is from.

    Raises:
        InputError: an unknown or an empty dataset.
    """
    records = []
    for name in names:
        if name not in DatasetCatalog.list():
            raise InputError(
                f"DATASETS: no dataset {name!r}; built-in ones are registered by "
                "wsis_d2.data.datasets, own ones by DATASETS.OWN or register_weak_panoptic"
            )
        loaded = DatasetCatalog.get(name)
        if not loaded:
            raise InputError(f"DATASETS: dataset {name!r} has no images")
        records.extend({**record, "dataset_name": name} for record in loaded)
    return records


def supervision_of(record: dict) -> str:
    """Return "weak" or "full": the record's own word, else its dataset's, else full."""
    own = record.get("supervision")
    if own is None and "dataset_name" in record:
        own = MetadataCatalog.get(record["dataset_name"]).get("supervision")
    return own or "full"


def count_supervision(records: Iterable[dict]) -> dict[str, int]:
    """Count the images of each kind: {"weak": n, "full": m}, only kinds that occur."""
    return dict(Counter(supervision_of(record) for record in records))


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
    detector_stage = (
        cfg.MODEL.META_ARCHITECTURE == "WeakPanopticRCNN" and cfg.MODEL.WSIS.STAGE == "detector"
    )
    if detector_stage and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        for name in cfg.DATASETS.TRAIN:
            if not MetadataCatalog.get(name).get("has_boxes", True):
                raise InputError(
                    f"DATASETS.TRAIN: {name!r} cannot train a detector, as its boxes are not "
                    "complete: what has none would count as background; leave it out"
                )
        kept = [r for r in records if any(not a.get("iscrowd", 0) for a in r["annotations"])]
        if not kept:
            raise InputError(f"DATASETS.TRAIN: no image of {list(cfg.DATASETS.TRAIN)} has a box")
        logger.info("%d images without a box left out", len(records) - len(kept))
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
    try:
        stream = TrainingStream(
            [supervision_of(record) == "full" for record in records],
            seed=seed,
            full_fraction=cfg.DATALOADER.FULL_FRACTION,
            start=start_iter * batch,
            rank=comm.get_rank(),
            world_size=world_size,
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    if cfg.DATALOADER.FULL_FRACTION >= 0:
        logger.info("Share of full images in training: %.3f", cfg.DATALOADER.FULL_FRACTION)
    return DataLoader(
        SeededDataset(records, mapper, seed),
        batch_size=batch // world_size,
        sampler=stream,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=_as_list,
        drop_last=True,
    )


def build_test_loader(
    cfg: CfgNode, dataset_name: str, mapper: Callable[[dict], dict] | None = None
) -> DataLoader:
    """Build the loader that goes once through a dataset, an image at a time."""
    return build_detection_test_loader(
        load_records([dataset_name]),
        mapper=mapper or build_mapper(cfg, is_train=False),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def _as_list(batch: list[dict]) -> list[dict]:
    return batch
