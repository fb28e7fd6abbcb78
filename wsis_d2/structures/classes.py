# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The classes of a dataset: one contiguous id space for things and stuff."""

import colorsys
from dataclasses import dataclass
from typing import Any

from wsis_d2.utils.errors import InputError

MAX_CLASSES = 255  # semantic maps are uint8 and 255 is ignore


@dataclass(frozen=True)
class ClassTable:
    """Classes sorted by the file's category id; a class's contiguous id is its place.

    Attributes:
        categories: the file's dicts (id, name, isthing, color and what else they hold).
        contiguous: file category id -> contiguous id.
    """

    categories: list[dict]
    contiguous: dict[int, int]

    @property
    def names(self) -> list[str]:
        return [c["name"] for c in self.categories]

    @property
    def isthing(self) -> list[bool]:
        return [bool(c["isthing"]) for c in self.categories]

    @property
    def colors(self) -> list[list[int]]:
        return [list(c["color"]) for c in self.categories]

    def id_text(self) -> str:
        """The category ids with their names, for messages."""
        text = ", ".join(f"{c['id']} {c['name']}" for c in self.categories[:12])
        return text + (", ..." if len(self.categories) > 12 else "")

    def metadata(self) -> dict[str, Any]:
        """What ``MetadataCatalog`` holds of the classes.

        As for Panoptic-DeepLab, both ``thing_classes`` and ``stuff_classes`` list every class, and
        contiguous ids are those of one space.
        """
        things = [k for k, isthing in enumerate(self.isthing) if isthing]
        return {
            "thing_classes": self.names,
            "stuff_classes": list(self.names),
            "thing_colors": self.colors,
            "stuff_colors": self.colors,
            "thing_dataset_id_to_contiguous_id": {self.categories[k]["id"]: k for k in things},
            "stuff_dataset_id_to_contiguous_id": dict(self.contiguous),
            "thing_ids": things,
            "stuff_ids": [k for k, isthing in enumerate(self.isthing) if not isthing],
            "categories": self.categories,
            "ignore_label": 255,
            "label_divisor": 1000,
        }


def parse_categories(categories: list, source: str) -> ClassTable:
    """Check a COCO ``categories`` list and sort it by id.

    Args:
        categories: dicts with ``id`` (integer, unique), ``name`` (unique), ``isthing`` (0 or 1)
            and optionally ``color`` (R, G, B in 0..255; a distinct one is chosen where absent).
        source: the file, for messages.

    Raises:
        InputError: no classes, too many, a field missing or of the wrong kind, a double id.
    """
    if not isinstance(categories, list) or not categories:
        raise InputError(f'{source}: "categories" is empty; expected at least one class')
    if len(categories) > MAX_CLASSES:
        raise InputError(
            f"{source}: {len(categories)} categories; label maps hold at most {MAX_CLASSES}"
        )
    ids, names, result = set(), set(), []
    for position, category in enumerate(categories):
        where = f"{source}: categories[{position}]"
        if not isinstance(category, dict):
            raise InputError(f"{where}: is {category!r:.60}; expected an object")
        cid, name, isthing = (category.get(key) for key in ("id", "name", "isthing"))
        if isinstance(cid, bool) or not isinstance(cid, int) or not 0 <= cid < 2**31:
            raise InputError(f"{where}: id is {cid!r:.60}; expected an integer of at least 0")
        where += f" (id {cid})"
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{where}: name is {name!r:.60}; expected a word")
        if isthing not in (0, 1):
            raise InputError(
                f"{where}: isthing is {'missing' if isthing is None else repr(isthing)[:60]}; "
                "expected 1 (countable, has boxes) or 0 (stuff, has tags)"
            )
        if cid in ids or name in names:
            what = f"id {cid}" if cid in ids else f'name "{name}"'
            raise InputError(f"{where}: {what} is used twice; make it unique")
        ids.add(cid)
        names.add(name)
        color = category.get("color", _default_color(position))
        if (
            not isinstance(color, list | tuple)
            or len(color) != 3
            or not all(type(v) is int and 0 <= v <= 255 for v in color)
        ):
            raise InputError(f"{where}: color is {color!r:.60}; expected [R, G, B], 0 to 255")
        result.append({**category, "isthing": int(isthing), "color": list(color)})
    result.sort(key=lambda c: c["id"])
    return ClassTable(result, {c["id"]: k for k, c in enumerate(result)})


def _default_color(position: int) -> list[int]:
    """Distinct colours without end: hue by the golden ratio, three levels of value."""
    hue, value = position * 0.618034 % 1, (0.95, 0.7, 0.5)[position // 8 % 3]
    return [round(255 * v) for v in colorsys.hsv_to_rgb(hue, 0.75, value)]
