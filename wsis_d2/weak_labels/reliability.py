# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""How reliable the cues of a class are, measured from tags alone.

Addition, not in the paper.

A segmenter that knows a class shows it where it is tagged and hardly elsewhere. One that does not
shows as much of it in windows without the tag as in those with it: what it says is not worth more
there only because annotation allows it. So the share that untagged windows hold, against the
share that tagged ones hold, estimates how much of a class's labels are false; the idea is that of
learning from positive and unlabelled sets (Elkan, Noto, "Learning classifiers from only positive
and unlabeled data", KDD 2008). It must be a segmenter that cannot learn windows by heart: a tag
segmenter, not the network that was trained on its cues.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import atomic_write
from wsis_d2.utils.json_io import read_json

FILE = "reliability.json"
#: No class is held to be worth less.
_LEAST = 0.05


def tag_reliability(shares: np.ndarray, tagged: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return 1 - (share in untagged windows) / (share in tagged windows) of each class.

    Compared are windows of one place (sky is at the top, tagged or not): the mean shares of a
    place's tagged and untagged windows, weighted by its tagged ones.

    Args:
        shares: (windows, C) float, the mean probability of each class in each window, as predicted
            without knowledge of its tags.
        tagged: (windows, C) bool, the classes of each window.
        places: (windows,) int, which windows lie at the same place of their images.

    Returns:
        (C,) float64 in [0.05, 1]. A class that no place has both with and without its tag is not
        judged: 1.

    Raises:
        ValueError: shapes that do not fit.
    """
    shares, tagged, places = np.asarray(shares, float), np.asarray(tagged, bool), np.asarray(places)
    if shares.ndim != 2 or tagged.shape != shares.shape or places.shape != shares.shape[:1]:
        raise ValueError(
            f"shares: shape {shares.shape}, tagged: {tagged.shape}, places: {places.shape}; "
            "expected (windows, C) twice and (windows,)"
        )
    result = np.ones(shares.shape[1])
    for class_id in range(shares.shape[1]):
        with_tag = without_tag = 0.0
        for place in np.unique(places):
            here = places == place
            own, others = here & tagged[:, class_id], here & ~tagged[:, class_id]
            if own.any() and others.any():
                with_tag += shares[own, class_id].sum()
                without_tag += own.sum() * shares[others, class_id].mean()
        if with_tag > 0:
            result[class_id] = np.clip(1 - without_tag / with_tag, _LEAST, 1.0)
    return result


def save_reliability(store: str | os.PathLike, names: Sequence[str], values: np.ndarray) -> None:
    """Write each class's reliability into a label store's folder."""
    classes = {name: round(float(v), 6) for name, v in zip(names, values, strict=True)}
    content = {"schema": 1, "classes": classes}
    with atomic_write(Path(store) / FILE) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def copy_reliability(source: str | os.PathLike, store: str | os.PathLike) -> None:
    """Hand on what a store of cues knows to the store that is merged from it."""
    path, copy = Path(source) / FILE, Path(store) / FILE
    if not path.is_file():
        copy.unlink(missing_ok=True)
        return
    with atomic_write(copy) as file:
        file.write(path.read_bytes())


def load_reliability(store: str | os.PathLike, names: Sequence[str]) -> np.ndarray:
    """Return the reliability of each class that a label store knows, (C,) float64 in (0, 1].

    Raises:
        InputError: it knows none, or of other classes.
    """
    path = Path(store) / FILE
    hint = (
        "a tag segmenter's cues have it; make labels by one with: tools/make_weak_labels.py all "
        f"--classifier SEGMENTER.pth --output {store} (labels that are there stay), or leave "
        "REFINE.RELIABILITY_POWER at 0"
    )
    if not path.is_file():
        raise InputError(f"{path}: no such file; {hint}")
    try:
        known = {str(k): float(v) for k, v in read_json(path)["classes"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is damaged ({error!r}); remove it; {hint}") from None
    if set(known) != set(names):
        raise InputError(f"{path}: has classes {list(known)}, expected {list(names)}; {hint}")
    values = np.array([known[name] for name in names])
    if not ((values > 0) & (values <= 1)).all():
        raise InputError(f"{path}: has {known}, expected values above 0 and at most 1; {hint}")
    return values
