# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Reports of labels and runs: what they hold is right, complete and leaves the disk alone."""

import argparse
import json
import re
import shutil

import cv2
import numpy as np
import pytest
from detectron2.utils.events import EventStorage, JSONWriter
from helpers.load_tool import load_tool
from helpers.tiny_panoptic import renumber

from wsis_d2.data.panoptic_format import PanopticFile, write_panoptic_png
from wsis_d2.evaluation.results import read_results_json
from wsis_d2.report.html import write_report
from wsis_d2.report.runs import (
    class_bars,
    find_predictions,
    open_run,
    run_report,
    training_curves,
)
from wsis_d2.report.sources import open_data, predictions_of
from wsis_d2.utils.errors import InputError
from wsis_d2.visualization.layers import AnnotationLayer, LabelLayer
from wsis_d2.visualization.palette import class_list
from wsis_d2.weak_labels.store import LabelStore

CLASSES = class_list(
    [
        {"id": 7, "name": "cow", "isthing": 1, "color": [200, 0, 0]},
        {"id": 3, "name": "sky", "isthing": 0, "color": [0, 0, 200]},
    ]
)


def page_data(path):
    """Return the data that a page's script reads."""
    text = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found.group(1))


def data_arguments(tiny, split):
    return [
        "--annotations", str(tiny.data / f"weak_{split}.json"),
        "--images", str(tiny.data / "images" / split),
        "--gt-json", str(tiny.data / f"panoptic_{split}.json"),
        "--gt-dir", str(tiny.data / f"panoptic_{split}"),
    ]  # fmt: skip


def test_label_report(tiny, tmp_path):
    page = tmp_path / "labels.html"
    arguments = ["labels", *data_arguments(tiny, "train"), "--store", str(tiny.store)]
    assert load_tool("report").main([*arguments, "--output", str(page)]) == 0
    data = page_data(page)
    assert data["layers"] == ["image", "annotation", "pseudo label", "truth"]
    assert len(data["items"]) == 6 and data["sort"] == "IoU" and data["ascending"]
    coverages = []
    for item in data["items"]:
        for layer in item["layers"].values():
            for key in ("src", "thumb", "safe"):
                if key in layer:
                    assert cv2.imread(str(tmp_path / layer[key])) is not None
        # Labelled pixels are the truth's, so precision is 1 and IoU is below by what is ignored.
        assert item["scores"]["precision"] == 1.0
        assert 0.4 < item["scores"]["IoU"] < 1.0
        coverages.append(item["scores"]["coverage"])
    # Every third to eighth row of 128 is ignored, image by image.
    expected = [1 - len(range(0, 128, 3 + place)) / 128 for place in range(6)]
    np.testing.assert_allclose(sorted(coverages), sorted(expected), atol=1e-6)


def test_means_over_images_without_truth_say_so(tiny_copy, tmp_path):
    page, truth = tmp_path / "labels.html", tiny_copy.data / "panoptic_train.json"
    arguments = [
        "labels", "--annotations", str(tiny_copy.data / "weak_train.json"),
        "--images", str(tiny_copy.data / "images" / "train"), "--gt-json", str(truth),
        "--gt-dir", str(truth.with_suffix("")), "--store", f"ours={tiny_copy.store}",
        "--output", str(page),
    ]  # fmt: skip
    load_tool("report").main(arguments)
    assert "have truth" not in page.read_text()
    content = json.loads(truth.read_text())
    del content["annotations"][0], content["images"][0]
    truth.write_text(json.dumps(content))
    load_tool("report").main(arguments)
    assert "Only 5 of the 6 images of ours have truth." in page.read_text()


def test_label_report_of_two_stores_that_hold_different_images(tiny_copy, tmp_path):
    """All images are sorted by one score, also one that a store lacks and one without truth."""
    other, page = tmp_path / "other", tmp_path / "labels.html"
    shutil.copytree(tiny_copy.store, other)
    status = sorted((other / "status").iterdir())
    for file in status[2:]:
        file.unlink()
    truth = PanopticFile(tiny_copy.data / "panoptic_train.json", tiny_copy.data / "panoptic_train")
    write_panoptic_png(truth.png("1"), np.zeros_like(truth.ids("1")))
    arguments = ["labels", *data_arguments(tiny_copy, "train"), "--store", str(tiny_copy.store),
                 "--store", str(other), "--output", str(page)]  # fmt: skip
    assert load_tool("report").main(arguments) == 0
    data = page_data(page)
    assert "The stores hold different images, so that their numbers do not" in page.read_text()
    scores = {item["id"]: item["scores"] for item in data["items"]}
    assert data["sort"] == "IoU" and scores[1]["IoU"] is None
    for image_id in (3, 4, 5, 6):
        assert scores[image_id]["IoU"] == scores[image_id]["IoU labels"]
        assert "IoU other" not in scores[image_id]
    for file in status[:2]:
        file.unlink()
    with pytest.raises(InputError, match="store other: holds no image"):
        load_tool("report").main(arguments)


def test_reports_read_labels_and_predictions_by_name(tiny, tmp_path):
    """Own data that numbers the same classes the other way round: the same scores."""
    names = [c["name"] for c in json.loads((tiny.data / "weak_val.json").read_text())["categories"]]
    ids = {name: 99 - k for k, name in enumerate(names)}
    scores = {}
    for kind, split in (("labels", "train"), ("run", "val")):
        weak = tiny.data / f"weak_{split}.json"
        other = renumber(weak, tmp_path / weak.name, ids)
        for file in (weak, other):
            page = tmp_path / f"{kind}_{file.parent.name}.html"
            arguments = data_arguments(tiny, split)
            arguments[1] = str(file)
            source = ["--store", str(tiny.store)] if kind == "labels" else ["--run", str(tiny.run)]
            load_tool("report").main([kind, *arguments, *source, "--output", str(page)])
            found = [
                (i["name"], i["scores"], sorted(i["classes"])) for i in page_data(page)["items"]
            ]
            assert scores.setdefault(kind, found) == found
    content = json.loads((tmp_path / "weak_val.json").read_text())
    content["categories"][0]["name"] = "whale"
    (tmp_path / "whale.json").write_text(json.dumps(content))
    arguments = data_arguments(tiny, "val")
    arguments[1] = str(tmp_path / "whale.json")
    with pytest.raises(InputError, match=r'panoptic_val\.json: .*lack "whale".*whale\.json'):
        load_tool("report").main(
            ["run", *arguments, "--run", str(tiny.run), "--output", str(tmp_path / "w.html")]
        )
    with pytest.raises(InputError, match=r'manifest\.json: .*lack "whale"'):
        load_tool("report").main(
            ["labels", *arguments[:4], "--store", str(tiny.store), "--output",
             str(tmp_path / "w.html")]
        )  # fmt: skip
    assert not (tmp_path / "w.html").exists()


def test_run_report(tiny, tmp_path):
    page = tmp_path / "run.html"
    arguments = ["run", *data_arguments(tiny, "val"), "--run", f"weak={tiny.run}"]
    assert load_tool("report").main([*arguments, "--output", str(page)]) == 0
    data = page_data(page)
    assert data["layers"] == ["image", "annotation", "prediction", "truth"]
    assert len(data["items"]) == 4
    assert all(0.5 < item["scores"]["IoU"] < 1 for item in data["items"])
    text = page.read_text()
    for word in ("total_loss", "loss_sem_seg", ">50<", ">70<", "IoU by class"):
        assert word in text
    assert "eta_seconds" not in text


def test_predictions_on_other_pictures_of_the_same_numbers_are_not_shown(tiny_copy, tmp_path):
    data = argparse.Namespace(
        dataset=None, annotations=str(tiny_copy.data / "weak_val.json"),
        images=str(tiny_copy.data / "images" / "val"), gt_json=None, gt_dir=None,
    )  # fmt: skip
    run = open_run("a", tiny_copy.run)
    assert find_predictions(run, open_data(data)) is not None
    for picture in (tiny_copy.data / "images" / "val").iterdir():
        picture.rename(picture.with_name(f"other_{picture.name}"))
    content = json.loads((tiny_copy.data / "weak_val.json").read_text())
    for image in content["images"]:
        image["file_name"] = f"other_{image['file_name']}"
    (tiny_copy.data / "weak_val.json").write_text(json.dumps(content))
    assert find_predictions(run, open_data(data)) is None
    (file,) = run.predictions.values()
    with pytest.raises(
        InputError, match="panoptic_pred.json: has the image ids of .*weak_val.json"
    ):
        predictions_of(file, open_data(data))


def test_curves_of_a_run_that_was_killed_while_writing(tiny_copy, tmp_path):
    with open(tiny_copy.run / "metrics.json", "a") as file:
        file.write('{"iteration": 100, "total_l')
    page = tmp_path / "run.html"
    load_tool("report").main(["run", "--run", str(tiny_copy.run), "--output", str(page)])
    assert "total_loss" in page.read_text() and page_data(page)["items"] == []


def test_curves_are_those_of_the_last_run_in_a_folder(tmp_path):
    """A training that is begun anew, or goes on from a checkpoint, writes on in metrics.json."""
    lines = [(19, 1.0), (39, 2.0), (59, 3.0), (39, 4.0), (59, 5.0), (79, 6.0), (19, 7.0), (39, 8.0)]
    for count, wanted in ((6, [(19, 1.0), (39, 4.0), (59, 5.0), (79, 6.0)]), (8, lines[6:])):
        (tmp_path / "metrics.json").write_text(
            "".join(json.dumps({"iteration": k, "total_loss": v}) + "\n" for k, v in lines[:count])
        )
        (chart,) = training_curves([open_run("run", tmp_path)])
        (series,) = chart["series"]
        assert list(zip(series["x"], series["y"], strict=True)) == wanted


def test_an_evaluation_between_two_written_steps_takes_none_away(tmp_path):
    """Detectron2 writes what was measured at step 29 behind step 39."""
    with EventStorage() as storage:
        writer = JSONWriter(str(tmp_path / "metrics.json"))
        for storage.iter in range(60):
            storage.put_scalar("total_loss", 100.0 - storage.iter, smoothing_hint=False)
            if storage.iter % 15 == 14:
                storage.put_scalar("PQ", float(storage.iter), smoothing_hint=False)
            if storage.iter % 20 == 19:
                writer.write()
        writer.close()
    charts = training_curves([open_run("run", tmp_path)])
    found = {chart["title"]: chart["series"][0] for chart in charts}
    steps = [json.loads(t)["iteration"] for t in (tmp_path / "metrics.json").open()]
    assert steps != sorted(steps)
    assert found["total_loss"]["x"] == [19, 39, 59]
    assert found["total_loss"]["y"] == [81.0, 61.0, 41.0]
    assert found["PQ"]["x"] == found["PQ"]["y"] == [14, 29, 59]  # of two, the later is written


@pytest.mark.parametrize("iteration", ["NaN", '"5"', "[5]", "true", "1.5"])
def test_a_line_of_no_training_is_named(tiny_copy, iteration):
    lines = (tiny_copy.run / "metrics.json").read_text()
    (tiny_copy.run / "metrics.json").write_text(f'{{"iteration": {iteration}}}\n{lines}')
    with pytest.raises(InputError, match="metrics.json: line 1 is no line of a training"):
        open_run("a", tiny_copy.run)


def test_rounds_are_shown(tiny_copy, tmp_path):
    for number, pq in ((0, 40.0), (1, 45.0)):
        folder = tiny_copy.run / f"round_{number}"
        folder.mkdir()
        content = json.loads((tiny_copy.run / "results.json").read_text())
        content["runs"]["weak"]["panoptic_seg"]["PQ"] = pq
        (folder / "results.json").write_text(json.dumps(content))
    page = tmp_path / "run.html"
    load_tool("report").main(["run", "--run", str(tiny_copy.run), "--output", str(page)])
    text = page.read_text()
    assert "PQ by round" in text and "PQ from 40 to 45" in text
    # Two iterative runs: the rounds of each are a line and rows of its own.
    other = tiny_copy.root / "other"
    shutil.copytree(tiny_copy.run, other)
    for number, old, new in ((0, "40.0", "60.0"), (1, "45.0", "61.0")):
        file = other / f"round_{number}" / "results.json"
        file.write_text(file.read_text().replace(old, new))
    runs = ["--run", str(tiny_copy.run), "--run", str(other)]
    load_tool("report").main(["run", *runs, "--output", str(page)])
    text = page.read_text()
    assert "PQ, run from 40 to 45" in text and "PQ, other from 60 to 61" in text
    for row in ("run round 0", "run round 1", "other round 0", "other round 1"):
        assert f'<th scope="row">{row}</th>' in text


def test_training_images_are_shown_in_the_classes_of_the_others(tiny, tmp_path):
    """--label-dataset whose file numbers the same classes otherwise than --dataset's."""
    names = [c["name"] for c in json.loads((tiny.data / "weak_val.json").read_text())["categories"]]
    other = renumber(tiny.data / "weak_val.json", tmp_path / "weak_val.json",
                     {name: 99 - k for k, name in enumerate(names)})  # fmt: skip
    labelled = open_own(tiny.data / "weak_train.json", tiny.data / "images" / "train")
    drawn = []
    for file in (tiny.data / "weak_val.json", other):
        data, store = open_own(file, tiny.data / "images" / "val"), LabelStore.open(tiny.store)
        page = tmp_path / f"{len(drawn)}.html"
        run_report(page, {"r": tiny.run}, data, store=store, label_data=labelled)
        items = [i for i in page_data(page)["items"] if i["name"].startswith("train/")]
        assert len(items) == 6
        pictures = [tmp_path / i["layers"]["pseudo label"]["src"] for i in items]
        drawn.append([cv2.imread(str(picture)) for picture in pictures])
    assert all(np.array_equal(a, b) for a, b in zip(*drawn, strict=True))


def open_own(annotations, images):
    return open_data(argparse.Namespace(dataset=None, annotations=str(annotations),
                                        images=str(images), gt_json=None, gt_dir=None))  # fmt: skip


def test_bars_of_many_runs_say_how_many_are_shown(tiny):
    found = read_results_json(tiny.run / "results.json")["runs"]["weak"]
    few, many = (class_bars({f"s{k}": found for k in range(n)}, ["fish"]) for n in (6, 8))
    assert [c["title"] for c in few] == ["IoU by class"] and "note" not in few[0]
    assert many[0]["note"] == "The first 6 of 8 runs." and len(many[0]["series"]) == 6


@pytest.mark.parametrize("option", ["--store", "--gt-json", "--images"])
def test_what_needs_a_dataset_is_not_passed_over(tiny, tmp_path, option):
    value = str(tiny.store) if option == "--store" else "nowhere"
    with pytest.raises(InputError, match="--dataset"):
        load_tool("report").main(["run", "--run", str(tiny.run), option, value,
                                  "--output", str(tmp_path / "r.html")])  # fmt: skip


def test_nothing_of_the_page_can_be_run_or_leaves_the_disk(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    picture = np.zeros((20, 30, 3), np.uint8)
    page = write_report(
        tmp_path / "r.html",
        evil,
        [{"name": evil, "layers": {"image": picture, evil: picture}, "scores": {evil: 1},
          "caption": evil, "classes": [evil]}],
        subtitle=evil,
        tables=[{"title": evil, "columns": [evil], "rows": [[evil]], "note": evil}],
        bars=[{"title": evil, "labels": [evil], "series": [{"name": evil, "values": [1]}]}],
        curves=[{"title": evil, "series": [{"name": evil, "x": [0, 1], "y": [0, 1]}]}],
        footer=evil,
    )  # fmt: skip
    text = page.read_text()
    assert "<script>alert" not in text and "<img src=x" not in text
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", text)
    assert "default-src 'none'" in text
    assert page_data(page)["items"][0]["name"] == evil


def test_a_report_is_replaced_as_a_whole_and_others_folders_are_left_alone(tmp_path):
    picture = np.zeros((20, 30, 3), np.uint8)
    items = [{"name": str(i), "layers": {"image": picture}} for i in range(3)]
    page = write_report(tmp_path / "r.html", "first", items)
    write_report(page, "second", items[:1])
    assert len([f for f in (tmp_path / "r_files").iterdir() if not f.name.startswith(".")]) == 1
    assert sorted(f.name for f in tmp_path.iterdir()) == ["r.html", "r_files"]

    def failing():
        yield items[0]
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_report(page, "third", failing())
    assert "second" in page.read_text() and sorted(f.name for f in tmp_path.iterdir()) == [
        "r.html",
        "r_files",
    ]
    other = tmp_path / "mine_files"
    other.mkdir()
    (other / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="mine_files"):
        write_report(tmp_path / "mine.html", "t", items)
    assert (other / "thesis.txt").exists()


def test_layers_of_wrong_shape_are_named(tmp_path):
    picture = np.zeros((20, 30, 3), np.uint8)
    bad = {
        "float": picture.astype(float),
        "flat": picture[..., 0],
        "labels": LabelLayer(np.zeros((2, 3, 4), np.uint8)),
    }
    for name, layer in bad.items():
        with pytest.raises(InputError, match=f"image 'x', layer '{name}'"):
            write_report(tmp_path / "r.html", "t", [{"name": "x", "layers": {name: layer}}])
    with pytest.raises(InputError, match="photograph"):
        layer = AnnotationLayer([[0, 0, 5, 5]], [0])
        write_report(
            tmp_path / "r.html", "t", [{"name": "x", "layers": {"a": layer}}], classes=CLASSES
        )


def test_names_of_stores_and_runs():
    named = load_tool("report").named
    assert named(["a=x/y", "b=x=z"], "--run") == {"a": "x/y", "b": "x=z"}
    assert list(named(["out/weak", "/tmp/k=v/full"], "--run")) == ["weak", "full"]
    with pytest.raises(InputError, match="twice"):
        named(["out/weak", "other/weak"], "--run")
