# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Isolating runs: a model's parts replaced by the truth."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from helpers.tiny_panoptic import TinyData, scene, tiny_cfg

from wsis_d2.data.loader import build_test_loader
from wsis_d2.engine import WSISTrainer
from wsis_d2.evaluation.true_parts import TruePartsModel
from wsis_d2.utils.errors import InputError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    tiny = TinyData(tmp_path_factory.mktemp("tiny") / "data")
    yield tiny
    tiny.close()


def untrained(folder, *opts, stage="instance_piecewise"):
    cfg = tiny_cfg(
        folder, "DATASETS.TEST", "('tiny_full',)", "MODEL.WSIS.STAGE", stage,
        "MODEL.INSTANCE_HEAD.MIN_AREAS", [0, 0], *opts,
    )  # fmt: skip
    torch.manual_seed(0)
    return cfg, build_model(cfg)


def test_with_every_part_true_an_untrained_model_is_right(data, tmp_path):
    """Without a CRF nothing can go wrong but pixels where boxes of one class overlap."""
    cfg, model = untrained(
        tmp_path, "MODEL.INSTANCE_HEAD.NAME", "BoxMergeHead", "RUN_VARIANT", "true_parts",
        "TEST.TRUE_PARTS", ["boxes", "semantics"],
    )  # fmt: skip
    results = WSISTrainer.test(cfg, model)
    assert results["sem_seg"]["mIoU"] == pytest.approx(100)
    assert results["panoptic_seg"]["PQ_st"] == pytest.approx(100)
    own = WSISTrainer.test(*untrained(tmp_path, "MODEL.INSTANCE_HEAD.NAME", "BoxMergeHead"))
    assert own["sem_seg"]["mIoU"] < 50
    tested = TruePartsModel(model, "tiny_full", ["boxes", "semantics"]).eval()
    for index, batch in enumerate(build_test_loader(cfg, "tiny_full")):
        if index % 4 > 1:
            continue  # two things or more, which may overlap
        found = tested(batch)[0]["panoptic_seg"][0].numpy()
        truth = scene(index)[1]
        pairs = np.unique(np.stack([found, truth]).reshape(2, -1), axis=1)
        assert len(pairs[0]) == len(set(pairs[0])) == len(set(pairs[1])) == len(np.unique(truth))


def test_true_boxes_are_the_tight_boxes_of_the_true_things(data, tmp_path):
    cfg, model = untrained(tmp_path)
    tested = TruePartsModel(model, "tiny_full", ["boxes"]).eval()
    seen = []
    merge = model.merge
    model.merge = lambda q, image, labels: seen.append((q, labels)) or merge(q, image, labels)
    for index, batch in enumerate(build_test_loader(cfg, "tiny_full")):
        output = tested(batch)[0]
        probabilities, labels = seen[-1]
        # What stays is the model's own.
        assert torch.equal(output["sem_seg"], model.eval()(batch)[0]["sem_seg"])
        seen.pop()
        _, ids, segments = scene(index)
        boxes = []
        for segment in segments:
            if segment["category_id"] in (0, 2):
                ys, xs = np.nonzero(ids == segment["id"])
                boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert sorted(labels.boxes[: labels.num_things].tolist()) == sorted(
            [float(v) for v in box] for box in boxes
        )
        assert labels.scores.tolist() == [1.0] * len(labels)


def test_such_a_run_cannot_pass_for_the_model(data, tmp_path):
    cfg, model = untrained(tmp_path, "TEST.TRUE_PARTS", ["boxes"])
    with pytest.raises(InputError, match="RUN_VARIANT"):
        WSISTrainer.test(cfg, model)
    assert not (tmp_path / "results.json").exists()


def test_what_cannot_be_replaced_is_named(data, tmp_path):
    _, model = untrained(tmp_path)
    with pytest.raises(InputError, match="'crf'"):
        TruePartsModel(model, "tiny_full", ["crf"])
    _, semantic = untrained(tmp_path, stage="semantic")
    with pytest.raises(InputError, match="MODEL.WSIS.STAGE"):
        TruePartsModel(semantic, "tiny_full", ["boxes"])
