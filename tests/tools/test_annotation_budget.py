# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Hours, fronts and advice against hand-worked numbers."""

import json

import pytest
from helpers.load_tool import load_tool

from wsis_d2.evaluation.results import make_meta, write_results_json
from wsis_d2.planning.annotation_cost import (
    AnnotationCounts,
    AnnotationTimes,
    RunPoint,
    count_records,
    pareto,
    recommend,
    supervision_cost,
)
from wsis_d2.utils.errors import InputError

COUNTS = AnnotationCounts(images=100, boxes=360, tags=1080, masks=720)


def test_hours_by_hand():
    # Weak: 360 * 7 + 1080 * 1 = 3600 s = 1 h; full: 720 * 79 = 56880 s = 15.8 h.
    times = AnnotationTimes(hourly_rate=12)
    weak, full = supervision_cost(COUNTS, times), supervision_cost(COUNTS, times, 1.0)
    assert (weak.hours, weak.seconds_per_image, weak.money) == (1.0, 36.0, 12.0)
    assert full.hours == pytest.approx(15.8)
    assert supervision_cost(COUNTS, times, 0.25).hours == pytest.approx(0.75 + 0.25 * 15.8)
    # A whole image by hand: 100 * 5400 s = 150 h; other times change what they should.
    assert supervision_cost(COUNTS, AnnotationTimes(full_image=5400), 1.0).hours == 150
    assert supervision_cost(COUNTS, AnnotationTimes(box=17)).hours == 2.0
    assert supervision_cost(COUNTS.scaled(50), times).hours == 0.5


def test_records_are_counted_by_hand():
    records = [
        {"annotations": [1, 2, 3], "image_tags": [3, 4, 0]},  # 0 is a thing
        {
            "annotations": [],
            "image_tags": [3, 4],
            "crop_tags": [
                {"box": [0, 0, 1, 1], "tags": [3, 4]},
                {"box": [1, 0, 1, 1], "tags": [3]},
            ],
        },
    ]
    assert count_records(records, [0, 1]) == AnnotationCounts(images=2, boxes=3, tags=5, masks=7)


def test_front_and_advice():
    weak = RunPoint("weak", "weak", 100, 1.0, 60.0)
    mixed = RunPoint("mixed", "mixed", 100, 4.0, 64.0)
    poor = RunPoint("poor", "mixed", 100, 8.0, 61.0)
    full = RunPoint("full", "full", 100, 15.8, 66.0)
    assert pareto([full, poor, weak, mixed]) == [weak, mixed, full]
    text = recommend([full, poor, weak, mixed], COUNTS, AnnotationTimes(), metric="PQ")
    assert any("poor" in line and "not worth" in line and "64.0" in line for line in text)
    # 3 h buy 4 PQ: 1.33 an hour, less than a tenth of the first hour's 60.
    assert "annotate as for weak" in text[-1] and "1580 images weakly" in text[-1]
    within = recommend([full, weak, mixed], COUNTS, AnnotationTimes(), metric="PQ", budget_hours=5)
    assert "annotate as for mixed" in within[-1] and "within 5 h" in within[-1]
    assert "27 %" in within[0]  # (5 - 1) / (15.8 - 1)
    short = recommend([full, weak], COUNTS, AnnotationTimes(), metric="PQ", budget_hours=0.5)
    assert "about 50" in short[0] and "none of the measured runs fits" in short[-1]
    steep = [weak, RunPoint("full", "full", 100, 1.5, 95.0)]
    assert "annotate as for full" in recommend(steep, COUNTS, AnnotationTimes(), metric="PQ")[-1]


def test_tool_end_to_end(tiny, tmp_path, capsys):
    results = tmp_path / "results.json"
    for name, kind, pq in (("weak", "weak", 55.0), ("full", "full", 60.0), ("half", "mixed", 58.0)):
        meta = make_meta(supervision=kind, dataset="sample_val_full")
        write_results_json(results, name, {"panoptic_seg": {"PQ": pq}}, meta)
    output, plot = tmp_path / "out" / "budget.json", tmp_path / "out" / "budget.png"
    arguments = [
        "--annotations", str(tiny.data / "weak_train.json"),
        "--images", str(tiny.data / "images" / "train"),
        "--results", str(results), "--run-full-share", "half=0.5",
        "--plot", str(plot), "--output", str(output),
    ]  # fmt: skip
    assert load_tool("annotation_budget").main(arguments) == 0
    found = json.loads(output.read_text())
    weak = json.loads((tiny.data / "weak_train.json").read_text())
    assert found["counts"]["images"] == 6
    assert found["counts"]["boxes"] == len(weak["annotations"])
    hours = {run["name"]: run["hours"] for run in found["runs"]}
    assert hours["half"] == pytest.approx((hours["weak"] + hours["full"]) / 2)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "Recommendation" in capsys.readouterr().out


def test_full_images_without_boxes_cost_what_the_others_do(tiny, tmp_path, capsys):
    """A mixed set's full images need none: hours are those of as many images like the others."""
    content = json.loads((tiny.data / "weak_train.json").read_text())
    full = {image["id"] for image in content["images"][:2]}
    for image in content["images"]:
        image.pop("crop_tags", None)
        if image["id"] in full:
            image.update(supervision="full", image_tags=[])
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] not in full]
    own, output = tmp_path / "own.json", tmp_path / "budget.json"

    def count(name):
        own.write_text(json.dumps(content))
        load_tool("annotation_budget").main(
            ["--annotations", str(own), "--images", str(tiny.data / "images" / "train"),
             "--output", str(output)]
        )  # fmt: skip
        found = json.loads(output.read_text())
        return found["counts"], found["costs"][name]["hours"]

    counts, hours = count("weak")
    assert counts["images"] == 6
    assert counts["boxes"] == round(len(content["annotations"]) * 6 / 4)
    assert "2 full images have no boxes" in capsys.readouterr().err
    things = {c["id"] for c in content["categories"] if c["isthing"]}
    tags = sum(len(set(i["image_tags"]) - things) for i in content["images"])
    assert hours == pytest.approx((counts["boxes"] * 7 + round(tags * 6 / 4)) / 3600)
    for image in content["images"]:
        image.update(supervision="full", image_tags=[])
    content["annotations"] = []
    with pytest.raises(InputError, match="own.json: has no boxes, tags or marks to count, only fu"):
        count("weak")


def test_runs_on_other_sets_are_told(tmp_path, caplog):
    for name, dataset in (("weak", "cows_val"), ("full", "streets_val")):
        meta = make_meta(supervision=name, dataset=dataset)
        write_results_json(tmp_path / f"{name}.json", name, {"panoptic_seg": {"PQ": 5.0}}, meta)
    counts = ["--num-images", "5", "--num-boxes", "9"]
    files = [str(tmp_path / f"{name}.json") for name in ("weak", "full")]
    load_tool("annotation_budget").main([*counts, "--results", *files])
    assert "quality of run weak on cows_val with run full on streets_val" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected --dataset"),
        (["--num-images", "0", "--num-boxes", "1"], "--num-images 0"),
        (["--num-images", "5", "--num-boxes", "-1"], "--num-boxes -1"),
        (["--num-images", "5", "--num-boxes", "1", "--box-seconds", "nan"], "box nan"),
        (["--num-images", "5", "--num-boxes", "1", "--full-share", "2"], "2"),
        (["--num-images", "5", "--num-boxes", "1", "--results", "none.json"], "none.json"),
        (["--num-images", "5", "--num-boxes", "1", "--plot", "x.gif"], "x.gif"),
        (["--num-images", "5", "--num-boxes", "1", "--budget-hours", "-2"], "--budget-hours"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        load_tool("annotation_budget").main(arguments)


def test_a_mixed_run_needs_its_share(tmp_path):
    results = tmp_path / "results.json"
    meta = make_meta(supervision="mixed", dataset="d")
    write_results_json(results, "m", {"panoptic_seg": {"PQ": 50.0}}, meta)
    base = ["--num-images", "5", "--num-boxes", "9", "--results", str(results)]
    with pytest.raises(InputError, match="--run-full-share m=F"):
        load_tool("annotation_budget").main(base)
    with pytest.raises(InputError, match="no such run"):
        load_tool("annotation_budget").main([*base, "--run-images", "typo=5"])
    assert load_tool("annotation_budget").main([*base, "--run-hours", "m=3"]) == 0


def test_runs_of_one_name_are_all_there(tmp_path):
    """Folders of seeds that hold folders of one name; a file named twice counts once."""
    meta = make_meta(supervision="weak", dataset="d")
    files = [tmp_path / f"seed{k}" / "run" / "results.json" for k in range(4)]
    for k, file in enumerate(files):
        file.parent.mkdir(parents=True)
        write_results_json(file, "weak", {"panoptic_seg": {"PQ": 50.0 + k}}, meta)
    output = tmp_path / "out.json"
    load_tool("annotation_budget").main(
        ["--num-images", "5", "--num-boxes", "9", "--output", str(output), "--results",
         *map(str, files), str(files[0])]
    )  # fmt: skip
    found = json.loads(output.read_text())["runs"]
    assert [run["quality"] for run in found] == [50, 51, 52, 53]
    assert len({run["name"] for run in found}) == 4


@pytest.mark.parametrize("option", ["--num-boxes", "--num-tags", "--num-masks"])
def test_counts_beside_a_dataset_are_refused(tiny, option):
    data = ["--annotations", str(tiny.data / "weak_train.json"),
            "--images", str(tiny.data / "images" / "train")]  # fmt: skip
    with pytest.raises(InputError, match=option):
        load_tool("annotation_budget").main([*data, option, "5000"])
