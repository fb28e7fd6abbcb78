# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Detectors of other classes and kinds, boxes of files, batches, and mixed precision."""

import json
import logging

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import EventStorage
from helpers.tiny_panoptic import TinyData, tiny_cfg

from wsis_d2.checkpoint.start import load_for_training
from wsis_d2.data.mappers.build import build_mapper
from wsis_d2.data.records import load_records
from wsis_d2.engine import WSISTrainer, write_metadata
from wsis_d2.export.detector import DetectorGraph
from wsis_d2.inference.predictor import PanopticPredictor
from wsis_d2.modeling.build import build_model
from wsis_d2.modeling.meta_arch.class_map import class_names, map_classes
from wsis_d2.modeling.meta_arch.detector import BoxesFromFiles, Limits
from wsis_d2.utils.errors import InputError

STAGE, DETECTOR = "MODEL.WSIS.STAGE", "MODEL.WSIS.DETECTOR"
CLASSES, BOXES = "MODEL.WSIS.DETECTOR_CLASSES", "MODEL.WSIS.DETECTOR_BOXES"
SURE = ["MODEL.WSIS.DETECTION_SCORE_THRESH", 0.0]
RETINANET = [
    DETECTOR, "RetinaNet",
    "MODEL.RETINANET.IN_FEATURES", ["p3", "p4", "p5"],
    "MODEL.RETINANET.NUM_CONVS", 1,
    "MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64]],
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    tiny = TinyData(tmp_path_factory.mktemp("tiny") / "data")
    yield tiny
    tiny.close()


def things() -> list[str]:
    metadata = MetadataCatalog.get("tiny_full")
    return [metadata.stuff_classes[k] for k in metadata.thing_ids]


def samples(cfg, count=3, train=False):
    mapper = build_mapper(cfg, train)
    return [mapper(r) for r in load_records(["tiny_full"])[:count]]


def test_names_meet():
    coco = class_names(["coco_2017_val"])
    assert len(coco) == 80
    ours = ["aeroplane", "Dining Table", "person", "rider"]
    found = map_classes(coco, ours)
    expected = {"airplane": 0, "dining table": 1, "person": 2}
    assert {coco[k]: place for k, place in enumerate(found) if place >= 0} == expected
    with pytest.raises(InputError, match="none of the things grass"):
        map_classes(coco, ["grass"])
    with pytest.raises(InputError, match="registered dataset"):
        class_names(["coco_2071_val"])
    assert "coco_2071_val" not in MetadataCatalog.list()


def coco_like(tmp_path) -> tuple[list[str], str]:
    """Names of 80 classes with the tiny data's things among them, and a checkpoint of them."""
    names = [f"class {k}" for k in range(80)]
    for place, name in zip((7, 61), things(), strict=False):
        names[place] = name.upper()
    cfg = tiny_cfg(tmp_path, STAGE, "detector", train="tiny_full").clone()
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    torch.manual_seed(0)
    rcnn = META_ARCH_REGISTRY.get("GeneralizedRCNN")(cfg)
    path = tmp_path / "coco_like.pth"
    torch.save({"model": rcnn.state_dict()}, path)
    return names, str(path)


def test_a_detector_of_80_classes_maps_and_runs(data, tmp_path):
    names, path = coco_like(tmp_path)
    cfg = tiny_cfg(
        tmp_path, STAGE, "end_to_end", CLASSES, names, "MODEL.WSIS.DETECTOR_WEIGHTS", path, *SURE,
        train="tiny_full",
    )  # fmt: skip
    assert [k for k, place in enumerate(cfg.MODEL.WSIS.DETECTOR_CLASS_MAP) if place >= 0] == [7, 61]
    model = build_model(cfg)
    load_for_training(cfg, model)
    model.eval()
    image = samples(cfg, 1)[0]["image"]
    found = model.detector.detect([image])[0]
    # Detectron2's own, of all 80, with ours picked out.
    plain = model.detector.rcnn([{"image": image}])[0]["instances"]
    picked = [k for k, c in enumerate(plain.pred_classes.tolist()) if c in (7, 61)]
    assert found.scores.tolist() == plain.scores[picked].tolist()
    index = {7: 0, 61: 1}
    assert found.pred_classes.tolist() == [index[int(plain.pred_classes[k])] for k in picked]
    # As a graph it maps them too.
    thing_ids = MetadataCatalog.get("tiny_full").thing_ids
    with torch.no_grad():
        _, scores, classes = DetectorGraph(model.detector, thing_ids)(image.float())
    assert torch.allclose(scores, found.scores, atol=1e-5)
    assert classes.tolist() == [thing_ids[k] for k in found.pred_classes.tolist()]
    losses = model.train()(samples(cfg, 2, train=True))
    assert torch.isfinite(sum(losses.values()))


def test_it_is_trained_on_with_other_classes(data, tmp_path, caplog):
    _, path = coco_like(tmp_path)
    opts = ["MODEL.WEIGHTS", path, "MODEL.WSIS.PARTIAL_WEIGHTS", True]
    cfg = tiny_cfg(tmp_path, STAGE, "detector", *opts, train="tiny_full")
    model = build_model(cfg)
    new = model.detector.rcnn.roi_heads.box_predictor.cls_score.weight.clone()
    with caplog.at_level(logging.INFO, "wsis_d2"):
        load_for_training(cfg, model)
    state, given = model.detector.rcnn.state_dict(), torch.load(path)["model"]
    same = {n for n in state if torch.equal(state[n], given[n])}
    assert {n for n in state if n not in same} == {n for n in state if "box_predictor" in n}
    assert torch.equal(model.detector.rcnn.roi_heads.box_predictor.cls_score.weight, new)
    assert "new, without weights of a file: detector.rcnn.roi_heads (4 arrays)" in caplog.text
    with EventStorage():
        sum(model.train()(samples(cfg, 2, train=True)).values()).backward()
    with pytest.raises(InputError, match="DETECTOR_CLASSES names another detector's classes"):
        build_model(tiny_cfg(tmp_path, STAGE, "detector", CLASSES, ["coco_2017_val"]))


def test_retinanet_trains_and_gives_boxes(data, tmp_path):
    torch.manual_seed(0)
    cfg = tiny_cfg(tmp_path, STAGE, "detector", *RETINANET, train="tiny_full")
    trainer = WSISTrainer(cfg)
    trainer.resume_or_load()
    trainer.train()
    (tmp_path / "config.yaml").write_text(cfg.dump())
    write_metadata(cfg)
    predictor = PanopticPredictor(str(tmp_path), "cpu", score_threshold=0.25)
    assert predictor.model.detector.rcnn.test_score_thresh == 0.25
    weights = str(tmp_path / "model_final.pth")
    cfg = tiny_cfg(
        tmp_path, STAGE, "end_to_end", *RETINANET, "MODEL.WSIS.DETECTOR_WEIGHTS", weights,
        "MODEL.WSIS.MAX_DETECTIONS", 4, *SURE, train="tiny_full",
    )  # fmt: skip
    model = build_model(cfg)
    load_for_training(cfg, model)
    model.eval()
    output = model(samples(cfg, 1))[0]
    found = model.detector.detect([samples(cfg, 1)[0]["image"]])[0]
    assert len(found) <= 4 and set(found.pred_classes.tolist()) <= {0, 1}
    assert output["panoptic_seg"][0].shape == output["sem_seg"].shape[1:]


def test_boxes_of_a_file(data, tmp_path):
    cfg = tiny_cfg(tmp_path, STAGE, "detector", train="tiny_full")
    first, second = samples(cfg, 2)
    ids = MetadataCatalog.get("tiny_full").thing_dataset_id_to_contiguous_id
    category = next(c for c, k in ids.items() if k == MetadataCatalog.get("tiny_full").thing_ids[1])
    rows = [
        {"image_id": first["image_id"], "category_id": category, "bbox": box, "score": score}
        for box, score in (
            ([2, 3, 20, 30], 0.9), ([3, 3, 20, 30], 0.8), ([40, 5, 9, 9], 0.3), ([-9, 5, 9, 9], 0.9)
        )
    ]  # fmt: skip
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(rows))
    files = [BOXES, [["tiny_full", str(path)]]]
    cfg = tiny_cfg(tmp_path, STAGE, "end_to_end", *files, train="tiny_full")
    model = build_model(cfg)
    load_for_training(cfg, model)
    assert model.detector.state_dict() == {}
    # The second box is the first one's double, the third is not sure enough, the last outside.
    found, none = model.detector.detect([s["image"] for s in (first, second)], [first, second])
    assert found.pred_boxes.tensor.tolist() == [[2, 3, 22, 33]] and len(none) == 0
    assert found.pred_classes.tolist() == [1] and found.scores.tolist() == pytest.approx([0.9])
    losses = model.train()(samples(cfg, 2, train=True))
    assert torch.isfinite(sum(losses.values()))
    output = model.eval()([first])[0]
    assert {s["category_id"] for s in output["panoptic_seg"][1] if s["isthing"]} <= {
        MetadataCatalog.get("tiny_full").thing_ids[1]
    }
    with pytest.raises(InputError, match="no file for data set ''"):
        model.detector.detect([first["image"]])
    path.write_text(json.dumps([{**rows[0], "category_id": 999}]))
    with pytest.raises(InputError, match="category_id 999 is no thing"):
        build_model(cfg).detector.detect([first["image"]], [first])
    # Numbers from 0, as detectors have them inside: some are ids of other classes, 0 is none.
    path.write_text(json.dumps([{**rows[0], "category_id": k} for k in (1, 0)]))
    coco = BoxesFromFiles(
        files={"tiny_full": str(path)}, limits=Limits(0.5, 0.5, 9), class_map=[0] + 79 * [-1],
        classes_of="coco_2017_val",
    )  # fmt: skip
    with pytest.raises(InputError, match="category_id 0 is no thing of 'coco_2017_val'"):
        coco.detect([first["image"]], [first])
    path.write_text(json.dumps({"annotations": rows}))
    with pytest.raises(InputError, match="expected a COCO result file"):
        build_model(cfg).detector.detect([first["image"]], [first])
    for number in (f"{first['image_id']}.0", "another"):  # no image would have a box
        path.write_text(json.dumps([{**rows[0], "image_id": number}]))
        with pytest.raises(
            InputError, match=rf"boxes.json: none .* \(such as {number}\) is one of"
        ):
            build_model(cfg).detector.detect([first["image"]], [first])
    for wrong in (
        {"score": float("nan")},
        {"bbox": [0, 0, float("inf"), 5]},
        {"bbox": [1e300] * 4},
    ):
        path.write_text(json.dumps([{**rows[0], **wrong}]))
        with pytest.raises(InputError, match="in finite numbers"):
            build_model(cfg).detector.detect([first["image"]], [first])
    with pytest.raises(InputError, match="nothing to train"):
        build_model(tiny_cfg(tmp_path, STAGE, "detector", *files, train="tiny_full"))


@META_ARCH_REGISTRY.register()
class NoDetectorOfATest(torch.nn.Conv2d):
    def __init__(self, cfg):
        super().__init__(3, 1, 1)

    def forward(self, inputs):
        return [{"sem_seg": super(NoDetectorOfATest, self).forward(r["image"])} for r in inputs]


@pytest.mark.parametrize("name", ["NoDetectorOfATest", "WeakPanopticRCNN", "RetinaNot"])
def test_what_is_no_detector(data, tmp_path, name):
    cfg = tiny_cfg(tmp_path, STAGE, "end_to_end", DETECTOR, name, train="tiny_full")
    with pytest.raises(InputError, match="MODEL.WSIS.DETECTOR"):
        model = build_model(cfg).eval()
        model.detector.detect([torch.zeros(3, 64, 64)])


@pytest.mark.parametrize("inference", [[], ["MODEL.SEMANTIC.TILE_SIZE", 65]])
def test_a_batch_gives_what_single_images_give(data, tmp_path, inference):
    opts = [*SURE, *inference, "TEST.IMS_PER_BATCH", 4]
    cfg = tiny_cfg(tmp_path, STAGE, "end_to_end", *opts, train="tiny_full")
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    # Of one size, of a size that is padded to it, and of another.
    image = samples(cfg, 1)[0]["image"]
    images = [image, image.flip(-1), image[:, :-2, :-1], image[:, :-20]]
    passes = []
    hook = model.semantic.backbone.register_forward_pre_hook(lambda _, x: passes.append(len(x[0])))
    together = model([{"image": i} for i in images])
    hook.remove()
    assert max(passes) > 1
    for image, found in zip(images, together, strict=True):
        alone = model([{"image": image}])[0]
        assert (found["sem_seg"] - alone["sem_seg"]).abs().max() < 1e-5
        boxes = [o["instances"].pred_boxes.tensor for o in (found, alone)]
        assert torch.allclose(*boxes, atol=1e-3)
        assert (found["panoptic_seg"][0] == alone["panoptic_seg"][0]).float().mean() > 0.999


@pytest.mark.parametrize("stage", ["detector", "semantic", "end_to_end"])
def test_bfloat16(data, tmp_path, stage):
    """Networks in 16 bits, losses and probabilities in 32, close to those of full precision."""
    opts = [
        STAGE,
        stage,
        "MODEL.WSIS.TRAIN_BOXES",
        "gt",
        "MODEL.SEM_SEG_HEAD.NAME",
        "PSPHeadWithoutDropout",
        *SURE,
    ]
    amp = ["SOLVER.AMP.ENABLED", True]
    found, seen = [], []
    for extra in ([], amp):
        cfg = tiny_cfg(tmp_path, *opts, *extra, train="tiny_full")
        torch.manual_seed(0)
        trainer = WSISTrainer(cfg)
        model = trainer.model
        part = model.detector.rcnn if stage == "detector" else model.semantic
        seen.append(set())
        for module in part.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(lambda m, i, o, s=seen[-1]: s.add(o.dtype))
        trainer.train()
        metrics = [json.loads(line) for line in (tmp_path / "metrics.json").open()]
        found.append(metrics[-1]["total_loss"])
        output = model.eval()(samples(cfg, 1))[0]
        if "sem_seg" in output:
            assert output["sem_seg"].dtype == torch.float32
            assert torch.allclose(output["sem_seg"].sum(0), torch.tensor(1.0), atol=1e-5)
        assert all(p.dtype == torch.float32 for p in model.parameters())
        for file in tmp_path.glob("m*"):
            file.unlink()
    assert seen == [{torch.float32}, {torch.bfloat16}]
    assert found[1] == pytest.approx(found[0], rel=0.05)


def test_float16_scales_its_gradients(data, tmp_path):
    opts = [STAGE, "semantic", "SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "float16"]
    trainer = WSISTrainer(tiny_cfg(tmp_path, *opts, train="tiny_full"))
    assert trainer.scaler.is_enabled()
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert any(not torch.equal(after[n], before[n]) for n in before)
    again = WSISTrainer(trainer.cfg)
    again.resume_or_load(resume=True)
    assert again.scaler.get_scale() == trainer.scaler.get_scale()
    with pytest.raises(InputError, match="AMP.DTYPE is 'float8'"):
        build_model(tiny_cfg(tmp_path, *opts[:-1], "float8", train="tiny_full"))
