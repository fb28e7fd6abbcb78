# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What annotation costs, and what quality it buys (the analysis for dataset makers, paper 4.2).

The times are the paper's (1, 4.2). Points and scribbles, whose times are those of Bearman et al.,
What's the Point (ECCV 2016), and the advice are an addition, not in the paper.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wsis_d2.utils.errors import InputError


@dataclass(frozen=True)
class AnnotationTimes:
    """Seconds a person needs, and what an hour costs.

    Attributes:
        box: one box (7 s, extreme clicking; paper 1).
        tag: one class tag of an image or crop (1 s; paper 1).
        mask: one segment drawn by hand (79 s, an average COCO instance; paper 4.2).
        point: one point (2.4 s, the first click on an object; Bearman et al.).
        scribble: one scribble (10.9 s; Bearman et al.).
        full_image: one image labelled wholly by hand; None adds up its segments. A Cityscapes
            image takes 5400 s (paper 1).
        hourly_rate: cost of an hour.
    """

    box: float = 7.0
    tag: float = 1.0
    mask: float = 79.0
    point: float = 2.4
    scribble: float = 10.9
    full_image: float | None = None
    hourly_rate: float = 10.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise InputError(f"--{name.replace('_', '-')} {value}: expected 0 or more")


@dataclass(frozen=True)
class AnnotationCounts:
    """How much there is to annotate.

    Attributes:
        images: images.
        boxes: boxes of things.
        tags: tags of stuff, over all images (or their crops, where crops are tagged).
        masks: segments a full annotation draws: things, and the stuff classes of each image.
        points, scribbles: marks of classes and objects.
    """

    images: int
    boxes: int
    tags: int
    masks: int
    points: int = 0
    scribbles: int = 0

    def scaled(self, images: int) -> "AnnotationCounts":
        """Return the counts of another number of images of the same kind."""
        if self.images == 0:
            raise InputError("counts of 0 images cannot be scaled; name a dataset with images")
        factor = images / self.images
        return replace(
            self,
            images=images,
            boxes=round(self.boxes * factor),
            tags=round(self.tags * factor),
            masks=round(self.masks * factor),
            points=round(self.points * factor),
            scribbles=round(self.scribbles * factor),
        )


@dataclass(frozen=True)
class Cost:
    """What one way of annotating takes: hours in all, seconds an image, money."""

    hours: float
    seconds_per_image: float
    money: float


def count_records(
    records: Sequence[Mapping[str, Any]], thing_ids: Sequence[int]
) -> AnnotationCounts:
    """Count what weak records hold.

    Args:
        records: weak records; images with crop tags count those, others their image tags.
        thing_ids: unified ids of things; a box stands for one, tags of them are not counted, and
            neither are tags of stuff that is marked.
    """
    things = set(thing_ids)
    boxes = tags = masks = points = scribbles = 0
    for record in records:
        boxes += len(record.get("annotations") or [])
        stuff = set(record.get("image_tags") or []) - things
        objects = [*(record.get("annotations") or []), *(record.get("unboxed") or [])]
        marked = {m["category_id"] for k in ("points", "scribbles") for m in record.get(k) or ()}
        for entry in [record, *(o for o in objects if isinstance(o, Mapping))]:
            points += len(entry.get("points") or ())
            scribbles += len(entry.get("scribbles") or ())
        crops = record.get("crop_tags")
        tags += sum(len(set(c["tags"]) - things) for c in crops) if crops else len(stuff - marked)
        masks += len(objects) + len(stuff)
    return AnnotationCounts(len(records), boxes, tags, masks, points, scribbles)


def supervision_cost(
    counts: AnnotationCounts, times: AnnotationTimes, full_share: float = 0.0
) -> Cost:
    """Return the cost of annotating a share of the images fully and the others weakly.

    Args:
        counts: what there is to annotate.
        times: seconds a piece.
        full_share: 0 is weak, 1 is full supervision.

    Raises:
        InputError: a share outside 0 to 1.
    """
    if not 0 <= full_share <= 1:
        raise InputError(f"share of full images {full_share}: expected 0 to 1")
    weak = counts.boxes * times.box + counts.tags * times.tag
    weak += counts.points * times.point + counts.scribbles * times.scribble
    if times.full_image is None:
        full = counts.masks * times.mask
    else:
        full = counts.images * times.full_image
    seconds = full_share * full + (1 - full_share) * weak
    hours = seconds / 3600
    return Cost(hours, seconds / max(1, counts.images), hours * times.hourly_rate)


@dataclass(frozen=True)
class RunPoint:
    """One run: the hours its annotation took and the quality it reached (percent)."""

    name: str
    supervision: str
    images: int
    hours: float
    quality: float


def pareto(points: Sequence[RunPoint]) -> list[RunPoint]:
    """Return the runs that no other beats at equal or fewer hours, by ascending hours."""
    front: list[RunPoint] = []
    for point in sorted(points, key=lambda p: (p.hours, -p.quality)):
        if not front or point.quality > front[-1].quality:
            front.append(point)
    return front


def recommend(
    points: Sequence[RunPoint],
    counts: AnnotationCounts,
    times: AnnotationTimes,
    *,
    metric: str,
    budget_hours: float | None = None,
) -> list[str]:
    """Return a plain recommendation, a sentence a line, resting on measured runs alone.

    Args:
        points: the measured runs; none gives advice on cost alone.
        counts, times: of the dataset.
        metric: what quality is called.
        budget_hours: hours that can be spent; None names no limit.
    """
    weak, full = supervision_cost(counts, times), supervision_cost(counts, times, 1.0)
    factor = full.hours / weak.hours if weak.hours else float("inf")
    lines = []
    if budget_hours is not None:
        share = _affordable_share(weak.hours, full.hours, budget_hours)
        if share is None:
            count = int(counts.images * budget_hours / weak.hours) if weak.hours else 0
            lines.append(
                f"{budget_hours:g} h do not cover weak annotation of all {counts.images} images "
                f"({weak.hours:.1f} h): annotate about {count} of them weakly."
            )
        else:
            lines.append(
                f"{budget_hours:g} h cover weak annotation of all {counts.images} images and full "
                f"annotation of {100 * share:.0f} % of them."
            )
    if not points:
        lines.append(
            f"Full annotation takes {factor:.0f} times the hours of weak annotation. Start weak, "
            "train, and give this tool the results.json of the runs to learn what more hours buy."
        )
        return lines
    front = pareto(points)
    best = front[-1]
    for point in points:
        if point not in front:
            rival = next(p for p in front if p.hours <= point.hours and p.quality >= point.quality)
            lines.append(
                f"{point.name} ({point.hours:.1f} h, {metric} {point.quality:.1f}) is not worth "
                f"it: {rival.name} has {rival.quality:.1f} for {rival.hours:.1f} h."
            )
    for first, second in zip(front, front[1:], strict=False):
        more = second.hours - first.hours
        gain = second.quality - first.quality
        lines.append(
            f"From {first.name} to {second.name}: {more:.1f} h more buy {gain:.1f} {metric}, "
            f"{gain / more:.3g} an hour; {first.name} has "
            f"{100 * first.quality / second.quality:.0f} % of the quality at "
            f"{100 * first.hours / second.hours:.0f} % of the hours."
        )
    affordable = front
    if budget_hours is not None:
        affordable = [p for p in front if p.hours <= budget_hours]
        if not affordable:
            cheapest = front[0]
            lines.append(
                f"Recommendation: none of the measured runs fits into {budget_hours:g} h; the "
                f"cheapest, {cheapest.name}, takes {cheapest.hours:.1f} h."
            )
            return lines
    chosen = affordable[-1]
    if budget_hours is None:
        # Without a limit: stop where an hour begins to buy a tenth of what it bought on average.
        for first, second in zip(front, front[1:], strict=False):
            slope = (second.quality - first.quality) / (second.hours - first.hours)
            if first.hours > 0 and slope < 0.1 * first.quality / first.hours:
                chosen = first
                break
    text = f"Recommendation: annotate as for {chosen.name} "
    text += f"({chosen.supervision}, {chosen.hours:.1f} h)"
    if chosen is not best:
        reason = "more hours buy less than a tenth of what the first ones bought"
        if budget_hours is not None:
            reason = f"it is the best measured run within {budget_hours:g} h"
        images = int(counts.images * best.hours / weak.hours) if weak.hours else 0
        text += f"; {reason}. The hours of {best.name} would annotate {images} images weakly."
    else:
        text += "; it has the best measured quality."
    return [*lines, text]


def _affordable_share(weak: float, full: float, budget: float) -> float | None:
    """Return the share of full images that the budget covers, None if not even all weak ones."""
    if budget < weak:
        return None
    return 1.0 if full <= weak else min(1.0, (budget - weak) / (full - weak))
