# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What earlier labels say of a prediction: shares and trust, by hand."""

import numpy as np
import pytest

from wsis_d2.structures.labels import IGNORE
from wsis_d2.weak_labels.label_prior import class_factors
from wsis_d2.weak_labels.store import LabelStore

CATEGORIES = [{"id": k + 1, "name": f"class {k}", "isthing": 0} for k in range(3)]


@pytest.fixture
def stores(tmp_path):
    """Round 0: 12 pixels of class 0, 3 of class 1, one ignored. The last round: 4 and 4."""
    result = []
    for name, rows in (("first", [[0] * 12 + [1] * 3 + [IGNORE]]), ("last", [[0] * 4 + [1] * 4])):
        store = LabelStore.create(tmp_path / name, {"kind": name}, CATEGORIES)
        label = np.array(rows, np.uint8)
        record = {
            "image_id": 5, "file_name": "5.png", "height": 1, "width": label.shape[1],
            "annotations": [], "image_tags": [0, 1],
        }  # fmt: skip
        store.write(record, label, np.full(label.shape, -1, np.int32), [])
        result.append(store)
    return result


def test_divides_by_the_shares_of_the_labels_that_the_network_learned_from(stores):
    first, last = stores
    found = class_factors(0.5, first, 3)
    assert found.shape == (3,) and found.dtype == np.float32
    # A class without labels is left as it is.
    np.testing.assert_allclose(found, [(12 / 15) ** -0.5, (3 / 15) ** -0.5, 1.0], rtol=1e-6)
    np.testing.assert_allclose(class_factors(1.0, last, 3), [2.0, 2.0, 1.0], rtol=1e-6)


def test_what_is_trusted_less_is_held_back(stores):
    trust = np.array([0.5, 1.0, 0.25])
    np.testing.assert_array_equal(class_factors(0.0, stores[0], 3, trust), [0.5, 1.0, 0.25])
    np.testing.assert_allclose(class_factors(1.0, stores[1], 3, trust), [1.0, 2.0, 0.25], rtol=1e-6)
