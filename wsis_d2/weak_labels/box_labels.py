# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The label store of a dataset's boxes: what ``tools/make_weak_labels.py boxes`` does."""

import dataclasses
import functools
import logging
import os
from collections.abc import Mapping, Sequence

from yacs.config import CfgNode

from wsis_d2.structures.annotation import (
    AnnotatedClasses,
    centre_boxes,
    record_marks,
    unboxed_classes,
    whole_image_groups,
)
from wsis_d2.structures.labels import IGNORE
from wsis_d2.utils.image_io import read_record
from wsis_d2.weak_labels import driver
from wsis_d2.weak_labels.box_masks import BoxLabelOptions
from wsis_d2.weak_labels.boxes_to_labels import make_box_labels
from wsis_d2.weak_labels.driver import LabelRun
from wsis_d2.weak_labels.proposals import ProposalSource, build_proposal_source
from wsis_d2.weak_labels.store import LabelStore
from wsis_d2.weak_labels.workers import Labels

logger = logging.getLogger(__name__)

#: Raised whenever the same options would give other labels.
_ALGORITHM = 2


class BoxLabeller:
    """The labelling function of one process: weak record in, labels out."""

    def __init__(
        self,
        source: ProposalSource | None,
        options: BoxLabelOptions,
        outside: int,
        things: frozenset[int] = frozenset(),
    ) -> None:
        """See :func:`make_box_labels`; ``source`` None where no proposals are needed."""
        self._source = source
        self._options = options
        self._outside = outside
        self._things = things

    def __call__(self, record: Mapping) -> Labels:
        """Read the record's image and label it from its boxes."""
        image = read_record(record, "BGR")
        proposals = None
        if self._source is not None:
            proposals = functools.partial(self._source, image, record)
        return make_box_labels(
            image,
            centre_boxes(record),
            proposals,
            self._options,
            # What a class may be anywhere leaves nothing known outside the boxes.
            IGNORE if whole_image_groups(record, self._things) else self._outside,
            record_marks(record),
            unboxed_classes(record),
            self._things,
        )


def boxes_recipe(cfg: CfgNode, outside_boxes: str | int = "ignore") -> dict:
    """Return everything that labels made from boxes depend on, but image and annotation."""
    options = BoxLabelOptions.from_config(cfg)
    recipe = {
        "kind": "boxes",
        "algorithm": _ALGORITHM,
        "outside_boxes": outside_boxes,
        **dataclasses.asdict(options),
    }
    if options.needs_proposals:
        recipe["proposals"] = build_proposal_source(cfg).recipe()
    return recipe


def make_box_store(
    cfg: CfgNode,
    records: Sequence[Mapping],
    categories: list[dict],
    output: str | os.PathLike,
    *,
    outside_boxes: str | int = "ignore",
    run: LabelRun = LabelRun(),
) -> int:
    """Label every record from its boxes into a label store.

    Args:
        cfg: with ``add_wsis_config``; ``WEAK_LABELS`` is read.
        records: weak records.
        categories: the annotation file's.
        output: the store's folder.
        outside_boxes: "ignore", or the contiguous class id of pixels outside all boxes.
        run: how to run.

    Returns:
        Exit status: 0, or 1 if an image failed.
    """
    recipe = boxes_recipe(cfg, outside_boxes)
    options = BoxLabelOptions.from_config(cfg)
    source = build_proposal_source(cfg) if options.needs_proposals else None
    if source is not None:
        records = [{**record, "made_of": source.made_of(record)} for record in records]
    if run.dry_run:
        driver.report_plan(records, categories, recipe, output, run)
        return 0
    outside = IGNORE if outside_boxes == "ignore" else int(outside_boxes)
    things = AnnotatedClasses.of(categories).thing_ids
    store = LabelStore.create(output, recipe, categories, force=run.force)
    result = driver.run(
        functools.partial(BoxLabeller, source, options, outside, things),
        records,
        store,
        workers=run.workers,
        limit=run.limit,
        desc="boxes",
        ray_address=run.ray_address,
        image_seconds=run.image_seconds,
    )
    return result.exit_status
