# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What earlier labels say of a prediction: shares by hand, votes pixel by pixel."""

import numpy as np
import pytest

from wsis_d2.structures.labels import IGNORE
from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.label_prior import LabelPrior
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
    found = LabelPrior(0.5, 1.0, first, first, 3).factors(5)
    assert found.shape == (3, 1, 16) and found.dtype == np.float32
    # A class without labels is left as it is.
    wanted = np.array([(12 / 15) ** -0.5, (3 / 15) ** -0.5, 1.0])
    np.testing.assert_allclose(found, np.repeat(wanted, 16).reshape(3, 1, 16), rtol=1e-6)
    other = LabelPrior(1.0, 1.0, last, first, 3).factors(5)
    np.testing.assert_allclose(other[:, 0, 0], [2.0, 2.0, 1.0], rtol=1e-6)


def test_round_0_votes_where_it_has_a_label(stores):
    first, last = stores
    found = LabelPrior(0.0, 4.0, last, first, 3).factors(5)[:, 0]
    wanted = np.ones((3, 16))
    wanted[0, :12] = wanted[1, 12:15] = 4.0
    np.testing.assert_array_equal(found, wanted)
    with pytest.raises(InputError, match="6"):
        LabelPrior(0.0, 4.0, last, first, 3).factors(6)
