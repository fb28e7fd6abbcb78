# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Going on with a run: the settings and the data that must be the same."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from wsis_d2.config_checks.kinds import TAGS, kind_of
from wsis_d2.data.records import supervision_of
from wsis_d2.structures.pictures import picture_stem
from wsis_d2.structures.stages import stage_of
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import file_stamp, sha256_file
from wsis_d2.utils.json_io import flatten
from wsis_d2.weak_labels.recipe import annotation_digest
from wsis_d2.weak_labels.store import LabelStore
from wsis_d2.weak_labels.store_status import files_digest, label_files

logger = logging.getLogger(__name__)

# Keys that may differ between a run that was stopped and the one that continues it.
# (WEAK_LABELS and CAM made the labels of round 0, which are known by their hash.)
_FREE_KEYS = (
    "OUTPUT_DIR",
    "DATALOADER.NUM_WORKERS",
    "ITERATIVE.WORKERS",
    "VIS_PERIOD",
    "WEAK_LABELS",
    "CAM",
)
# Of one training, beside these: how long it is, and what is measured and kept of it.
_FREE_IN_TRAINING = (
    "SOLVER.MAX_ITER",
    "SOLVER.STEPS",
    "SOLVER.CHECKPOINT_PERIOD",
    "DATASETS.TEST",
    "TEST.",
    "RUN_NAME",
    "RUN_VARIANT",
)
# Of DATASETS.OWN: where it lies, which is free where its content is known.
_PLACES = ("json", "images", "labels", "panoptic_json", "panoptic_dir")


def plain_config(cfg: CfgNode, without: tuple[str, ...] = ()) -> dict:
    """Return the config as nested JSON values, without keys that do not change results.

    Args:
        cfg: a config.
        without: more keys to leave out.
    """
    content = json.loads(json.dumps(CfgNode.load_cfg(cfg.dump())))
    for key in (*_FREE_KEYS, *without):
        *parents, last = key.split(".")
        node = content
        for parent in parents:
            node = node[parent]
        node.pop(last, None)
    return content


def training_identity(cfg: CfgNode) -> dict:
    """Return what a training must be continued with: its config, and its labels' recipes."""
    recipes = {}
    reads_labels = kind_of(cfg) not in ("detector", *TAGS)
    for name in cfg.DATASETS.TRAIN if reads_labels else ():
        store = MetadataCatalog.get(name).get("label_store")
        if store and os.path.isfile(os.path.join(store, "manifest.json")):
            recipes[name] = LabelStore.open(store).recipe_hash
    return {"config": plain_config(cfg), "labels": recipes}


def data_identity(cfg: CfgNode, records: Iterable[dict]) -> dict[str, dict[str, str]]:
    """Return hashes of what is trained on, wherever it lies, by dataset.

    Args:
        cfg: of the training.
        records: its images, in their order.

    Returns:
        Dataset to the hashes of its ``annotation``, of its ``pictures`` by their files' sizes, and,
        where the network learns from them, of its ``labels`` (weak images), ``masks`` (full ones)
        and ``boxes`` (a detector's, from a file).
    """
    reads_labels = kind_of(cfg) not in ("detector", *TAGS)
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        name = record["dataset_name"]
        supervision = supervision_of(record)
        told = annotation_digest({"height": 0, "width": 0, **record})
        parts = {
            "annotation": [
                str(record["image_id"]), picture_stem(str(record["file_name"])), supervision, told
            ],
            "pictures": [file_stamp(record["file_name"])[1:2]],
        }  # fmt: skip
        store = MetadataCatalog.get(name).get("label_store")
        if reads_labels and supervision == "full":
            truth = files_digest([record.get("pan_seg_file_name", "")])
            parts["masks"] = [truth, json.dumps(record.get("segments_info"), default=str)]
        elif reads_labels and store:
            parts["labels"] = [files_digest(label_files(Path(store), record["image_id"])[:2])]
        for part, texts in parts.items():
            digest = found.setdefault(name, {}).setdefault(part, hashlib.sha256())
            digest.update(json.dumps(texts).encode())
    hashes = {
        name: {part: digest.hexdigest()[:16] for part, digest in parts.items()}
        for name, parts in found.items()
    }
    options = cfg.MODEL.WSIS
    if stage_of(cfg).joint and options.TRAIN_BOXES == "detector":
        for name, file in options.DETECTOR_BOXES:
            if name in hashes:
                hashes[name]["boxes"] = sha256_file(file)[:16]
    return hashes


def refuse_other_data(where: str | os.PathLike, before: Mapping, after: Mapping) -> None:
    """Refuse to continue a run whose data are others now under the same name.

    Args:
        where: the file that remembers, for the message.
        before, after: :func:`data_identity` of the run and now; {} is unknown.

    Raises:
        InputError: naming the dataset and what of it has changed.
    """
    for name, parts in before.items():
        for part, digest in parts.items():
            if after.get(name, {}).get(part) != digest:
                what = f"{'another' if part in ('annotation', 'truth') else 'other'} {part}"
                raise InputError(
                    f"{where}: the run was begun with {what} of {name!r}; continue with what it "
                    "was begun with, or name another OUTPUT_DIR"
                )


def refuse_changes(
    where: str | os.PathLike,
    before: Mapping,
    after: Mapping,
    data: Mapping,
    free: tuple[str, ...] = (),
) -> None:
    """Refuse to continue a run with other settings: they would be ignored, or mix two runs.

    Args:
        where: the file that remembers, for the message.
        before, after: :func:`plain_config` of the run and of what is to continue it.
        data: :func:`data_identity` of the run; where it is known, data may have been moved.
        free: keys that may change; nodes with a dot at the end.

    Raises:
        InputError: naming the first key that differs, and both values.
    """
    old, new = flatten(before), flatten(after)
    if data:
        free = (*free, "DATASETS.LABEL_STORES")
        for config in (old, new):
            config["DATASETS.OWN"] = [
                {key: value for key, value in own.items() if key not in _PLACES}
                for own in config.get("DATASETS.OWN", ())
                if own.get("name") in list(data)
            ]
    changed = [
        key
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
        and not any(key == f or (f.endswith(".") and key.startswith(f)) for f in free)
    ]
    if changed:
        key = changed[0]
        more = f" ({len(changed)} keys differ)" if len(changed) > 1 else ""
        raise InputError(
            f"{where}: the run was begun with {key} {old.get(key)!r}, now it is "
            f"{new.get(key)!r}{more}; continue with the old config, or name another OUTPUT_DIR"
        )


def refuse_other_training(where: str | os.PathLike, before: Mapping, after: Mapping) -> None:
    """As :func:`refuse_changes`, for a checkpoint of one training.

    Args:
        where: the checkpoint.
        before, after: :func:`training_identity` in the checkpoint and now.
    """
    data = before.get("data", {})
    refuse_changes(where, before["config"], after["config"], data, _FREE_IN_TRAINING)
    for name, recipe in before["labels"].items():
        if after["labels"].get(name) != recipe:
            raise InputError(
                f"{where}: the run was begun with other labels of {name!r}; continue with those, "
                "or name another OUTPUT_DIR"
            )
