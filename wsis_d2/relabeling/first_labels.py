# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Boxes and tags to the labels of round 0: the parts and their merge in one command."""

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from detectron2.config import CfgNode

from wsis_d2.relabeling.tag_classifier import TRAIN_COMMAND, classifier_config
from wsis_d2.relabeling.tag_cues import make_tag_labels, tags_recipe
from wsis_d2.structures.annotation import AnnotatedClasses
from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.box_labels import boxes_recipe, make_box_store
from wsis_d2.weak_labels.driver import LabelRun
from wsis_d2.weak_labels.merge import clean_options, make_merged_labels, merge_recipe
from wsis_d2.weak_labels.store import LabelStore

logger = logging.getLogger(__name__)


def make_all_labels(
    cfg: CfgNode,
    records: Sequence[Mapping],
    categories: list[dict],
    output: str | os.PathLike,
    *,
    classifier: str | os.PathLike | None = None,
    outside_boxes: int | str = "ignore",
    has_boxes: bool = True,
    run: LabelRun = LabelRun(),
) -> int:
    """The ``all`` command: boxes, tags and merge; the parts stay in ``output/parts``.

    Args:
        cfg: the sections ``WEAK_LABELS``, ``CAM`` and ``CLEAN`` are read.
        records: weak records.
        categories: the annotation file's categories.
        output: the store of merged labels.
        classifier: the tag classifier's checkpoint; not needed where no record tags any stuff but
            the class outside boxes and what has points or scribbles.
        outside_boxes: "ignore" or the class outside all boxes.
        has_boxes: see :class:`wsis_d2.structures.annotation.AnnotatedClasses`.
        run: how to run each part.

    Returns:
        The exit status: 0, or 1 if images failed.

    Raises:
        InputError: stuff is tagged and there is no classifier; or a part's error.
    """
    annotation = AnnotatedClasses.of(categories, outside_boxes, has_boxes)
    known = annotation.thing_ids | annotation.outside_classes
    tagged = any(
        set(tags) - known - _marked(record)
        for record in records
        for tags in [
            record.get("image_tags") or (),
            *[crop["tags"] for crop in record.get("crop_tags") or ()],
        ]
    )
    if tagged and not classifier:
        raise InputError(
            f"--classifier W.pth is missing, and images have tags of stuff; train one with: "
            f"{TRAIN_COMMAND}; or make labels of boxes alone with: tools/make_weak_labels.py boxes"
        )
    parts = Path(output) / "parts"
    tags = None
    if tagged:
        own = classifier_config(cfg, classifier, len(categories))
        tags = tags_recipe(own, classifier, categories, has_boxes)
    if not run.dry_run:
        # Before its parts: a folder with files in it is no new store.
        recipe = merge_recipe(
            boxes_recipe(cfg, outside_boxes),
            tags,
            clean_options(cfg, annotation),
            cfg.CLEAN.INSTANCES_FROM,
        )
        LabelStore.create(output, recipe, categories, run.force)
    status = make_box_store(
        cfg, records, categories, parts / "boxes", outside_boxes=outside_boxes, run=run
    )
    if tagged:
        status |= make_tag_labels(
            cfg,
            records,
            categories,
            parts / "tags",
            classifier=classifier,
            has_boxes=has_boxes,
            run=run,
        )
    if run.dry_run:
        logger.info("would merge both into %s", output)
        return status
    status |= make_merged_labels(
        cfg,
        records,
        categories,
        output,
        boxes=parts / "boxes",
        tags=parts / "tags" if tagged else None,
        outside_boxes=outside_boxes,
        has_boxes=has_boxes,
        run=dataclasses.replace(run, force=False),  # the store is made above
    )
    return status


def _marked(record: Mapping) -> set[int]:
    """Return the classes that points and scribbles of an image name."""
    return {m["category_id"] for key in ("points", "scribbles") for m in record.get(key) or ()}
