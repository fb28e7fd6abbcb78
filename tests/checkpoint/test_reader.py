# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Checkpoints are read without running what they may carry."""

import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from wsis_d2.checkpoint.checkpointer import RunCheckpointer
from wsis_d2.checkpoint.reader import load_file, model_state, read_checkpoint
from wsis_d2.utils.errors import InputError


class Payload:
    """A pickle that makes a folder when it is read."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".pyth"])
def test_code_is_refused_and_not_run(tmp_path, suffix):
    path, target = tmp_path / f"bad{suffix}", tmp_path / "ran"
    payload = {"model": {"weight": torch.zeros(1).numpy()}, "extra": Payload(target)}
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, path)
    with pytest.raises(InputError, match=r"refused.*(mkdir|posix).*--trust"):
        read_checkpoint(path)
    assert not target.exists()
    # The same file does run its payload where it is trusted: the refusal above was needed.
    read_checkpoint(path, trust=True)
    assert target.exists()


@pytest.mark.parametrize("suffix", ["pkl", "PKL"])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickles_of_arrays_are_read(tmp_path, protocol, suffix):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    arrays = {"conv1_w": array, "columns": np.asfortranarray(array), "n": np.float64(2.5),
              "turned": np.arange(24.0).reshape(2, 3, 4).transpose(0, 2, 1)}  # fmt: skip
    path = tmp_path / f"R-101.{suffix}"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}, protocol=protocol))
    found = read_checkpoint(path)
    for name in ("conv1_w", "columns", "turned"):
        np.testing.assert_array_equal(found["model"][name], arrays[name])
    assert found["model"]["n"] == 2.5


def test_training_state_with_numpy_and_random_state_is_read(tmp_path):
    path = tmp_path / "model_0000009.pth"
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "iteration": 9,
        "random": {
            "numpy": np.random.RandomState(0).get_state()[1],
            "torch": torch.get_rng_state(),
        },
    }
    torch.save(state, path)
    found = read_checkpoint(path)
    assert found["iteration"] == 9
    np.testing.assert_array_equal(found["random"]["numpy"], state["random"]["numpy"])
    fresh = nn.Linear(3, 2)
    RunCheckpointer(fresh).load(str(path))
    assert torch.equal(fresh.weight, model.weight)
    with pytest.raises(InputError, match=r"model_0000009\.pth: .*weight is \(2, 3\), not \(2, 4\)"):
        RunCheckpointer(nn.Linear(4, 2)).load(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"not a checkpoint at all", "cannot be read as a checkpoint"),
        (None, "expected a checkpoint"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_broken_files_are_named(tmp_path, suffix, content, message):
    path = tmp_path / f"file{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_truncated_checkpoint_is_named(tmp_path):
    path = tmp_path / "cut.pth"
    torch.save({"model": {"w": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(InputError, match="cut.pth.*truncated"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"model": {"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])}}, "parameter b"),
        ({"model": {"a": "text"}}, "entry 'a' is str"),
        ({"model": {}}, "no parameters"),
        ([1, 2], "no parameters"),
    ],
)
def test_states_that_are_no_parameters_are_named(state, message):
    with pytest.raises(InputError, match=message):
        model_state(state, "x.pth")


@pytest.mark.parametrize(
    ("suffix", "content", "names", "heuristics"),
    [
        (".pth", {"a.w": torch.ones(1)}, {"a.w"}, False),
        (".pth", {"state_dict": {"a.w": torch.ones(1)}, "epoch": 3}, {"a.w"}, False),
        (".pyth", {"model_state": {"s1.w": torch.ones(1)}}, {"s1.w"}, True),
        (".pkl", {"model": {"a": np.ones(1)}, "__author__": "x"}, {"a"}, False),
        (".pkl", {"blobs": {"a_w": np.ones(1), "a_w_momentum": np.ones(1)}}, {"a_w"}, True),
    ],
)
def test_every_projects_file_gives_its_parameters(tmp_path, suffix, content, names, heuristics):
    path = tmp_path / f"file{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    found = load_file(str(path))
    assert set(found["model"]) == names
    assert bool(found.get("matching_heuristics")) == heuristics


def test_what_cannot_be_fetched_is_one_line():
    with pytest.raises(InputError, match="^http://127.0.0.1:9/w.pth: cannot be read") as caught:
        load_file("http://127.0.0.1:9/w.pth")
    assert "\n" not in str(caught.value)
