# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Arrays fill a network by names and shapes."""

import pytest
import torch
from torch import nn

from wsis_d2.checkpoint.coverage import load_into
from wsis_d2.utils.errors import InputError


def test_missing_arrays_are_listed_and_counted():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(5)))
    arrays = {"0.weight": torch.ones(2, 2), "1.weight": torch.ones(3, 2)}
    with pytest.raises(InputError) as caught:
        load_into(model, arrays, source="S", what="W", hint="H")
    assert str(caught.value) == (
        "S: lacks 8 of 10 arrays of W: 0.bias, 1.bias, 2.weight and 5 more; "
        "has 1 arrays of W in another shape: 1.weight is (3, 2), not (2, 2); H"
    )
    assert not torch.equal(model[0].weight, torch.ones(2, 2))  # nothing was loaded
    left = load_into(model, arrays, source="S", partial=True)
    assert torch.equal(model[0].weight, torch.ones(2, 2)) and len(left) == 9
    del arrays["1.weight"]
    left = load_into(model, arrays, source="S", allow_missing=("0.", "1.", "2.", "3.", "4."))
    assert len(left) == 9


def test_statistics_of_a_norm_are_missing_or_folded():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    affine = {f"{k}.{n}": torch.full((2,), 0.5) for k in "01" for n in ("weight", "bias")}
    with pytest.raises(InputError, match="lacks 4 of 8 .*0.running_mean, 0.running_var, 1.run"):
        load_into(model, affine, source="S")
    assert load_into(model, affine, source="S", folded=True) == []
    del affine["1.weight"]
    with pytest.raises(InputError, match="lacks 1 of 4 arrays of the model: 1.weight;"):
        load_into(model, affine, source="S", folded=True)


@pytest.mark.parametrize("partial", [False, True])
def test_integers_are_no_weights(partial):
    """A quantised network without its scales would be another one of the same shapes."""
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Linear(2, 2))
    arrays = model.state_dict()
    assert load_into(model, arrays, source="S") == []  # the counter of a norm is an integer
    arrays["1.weight"] = torch.ones(2, 2, dtype=torch.int8)
    with pytest.raises(InputError, match="S: has 1 arrays of W in integers.*: 1.weight; H"):
        load_into(model, arrays, source="S", what="W", hint="H", partial=partial)
