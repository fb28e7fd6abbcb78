# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The whole model, stage by stage, and the CRF head inside it."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from helpers.tiny_panoptic import HEIGHT, THING_IDS, WIDTH, TinyData, tiny_cfg

from wsis_d2.checkpoint.backbones import load_backbone
from wsis_d2.checkpoint.names import read_weights
from wsis_d2.data.mappers import build_mapper
from wsis_d2.data.records import load_records
from wsis_d2.layers import CRFParameters
from wsis_d2.modeling.annotation_losses import AnnotationLosses
from wsis_d2.modeling.instance import InstanceCRFHead, make_labels, unary_scores
from wsis_d2.modeling.meta_arch import WeakPanopticRCNN
from wsis_d2.utils.errors import InputError

JOINT = ("instance_piecewise", "end_to_end")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    tiny = TinyData(tmp_path_factory.mktemp("tiny") / "data")
    yield tiny
    tiny.close()


def model_of(folder, stage, *opts, train="tiny_weak"):
    cfg = tiny_cfg(folder, "MODEL.WSIS.STAGE", stage, *opts, train=train)
    torch.manual_seed(0)
    return cfg, build_model(cfg)


def batch_of(cfg, count=4, train=True):
    mapper = build_mapper(cfg, train)
    records = load_records(cfg.DATASETS.TRAIN)[:count]
    return [mapper(record) for record in records]


def gradients(model) -> set[str]:
    """Parts of the model in which a gradient is not zero."""
    return {
        name.split(".")[0]
        for name, p in model.named_parameters()
        if p.grad is not None and float(p.grad.abs().sum()) > 0
    }


def losses_of(model, batch) -> dict:
    model.train()
    with EventStorage():
        return model(batch)


@pytest.mark.parametrize("boxes", ["detector", "gt", "gt_jitter"])
@pytest.mark.parametrize("stage", JOINT)
def test_instance_stages_train_their_own_parts_alone(data, tmp_path, stage, boxes):
    cfg, model = model_of(
        tmp_path, stage, "MODEL.WSIS.TRAIN_BOXES", boxes, "MODEL.WSIS.DETECTION_SCORE_THRESH", 0.0,
        train="tiny_full",
    )  # fmt: skip
    before = {k: v.clone() for k, v in model.detector.state_dict().items()}
    losses = losses_of(model, batch_of(cfg))
    sum(losses.values()).backward()
    trained = {"instance"} if stage == "instance_piecewise" else {"instance", "semantic"}
    assert gradients(model) == trained
    assert "loss_instance" in losses and ("loss_sem_seg" in losses) == (stage == "end_to_end")
    assert all(torch.equal(v, before[k]) for k, v in model.detector.state_dict().items())
    assert not model.detector.training
    if stage == "instance_piecewise":
        assert not model.semantic.training


def test_single_stages_hold_only_their_own_part(data, tmp_path):
    for stage, other in (("detector", "semantic"), ("semantic", "detector")):
        cfg, model = model_of(tmp_path, stage)
        assert getattr(model, other) is None and model.instance is None
        sum(losses_of(model, batch_of(cfg)).values()).backward()
        assert gradients(model) == {stage}


def test_annotation_losses_are_those_of_the_prediction_on_every_fourth_pixel(data, tmp_path):
    weight = [
        "MODEL.WSIS.ANNOTATION_LOSS_WEIGHT",
        0.5,
        "MODEL.SEM_SEG_HEAD.NAME",
        "PSPHeadWithoutDropout",
    ]
    cfg, model = model_of(tmp_path, "semantic", *weight)
    batch = batch_of(cfg)
    losses = losses_of(model, batch)
    with torch.no_grad():
        logits, _ = model.semantic.logits([sample["image"] for sample in batch])
    terms = AnnotationLosses(4, THING_IDS, box_weight=0.3, entropy_weight=0.0)
    own = []
    for sample, single in zip(batch, logits, strict=True):
        height, width = sample["image"].shape[-2:]
        own.append(terms(single[:, :height, :width].softmax(0)[:, ::4, ::4], sample))
    for name in ("possible", "tags", "boxes"):
        wanted = 0.5 * sum(float(o[name]) for o in own) / len(own)
        assert float(losses[f"loss_{name}"].detach()) == pytest.approx(wanted, rel=1e-4)
    assert "loss_entropy" not in losses
    losses["loss_tags"].backward()
    assert gradients(model) == {"semantic"}
    # Full records have masks; every process must still report the same losses.
    cfg, model = model_of(tmp_path, "semantic", *weight, train="tiny_full")
    losses = losses_of(model, batch_of(cfg))
    assert all(float(losses[f"loss_{k}"].detach()) == 0 for k in ("possible", "tags", "boxes"))
    _, model = model_of(tmp_path, "semantic")
    assert set(losses_of(model, batch)) == {"loss_sem_seg", "loss_sem_seg_aux"}


def test_end_to_end_reaches_the_semantic_net_through_the_crf_alone(data, tmp_path):
    cfg, _ = model_of(tmp_path, "end_to_end", "MODEL.WSIS.TRAIN_BOXES", "gt")
    model = WeakPanopticRCNN(**WeakPanopticRCNN.from_config(cfg), semantic_loss_weight=0.0)
    losses = losses_of(model, batch_of(cfg))
    assert set(losses) == {"loss_instance"}
    losses["loss_instance"].backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == [] and gradients(model) == {"instance", "semantic"}


def test_images_without_things_or_labels_train(data, tmp_path):
    cfg, model = model_of(tmp_path, "end_to_end", "MODEL.WSIS.TRAIN_BOXES", "gt")
    sample = batch_of(cfg, 1)[0]
    assert len(sample["instances"]) == 0
    sample["sem_seg"].fill_(255)
    sample["inst_seg"].fill_(-1)
    losses = losses_of(model, [sample, sample])
    assert all(float(v) == 0 for v in losses.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("head", ["InstanceCRFHead", "BoxMergeHead"])
@pytest.mark.parametrize("threshold", [0.0, 1.1])
def test_prediction_explains_every_pixel(data, tmp_path, head, threshold):
    cfg, model = model_of(
        tmp_path, "instance_piecewise", "MODEL.INSTANCE_HEAD.NAME", head,
        "MODEL.WSIS.DETECTION_SCORE_THRESH", threshold,
    )  # fmt: skip
    for record, output in zip(
        batch_of(cfg, train=False), model.eval()(batch_of(cfg, train=False)), strict=True
    ):
        assert output["sem_seg"].shape == (4, record["height"], record["width"])
        assert torch.allclose(output["sem_seg"].sum(0), torch.ones(HEIGHT, WIDTH), atol=1e-4)
        segmentation, segments = output["panoptic_seg"]
        assert segmentation.dtype == torch.int32 and segmentation.shape == (HEIGHT, WIDTH)
        assert sorted(segmentation.unique().tolist()) == sorted(s["id"] for s in segments)
        for s in segments:
            assert s["isthing"] == (s["category_id"] in THING_IDS)
            assert 0 <= s["score"] <= 1 and set(s["scores"]) == {"detection", "mean_confidence"}
        things = [s for s in segments if s["isthing"]]
        assert output["instances"].pred_classes.tolist() == [s["category_id"] for s in things]
        if threshold > 1:
            assert not things
        stuff = [s["category_id"] for s in segments if not s["isthing"]]
        assert len(stuff) == len(set(stuff))


def test_output_has_the_size_asked_for(data, tmp_path):
    cfg, model = model_of(tmp_path, "instance_piecewise", "MODEL.WSIS.DETECTION_SCORE_THRESH", 0.0)
    record = {**batch_of(cfg, 1, train=False)[0], "height": 2 * HEIGHT, "width": WIDTH - 7}
    output = model.eval()([record])[0]
    assert output["sem_seg"].shape[-2:] == (2 * HEIGHT, WIDTH - 7)
    assert output["panoptic_seg"][0].shape == (2 * HEIGHT, WIDTH - 7)


def test_detector_speaks_unified_class_ids(data, tmp_path):
    cfg, model = model_of(tmp_path, "detector", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    found = model.eval()(batch_of(cfg, 2, train=False))[0]["instances"]
    assert len(found) and set(found.pred_classes.tolist()) <= set(THING_IDS)


def test_training_boxes_follow_the_crop(data, tmp_path):
    """Detections are made once on the whole image and moved by each sample's own transform."""
    cfg, model = model_of(
        tmp_path, "instance_piecewise", "INPUT.RANDOM_FLIP", "horizontal",
        "INPUT.SCALE_RANGE", [1.5, 1.5], "INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [33, 41],
        "INPUT.CROP.TYPE", "absolute",
        "MODEL.WSIS.DETECTION_SCORE_THRESH", 0.0, "MODEL.WSIS.MAX_DETECTIONS", 5,
    )  # fmt: skip
    model.train()
    calls = []
    detect = model.detector.detect
    model.detector.detect = lambda image, *a: calls.append(1) or detect(image, *a)
    mapper = build_mapper(cfg, True)
    record = load_records(["tiny_weak"])[3]
    for _ in range(3):
        sample = mapper(record)
        labels = model._training_labels(sample, sample["image"])
        (found,) = model._detections.values()
        raw = found.pred_boxes.tensor
        moved = sample["transforms"].apply_box(raw.numpy())
        moved = torch.as_tensor(moved).clamp(min=0).minimum(torch.tensor([41.0, 33, 41, 33]))
        kept = ((moved[:, 2:] - moved[:, :2]) > 0).all(1)
        assert torch.allclose(labels.boxes[: labels.num_things], moved[kept].float(), atol=1e-3)
    assert len(calls) == 1


def mean_field_by_loops(scores, image, w_b, w_g, iterations=2, xy=49.0, rgb=5.0, gxy=3.0):
    """Method by definition: dense kernels over all pairs of pixels, normalised by row sums."""
    count, height, width = scores.shape
    ys, xs = np.mgrid[:height, :width]
    place = np.stack([ys.ravel(), xs.ravel()], 1).astype(float)
    color = image.reshape(3, -1).T
    far = ((place[:, None] - place[None]) ** 2).sum(-1)
    unlike = ((color[:, None] - color[None]) ** 2).sum(-1)
    bilateral = np.exp(-far / (2 * xy**2) - unlike / (2 * rgb**2))
    gaussian = np.exp(-far / (2 * gxy**2))
    kernels = [(w, k / k.sum(1, keepdims=True)) for w, k in ((w_b, bilateral), (w_g, gaussian))]
    unary = scores.reshape(count, -1).T
    current = unary
    for _ in range(iterations):
        p = np.exp(current - current.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        current = unary + sum(w * (k @ p) for w, k in kernels)
    return current.T.reshape(scores.shape)


def test_crf_head_follows_the_mean_field_definition():
    rng = np.random.default_rng(0)
    height, width = 12, 14
    image = np.zeros((3, height, width), np.float32)
    image[:, :, 7:] = 120
    image += rng.normal(0, 2, image.shape).astype(np.float32)
    q = torch.softmax(torch.from_numpy(rng.normal(0, 1.5, (3, height, width))).float(), 0)
    labels = make_labels(
        torch.tensor([[1.0, 1, 6, 9], [5, 2, 12, 10]]), torch.tensor([0.9, 0.7]),
        torch.tensor([0, 0]), [1, 2], (height, width),
    )  # fmt: skip
    head = InstanceCRFHead(
        crf=CRFParameters(bilateral_weight=2.0, gaussian_weight=1.5, iterations=2)
    )
    found = head(q, torch.from_numpy(image), labels).detach().numpy()
    scores = unary_scores(q, labels, 1.0, 1.0).numpy()
    wanted = mean_field_by_loops(scores, image, 2.0, 1.5)
    # The lattice approximates the bilateral kernel; the messages are at most 2 and 1.5.
    assert np.abs(found - wanted).mean() < 0.1
    assert (found.argmax(0) == wanted.argmax(0)).mean() > 0.97
    assert (found.argmax(0) != scores.argmax(0)).any()


def test_crf_weights_learn_and_stay_above_zero():
    head = InstanceCRFHead(crf=CRFParameters(iterations=1))
    q = torch.softmax(torch.randn(3, 8, 9), 0).requires_grad_()
    labels = make_labels(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long),
                         [0, 2], (8, 9))  # fmt: skip
    image = torch.rand(3, 8, 9) * 255
    head(q, image, labels).square().mean().backward()
    assert all(p.grad is not None and p.grad != 0 for p in head.parameters())
    assert float(q.grad.abs().sum()) > 0
    with torch.no_grad():
        head.box_weight.fill_(-0.3)
    head.project()
    assert head.box_weight.item() == 0 and head.global_weight.item() == 1


def test_backbone_starts_from_the_detectors(data, tmp_path):
    _, detector = model_of(tmp_path, "detector")
    _, semantic = model_of(tmp_path, "semantic")
    with torch.no_grad():
        detector.detector.rcnn.backbone.bottom_up.stem.conv1.weight.fill_(0.25)
    path = tmp_path / "detector.pth"
    torch.save({"model": detector.state_dict()}, path)
    load_backbone(semantic, "semantic.backbone", read_weights(str(path), "KEY"))
    wanted = detector.detector.rcnn.backbone.bottom_up.state_dict()
    found = semantic.semantic.backbone.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[k], wanted[k]) for k in wanted)
    _, other = model_of(tmp_path, "semantic", "MODEL.SEMANTIC.RESNETS.RES2_OUT_CHANNELS", 16)
    with pytest.raises(InputError, match="KEY: .*in another shape: res2.*same depth, width"):
        load_backbone(other, "semantic.backbone", read_weights(str(path), "KEY"))


@pytest.mark.parametrize(
    "key,value",
    [("MODEL.WSIS.STAGE", "both"), ("MODEL.WSIS.TRAIN_BOXES", "true"),
     ("MODEL.INSTANCE_HEAD.BOX_SCORE", "log")],
)  # fmt: skip
def test_impossible_options_are_named(data, tmp_path, key, value):
    stage = value if key.endswith("STAGE") else "instance_piecewise"
    with pytest.raises(ValueError, match=key):
        cfg, model = model_of(tmp_path, stage, key, value)
        model.eval()(batch_of(cfg, 1, train=False))


def test_scores_that_cannot_rank_are_named(data, tmp_path):
    cfg, _ = model_of(tmp_path, "semantic")
    with pytest.raises(ValueError, match="stuff_score is 'one'"):
        WeakPanopticRCNN(**WeakPanopticRCNN.from_config(cfg), stuff_score="one")


@pytest.mark.parametrize(
    ("key", "value", "own"),
    [
        ("TEST.DETECTIONS_PER_IMAGE", 7, "MAX_DETECTIONS"),
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3, "DETECTION_SCORE_THRESH"),
        ("MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.6, "DETECTION_NMS_THRESH"),
    ],
)
def test_what_the_instance_stages_take_from_other_keys_is_no_silent_setting(
    data, tmp_path, key, value, own
):
    for stage in ("instance_piecewise", "end_to_end"):
        with pytest.raises(InputError, match=f"^{key} is {value}, .*{stage}.* MODEL.WSIS.{own}"):
            model_of(tmp_path, stage, key, value)
        _, model = model_of(tmp_path, stage, key, value, f"MODEL.WSIS.{own}", value)
        predictor = model.detector.rcnn.roi_heads.box_predictor
        assert value in (
            predictor.test_topk_per_image,
            predictor.test_score_thresh,
            predictor.test_nms_thresh,
        )
    model_of(tmp_path, "detector", key, value)


def test_one_image_and_a_norm_that_learns_is_refused_by_name(data, tmp_path):
    cfg, model = model_of(tmp_path, "semantic")
    with pytest.raises(InputError, match="SOLVER.IMS_PER_BATCH"):
        losses_of(model, batch_of(cfg, 1))


def test_an_image_larger_than_a_tile_is_explained_whole(data, tmp_path):
    """Tiles, sizes and the mirror image meet before the CRF, which sees the full image."""
    _, model = model_of(
        tmp_path, "instance_piecewise", "MODEL.SEMANTIC.TILE_SIZE", 65,
        "TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (50, 100),
        "MODEL.WSIS.DETECTION_SCORE_THRESH", 0.0,
    )  # fmt: skip
    seen = []
    forward = model.instance.forward
    model.instance.forward = lambda q, image, labels: (
        seen.append((q.shape[-2:], image.shape[-2:])) or forward(q, image, labels)
    )
    output = model.eval()([{"image": torch.randint(0, 256, (3, 100, 151), dtype=torch.uint8)}])[0]
    assert seen == [((100, 151), (100, 151))]
    assert output["panoptic_seg"][0].shape == (100, 151)
    assert torch.allclose(output["sem_seg"].sum(0), torch.ones(100, 151), atol=1e-4)
