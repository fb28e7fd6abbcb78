# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""From the readers' pictures to an own-data file: which classes there are, and what is kept."""

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from PIL import ImageColor

from wsis_d2.data.datasets.own.values import shorten
from wsis_d2.data.importers.import_log import ImportLog
from wsis_d2.data.importers.names import fold
from wsis_d2.data.importers.picture import Mark, Picture
from wsis_d2.structures.classes import parse_categories
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.json_io import read_json
from wsis_d2.weak_labels.store_status import id_names

# What spreadsheets and scripts write for "nothing".
_NO_NAMES = {"nan", "null", "none", "n/a"}


def to_own_data(
    pictures: list[Picture],
    log: ImportLog,
    *,
    stuff: Iterable[str] = (),
    things: Iterable[str] = (),
    ignore: Iterable[str] = (),
    known: list[dict] | None = None,
    fixed: bool = False,
    outside: str | None = None,
) -> dict:
    """Make an own-data file's content of what a reader found.

    A class that has a box is a thing; one that has tags or marks alone is stuff. A mark of things
    belongs to the one box of its class that it lies in; one that lies in none is an object without
    a box; in several, it tells the class alone. Boxes of classes named in
    ``stuff`` become tags of their image. Names that differ in outer spaces, letter case or Unicode
    form are one class. Of boxes of one class with the same corners the first is kept.

    Args:
        pictures: with unique file names.
        log: where drops and changes go.
        stuff: names that are stuff whatever the file says.
        things: names that are things though they have no box.
        ignore: names to leave out.
        known: categories (``id``, ``name``, optionally ``isthing`` and ``color``) that keep their
            ids, e.g. those of the training file when the validation file is imported.
        fixed: whether ``known`` is all there is; other names are then dropped.
        outside: the stuff class of everything outside the boxes, which nothing else need name.

    Raises:
        InputError: nothing is left, and why; or a name in ``stuff`` does not occur.
    """
    known = list(known or [])
    if not pictures:
        raise InputError(f"no image is left to import{_because(log)}")
    pictures, spelling = _spell(pictures, known, log)
    stuff, things, ignore = (
        {spelling.get(fold(n), n) for n in names} for names in (stuff, things, ignore)
    )
    boxed = {b[0] for p in pictures for b in p.boxes} | things
    tagged = {t for p in pictures for t in p.tags} | {m.name for p in pictures for m in p.marks}
    tagged |= {t for p in pictures for _, tags in p.crop_tags for t in tags}
    if not (boxed - things) | tagged and (log.dropped or not known):
        raise InputError(
            f"neither a box nor a tag is left to import, of {len(pictures)} images{_because(log)}"
        )
    there = (boxed - things) | tagged | {c["name"] for c in known}
    for option, wanted in (("stuff", stuff), ("things", things), ("ignore", ignore)):
        for name in sorted(wanted - there):
            raise InputError(f"--{option} {name}: no such class; there are {_names(there)}")
    for one, other in (("stuff", "ignore"), ("stuff", "things"), ("things", "ignore")):
        both = {"stuff": stuff, "things": things, "ignore": ignore}
        for name in sorted(both[one] & both[other]):
            raise InputError(f"--{one} and --{other} both name {name}; choose one")
    if outside is not None:
        outside = spelling.get(fold(outside), outside)
        if outside in boxed | ignore or (fixed and outside not in {c["name"] for c in known}):
            raise InputError(
                f"--outside-boxes {outside}: has boxes, is ignored or is no class of --categories; "
                "expected the name of a stuff class"
            )
        stuff, tagged = stuff | {outside}, tagged | {outside}
    categories = _categories(known, boxed, tagged, stuff, things, ignore, fixed)
    ids = {c["name"]: c["id"] for c in categories}
    countable = {c["name"] for c in categories if c["isthing"]}
    unused = [name for name in ids if name not in boxed | tagged]
    if unused and not fixed:
        log.notes.append(f"{len(unused)} classes have neither box nor tag: {_names(unused)}")

    def keep(name: str, where: str, what: str) -> bool:
        if name in ids:
            return True
        why = f'class "{name}" is left out' if name in ignore else f'class "{name}" is not known'
        log.drop(what, where, why)
        return False

    images: list[dict] = []
    annotations: list[dict] = []
    taken = {n for p in pictures if p.image_id is not None for n in id_names(p.image_id)}
    numbers = (n for n in itertools.count(1) if not id_names(n) & taken)
    for picture in sorted(pictures, key=lambda p: p.file_name):
        image_id = next(numbers) if picture.image_id is None else picture.image_id
        tags = {t for t in picture.tags if keep(t, picture.file_name, "tag")}
        own: dict[int | str, dict] = {}
        for place, (name, x, y, w, h, crowd) in _without_copies(picture, log):
            if not keep(name, picture.file_name, "box"):
                continue
            if name not in countable:
                tags.add(name)
                log.change("box", picture.file_name, f'"{name}" is stuff, so its box became a tag')
                continue
            annotations.append(
                {"id": picture.box_ids.get(place), "image_id": image_id, "category_id": ids[name],
                 "bbox": [x, y, w, h], "iscrowd": int(crowd)}
            )  # fmt: skip
            own[place] = annotations[-1]
        entry: dict[str, Any] = {
            "id": image_id,
            "file_name": picture.file_name,
            "height": picture.height,
            "width": picture.width,
        }
        crops = []
        for box, found in picture.crop_tags:
            kept = sorted(ids[t] for t in found if keep(t, picture.file_name, "tag"))
            crops.append({"box": list(box), "tags": kept})
        marks = [m for m in picture.marks if keep(m.name, picture.file_name, "mark")]
        entry.update(_marks(picture, marks, own, annotations, image_id, ids, countable))
        entry["image_tags"] = sorted({ids[t] for t in tags} | {t for c in crops for t in c["tags"]})
        if crops:
            entry["crop_tags"] = crops
        if picture.full:
            entry["supervision"] = "full"
        images.append(entry)
    # Files of masks name boxes by ids; one that two boxes have names none.
    named = Counter(str(a["id"]) for a in annotations if a["id"] is not None)
    free = (n for n in itertools.count(1) if not named[str(n)])
    for annotation in annotations:
        if annotation["id"] is None or named[str(annotation["id"])] > 1:
            annotation["id"] = next(free)
    if log.dropped and not annotations and not any(e["image_tags"] for e in images):
        raise InputError(
            f"neither a box nor a tag is left to import, of {len(images)} images{_because(log)}"
        )
    turned = [p.file_name for p in pictures if p.turned and (p.boxes or p.crop_tags or p.marks)]
    if turned:
        log.notes.append(
            f"{len(turned)} images are turned by EXIF, and their annotation does not tell whether "
            f"it was drawn on the turned pictures, as it must be: {_names(turned)}"
        )
    _note_gaps(images, annotations, {ids[name] for name in countable}, log)
    return {"images": images, "categories": categories, "annotations": annotations}


def _note_gaps(images: list[dict], annotations: list[dict], things: set, log: ImportLog) -> None:
    """Note which images look as if they were not annotated, or not completely."""
    own: dict[int | str, set[int]] = {entry["id"]: set() for entry in images}
    for annotation in annotations:
        own[annotation["image_id"]].add(annotation["category_id"])
    bare, unboxed, untagged, some = [], [], [], False
    for entry in images:
        boxed, tags = own[entry["id"]], set(entry["image_tags"])
        marked = {m["category_id"] for key in ("points", "scribbles") for m in entry.get(key, ())}
        some |= bool((tags | marked) - things)
        if not boxed | tags | marked:
            bare.append(entry["file_name"])
        elif (tags & things) - boxed:
            unboxed.append(entry["file_name"])
        elif not (tags | marked) - things:
            untagged.append(entry["file_name"])
    for names, what in (
        (bare, "have neither box nor tag; leave them out if they are not annotated yet"),
        (unboxed, "are tagged with a thing that has no box there; it may be anywhere in them"),
        (untagged if some else [], "have boxes and no tag of stuff; their stuff is unknown"),
    ):
        if names:
            log.notes.append(f"{len(names)} images {what}: {_names(names)}")


def _marks(
    picture: Picture,
    marks: list[Mark],
    own: dict[int | str, dict],
    annotations: list[dict],
    image_id: int | str,
    ids: dict[str, int],
    things: set[str],
) -> dict[str, list[dict]]:
    """Give marks to their annotations, make those of objects without a box; return the others.

    Args:
        own: place in ``picture.boxes`` to the annotation; objects without a box are added.
    """
    rest: dict[str, list[dict]] = {}
    for number, mark in enumerate(marks):
        key = "points" if mark.is_point else "scribbles"
        owner: int | str | None = mark.owner
        if mark.name not in things or (isinstance(owner, int) and owner not in own):
            owner = None
        elif owner is None:
            around = [k for k in own if isinstance(k, int) and _is_around(picture.boxes[k], mark)]
            owner = around[0] if len(around) == 1 else None if around else f"mark {number}"
        if owner is None:
            rest.setdefault(key, []).append({"category_id": ids[mark.name], "xy": mark.xy})
            continue
        if owner not in own:
            own[owner] = {"id": None, "image_id": image_id, "category_id": ids[mark.name]}
            annotations.append(own[owner])
        xy = mark.xy if mark.inside else [*mark.xy, 0]
        own[owner].setdefault(key, []).append(xy)
    return rest


def _is_around(box: tuple, mark: Mark) -> bool:
    name, x, y, w, h, crowd = box
    points = [mark.xy] if mark.is_point else mark.xy
    inside = all(x <= u <= x + w and y <= v <= y + h for u, v in points)
    return name == mark.name and not crowd and inside


def _because(log: ImportLog) -> str:
    reasons = log.reasons()
    return f": {reasons}" if reasons else "; the annotation holds none"


def _spell(
    pictures: list[Picture], known: list[dict], log: ImportLog
) -> tuple[list[Picture], dict[str, str]]:
    """Give every class one spelling: that of ``known``, else the most frequent one.

    Returns:
        The pictures with these names, and folded name -> spelling.
    """
    exact = {c["name"] for c in known}
    spelling: dict[str, str] = {}
    for name in (c["name"] for c in known):
        spelling.setdefault(fold(name), name)
    counts: Counter[str] = Counter()
    for picture in pictures:
        counts.update(b[0].strip() for b in picture.boxes)
        counts.update(t.strip() for t in sorted(picture.tags))
        counts.update(t.strip() for _, tags in picture.crop_tags for t in sorted(tags))
        counts.update(m.name.strip() for m in picture.marks)
    for name, _ in counts.most_common():  # of equal ones the first seen
        spelling.setdefault(fold(name), name)

    def spelled(name: str, picture: Picture) -> str:
        result = name if name in exact else spelling[fold(name)]
        if result != name:
            log.change("class name", picture.file_name, f'{shorten(name)} is taken as "{result}"')
        return result

    def spelled_tags(tags: set[str], picture: Picture) -> set[str]:
        kept = set()
        for tag in sorted(tags):
            if fold(tag) in _NO_NAMES and tag not in exact:
                log.drop("tag", picture.file_name, f"{shorten(tag)} names no class")
            else:
                kept.add(spelled(tag, picture))
        return kept

    result = []
    for p in pictures:
        boxes = [(spelled(b[0], p), *b[1:]) for b in p.boxes]
        crops = [(box, spelled_tags(tags, p)) for box, tags in p.crop_tags]
        marks = [replace(m, name=spelled(m.name, p)) for m in p.marks]
        tags = spelled_tags(p.tags, p)
        result.append(replace(p, boxes=boxes, tags=tags, crop_tags=crops, marks=marks))
    return result, spelling


def _without_copies(picture: Picture, log: ImportLog) -> list[tuple[int, tuple]]:
    """The boxes of a picture, each once, with places; equal corners of two classes are noted."""
    seen: dict[tuple, set] = {}
    kept = []
    for place, box in enumerate(picture.boxes):
        key = tuple(round(v, 1) for v in box[1:5])
        names = seen.setdefault(key, set())
        if (box[0], box[5]) in names:
            log.drop("box", picture.file_name, f'a copy of another box of "{box[0]}"')
            continue
        for other, _ in sorted(names - {(box[0], not box[5])}):
            pair = " and ".join(f'"{n}"' for n in sorted((other, box[0])))
            log.change("box", picture.file_name, f"{pair} have the same corners, both kept")
        names.add((box[0], box[5]))
        kept.append((place, box))
    return kept


def _categories(
    known: Sequence[dict],
    boxed: set[str],
    tagged: set[str],
    stuff: set[str],
    things: set[str],
    ignore: set[str],
    fixed: bool,
) -> list[dict]:
    categories = []
    for category in known:
        name = category["name"]
        if name in ignore:
            continue
        isthing = category.get("isthing")
        if name in stuff or name in things:
            isthing = int(name in things)
        elif isthing is None:
            isthing = int(name in boxed or name not in tagged)
        kept = {k: category[k] for k in ("id", "name", "color") if k in category}
        if isinstance(category.get("supercategory"), str):
            kept["supercategory"] = category["supercategory"]
        categories.append({**kept, "isthing": int(isthing)})
    if not fixed:
        have = {c["name"] for c in categories}
        countable = sorted(boxed - have - stuff - ignore)
        others = sorted((tagged | boxed) - have - set(countable) - ignore)
        following = max((c["id"] for c in known), default=0) + 1
        for number, name in enumerate(countable + others, start=following):
            categories.append({"id": number, "name": name, "isthing": int(name in countable)})
    return parse_categories(categories, "the imported classes").categories


def read_categories(path: str | os.PathLike, log: ImportLog) -> list[dict]:
    """Read the ``categories`` of an own-data or COCO file for ``known`` of :func:`to_own_data`."""
    content = read_json(path)
    categories = content.get("categories") if isinstance(content, dict) else content
    if not isinstance(categories, list) or not all(isinstance(c, dict) for c in categories):
        raise InputError(f'{path}: has no "categories" list')
    source = os.fspath(path)
    categories = [_plain_color(c, f"{source}: categories[{k}]", log)
                  for k, c in enumerate(categories)]  # fmt: skip
    _check(categories, source)
    return categories


def file_categories(
    categories: list, source: str, log: ImportLog
) -> tuple[list[dict], dict[int, str]]:
    """Read the class list of a tool's file, whose ``isthing`` may be missing.

    Names lose outer spaces; classes whose names are then alike but for letter case become one.

    Args:
        categories: dicts with ``id`` and ``name``.
        source: the file, for messages.
        log: where changes go.

    Returns:
        The categories, and category id -> class name, also of ids that became one class.

    Raises:
        InputError: an id or a name is missing, of the wrong kind, or an id is used twice.
    """
    # Numbered names, since equal ones are no error here.
    _check(
        [
            {**c, "name": f"{k} {c['name']}", "color": [0, 0, 0]}
            if isinstance(c, dict) and isinstance(c.get("name"), str) and c["name"].strip()
            else c
            for k, c in enumerate(categories)
        ],
        source,
    )
    kept: dict[str, dict] = {}
    names = {}
    for k, category in enumerate(categories):
        where, name = f"{source}: categories[{k}]", category["name"]
        first = kept.setdefault(fold(name), {**category, "name": name.strip()})
        names[category["id"]] = first["name"]
        if first["id"] != category["id"]:
            same = f'{shorten(name)} is taken as the class "{first["name"]}" (id {first["id"]})'
            log.change("class", where, same)
        elif name != first["name"]:
            log.change("class", where, f'{shorten(name)} is taken as "{first["name"]}"')
        if first["id"] == category["id"]:
            kept[fold(name)] = _plain_color(first, where, log)
    return list(kept.values()), names


def _plain_color(category: dict, where: str, log: ImportLog) -> dict:
    """A category whose ``color`` is [R, G, B], also where it is written "#ff0000"; else without."""
    color: Any = category.get("color")
    if isinstance(color, str) and color:
        try:
            return {**category, "color": list(ImageColor.getrgb(color.strip())[:3])}
        except ValueError:
            pass
    plain = isinstance(color, list) and len(color) == 3
    if plain and all(type(v) is int and 0 <= v <= 255 for v in color):
        return category
    if color not in (None, ""):
        log.drop("color", where, f"{shorten(color)} is no colour")
    return {k: v for k, v in category.items() if k != "color"}


def _check(categories: list, source: str) -> None:
    """Check ids and names of categories whose ``isthing`` may be missing."""
    filled = [
        {**c, "isthing": 1 if c.get("isthing") is None else c["isthing"]}
        if isinstance(c, dict)
        else c
        for c in categories
    ]
    parse_categories(filled, source)


def _names(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") or "none"
