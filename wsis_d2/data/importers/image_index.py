# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The images of a folder, found by the names that annotation has for them."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wsis_d2.data.datasets.own.values import is_number, shorten
from wsis_d2.data.datasets.own.weak import MAX_SIDE
from wsis_d2.data.importers.files import names_below
from wsis_d2.data.importers.import_log import ImportLog
from wsis_d2.data.importers.names import fold, path_variants
from wsis_d2.data.importers.picture import Picture
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.image_io import PICTURE_SUFFIXES, explain_size, picture_size, turn_of

_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before an uploaded name


class ImageIndex:
    """The images of a folder, found by relative path, by name or by stem.

    Args:
        root: the image root; searched with its sub-folders.

    Raises:
        InputError: no such folder, or no image in it.
    """

    def __init__(self, root: str | os.PathLike) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise InputError(f"--images {root}: no such folder")
        paths = [
            name
            for name in names_below(self.root)
            if os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES
        ]
        if not paths:
            raise InputError(f"--images {root}: no image in it ({' '.join(PICTURE_SUFFIXES)})")
        self.paths = dict.fromkeys(paths)
        # Each table: key of a path -> the paths that have it, the strictest key first.
        self._folded = _table(paths, fold)
        self._names = [_table(paths, _last), _table(paths, lambda p: fold(_last(p)))]
        self._stems = [_table(paths, _stem), _table(paths, lambda p: fold(_stem(p)))]
        self._last_stems = [
            _table(paths, lambda p: _last(_stem(p))),
            _table(paths, lambda p: fold(_last(_stem(p)))),
        ]

    def find(
        self, name: Any, where: str, log: ImportLog, near: str = "", stems: bool = True
    ) -> str | None:
        """Return the image that a file means by ``name``, or None, noted in ``log``.

        A path is taken as it is where it leads to an image of the root, else with other letter
        case or Unicode form, else its last part counts, where one image alone has it. Nothing
        outside the root is ever touched.

        Args:
            name: as it is written (:func:`.names.path_variants`).
            where: who asks, for messages.
            log: where problems go, and how the image was found if not by the path as written.
            near: a folder of the root that the name may be relative to.
            stems: whether a name without the suffix of a picture, as CVAT has of frames, may be
                that of an image whatever its suffix.
        """
        if not isinstance(name, str) or not name or "\0" in name:
            log.bad("image", where, f"the image's name is {shorten(name)}, expected text")
            return None
        label, variants = f"{where}: {shorten(name)}", path_variants(name)
        nearby = [os.path.normpath(f"{near}/{v}").replace(os.sep, "/") for v in variants]
        for path in (nearby if near else []) + variants:
            if path in self.paths:
                if path not in (nearby[0], variants[0]):
                    log.change("image name", label, "read without its URL's parts or escapes")
                return path
        last = [part for v in variants for part in (_last(v), _UPLOAD_PREFIX.sub("", _last(v)))]
        searches = (
            (self._folded, map(fold, variants), "found in other letter case or Unicode form"),
            (self._names[0], last, "found by its last part"),
            (self._names[1], map(fold, last), "found by its last part in other letter case"),
        )
        for table, keys, how in searches:
            for key in keys:
                found = table.get(key, [])
                if len(found) > 1:
                    log.bad("image", where, f"{shorten(name)} may be {found[0]} or {found[1]}")
                    return None
                if found:
                    log.change("image name", label, how)
                    return found[0]
        for variant in variants if stems else ():
            if os.path.splitext(variant)[1].lower() not in PICTURE_SUFFIXES:
                found, _ = self._with_stem(variant)
                if len(found) > 1:
                    log.bad("image", where, f"{shorten(name)} may be {found[0]} or {found[1]}")
                    return None
                if found:
                    log.change("image name", label, "has no suffix of a picture, found without")
                    return found[0]
        self._explain(name, where, log, variants)
        return None

    def _explain(self, name: str, where: str, log: ImportLog, variants: list[str]) -> None:
        """Note why no image has this name."""
        label = f"{where}: {shorten(name)}"
        missing = f"no image of this name under --images {self.root}"
        leaves = [v.startswith(("/", "../")) or v == ".." for v in variants]
        if all(leaves):
            log.bad("image", label, f"{missing}, and the path leaves the image root")
        elif any(os.path.isfile(self.root / v) for v in variants if not v.startswith(("/", ".."))):
            suffixes = " ".join(PICTURE_SUFFIXES)
            log.drop("image", label, f"the file has no suffix of a picture ({suffixes})")
        else:
            log.drop("image", label, missing)

    def by_stem(self, relative: str, where: str, log: ImportLog) -> str | None:
        """Return the image of an annotation file that has its name, whatever the suffix.

        Args:
            relative: the annotation file's path under its root, without suffix.
            where: the file, for messages.
            log: where problems go.
        """
        found, how = self._with_stem(relative)
        if len(found) > 1:
            log.bad("image", where, f"may belong to {found[0]} or {found[1]}")
        elif not found:
            log.drop("image", where, f"no image of its name under --images {self.root}")
        else:
            if how:
                log.change("image name", where, how)
            return found[0]
        return None

    def of_file(self, relative: str, named: Any, where: str, log: ImportLog) -> str | None:
        """Return the image of an annotation file that also names one, or None, noted in ``log``.

        Copies and renamed files keep the old name inside. Where that leads to one image and the
        file's own name to another, nothing tells which one the boxes belong to.

        Args:
            relative: the annotation file's path under its root, without suffix.
            named: the image's name in the file, of any type.
            where: the file, for messages.
            log: where problems go.
        """
        quiet = ImportLog(keep_going=True)
        by_name = self.find(named, where, quiet, near=relative.rpartition("/")[0])
        written = path_variants(named)[:1] if by_name is None and isinstance(named, str) else []
        for path in written:
            candidates, _ = self._with_stem(_stem(path))
            if len(candidates) == 1:
                by_name = candidates[0]
                quiet.change("image name", f"{where}: {shorten(named)}", "found by another suffix")
        candidates, how = self._with_stem(relative)
        if by_name is None:
            if len(candidates) == 1 and named:
                how = "the image it names does not exist; matched by its own file name"
                log.change("image name", f"{where}: {shorten(named)}", how)
                return candidates[0]
            return self.by_stem(relative, where, log)
        if by_name in candidates or not candidates:
            if by_name not in candidates or how:
                log.changed += quiet.changed
            return by_name
        log.bad(
            "file",
            where,
            f"names the image {shorten(named)}, which is {by_name}, and has the name of "
            f"{candidates[0]}; rename it or correct what it names",
        )
        return None

    def _with_stem(self, relative: str) -> tuple[list[str], str]:
        """The images of a stem, and how they were found if not by the path itself."""
        last = _last(relative)
        uploaded = _UPLOAD_PREFIX.sub("", last)
        for table, key, how in (
            (self._stems[0], relative, ""),
            (self._stems[1], fold(relative), "found in other letter case or Unicode form"),
            (self._last_stems[0], last, "found by its last part"),
            (self._last_stems[1], fold(last), "found by its last part in other letter case"),
            (self._last_stems[0], uploaded, "found without what Label Studio puts before it"),
        ):
            if key in table:
                return table[key], how
        return [], ""

    def picture(
        self, path: str, where: str, log: ImportLog, size: tuple[Any, Any] | None = None
    ) -> Picture | None:
        """Read an image whole and return an empty :class:`Picture`, or None, noted in ``log``.

        Args:
            path: relative to the root, as :meth:`find` returns it.
            where: who asks, for messages.
            log: where problems go.
            size: (width, height) as the annotation has it; another size is an error, since its
                boxes are then in other pixels.
        """
        try:
            width, height = picture_size(self.root / path)
        except InputError as error:
            name = str(self.root / path)
            log.bad("image", name, str(error).removeprefix(f"{name}: "))
            return None
        if not 1 <= width <= MAX_SIDE or not 1 <= height <= MAX_SIDE:
            log.bad("image", f"{self.root / path}", f"has {width} x {height} pixels, too many")
            return None
        if size is not None and any(v is not None and v != 0 for v in size):
            if not all(is_number(v) for v in size) or (width, height) != tuple(size):
                wanted: tuple = (shorten(size[0]), shorten(size[1]))
                if all(is_number(v) for v in size):
                    wanted = tuple(int(v) if v % 1 == 0 else v for v in size)
                why = explain_size(self.root / path, (width, height), wanted)
                log.bad("image", where, f"the image {path} {why}")
                return None
        told = bool(size and all(size)) and width != height
        turn = turn_of(self.root / path)
        return Picture(path, width, height, turned=1 < turn < (5 if told else 9))

    def known_picture(
        self, path: str, known: dict[str, Picture], where: str, log: ImportLog
    ) -> Picture | None:
        """Return the picture of an image among the ``known``, added if it is new and readable."""
        if path not in known:
            picture = self.picture(path, where, log)
            if picture is None:
                return None
            known[path] = picture
        return known[path]


def _table(paths: list[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    table: dict[str, list[str]] = {}
    for path in paths:
        table.setdefault(key(path), []).append(path)
    return table


def _last(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]
