# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The label store: pseudo ground truth of one dataset, made by one recipe, in one folder.

::

    STORE/panoptic/*.png + panoptic.json   COCO panoptic format, the annotation file's category ids
    STORE/semantic/*.png                   uint8, contiguous class ids, 255 = ignore
    STORE/status/*.json                    one small file an image, written last, as the commit
    STORE/manifest.json                    recipe, its hash, versions, status and counters of images
    STORE/reliability.json                 how reliable a tag segmenter's cues are

Every file is written under a temporary name and renamed, so a killed run leaves no half file; an
image counts as done when its status file is there, so the next run continues after it. Processes
may write different images of one store at the same time.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from wsis_d2.structures.classes import (
    ClassTable,
    in_order,
    match_classes,
    parse_categories,
    place_table,
    record_in_classes,
)
from wsis_d2.structures.labels import IGNORE, INSTANCE_IGNORE
from wsis_d2.structures.segments import id_picture, picture_ids
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import atomic_write, list_files, remove_dead_temporaries
from wsis_d2.utils.image_io import opened_png
from wsis_d2.weak_labels.recipe import (
    annotation_digest,
    as_json,
    installed_versions,
    plain_value,
)
from wsis_d2.weak_labels.reliability import FILE as RELIABILITY_FILE
from wsis_d2.weak_labels.store_manifest import COMMAND, SCHEMA, check_recipe, read_manifest
from wsis_d2.weak_labels.store_segments import check_labels, check_semantic, panoptic_content
from wsis_d2.weak_labels.store_status import (
    done_status,
    failed_status,
    image_key,
    read_status,
    same_files,
    same_picture,
)

_PARTS = ("panoptic", "semantic", "status")


class LabelStore:
    """One folder of pseudo ground truth. Make one with :meth:`create` or :meth:`open`."""

    def __init__(self, path: str | os.PathLike, manifest: dict, writable: bool) -> None:
        self.path = Path(path)
        self.manifest = manifest
        self.writable = writable
        self.classes = parse_categories(manifest["categories"], f"{self.path}/manifest.json")
        self._places: list[int] | None = None  # of the store's own classes, in another list

    @classmethod
    def create(
        cls,
        path: str | os.PathLike,
        recipe: dict,
        categories: list[dict],
        force: bool = False,
    ) -> "LabelStore":
        """Open a store for writing; make it if it is not there; continue one of the same recipe.

        Args:
            path: the folder.
            recipe: everything the labels depend on but the annotations, as plain JSON values.
            categories: the annotation file's categories (``id``, ``name``, ``isthing``).
            force: throw away labels that are there, of this recipe or another.

        Raises:
            InputError: ``path`` holds another recipe and ``force`` is off, or is a folder with
                files but no store.
        """
        path = Path(path)
        recipe, categories = as_json(recipe, categories)
        replace = force or (path / "manifest.json").exists()
        wanted = check_recipe(path, recipe, categories, force)
        if force and (path / "manifest.json").exists():
            # The manifest goes last: while it is there, the folder is known as a store.
            for part in _PARTS:
                shutil.rmtree(path / part, ignore_errors=True)
            for name in ("panoptic.json", RELIABILITY_FILE):
                (path / name).unlink(missing_ok=True)
        remove_dead_temporaries(path / ".tmp")
        manifest = {
            "schema": SCHEMA,
            "state": "open",
            "recipe": recipe,
            "recipe_hash": wanted,
            "categories": categories,
            "versions": installed_versions(),
        }
        store = cls(path, manifest, writable=True)
        try:
            store._write_json("manifest.json", manifest, replace)
        except FileExistsError:
            # Another process began between the check and now; its recipe must be this one.
            check_recipe(path, recipe, categories)
        for part in _PARTS:
            (path / part).mkdir(parents=True, exist_ok=True)
        return store

    @classmethod
    def open(cls, path: str | os.PathLike, writable: bool = False) -> "LabelStore":
        """Open a store for reading, or to write beside the process that has created it.

        Raises:
            InputError: there is no store at ``path``, or it is of another schema.
        """
        return cls(path, read_manifest(Path(path)), writable=writable)

    def in_classes(self, classes: ClassTable) -> "LabelStore":
        """Return the store for reading in other classes: the same ones by name, in their order.

        Records that are asked about, and all that is read, then have the contiguous ids of
        ``classes``.

        Raises:
            InputError: see :func:`wsis_d2.structures.classes.match_classes`.
        """
        own = parse_categories(self.manifest["categories"], f"{self.path}/manifest.json")
        places = match_classes(classes, own)
        result = LabelStore(self.path, self.manifest, writable=False)
        result.classes = classes
        result._places = None if in_order(places) else places
        return result

    @property
    def recipe(self) -> dict:
        """What the labels were made with."""
        return self.manifest["recipe"]

    @property
    def recipe_hash(self) -> str:
        """SHA-256 of the recipe and the classes."""
        return self.manifest["recipe_hash"]

    @property
    def categories(self) -> list[dict]:
        """The categories, by ascending id: the index is the contiguous id."""
        return self.classes.categories

    def write(
        self,
        record: Mapping,
        semantic: np.ndarray,
        instance: np.ndarray,
        segments: list[dict],
        counters: Mapping[str, float] | None = None,
    ) -> None:
        """Store the labels of one image; done when this returns, not there at all before.

        Args:
            record: the weak record; ``image_id``, ``file_name``, ``height``, ``width`` are used.
            semantic: (H, W) uint8, contiguous class ids, 255 = ignore.
            instance: (H, W) int32, ids of ``segments``; 0 and -1 = no instance (both are stored as
                void and come back as -1).
            segments: ``{"id": positive id, "category_id": contiguous class id}``; those without a
                pixel are left out of what is stored. Optional ``score``: how sure the mask is.
            counters: what happened, name to number; summed over images by :meth:`finish`.

        Raises:
            ValueError: arrays or segments that break this contract.
        """
        self._require_writable()
        size = (int(record["height"]), int(record["width"]))
        semantic = np.asarray(semantic)
        instance = np.asarray(instance)
        segments = check_labels(semantic, instance, segments, size, len(self.classes))
        status = done_status(record, segments, counters)
        self.forget(record["image_id"])
        self._write_image(
            status, semantic.astype(np.uint8), id_picture(np.maximum(instance, 0).astype(np.int32))
        )

    def refuse(self, image_id: int | str) -> None:
        """Make the labels of one image ignore, whole; its counters say ``refused``."""
        self._require_writable()
        entry = self._done_entry(image_id)
        size = (entry["height"], entry["width"])
        changed = {"segments": [], "counters": {**entry["counters"], "refused": 1}}
        self.forget(image_id)
        self._write_image(
            {**entry, **changed}, np.full(size, IGNORE, np.uint8), np.zeros((*size, 3), np.uint8)
        )

    def forget(self, image_id: int | str) -> None:
        """Drop the labels of one image; the next run of the command makes them again."""
        self._require_writable()
        (self.path / "status" / f"{image_key(image_id)}.json").unlink(missing_ok=True)

    def write_failure(self, record: Mapping, message: str) -> None:
        """Note that the labels of one image could not be made; the next run tries it again."""
        self._require_writable()
        status = failed_status(record, message)
        self._write_json(f"status/{image_key(record['image_id'])}.json", status)

    def done(self, image_id: int | str, record: Mapping | None = None) -> bool:
        """Return whether the image's labels are there.

        Args:
            image_id: the image.
            record: if given, labels made from another annotation of the image, of another picture
                that had its id, or of other files than its ``made_of`` tells, do not count, nor do
                those of which a file is gone.
        """
        entry = self._entry(image_id)
        if entry is None or entry["status"] != "done":
            return False
        if record is not None and self._places is not None:
            own = [self._places.index(place) for place in range(len(self._places))]
            record = record_in_classes(record, own)
        if record is None:
            return True
        same = entry["annotation"] == annotation_digest(record) and same_picture(entry, record)
        return same and same_files(entry, record) and not self._lost(image_id)

    def _lost(self, image_id: int | str) -> list[str]:
        """Those of an image's two pictures that are gone; somebody may have deleted a part."""
        files = [f"{part}/{image_key(image_id)}.png" for part in ("semantic", "panoptic")]
        return [file for file in files if not (self.path / file).exists()]

    def check(self, record: Mapping) -> None:
        """Raise an InputError that names image and command if its label is missing or stale."""
        image_id = record["image_id"]
        if self.done(image_id, record):
            return
        entry = self._entry(image_id) or {}
        what = "missing"
        if self.done(image_id):
            what = "is stale: its boxes, tags or size have changed"
            if lost := self._lost(image_id):
                what = f"lacks a file that was deleted, {lost[0]}"
            if not same_picture(entry, record):
                what = f"is that of another picture, {entry['file_name']}"
                if entry["file_name"] == os.path.basename(str(record["file_name"])):
                    what = "was made when the file had other content"
        message = entry.get("message")
        raise InputError(
            f"{self.path}: the label of image {image_id!r} ({record.get('file_name')}) {what}"
            f"{f' (failed: {message})' if message else ''}; {self._remedy}"
        )

    def has(self, record: Mapping) -> bool:
        """Return whether labels of a record's image are there.

        Raises:
            InputError: they are, and were made of another annotation or picture.
        """
        if not self.done(record["image_id"]):
            return False
        self.check(record)
        return True

    @property
    def failed(self) -> dict:
        """Image id to message of the images whose labels could not be made."""
        return {e["image_id"]: e["message"] for e in self._entries() if e["status"] == "failed"}

    def image_ids(self) -> list:
        """Return the ids of all images whose labels are there, in the order of their file names."""
        return [e["image_id"] for e in self._entries() if e["status"] == "done"]

    def file_name(self, image_id: int | str) -> str:
        """Return the name of the picture that the image's labels were made of, without folder."""
        return self._done_entry(image_id)["file_name"]

    def counters(self, image_id: int | str) -> dict:
        """Return what was counted while the image's labels were made."""
        return self._done_entry(image_id)["counters"]

    def semantic(self, image_id: int | str) -> np.ndarray:
        """Return the semantic map, (H, W) uint8, contiguous class ids, 255 = ignore."""
        entry = self._done_entry(image_id)
        name = f"semantic/{image_key(image_id)}.png"
        semantic = self._read_png(name, "L")
        check_semantic(self.path / name, semantic, entry, len(self.classes))
        return semantic if self._places is None else place_table(self._places)[semantic]

    def instance(self, image_id: int | str) -> tuple[np.ndarray, list[dict]]:
        """Return the instance map and its segments.

        Returns:
            (H, W) int32, segment ids, -1 = ignore; and ``{"id", "category_id"}`` of each segment,
            contiguous class ids, with the ``score`` of those that have one.
        """
        entry = self._done_entry(image_id)
        ids = picture_ids(self._read_png(f"panoptic/{image_key(image_id)}.png", "RGB"))
        ids[ids == 0] = INSTANCE_IGNORE
        segments = [
            {k: s[k] for k in ("id", "category_id", "score") if k in s} for s in entry["segments"]
        ]
        if self._places is not None:
            for segment in segments:
                segment["category_id"] = self._places[segment["category_id"]]
        return ids, segments

    def finish(self) -> dict:
        """Write ``panoptic.json`` and the closing manifest; return the summary.

        The summary holds ``images``, ``failed`` and the sum of each counter.
        """
        self._require_writable()
        entries = self._entries()
        done, statuses = [], {}
        totals: dict[str, int] = {}
        for entry in entries:
            image_id = str(entry["image_id"])
            if entry["status"] == "failed":
                statuses[image_id] = {"status": "failed", "message": entry["message"]}
                continue
            for name, value in entry["counters"].items():
                totals[name] = totals.get(name, 0) + value
            statuses[image_id] = {"status": "done", "counters": entry["counters"]}
            done.append(entry)
        content = panoptic_content(done, self.classes)
        self._write_json("panoptic.json", {**content, "categories": self.manifest["categories"]})
        failed = len(entries) - len(done)
        summary = {"images": len(done), "failed": failed, "counters": totals}
        self.manifest.update(state="closed", images=statuses, summary=summary)
        self._write_json("manifest.json", self.manifest)
        remove_dead_temporaries(self.path / ".tmp")
        return summary

    @property
    def _remedy(self) -> str:
        if self.recipe.get("kind") == "round":
            return "begin the rounds anew: tools/train_iterative.py in another OUTPUT_DIR"
        return f"make it with: {COMMAND}"

    def _require_writable(self) -> None:
        if not self.writable:
            raise ValueError(f"{self.path}: opened for reading; use LabelStore.create to write")

    def _entry(self, image_id: int | str) -> dict | None:
        key = image_key(image_id)
        path = self.path / "status" / f"{key}.json"
        if not path.exists():
            return None
        entry = read_status(path, len(self.classes))
        if entry["image_id"] != image_id:
            raise InputError(
                f"{path}: holds image {entry['image_id']!r}, asked for was {image_id!r}; "
                "image ids must stay different when written as file names"
            )
        return entry

    def _done_entry(self, image_id: int | str) -> dict:
        entry = self._entry(image_id)
        if entry is None or entry["status"] != "done":
            reason = f"failed: {entry['message']}" if entry else "missing"
            raise InputError(
                f"{self.path}: no label of image {image_id!r} ({reason}); {self._remedy}"
            )
        return entry

    def _entries(self) -> list[dict]:
        paths = list_files(self.path / "status", "*.json")
        return [read_status(path, len(self.classes)) for path in paths]

    def _read_png(self, name: str, mode: str) -> np.ndarray:
        path = self.path / name
        hint = f"delete it and run the command that made it again: {COMMAND}"
        with opened_png(path, hint) as image:
            if image.mode != mode:
                raise InputError(f"{path}: is of mode {image.mode}, expected {mode}; {hint}")
            return np.array(image)

    def _write_image(self, status: dict, semantic: np.ndarray, panoptic: np.ndarray) -> None:
        """Write both pictures of an image, then its status."""
        key = image_key(status["image_id"])
        self._write_png(f"semantic/{key}.png", semantic)
        self._write_png(f"panoptic/{key}.png", panoptic)
        self._write_json(f"status/{key}.json", status)

    def _write_png(self, name: str, array: np.ndarray) -> None:
        with atomic_write(self.path / name, self.path / ".tmp") as file:
            Image.fromarray(array).save(file, format="PNG", compress_level=6)

    def _write_json(self, name: str, value: dict, replace: bool = True) -> None:
        with atomic_write(self.path / name, self.path / ".tmp", replace) as file:
            file.write(json.dumps(value, default=plain_value).encode())
