# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What a person said of labels: the verdicts that a label report exports.

Addition, not in the paper. ::

    {"kind": "wsis_d2 review", "recipe": "the store's recipe hash",
     "images": [{"image_id": 7, "name": "7.jpg", "verdict": "accept"}]}

``accept``: the labels are good. ``refuse``: they become ignore, so that nothing is learned from
them. ``full``: the image is worth masks by hand; its labels stay until it has them.
"""

import logging
import os
from dataclasses import dataclass, field
from typing import Any

from wsis_d2.utils.errors import InputError
from wsis_d2.utils.json_io import read_json
from wsis_d2.weak_labels.store import LabelStore
from wsis_d2.weak_labels.store_status import is_image_id

logger = logging.getLogger(__name__)

KIND = "wsis_d2 review"
VERDICTS = ("accept", "refuse", "full")


@dataclass(frozen=True)
class Review:
    """Verdicts on the labels of a store.

    Attributes:
        path: the file they came from, for messages.
        recipe: hash of the labels' recipe; "" is unknown.
        verdicts: image id to verdict.
        names: image id to the picture's name, as far as the file has names.
    """

    path: str
    recipe: str
    verdicts: dict[int | str, str]
    names: dict[int | str, str] = field(default_factory=dict)

    def of(self, verdict: str) -> list[int | str]:
        """Return the images with a verdict."""
        return [image_id for image_id, found in self.verdicts.items() if found == verdict]

    def check(self, store: LabelStore) -> None:
        """Make sure that these are verdicts on a store's labels.

        Raises:
            InputError: they are of other labels, or of an image that the store lacks or knows by
                another name: labels of another data set may have the same recipe.
        """
        if self.recipe and self.recipe != store.recipe_hash:
            raise InputError(
                f"{self.path}: is a review of labels of recipe {self.recipe[:12]}, {store.path} "
                f"holds recipe {store.recipe_hash[:12]}; make a report of this store and review "
                "that"
            )
        for image_id in self.verdicts:
            if not store.done(image_id):
                raise InputError(f"{self.path}: image {image_id!r} has no labels in {store.path}")
            name, found = self.names.get(image_id), store.file_name(image_id)
            if name is not None and name != found:
                raise InputError(
                    f"{self.path}: image {image_id!r} is {name}, in {store.path} it is {found}; "
                    "make a report of this store and review that"
                )


def read_review(path: str | os.PathLike) -> Review:
    """Read the file that a label report exports.

    Raises:
        InputError: it is no such file.
    """
    content = read_json(path)
    expected = "expected the file that the label report's Export button writes (tools/report.py)"
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise InputError(f"{path}: no review; {expected}")
    entries = content.get("images")
    if not isinstance(entries, list):
        raise InputError(f'{path}: "images" is no list; {expected}')
    verdicts: dict[int | str, str] = {}
    names: dict[int | str, str] = {}
    for place, entry in enumerate(entries):
        where = f"{path}: images[{place}]"
        image_id: Any = entry.get("image_id") if isinstance(entry, dict) else None
        if not is_image_id(image_id):
            raise InputError(f"{where}: has no image_id; {expected}")
        if entry.get("verdict") not in VERDICTS:
            raise InputError(
                f"{where}: verdict is {entry.get('verdict')!r}; expected {', '.join(VERDICTS)}"
            )
        if image_id in verdicts:
            raise InputError(f"{where}: image {image_id!r} is there twice; export it once")
        verdicts[image_id] = entry["verdict"]
        if isinstance(entry.get("name"), str):
            names[image_id] = entry["name"]
    return Review(os.fspath(path), str(content.get("recipe") or ""), verdicts, names)


def apply_review(
    store_path: str | os.PathLike, review_path: str | os.PathLike, dry_run: bool = False
) -> int:
    """The ``review`` command: make refused images of a store ignore.

    An image that an earlier review refused and this one does not is forgotten: the command that
    made the store makes it anew.

    Returns:
        The exit status, 0.

    Raises:
        InputError: the review is of other labels, or names an image that the store lacks.
    """
    review = read_review(review_path)
    store = LabelStore.open(store_path, writable=True)
    review.check(store)
    refused = set(review.of("refuse"))
    before = {i for i in store.image_ids() if store.counters(i).get("refused")}
    again = before - refused
    logger.info(
        "%s: %d images accepted, %d refused (%d of them new), %d to annotate fully",
        store_path, len(review.of("accept")), len(refused), len(refused - before),
        len(review.of("full")),
    )  # fmt: skip
    if dry_run:
        return 0
    for image_id in sorted(refused - before, key=str):
        store.refuse(image_id)
    for image_id in again:
        store.forget(image_id)
    if again:
        logger.info(
            "%d images are no longer refused but have no labels; run the command that made %s",
            len(again), store_path,
        )  # fmt: skip
    store.finish()
    return 0
