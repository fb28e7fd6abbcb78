# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Pictures of every orientation and kind, from import over labels and mappers to predictions."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.load_tool import load_tool
from helpers.pictures import is_red, red_square, save
from PIL import Image

from wsis_d2.data.datasets.own.weak import load_weak_json
from wsis_d2.data.panoptic_format import write_panoptic_png
from wsis_d2.structures.classes import parse_categories
from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.store import LabelStore

SHOWN, SQUARE = red_square()
BOX = [20, 70, 40, 40]  # x, y, width, height
NAMES = ("square", "ground")
CATEGORIES = [{"id": 4, "name": "square"}, {"id": 9, "name": "ground"}]


def annotate(folder, sizes):
    """Write a COCO file with the square in each picture of {name: (width, height)}."""
    images = [
        {"id": k, "file_name": name, "width": w, "height": h}
        for k, (name, (w, h)) in enumerate(sizes.items(), start=1)
    ]
    boxes = [
        {"id": e["id"], "image_id": e["id"], "category_id": 4, "bbox": BOX, "iscrowd": 0}
        for e in images
    ]
    content = {"images": images, "annotations": boxes, "categories": CATEGORIES}
    (folder / "coco.json").write_text(json.dumps(content))


def run_import(folder, *more):
    return load_tool("import_annotations").main(
        ["coco", "--annotations", str(folder / "coco.json"), "--images", str(folder / "photos"),
         "--output", str(folder / "weak.json"), *more]
    )  # fmt: skip


def run_boxes(folder, annotations):
    return load_tool("make_weak_labels").main(
        ["boxes", "--annotations", str(folder / annotations), "--images", str(folder / "photos"),
         "--output", str(folder / "store"), "--workers", "1"]
    )  # fmt: skip


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """Photographs that all show the square at one place, imported and labelled."""
    folder = tmp_path_factory.mktemp("walk")
    photos = folder / "photos"
    photos.mkdir()
    for orientation in range(1, 9):
        save(photos / f"turned {orientation}.jpg", SHOWN, orientation, quality=95)
        save(photos / f"turned {orientation}.png", SHOWN, orientation)
    picture = Image.fromarray(SHOWN)
    picture.convert("CMYK").save(photos / "druck_ü.jpg", quality=95)
    picture.quantize(64).save(photos / "bewegt.gif")
    picture.convert("RGBA").save(photos / "durchsichtig.webp", lossless=True)
    picture.save(photos / "GROSS.JPG", quality=95)
    save(photos / "gedreht.tif", SHOWN, 6)
    # In grey the square is the brighter part; the upper 8 of 16 bits count.
    grey = np.where(SQUARE, 200, 60) + np.random.default_rng(1).integers(-6, 6, SQUARE.shape)
    for name in ("tief.png", "tief.tif"):
        Image.fromarray((grey.astype(np.uint16) << 8) + 99).save(photos / name)
    names = sorted(p.name for p in photos.iterdir())
    annotate(folder, dict.fromkeys(names, (160, 120)))
    assert run_import(folder) == 0
    assert run_boxes(folder, "weak.json") == 0
    records = load_weak_json(folder / "weak.json", photos)
    assert len(records) == len(names) == 23
    return folder, records


def test_labels_lie_on_the_square(walk):
    folder, records = walk
    store = LabelStore.open(folder / "store")
    counts = {}
    for record in records:
        found = store.semantic(record["image_id"]) == 0
        name = record["file_name"].rsplit("/", 1)[1]
        assert not found[~SQUARE].any(), name
        counts[name] = int(found.sum())
    # GrabCut rounds a corner off, so nearly all of the square's 1600 pixels.
    assert all(count >= 1550 for count in counts.values()), counts
    # What is stored without loss is one picture in all orientations.
    assert len({counts[f"turned {o}.png"] for o in range(1, 9)}) == 1
    assert {counts[f"turned {o}.jpg"] for o in range(1, 9)} == {1596}


def test_training_sees_picture_and_label_at_one_place(walk):
    from wsis_d2.data.mappers import PanopticMapper, TagMapper, TagRegionMapper

    folder, records = walk
    mapper = PanopticMapper(
        is_train=True, augmentations=[], image_format="BGR", thing_ids=[0], num_classes=2,
        label_stores={"walk": str(folder / "store")},
    )  # fmt: skip
    tags = TagMapper(is_train=False, num_classes=2, image_format="RGB")
    regions = TagRegionMapper(is_train=True, num_classes=2, image_format="RGB", flip=False)
    for record in records:
        sample = mapper({**record, "dataset_name": "walk"})
        labelled = (sample["sem_seg"] == 0).numpy()
        assert sample["image"].shape == (3, 120, 160)
        seen = sample["image"].numpy().transpose(1, 2, 0)[..., ::-1]
        marked = seen[..., 0] > 128 if "tief" in record["file_name"] else is_red(seen)
        assert (marked != SQUARE).mean() < 0.005, record["file_name"]
        assert marked[labelled].mean() > 0.99
        for other in (tags, regions):
            assert np.array_equal(other(record)["image"].numpy().transpose(1, 2, 0), seen)


def write_truth(folder, records, categories=CATEGORIES):
    """Write panoptic truth of records that show the square; return its JSON and folder."""
    (folder / "truth").mkdir(exist_ok=True)
    square, ground = (next(c["id"] for c in categories if c["name"] == n) for n in NAMES)
    images, annotations = [], []
    for record in records:
        key, name = record["image_id"], Path(record["file_name"]).name
        write_panoptic_png(folder / "truth" / f"{name}.png", np.where(SQUARE, 1, 2))
        segments = [{"id": 1, "category_id": square}, {"id": 2, "category_id": ground}]
        images.append({"id": key, "file_name": name, "width": 160, "height": 120})
        annotations.append({"image_id": key, "file_name": f"{name}.png", "segments_info": segments})
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(content))
    return folder / "truth.json", folder / "truth"


def test_cues_and_measures_of_proposals_see_it_too(walk, tmp_path):
    from wsis_d2.evaluation.label_quality import evaluate_proposals
    from wsis_d2.relabeling.region_cues import RegionCueLabeller
    from wsis_d2.weak_labels.proposals.files import SuperpixelProposals

    folder, records = walk
    turned = [r for r in records if r["file_name"].endswith(("turned 3.png", "turned 6.png"))]
    categories = [{**c, "isthing": int(c["name"] == "square")} for c in CATEGORIES]
    truth = write_truth(tmp_path, turned, categories)

    def source(image, record):
        parts = is_red(image[..., ::-1]).astype(np.int32)
        return SuperpixelProposals(parts, [np.array([0]), np.array([1])])

    found = evaluate_proposals(source, turned, *truth, parse_categories(categories, "test"))
    assert found["J_i"]["all"] > 99
    labeller = RegionCueLabeller(SimpleNamespace(thing_ids=[]), image_format="RGB")
    for record in turned:
        assert (is_red(labeller._read(record)[0]) == SQUARE).all()


class Reds:
    """A model that finds what is red."""

    classes = [
        {"id": 4, "name": "square", "isthing": True, "color": [200, 20, 20]},
        {"id": 9, "name": "ground", "isthing": False, "color": [90, 120, 90]},
    ]

    batch_size = 1

    def __init__(self, *options):
        pass

    def batch(self, images):
        return [self(image) for image in images]

    def __call__(self, image):
        from wsis_d2.inference.predictor import Prediction

        red = is_red(image)
        scores = {"score": 0.9, "scores": {}}
        segments = [
            {"id": 1, "category_id": 0, "isthing": True, "area": int(red.sum()), **scores},
            {"id": 2, "category_id": 1, "isthing": False, "area": int((~red).sum()), **scores},
        ]
        return Prediction(np.where(red, 1, 2).astype(np.int32), segments, [], [], [])


def test_the_demo_and_an_exported_network_find_it_there(walk, tmp_path, monkeypatch):
    from wsis_d2.data.panoptic_format import PanopticFile
    from wsis_d2.inference import predictor

    folder, records = walk
    monkeypatch.setattr(predictor, "PanopticPredictor", Reds)
    inputs = [r["file_name"] for r in records if "tief" not in r["file_name"]]
    arguments = ["--input", *inputs, "--output", str(tmp_path / "out")]
    assert load_tool("demo").main([*arguments, "--report", str(tmp_path / "page.html")]) == 0
    file = PanopticFile(tmp_path / "out" / "panoptic.json", tmp_path / "out" / "panoptic")
    images = json.loads((tmp_path / "out" / "panoptic.json").read_text())["images"]
    assert len(images) == len(inputs) == 21
    exported = load_tool("load_exported")
    for image, path in zip(images, inputs, strict=True):
        assert ((file.ids(str(image["id"])) == 1) != SQUARE).mean() < 0.005
        overlay = np.asarray(
            Image.open(tmp_path / "out" / "overlays" / f"{image['file_name']}.png")
        )
        assert overlay.shape[0] % 120 == 0 and overlay.shape[1] % 160 == 0
        assert (is_red(exported.read_picture(path)) != SQUARE).mean() < 0.005


def test_a_size_that_exif_turns_is_said_at_import_and_labelling(tmp_path):
    (tmp_path / "photos").mkdir()
    save(tmp_path / "photos" / "a.jpg", SHOWN, 6)
    annotate(tmp_path, {"a.jpg": (120, 160)})
    with pytest.raises(InputError, match=r"a\.jpg has 160 x 120 .* EXIF orientation 6 .*exiftool"):
        run_import(tmp_path)
    # A file written by hand meets the same words when its pictures are labelled.
    (tmp_path / "weak.json").write_text((tmp_path / "coco.json").read_text())
    content = json.loads((tmp_path / "weak.json").read_text())
    content["categories"] = [{**c, "isthing": int(c["id"] == 4)} for c in CATEGORIES]
    (tmp_path / "weak.json").write_text(json.dumps(content))
    assert run_boxes(tmp_path, "weak.json") == 1
    message = LabelStore.open(tmp_path / "store").failed[1]
    assert "EXIF orientation 6" in message and "a.jpg" in message


def spoil(photos):
    """Three pictures that cannot be used and one that can; return {name: reason}."""
    photos.mkdir()
    save(photos / "good.jpg", SHOWN)
    save(photos / "cut.jpg", SHOWN, quality=95)
    data = (photos / "cut.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(data[: len(data) // 2])
    Image.fromarray(SHOWN[..., 0].astype(np.float32)).save(photos / "float.tif")
    Image.fromarray(SHOWN[..., 0].astype(np.uint16) * 16).save(photos / "twelve.png")
    return {"cut.jpg": "truncated", "float.tif": "floating-point", "twelve.png": "black"}


def test_what_cannot_be_read_is_refused_alike_everywhere(tmp_path, monkeypatch, capsys):
    from wsis_d2.data.mappers import TagMapper
    from wsis_d2.inference import predictor

    reasons = spoil(tmp_path / "photos")
    photos = tmp_path / "photos"
    annotate(tmp_path, dict.fromkeys(["good.jpg", *reasons], (160, 120)))
    with pytest.raises(InputError, match="--keep-going"):
        run_import(tmp_path)
    report = tmp_path / "report.json"
    assert run_import(tmp_path, "--keep-going", "--report", str(report)) == 0
    dropped = json.loads(report.read_text())["dropped"]
    for name, reason in reasons.items():
        assert any(name in d["where"] and reason in d["why"] for d in dropped), (name, dropped)
    assert len(load_weak_json(tmp_path / "weak.json", photos)) == 1
    # The same pictures without an import.
    content = json.loads((tmp_path / "coco.json").read_text())
    content["categories"] = [{**c, "isthing": int(c["id"] == 4)} for c in CATEGORIES]
    (tmp_path / "own.json").write_text(json.dumps(content))
    assert run_boxes(tmp_path, "own.json") == 1
    store = LabelStore.open(tmp_path / "store")
    assert store.image_ids() == [1] and len(store.failed) == 3
    mapper = TagMapper(is_train=False, num_classes=2)
    monkeypatch.setattr(predictor, "PanopticPredictor", Reds)
    capsys.readouterr()
    assert load_tool("demo").main(["--input", str(photos), "--output", str(tmp_path / "o")]) == 1
    said = capsys.readouterr().err
    for record in load_weak_json(tmp_path / "own.json", photos)[1:]:
        name = record["file_name"].rsplit("/", 1)[1]
        with pytest.raises(InputError) as caught:
            mapper(record)
        message = str(caught.value)
        assert name in message and reasons[name] in message
        assert store.failed[record["image_id"]] == message and f"error: {message}\n" in said
    found = json.loads((tmp_path / "o" / "panoptic.json").read_text())["images"]
    assert [image["file_name"] for image in found] == ["good"]
