# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""One list of classes for a run: of the trained models it starts from and of all its datasets."""

import logging
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils.file_io import PathManager

from wsis_d2.data.datasets.own.custom import registered_classes, share_classes
from wsis_d2.modeling.meta_arch.class_map import class_names, map_classes
from wsis_d2.structures.classes import ClassTable, in_order, match_classes
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.json_io import read_json

logger = logging.getLogger(__name__)

METADATA = "metadata.json"
# Weights of whole trained parts. MODEL.WEIGHTS may also be of another task, to be trained on.
_PARTS = (
    ("MODEL", "WSIS", "DETECTOR_WEIGHTS"),
    ("MODEL", "WSIS", "SEMANTIC_WEIGHTS"),
    ("ITERATIVE", "FIRST_WEIGHTS"),
)


def trained_classes(weights: str) -> ClassTable | None:
    """Return the classes a trained model speaks of, None where nothing beside it tells.

    Args:
        weights: a checkpoint with its run's ``metadata.json`` beside it, a released one with its
            ``.json``, or ``wsis-d2://ID``.
    """
    path = Path(weights)
    places = []
    if path.is_file():
        for file in (path, path.resolve()):  # it may be a link into the run's folder
            places += [file.with_suffix(".json"), file.parent / METADATA]
    if weights.startswith("wsis-d2://"):
        places = [Path(PathManager.get_local_path(f"{weights}/{METADATA}"))]
    for place in filter(Path.is_file, places):
        content = read_json(place)
        if isinstance(content, dict) and "thing_ids" in content:
            return ClassTable.of_metadata(content, str(place))
    return None


def run_classes(
    cfg: CfgNode, *, evaluates: bool = False, resumes: bool = False
) -> ClassTable | None:
    """Return a run's classes, and have its datasets speak of them in that order.

    They are those of the trained model that the run begins with, where there is one, else those
    of the first dataset of DATASETS.TRAIN and DATASETS.TEST.

    Args:
        cfg: names datasets and weights.
        evaluates: MODEL.WEIGHTS are evaluated: they must be of these classes. Weights that are
            trained on may be of others; that is logged.
        resumes: the run of OUTPUT_DIR goes on, whose ``metadata.json`` tells its classes.

    Returns:
        The classes, None where no dataset that has classes is registered.

    Raises:
        InputError: two lists differ in a name or an ``isthing``, or two trained models in order.
    """
    names = [n for n in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if n in DatasetCatalog.list()]
    tables = {name: registered_classes(name) for name in names}
    names = [name for name in names if tables[name] is not None]
    if not names:
        return None
    first = tables[names[0]]
    trained = []
    for keys in _PARTS:
        node = cfg
        for key in keys:
            node = node[key]
        # Where DETECTOR_CLASSES names a detector's own classes, they are mapped by name.
        mapped = "DETECTOR_WEIGHTS" in keys and cfg.MODEL.WSIS.DETECTOR_CLASSES
        trained.append(trained_classes(node) if node and not mapped else None)
        if trained[-1] is None and node and not mapped and Path(node).is_file():
            tell_unknown(".".join(keys), node, first)
    begun = Path(cfg.OUTPUT_DIR) / METADATA
    if resumes and begun.is_file() and (begun.parent / "last_checkpoint").is_file():
        trained.insert(0, ClassTable.of_metadata(read_json(begun), str(begun)))
    elif cfg.MODEL.WEIGHTS:
        found = trained_classes(cfg.MODEL.WEIGHTS)
        if evaluates and found is None and Path(cfg.MODEL.WEIGHTS).is_file():
            tell_unknown("MODEL.WEIGHTS", cfg.MODEL.WEIGHTS, first)
        try:
            if found is not None:
                match_classes(found, first)
                trained.insert(0, found)
        except InputError as error:
            if evaluates:
                raise
            logger.warning("MODEL.WEIGHTS was trained on other classes: %s", error)
    trained = [table for table in trained if table is not None]
    reference = trained[0] if trained else first
    for table in trained[1:]:
        if not in_order(match_classes(reference, table)):
            raise InputError(
                f"{table.source}: lists its classes in another order than {reference.source} "
                f"({table.id_text()}; there {reference.id_text()}); trained models that are "
                "joined must have one order: train one of them anew"
            )
    for name in dict.fromkeys(names):
        share_classes(name, reference)
    return reference


def tell_unknown(key: str, weights: str, classes: ClassTable) -> None:
    """Tell that a trained model is used whose classes nothing tells."""
    logger.warning(
        "%s %s: no %s beside it tells its classes; they are taken for those of %s in this order: "
        "%s; copy that file along with the weights",
        key, weights, METADATA, classes.source, ", ".join(classes.names),
    )  # fmt: skip


def fill_classes(cfg: CfgNode, classes: ClassTable) -> None:
    """Fill in the keys that tell a model its classes.

    Sets MODEL.WSIS.THING_IDS, MODEL.ROI_HEADS.NUM_CLASSES, MODEL.SEM_SEG_HEAD.NUM_CLASSES and, for
    MODEL.WSIS.DETECTOR_CLASSES, the DETECTOR_CLASS_MAP.

    Raises:
        InputError: a key is neither Detectron2's default nor what these classes need.
    """
    name = classes.source
    thing_ids = [k for k, isthing in enumerate(classes.isthing) if isthing]
    wanted = {
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": (cfg.MODEL.SEM_SEG_HEAD, len(classes), 54),
        "MODEL.ROI_HEADS.NUM_CLASSES": (cfg.MODEL.ROI_HEADS, len(thing_ids), 80),
    }
    for key, (node, count, default) in wanted.items():
        if node.NUM_CLASSES not in (count, default):
            raise InputError(
                f"{key} is {node.NUM_CLASSES}, {name} has {count}; leave the key out, it is filled "
                "in"
            )
        node.NUM_CLASSES = count
    if cfg.MODEL.WSIS.THING_IDS not in ([], thing_ids):
        raise InputError(
            f"MODEL.WSIS.THING_IDS is {cfg.MODEL.WSIS.THING_IDS}, {name} has {thing_ids}; leave "
            "the key out, it is filled in"
        )
    cfg.MODEL.WSIS.THING_IDS = thing_ids
    if cfg.MODEL.WSIS.DETECTOR_CLASSES and not cfg.MODEL.WSIS.DETECTOR_CLASS_MAP:
        cfg.MODEL.WSIS.DETECTOR_CLASS_MAP = map_classes(
            class_names(cfg.MODEL.WSIS.DETECTOR_CLASSES), [classes.names[k] for k in thing_ids]
        )
