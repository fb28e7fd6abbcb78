# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Evaluators on model outputs: equal to the file tool, over processes, and with odd outputs."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.evaluation import print_csv_format
from helpers.panoptic_scenes import CATEGORIES, CLASSES, random_image, write_files
from PIL import Image

from wsis_d2.config import add_wsis_config
from wsis_d2.evaluation import (
    APrEvaluator,
    InstanceAPEvaluator,
    PanopticQualityEvaluator,
    SemSegIoUEvaluator,
    build_evaluator,
)
from wsis_d2.evaluation.average_precision import APrOptions
from wsis_d2.evaluation.from_files import FileOptions, evaluate_files
from wsis_d2.utils.errors import InputError

UNIFIED = {category: index for index, category in enumerate(CLASSES.ids)}


def register(name: str, files: dict) -> None:
    """Give a dataset the metadata its registration would."""
    if name in MetadataCatalog.list():
        MetadataCatalog.remove(name)
    things = [i for i, thing in enumerate(CLASSES.isthing) if thing]
    MetadataCatalog.get(name).set(
        panoptic_json=str(files["gt_json"]),
        panoptic_root=str(files["gt_dir"]),
        evaluator_type="wsis_panoptic",
        stuff_dataset_id_to_contiguous_id=UNIFIED,
        thing_dataset_id_to_contiguous_id={CLASSES.ids[i]: i for i in things},
        thing_ids=things,
        label_divisor=1000,
        apr_thresholds="0.5:0.95:0.05",
        categories=CATEGORIES,
    )


def model_io(scenes: list[tuple]) -> tuple[list[dict], list[dict]]:
    """Return a model's inputs and outputs that say what the scenes' predictions say."""
    inputs, outputs = [], []
    for number, (_, _, pred, pred_segments) in enumerate(scenes):
        small = np.zeros(pred.shape, np.int32)
        segments = []
        logits = torch.zeros(len(CLASSES), *pred.shape)
        for k, segment in enumerate(pred_segments, start=11):
            mask = pred == segment["id"]
            small[mask] = k
            unified = UNIFIED[segment["category_id"]]
            logits[unified][torch.from_numpy(mask)] = 1
            segments.append(
                {
                    **segment,
                    "id": k,
                    "category_id": unified,
                    "isthing": CLASSES.isthing[unified],
                }
            )
        inputs.append({"image_id": 100 + number, "file_name": f"{number}.jpg"})
        outputs.append({"panoptic_seg": (torch.from_numpy(small), segments), "sem_seg": logits})
    return inputs, outputs


@pytest.fixture
def scenes() -> list[tuple]:
    rng = np.random.default_rng(7)
    return [random_image(rng, blobs=9) for _ in range(6)]


def config(tmp_path: Path):
    cfg = get_cfg()
    add_wsis_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    return cfg


def run(evaluator, inputs: list[dict], outputs: list[dict]) -> dict:
    evaluator.reset()
    for start in range(0, len(inputs), 2):
        evaluator.process(inputs[start : start + 2], outputs[start : start + 2])
    return evaluator.evaluate()


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for task, values in expected.items():
        assert dict(found[task]) == pytest.approx(dict(values), nan_ok=True, rel=1e-12), task


@pytest.mark.parametrize("pq, matching, mode, protocol", [
    ("coco", "unique", "score", "coco"),
    ("paper", "paper", "both", "cityscapes"),
])  # fmt: skip
def test_numbers_come_back_from_the_written_files(
    scenes, tmp_path, pq, matching, mode, protocol
) -> None:
    files = write_files(tmp_path, scenes)
    register("eval_test", files)
    cfg = config(tmp_path)
    cfg.TEST.PQ_VARIANT, cfg.TEST.MATCHING = pq, matching
    cfg.TEST.SCORE_MODE, cfg.TEST.INSTANCE_AP = mode, protocol
    out = tmp_path / "out"
    inputs, outputs = model_io(scenes)
    before = copy.deepcopy([output["panoptic_seg"][1] for output in outputs])
    found = run(build_evaluator(cfg, "eval_test", out), inputs, outputs)
    assert [output["panoptic_seg"][1] for output in outputs] == before
    options = FileOptions(
        pq=pq,
        apr=APrOptions("0.5:0.95:0.05", matching, mode),
        instance_ap=protocol,
        semantic_folder=out / "semantic_pred",
    )
    written = evaluate_files(
        out / "panoptic_pred.json", out / "panoptic_pred", files["gt_json"], files["gt_dir"],
        options,
    )  # fmt: skip
    assert_same(found, written)
    # The scenes' own prediction file, made without the evaluator, says the same of segments.
    direct = evaluate_files(**files, options=FileOptions(pq, options.apr, protocol))
    for task in ("panoptic_seg", "apr", "segm"):
        assert found[task] == pytest.approx(direct[task], nan_ok=True, rel=1e-12)
    assert 0 < found["panoptic_seg"]["PQ"] < 100
    print_csv_format(found)


def test_prediction_file_is_the_contracts(scenes, tmp_path) -> None:
    files = write_files(tmp_path, scenes)
    register("eval_test", files)
    out = tmp_path / "out"
    inputs, outputs = model_io(scenes)
    # The order of the images in the file is the truth's, whatever order they came in.
    run(PanopticQualityEvaluator("eval_test", out), inputs[::-1], outputs[::-1])
    data = json.loads((out / "panoptic_pred.json").read_text())
    assert [a["image_id"] for a in data["annotations"]] == [100 + k for k in range(6)]
    parts = ("id", "name", "isthing")
    assert [tuple(c[p] for p in parts) for c in data["categories"]] == [
        (7, "road", 0), (12, "sky", 0), (21, "car", 1), (33, "bus", 1), (40, "cow", 1),
    ]  # fmt: skip
    for annotation, (_, _, pred, pred_segments) in zip(data["annotations"], scenes, strict=True):
        color = np.array(Image.open(out / "panoptic_pred" / annotation["file_name"]))
        ids = color.astype(int) @ [1, 256, 65536]
        assert (ids == 0).sum() == (pred == 0).sum()
        by_mask = {}
        for segment in annotation["segments_info"]:
            mask = ids == segment["id"]
            assert segment["area"] == mask.sum()
            by_mask[mask.tobytes()] = segment
        for segment in pred_segments:
            written = by_mask[(pred == segment["id"]).tobytes()]
            for key in ("category_id", "score", "scores"):
                assert written[key] == segment[key]


def test_thresholds_default_to_the_datasets(scenes, tmp_path) -> None:
    register("eval_test", write_files(tmp_path, scenes))
    result = run(APrEvaluator("eval_test"), *model_io(scenes))["apr"]
    keys = [k for k in result if k.startswith("APr_") and k[-1].isdigit()]
    assert keys == [f"APr_{t}" for t in range(50, 100, 5)]


def test_sem_seg_and_union_are_told_apart(scenes, tmp_path) -> None:
    register("eval_test", write_files(tmp_path, scenes))
    inputs, outputs = model_io(scenes)
    for output in outputs:
        output["sem_seg"] = output["sem_seg"].roll(1, dims=0)
    both = run(SemSegIoUEvaluator("eval_test"), inputs, outputs)["sem_seg"]
    assert both["mIoU"] < both["mIoU_union"]
    for output in outputs:
        del output["sem_seg"]
    union = run(SemSegIoUEvaluator("eval_test"), inputs, outputs)["sem_seg"]
    assert union["mIoU"] == union["mIoU_union"] == both["mIoU_union"]


def test_panoptic_output_without_segments_info_is_read_by_label_divisor(tmp_path) -> None:
    gt = np.array([[1, 1, 2, 2]])
    segments = [{"id": 1, "category_id": 21, "iscrowd": 0}, {"id": 2, "category_id": 7}]
    register("eval_test", write_files(tmp_path, [(gt, segments, gt, segments)]))
    car, road = UNIFIED[21], UNIFIED[7]
    picture = torch.tensor([[car * 1000 + 3, car * 1000 + 3, road * 1000, -1]])
    result = run(
        PanopticQualityEvaluator("eval_test"),
        [{"image_id": 100, "file_name": "0.jpg"}], [{"panoptic_seg": (picture, None)}],
    )  # fmt: skip
    assert result["panoptic_seg"]["PQ-car"] == 100
    # One of two road pixels is void in the prediction: IoU 0.5 is no match.
    assert result["panoptic_seg"]["PQ-road"] == 0


@pytest.mark.parametrize("kind", ["nothing", "all stuff", "all things", "a class never seen"])
def test_odd_outputs_never_crash(kind, scenes, tmp_path) -> None:
    register("eval_test", write_files(tmp_path, scenes))
    inputs, outputs = model_io(scenes)
    keep = {
        "nothing": lambda s: False,
        "all stuff": lambda s: not s["isthing"],
        "all things": lambda s: s["isthing"],
        "a class never seen": lambda s: s["category_id"] == len(CLASSES) - 1,
    }[kind]
    for output in outputs:
        panoptic, segments = output["panoptic_seg"]
        for segment in segments:
            if not keep(segment):
                panoptic[panoptic == segment["id"]] = 0
        # Segments left without pixels are listed still, as stock models do at times.
    result = run(build_evaluator(config(tmp_path), "eval_test"), inputs, outputs)
    assert math.isfinite(result["panoptic_seg"]["PQ"])
    assert math.isfinite(result["apr"]["APr_vol"])
    if kind == "nothing":
        assert result["panoptic_seg"]["PQ"] == result["apr"]["APr_vol"] == 0


def test_no_image_at_all_gives_nan(scenes, tmp_path) -> None:
    register("eval_test", write_files(tmp_path, scenes))
    result = run(build_evaluator(config(tmp_path), "eval_test"), [], [])
    assert math.isnan(result["panoptic_seg"]["PQ"]) and math.isnan(result["apr"]["APr_vol"])


def _worker(rank: int, folder: str, files: dict, scenes: list[tuple]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    from detectron2.utils import comm

    register("eval_test", files)
    inputs, outputs = model_io(scenes)
    evaluator = build_evaluator(config(Path(folder)), "eval_test", Path(folder) / "two")
    with pytest.MonkeyPatch.context() as patch:
        # Detectron2 asks launch() for a group of its own; the default group does.
        patch.setattr(comm, "_get_global_gloo_group", lambda: dist.group.WORLD)
        result = run(evaluator, inputs[rank::2], outputs[rank::2])
    if rank == 0:
        torch.save(result, f"{folder}/result.pt")
    else:
        assert not result
    dist.destroy_process_group()


def test_two_processes_give_the_numbers_of_one(scenes, tmp_path) -> None:
    files = write_files(tmp_path, scenes)
    register("eval_test", files)
    one = run(build_evaluator(config(tmp_path), "eval_test", tmp_path / "one"), *model_io(scenes))
    # Forked: starting anew would import everything twice.
    mp.start_processes(_worker, (str(tmp_path), files, scenes), nprocs=2, start_method="fork")
    assert_same(torch.load(tmp_path / "result.pt", weights_only=False), one)
    written = [(tmp_path / name / "panoptic_pred.json").read_text() for name in ("one", "two")]
    assert written[0] == written[1]


def test_faults_are_named(scenes, tmp_path) -> None:
    files = write_files(tmp_path, scenes)
    register("eval_test", files)
    inputs, outputs = model_io(scenes)
    evaluator = PanopticQualityEvaluator("eval_test")

    def fails(message: str, record: dict, output: dict) -> None:
        evaluator.reset()
        with pytest.raises(InputError, match=message):
            evaluator.process([record], [output])

    fails("no truth for image_id 9", {"image_id": 9, "file_name": "9.jpg"}, outputs[0])
    panoptic, segments = outputs[0]["panoptic_seg"]
    fails("0.jpg.*expected 24 x 32", inputs[0], {"panoptic_seg": (panoptic[:-1], segments)})
    fails("no segments_info lists", inputs[0], {"panoptic_seg": (panoptic, segments[1:])})
    odd = [{**segments[0], "category_id": 77}, *segments[1:]]
    fails("category_id 77, expected a unified", inputs[0], {"panoptic_seg": (panoptic, odd)})
    odd = [{**segments[0], "score": float("nan")}, *segments[1:]]
    fails("score nan, expected a finite", inputs[0], {"panoptic_seg": (panoptic, odd)})

    evaluator.reset()
    evaluator.process(inputs[:1], outputs[:1])
    evaluator.process(inputs[:1], outputs[:1])
    with pytest.raises(InputError, match="image_id 100 was evaluated twice"):
        evaluator.evaluate()

    bare = [{k: v for k, v in s.items() if k != "scores"} for s in segments]
    detection = APrEvaluator("eval_test", score_mode="detection")
    with pytest.raises(InputError, match="score mode 'detection'"):
        detection.process(inputs[:1], [{"panoptic_seg": (panoptic, bare)}])

    MetadataCatalog.get("eval_test_bare").set(evaluator_type="wsis_panoptic")
    with pytest.raises(InputError, match="eval_test_bare.*no panoptic_json"):
        run(InstanceAPEvaluator("eval_test_bare"), inputs[:1], outputs[:1])
    MetadataCatalog.get("eval_test_other").set(evaluator_type="coco")
    with pytest.raises(InputError, match="eval_test_other.*'coco'"):
        build_evaluator(config(tmp_path), "eval_test_other")
