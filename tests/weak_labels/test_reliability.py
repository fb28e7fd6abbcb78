# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What tags vouch for: by hand, on windows whose precision is known, and the file."""

import json

import numpy as np
import pytest

from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.reliability import (
    FILE,
    copy_reliability,
    load_reliability,
    save_reliability,
    tag_reliability,
)
from wsis_d2.weak_labels.store import LabelStore


def test_compares_windows_of_one_place():
    """Two places. Class 0: 0.4, 0.2 tagged against 0.1 at the first, 0.6 against 0.3 at the second.

    Class 1 is tagged in all windows, class 2 in all of one place and none of the other, class 3
    shows more where it is not tagged.
    """
    shares = np.array(
        [
            [0.4, 0.1, 0.2, 0.1],
            [0.2, 0.1, 0.2, 0.3],
            [0.1, 0.1, 0.2, 0.2],
            [0.6, 0.1, 0.9, 0.0],
            [0.3, 0.1, 0.9, 0.0],
        ]
    )
    tagged = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [0, 1, 1, 0], [1, 1, 0, 0], [0, 1, 0, 0]], bool)
    found = tag_reliability(shares, tagged, np.array([0, 0, 0, 5, 5]))
    # Tagged: 0.4 + 0.2 + 0.6; expected of the same windows without: 0.1 + 0.1 + 0.3.
    np.testing.assert_allclose(found, [1 - 0.5 / 1.2, 1.0, 1.0, 0.05])
    with pytest.raises(ValueError, match="shape"):
        tag_reliability(shares, tagged, np.zeros(4, int))


def test_finds_the_precision_of_cues_that_are_wrong_alike_everywhere():
    """Cues hold a class where it is tagged, and what is none of it everywhere, in known shares."""
    rng = np.random.default_rng(0)
    places = rng.integers(0, 4, 4000)
    tagged = rng.random((4000, 3)) < 0.5
    own, false = np.array([0.2, 0.1, 0.05]), np.array([0.0, 0.1, 0.15])
    noise = rng.uniform(0.5, 1.5, (2, 4000, 3))
    # Some places have three times the pixels of both kinds.
    size = np.where(places % 2, 3.0, 1.0)[:, None]
    shares = size * (tagged * own * noise[0] + false * noise[1])
    precision = own / (own + false)
    found = tag_reliability(shares, tagged, places)
    np.testing.assert_allclose(found, precision, atol=0.02)


def test_the_file_goes_from_cues_to_labels_and_is_checked(tmp_path):
    names = ["sky", "pole"]
    tags, labels = tmp_path / "tags", tmp_path / "labels"
    tags.mkdir()
    labels.mkdir()
    with pytest.raises(InputError, match=r"reliability.json: no such file.*make_weak_labels"):
        load_reliability(labels, names)
    copy_reliability(tags, labels)  # cues of a classifier know none
    assert not (labels / FILE).exists()
    save_reliability(tags, names, np.array([1.0, 0.25]))
    copy_reliability(tags, labels)
    np.testing.assert_array_equal(load_reliability(labels, names), [1.0, 0.25])
    (tags / FILE).rename(tags / "elsewhere")
    copy_reliability(tags, labels)  # no copy outlives what it tells of
    assert not (labels / FILE).exists()
    (tags / "elsewhere").rename(tags / FILE)
    copy_reliability(tags, labels)
    np.testing.assert_array_equal(load_reliability(labels, names[::-1]), [0.25, 1.0])
    with pytest.raises(InputError, match="expected .'pole', 'sea'."):
        load_reliability(labels, ["pole", "sea"])
    for content, message in (
        ("{", "damaged"),
        ("[]", "damaged"),
        (json.dumps({"classes": {"sky": 1, "pole": "much"}}), "damaged"),
        (json.dumps({"classes": {"sky": 1, "pole": 0}}), "above 0"),
    ):
        (labels / FILE).write_text(content)
        with pytest.raises(InputError, match=message):
            load_reliability(labels, names)


def test_a_store_that_is_thrown_away_forgets_it(tmp_path):
    categories = [{"id": 1, "name": "sky", "isthing": 0}]
    store = LabelStore.create(tmp_path / "store", {"kind": "one"}, categories)
    save_reliability(store.path, ["sky"], np.array([0.5]))
    LabelStore.create(tmp_path / "store", {"kind": "one"}, categories)
    assert load_reliability(store.path, ["sky"]) == [0.5]
    LabelStore.create(tmp_path / "store", {"kind": "two"}, categories, force=True)
    with pytest.raises(InputError, match="no such file"):
        load_reliability(store.path, ["sky"])
