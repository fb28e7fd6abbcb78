# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Every part is timed and written down; how long it takes is nobody's test."""

import json

import pytest
from helpers.load_tool import ROOT, load_tool

from wsis_d2.utils.errors import InputError


def own_data(tiny):
    entry = {
        "name": "benchmark_tiny",
        "json": str(tiny.data / "weak_train.json"),
        "images": str(tiny.data / "images" / "train"),
        "labels": str(tiny.store),
    }
    return ["DATASETS.OWN", str([entry]), "DATASETS.TRAIN", "('benchmark_tiny',)",
            "DATASETS.TEST", "('benchmark_tiny',)", "SOLVER.IMS_PER_BATCH", "2",
            "DATALOADER.NUM_WORKERS", "0"]  # fmt: skip


def test_every_part_is_timed(tiny, tmp_path):
    output = tmp_path / "figures.json"
    config = ROOT / "configs" / "Sample-Panoptic" / "tiny_semantic.yaml"
    arguments = ["--config-file", str(config), "--repeat", "2", "--warmup", "0", "--height", "24",
                 "--width", "32", "--labels", "3", "--output", str(output)]  # fmt: skip
    assert load_tool("benchmark").main([*arguments, *own_data(tiny)]) == 0
    content = json.loads(output.read_text())
    assert set(content["figures"]) == {"data", "train", "inference", "crf", "labels"}
    for figures in content["figures"].values():
        assert 0 < figures["fastest_ms"] <= figures["median_ms"] <= figures["slowest_ms"]
        assert figures["processor_ms"] >= 0
    assert content["figures"]["train"]["batch"] == 2
    assert content["figures"]["crf"]["size"] == [24, 32]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "train"], "--config-file"),
        (["--repeat", "0"], "--repeat 0"),
        (["--config-file", "none.yaml"], "none.yaml"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises((InputError, OSError), match=message):
        load_tool("benchmark").main(arguments)
