# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The classes of a dataset, things and stuff in one contiguous id space, matched by name."""

import colorsys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from wsis_d2.utils.errors import InputError

MAX_CLASSES = 255  # semantic maps are uint8 and 255 is ignore
_LONGEST_NAME = 200


@dataclass(frozen=True)
class ClassTable:
    """Classes sorted by the file's category id; a class's contiguous (unified) id is its place.

    Attributes:
        categories: the file's dicts (id, name, isthing, color and what else they hold).
        source: the file or dataset, for messages.
    """

    categories: list[dict]
    source: str = field(compare=False)

    def __len__(self) -> int:
        return len(self.categories)

    @cached_property
    def contiguous(self) -> dict[int, int]:
        """File category id to contiguous id."""
        return {category: place for place, category in enumerate(self.ids)}

    @cached_property
    def ids(self) -> list[int]:
        """File category ids."""
        return [c["id"] for c in self.categories]

    @cached_property
    def names(self) -> list[str]:
        """Class names."""
        return [c["name"] for c in self.categories]

    @cached_property
    def isthing(self) -> list[bool]:
        """Whether a class is countable."""
        return [bool(c["isthing"]) for c in self.categories]

    @cached_property
    def thing_mask(self) -> np.ndarray:
        """bool (C,): which classes are things."""
        return np.asarray(self.isthing, bool)

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
            "thing_classes": list(self.names),
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

    @classmethod
    def of_metadata(cls, metadata: Any, source: str) -> "ClassTable | None":
        """Return the classes of a dataset's or a model's metadata, None where it has none.

        Args:
            metadata: ``MetadataCatalog.get(NAME)``, or the content of a run's ``metadata.json``:
                ``categories``, or ``stuff_classes`` with ``thing_ids``.
            source: what to call it in messages.
        """
        if not hasattr(metadata, "get"):
            raise InputError(f"{source}: holds {metadata!r:.60}, expected a run's metadata")
        categories, names = metadata.get("categories"), metadata.get("stuff_classes")
        things = metadata.get("thing_ids")
        if not categories and names and things is not None:
            colors = metadata.get("stuff_colors", ())
            if not all(isinstance(part, list | tuple) for part in (names, things, colors)):
                raise InputError(f"{source}: its classes are no lists, expected a run's metadata")
            categories = [
                {"id": k, "name": name, "isthing": int(k in things)} for k, name in enumerate(names)
            ]
            for category, color in zip(categories, colors, strict=False):
                category["color"] = color
        return parse_categories(categories, source) if categories else None


def match_classes(classes: ClassTable, other: ClassTable) -> list[int]:
    """Return, for each class of ``other``, the place of the same class in ``classes``.

    The one rule by which files meet: a class is the same where its name is, and things stay
    things. Ids and order may differ, they are mapped; a name that only one list has, or another
    ``isthing``, is an error.

    Raises:
        InputError: naming both files and the class.
    """
    places = {name: place for place, name in enumerate(classes.names)}
    count = f"its {len(other)} categories"
    for name in classes.names:
        if name not in other.names:
            raise InputError(
                f'{other.source}: {count} lack "{name}", a class of {classes.source} (here: '
                f"{other.id_text()}); {_RULE}"
            )
    for name, isthing in zip(other.names, other.isthing, strict=True):
        if name not in places:
            raise InputError(
                f'{other.source}: {count} hold "{name}", no class of {classes.source} (there: '
                f"{classes.id_text()}); {_RULE}"
            )
        if isthing != classes.isthing[places[name]]:
            words = ("stuff (isthing 0)", "a thing (isthing 1)")
            raise InputError(
                f'{other.source}: "{name}" is {words[isthing]}, in {classes.source} it is '
                f"{words[not isthing]}; {_RULE}"
            )
    return [places[name] for name in other.names]


_RULE = (
    "files used together must share classes, by name and isthing: rename, or import with "
    "tools/import_annotations.py --categories FILE"
)


def in_order(places: Sequence[int]) -> bool:
    """Return whether :func:`match_classes` found both lists in one order."""
    return list(places) == list(range(len(places)))


def record_in_classes(record: Mapping[str, Any], places: Sequence[int]) -> dict[str, Any]:
    """Return a dataset record with its contiguous class ids replaced.

    Args:
        record: with any of ``annotations``, ``unboxed``, ``points``, ``scribbles``, ``image_tags``,
            ``crop_tags`` and ``segments_info``.
        places: the new id of each old one, as of :func:`match_classes`.
    """

    def moved(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [{**e, "category_id": places[e["category_id"]]} for e in entries]

    result = dict(record)
    for key in ("annotations", "unboxed", "points", "scribbles", "segments_info"):
        if key in record:
            result[key] = moved(record[key])
    if "image_tags" in record:
        result["image_tags"] = sorted(places[tag] for tag in record["image_tags"])
    if record.get("crop_tags"):
        result["crop_tags"] = [
            {**crop, "tags": sorted(places[tag] for tag in crop["tags"])}
            for crop in record["crop_tags"]
        ]
    return result


def place_table(places: Sequence[int]) -> np.ndarray:
    """Return uint8 (256,) that maps semantic maps as ``places`` says; other values stay."""
    table = np.arange(256, dtype=np.uint8)
    table[: len(places)] = places
    return table


def check_segment_kind(segment: Mapping[str, Any], isthing: bool, where: str) -> None:
    """Check a COCO panoptic segment's own ``isthing`` and ``iscrowd`` where it has them.

    Args:
        segment: of ``segments_info``.
        isthing: whether the class of its ``category_id`` is a thing.
        where: file and segment, for messages.

    Raises:
        InputError: it contradicts its class, as Detectron2's raw segments do, whose things and
            stuff are counted apart; or a flag is neither 0 nor 1.
    """
    for key in ("isthing", "iscrowd"):
        if segment.get(key, 0) not in (0, 1):
            raise InputError(f"{where}: {key} is {segment[key]!r:.60}; expected 0 or 1")
    if "isthing" in segment and bool(segment["isthing"]) != isthing:
        raise InputError(
            f"{where}: isthing is {int(segment['isthing'])}, and category_id "
            f"{segment['category_id']} is {'a thing' if isthing else 'stuff'} there; expected the "
            "file's category ids, not Detectron2's own numbers of things and of stuff"
        )


def parse_categories(categories: list, source: str) -> ClassTable:
    """Check a COCO ``categories`` list and sort it by id.

    Args:
        categories: dicts with ``id`` (integer, unique), ``name`` (unique), ``isthing`` (0 or 1)
            and optionally ``color`` (R, G, B in 0..255; a distinct one is chosen where absent).
        source: the file, for messages.

    Raises:
        InputError: no classes, too many, a field missing or of the wrong kind, a double id.
    """
    if not isinstance(categories, list | tuple) or not categories:
        raise InputError(f'{source}: "categories" is empty or no list; expected at least one class')
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
        if len(name) > _LONGEST_NAME or any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
            raise InputError(
                f"{where}: name is {name!r:.60}; expected at most {_LONGEST_NAME} characters, none "
                "of them a line end or another control character"
            )
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
        color = category.get("color", default_color(position))
        if (
            not isinstance(color, list | tuple)
            or len(color) != 3
            or not all(type(v) is int and 0 <= v <= 255 for v in color)
        ):
            raise InputError(f"{where}: color is {color!r:.60}; expected [R, G, B], 0 to 255")
        result.append({**category, "isthing": int(isthing), "color": list(color)})
    result.sort(key=lambda c: c["id"])
    return ClassTable(result, source)


def default_color(position: int) -> list[int]:
    """Distinct colours without end: hue by the golden ratio, three levels of value."""
    hue, value = position * 0.618034 % 1, (0.95, 0.7, 0.5)[position // 8 % 3]
    return [round(255 * v) for v in colorsys.hsv_to_rgb(hue, 0.75, value)]
