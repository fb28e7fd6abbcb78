# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Box masks and tag cues to the pseudo ground truth of round 0 (paper 3.2 and 3.3).

The merge is label cleaning without its score step: the cues are the map to clean, the box masks
are what wins in it. See :mod:`wsis_d2.weak_labels.clean`.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from wsis_d2.structures.annotation import (
    AnnotatedClasses,
    record_marks,
    stuff_crops,
    touched_boxes,
    whole_image_groups,
)
from wsis_d2.structures.classes import ClassTable, parse_categories
from wsis_d2.structures.labels import IGNORE, INSTANCE_IGNORE
from wsis_d2.utils.errors import InputError, check_choice
from wsis_d2.weak_labels import driver
from wsis_d2.weak_labels.clean import CleanOptions, CleanResult, clean_labels
from wsis_d2.weak_labels.driver import LabelRun
from wsis_d2.weak_labels.possible_classes import possible_classes
from wsis_d2.weak_labels.reliability import copy_reliability
from wsis_d2.weak_labels.store import LabelStore
from wsis_d2.weak_labels.store_status import files_digest, label_files
from wsis_d2.weak_labels.workers import Labels

INSTANCE_SOURCES = ("boxes", "masks")
#: The last round whose labels have the box masks merged, as in the authors' code.
MERGE_ROUNDS = 5


def clean_options(
    cfg: CfgNode, annotation: AnnotatedClasses, round_number: int = 0
) -> CleanOptions:
    """Read the ``CLEAN`` section for one round; round 0 is the merge of box masks and cues."""
    own = cfg.CLEAN
    score = own.SCORE_THRESHOLD if round_number > 0 and own.SCORE_THRESHOLD > 0 else None
    return CleanOptions(
        score_threshold=score,
        tags=own.TAGS and annotation.has_boxes,
        merge=own.MERGE and round_number <= MERGE_ROUNDS,
        prior=own.PRIOR and annotation.has_boxes,
        fill=own.FILL,
        outside_label=annotation.outside_label,
        # In a label store 0 is a class like any other.
        zero_is_no_box=False,
        instances=annotation.has_boxes,
    )


def clean_record(
    record: Mapping,
    labels: np.ndarray,
    annotation: AnnotatedClasses,
    options: CleanOptions,
    scores: np.ndarray | None = None,
    masks: np.ndarray | None = None,
) -> CleanResult:
    """Clean a map with the annotation of one weak record.

    Args:
        record: the weak record; without crop tags its image tags hold for the whole image. Where
            it has no tag of stuff, any stuff may be there.
        labels: (H, W) uint8.
        annotation: the dataset's classes.
        options: the steps.
        scores: (H, W) float, the labels' probabilities.
        masks: (H, W) uint8, the map of the box masks.
    """
    crops = stuff_crops(record, annotation.thing_ids, annotation.outside_classes)
    tags = annotation.outside_classes.union(record.get("image_tags") or (), *[c[4] for c in crops])
    return clean_labels(
        labels,
        scores,
        masks,
        boxes=[*touched_boxes(record), *whole_image_groups(record, annotation.thing_ids)],
        crop_tags=crops,
        image_tags=tags,
        thing_ids=annotation.thing_ids,
        options=options,
        marks=record_marks(record),
    )


def record_possible_classes(
    record: Mapping,
    shape: tuple[int, int],
    num_classes: int,
    annotation: AnnotatedClasses,
    options: CleanOptions,
) -> np.ndarray:
    """:func:`possible_classes` of one weak record: (num_classes, H, W) bool."""
    return possible_classes(
        shape,
        num_classes,
        [*touched_boxes(record), *whole_image_groups(record, annotation.thing_ids)],
        stuff_crops(record, annotation.thing_ids, annotation.outside_classes),
        annotation.thing_ids,
        options,
    )


def merge_record(
    record: Mapping,
    cues: np.ndarray | None,
    masks: np.ndarray,
    annotation: AnnotatedClasses,
    options: CleanOptions,
    mask_instances: tuple[np.ndarray, list[dict]] | None = None,
) -> Labels:
    """Make the labels of round 0 of one image.

    Args:
        record: the weak record.
        cues: (H, W) uint8 from tags, 255 = none; None: there are no cues.
        masks: (H, W) uint8, the boxes store's semantic map: things where masks agree, and the
            class outside boxes where the dataset has one.
        annotation: the dataset's classes.
        options: the cleaning steps.
        mask_instances: the boxes store's instance map and segments; given, pixels of a thing keep
            the instance that their mask has. So they do where an object has no box.

    Returns:
        Semantic map, instance map, segments and counters.
    """
    start = np.full(masks.shape, IGNORE, np.uint8) if cues is None else cues.copy()
    stuff_in_masks = (start == IGNORE) & ~np.isin(masks, [IGNORE, *annotation.thing_ids])
    start[stuff_in_masks] = masks[stuff_in_masks]
    result = clean_record(record, start, annotation, options, masks=masks)
    instance, segments = result.instance, result.segments
    if mask_instances is not None and options.instances:
        instance, segments = _instances_of_masks(result, *mask_instances, annotation)
    is_thing = np.isin(result.semantic, list(annotation.thing_ids))
    counters = {
        "pixels": int(result.semantic.size),
        "thing_pixels": int(np.count_nonzero(is_thing)),
        "stuff_pixels": int(np.count_nonzero(~is_thing & (result.semantic != IGNORE))),
        "ignored_pixels": int(np.count_nonzero(result.semantic == IGNORE)),
        "ambiguous_thing_pixels": int(np.count_nonzero(is_thing & (instance <= 0))),
        "instances": len(segments),
    }
    return Labels(result.semantic, instance, segments, counters)


def _instances_of_masks(
    result: CleanResult,
    instance: np.ndarray,
    segments: Sequence[Mapping],
    annotation: AnnotatedClasses,
) -> tuple[np.ndarray, list[dict]]:
    """Take the things' instances from the box masks and the stuff's from the cleaned map."""
    stuff = [s for s in result.segments if s["category_id"] not in annotation.thing_ids]
    merged = np.where(np.isin(result.instance, [s["id"] for s in stuff]), result.instance, 0)
    merged[result.semantic == IGNORE] = INSTANCE_IGNORE
    kept = list(stuff)
    number = max((s["id"] for s in stuff), default=0)
    for segment in segments:
        class_id = int(segment["category_id"])
        if class_id not in annotation.thing_ids:
            continue
        number += 1
        own = (instance == segment["id"]) & (result.semantic == class_id)
        if own.any():
            merged[own] = number
            kept.append({**segment, "id": number})
    thing = np.isin(result.semantic, list(annotation.thing_ids))
    merged[thing & (merged == 0)] = INSTANCE_IGNORE
    return merged.astype(np.int32), kept


@dataclasses.dataclass
class _MergeWorker:
    """The labelling function of the merge, for the driver's processes."""

    boxes: Path
    tags: Path | None
    annotation: AnnotatedClasses
    options: CleanOptions
    instances_from: str
    classes: ClassTable

    def __post_init__(self) -> None:
        self._boxes = LabelStore.open(self.boxes).in_classes(self.classes)
        self._tags = LabelStore.open(self.tags).in_classes(self.classes) if self.tags else None

    def __call__(self, record: Mapping) -> Labels:
        image_id = record["image_id"]
        record = {**record, "made_of": None}  # the parts are made of other files
        self._boxes.check(record)
        cues = None
        if self._tags is not None:
            self._tags.check(record)
            cues = self._tags.semantic(image_id)
        masks = self._boxes.semantic(image_id)
        from_masks = self.instances_from == "masks" or bool(record.get("unboxed"))
        instances = self._boxes.instance(image_id) if from_masks else None
        return merge_record(record, cues, masks, self.annotation, self.options, instances)


def merge_recipe(
    boxes_recipe: Mapping, tags_recipe: Mapping | None, options: CleanOptions, instances_from: str
) -> dict:
    """Return what merged labels depend on, for :meth:`LabelStore.create`."""
    check_choice("CLEAN.INSTANCES_FROM", instances_from, INSTANCE_SOURCES)
    return {
        "kind": "merge",
        "boxes": dict(boxes_recipe),
        "tags": dict(tags_recipe) if tags_recipe is not None else None,
        "clean": dataclasses.asdict(options),
        "instances_from": instances_from,
    }


def make_merged_labels(
    cfg: CfgNode,
    records: Sequence[Mapping],
    categories: list[dict],
    output: str | os.PathLike,
    *,
    boxes: str | os.PathLike | None,
    tags: str | os.PathLike | None = None,
    outside_boxes: int | str = "ignore",
    has_boxes: bool = True,
    run: LabelRun = LabelRun(),
) -> int:
    """The ``merge`` command: a boxes store and a tags store to a store of round-0 labels.

    Args:
        cfg: the ``CLEAN`` section is read.
        records: weak records.
        categories: the annotation file's categories.
        output: the store to write.
        boxes: the store that ``boxes`` wrote.
        tags: the store that ``tags`` wrote; None: no cues, stuff stays ignored unless the dataset
            names a class outside boxes.
        outside_boxes: "ignore" or that class.
        has_boxes: see :class:`AnnotatedClasses`.
        run: how to run.

    Returns:
        The exit status: 0, or 1 if images failed.

    Raises:
        InputError: a part is no store, or is one of other classes.
    """
    if not boxes:
        raise InputError(
            "--boxes STORE is missing; make one with: tools/make_weak_labels.py boxes ..."
        )
    annotation = AnnotatedClasses.of(categories, outside_boxes, has_boxes)
    options = clean_options(cfg, annotation)
    stores = {"boxes": LabelStore.open(boxes)}
    if tags is not None:
        stores["tags"] = LabelStore.open(tags)
    classes = parse_categories(categories, "the annotated data")
    for kind, store in stores.items():
        store.in_classes(classes)
        found = store.recipe.get("kind")
        if {"boxes": "tags", "tags": "boxes"}[kind] == found:
            raise InputError(f"--{kind} {store.path}: this is a store of {found}, not of {kind}")
    recipe = merge_recipe(
        stores["boxes"].recipe,
        stores["tags"].recipe if tags is not None else None,
        options,
        cfg.CLEAN.INSTANCES_FROM,
    )
    # A part's labels may have been refused or made anew.
    records = [
        {
            **record,
            "made_of": files_digest(
                file
                for store in stores.values()
                for file in label_files(store.path, record["image_id"])
            ),
        }
        for record in records
    ]
    if run.dry_run:
        driver.report_plan(records, categories, recipe, output, run)
        return 0
    store = LabelStore.create(output, recipe, categories, run.force)
    make = functools.partial(
        _MergeWorker,
        Path(boxes),
        Path(tags) if tags is not None else None,
        annotation,
        options,
        cfg.CLEAN.INSTANCES_FROM,
        classes,
    )
    result = driver.run(
        make, records, store, workers=run.workers, limit=run.limit, desc="merged labels",
        ray_address=run.ray_address, image_seconds=run.image_seconds,
    )  # fmt: skip
    if tags is not None:
        copy_reliability(tags, store.path)
    return result.exit_status
