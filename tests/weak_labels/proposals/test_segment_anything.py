# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Segment Anything as mask source, by a tiny random model that is built here."""

import json
import sys

import numpy as np
import pytest

from wsis_d2.config import read_config
from wsis_d2.structures.boxes import Box
from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.box_labels import boxes_recipe
from wsis_d2.weak_labels.box_masks import BoxLabelOptions
from wsis_d2.weak_labels.boxes_to_labels import make_box_labels
from wsis_d2.weak_labels.proposals import SegmentAnythingSource, segment_anything

HEIGHT, WIDTH = 40, 60
RECORD = {
    "image_id": 1, "height": HEIGHT, "width": WIDTH, "file_name": "a.png",
    "annotations": [
        {"bbox": [4.0, 3.0, 24.0, 33.0], "bbox_mode": 0, "category_id": 2, "iscrowd": 0},
        {"bbox": [0.0, 0.0, 60.0, 40.0], "bbox_mode": 0, "category_id": 2, "iscrowd": 1},
        {"bbox": [30.0, 8.0, 58.0, 30.0], "bbox_mode": 0, "category_id": 0, "iscrowd": 0},
        {"bbox": [6.0, 5.0, 26.0, 35.0], "bbox_mode": 0, "category_id": 2, "iscrowd": 0},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A SAM of one layer, with random weights, as ``save_pretrained`` writes it."""
    transformers = pytest.importorskip("transformers", reason="pip install 'wsis_d2[sam]'")
    import torch

    torch.manual_seed(3)
    config = transformers.SamConfig(
        vision_config=dict(
            hidden_size=16, output_channels=8, num_hidden_layers=1, num_attention_heads=2,
            image_size=64, patch_size=8, window_size=4, global_attn_indexes=[0], mlp_dim=16,
            num_pos_feats=4,
        ),
        prompt_encoder_config=dict(
            hidden_size=8, image_size=64, patch_size=8, mask_input_channels=4
        ),
        mask_decoder_config=dict(
            hidden_size=8, mlp_dim=16, num_hidden_layers=1, num_attention_heads=2,
            iou_head_hidden_dim=8, iou_head_depth=2,
        ),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("sam") / "tiny"
    transformers.SamModel(config).save_pretrained(path)
    processor = transformers.SamImageProcessor(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 16}, mask_pad_size={"height": 16, "width": 16},
    )  # fmt: skip
    transformers.SamProcessor(processor).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)


def by_the_model_alone(folder, image, corners):
    """One box at a time, as transformers' own documentation runs it."""
    import torch
    from transformers import SamModel, SamProcessor

    model, processor = SamModel.from_pretrained(folder).eval(), SamProcessor.from_pretrained(folder)
    boxes = [[[float(v) for v in corners]]]
    inputs = processor(images=image[..., ::-1].copy(), input_boxes=boxes, return_tensors="pt")
    inputs["input_boxes"] = inputs["input_boxes"].float()
    with torch.no_grad():
        outputs = model(**inputs, multimask_output=False)
    masks = processor.post_process_masks(
        outputs.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
    )
    return masks[0][0, 0].numpy(), float(outputs.iou_scores)


def test_each_box_has_the_mask_that_it_prompted(folder, image):
    found = SegmentAnythingSource(str(folder), batch=2)(image, RECORD)
    assert found.owners.tolist() == [0, 2, 3]  # no mask is asked for a group
    for place, owner in enumerate(found.owners):
        corners = [int(v) for v in RECORD["annotations"][owner]["bbox"]]
        mask, score = by_the_model_alone(folder, image, corners)
        np.testing.assert_array_equal(found.mask(place), mask)
        assert found.scores[place] == pytest.approx(score, rel=1e-4)
    masks = [found.mask(k) for k in range(3)]
    assert any((masks[0] != other).any() for other in masks[1:])


def test_labels_take_masks_by_annotation_and_keep_scores(folder, image):
    found = SegmentAnythingSource(str(folder))(image, RECORD)
    boxes = [Box(2, 4, 3, 23, 32), Box(2, 0, 0, 59, 39, True), Box(0, 30, 8, 57, 29)]
    labels = make_box_labels(image, boxes, found, BoxLabelOptions(masks="mcg"))
    own = np.zeros((HEIGHT, WIDTH), bool)
    own[boxes[2].window] = found.mask(1)[boxes[2].window]
    np.testing.assert_array_equal(labels.semantic == 0, own)
    assert [s["score"] for s in labels.segments] == pytest.approx(found.scores[:2].tolist())


def test_config_finds_the_model_and_the_recipe_names_it(folder):
    cfg = read_config(None, ["WEAK_LABELS.PROPOSALS.NAME", "segment_anything",
                             "WEAK_LABELS.PROPOSALS.PATH", str(folder)])  # fmt: skip
    recipe = boxes_recipe(cfg)["proposals"]
    assert recipe["model"][:2] == ["tiny", "sam"]
    (weights,) = folder.glob("*.safetensors")
    content = weights.read_bytes()
    try:  # trained on, and of the same size
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        segment_anything._identity.cache_clear()
        assert boxes_recipe(cfg)["proposals"] != recipe
    finally:
        weights.write_bytes(content)
        segment_anything._identity.cache_clear()
    assert boxes_recipe(cfg)["proposals"] == recipe


@pytest.mark.parametrize("case", ["nothing", "no weights", "another kind"])
def test_what_is_missing_is_told_in_one_line(tmp_path, case):
    pytest.importorskip("transformers", reason="pip install 'wsis_d2[sam]'")
    path = "" if case == "nothing" else str(tmp_path)
    if case == "another kind":
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
        (tmp_path / "model.safetensors").write_bytes(b"")
    keys = ["WEAK_LABELS.PROPOSALS.NAME", "segment_anything", "WEAK_LABELS.PROPOSALS.PATH", path]
    with pytest.raises(InputError) as error:
        boxes_recipe(read_config(None, keys))
    text = str(error.value)
    assert "\n" not in text and "WEAK_LABELS.PROPOSALS.PATH" in text
    expected = {"nothing": "''", "no weights": "no weights", "another kind": "'bert'"}[case]
    assert expected in text


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    keys = ["WEAK_LABELS.PROPOSALS.NAME", "segment_anything", "WEAK_LABELS.PROPOSALS.PATH", "a/b"]
    with pytest.raises(InputError, match=r"pip install 'wsis_d2\[sam\]'"):
        boxes_recipe(read_config(None, keys))
