# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""tools/make_tables.py: which run fills which cell, spread over seeds, FS%, blanks."""

import csv
import re
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import make_tables  # noqa: E402

from wsis_d2.evaluation import make_meta, write_results_json  # noqa: E402
from wsis_d2.evaluation.paper_tables import paper_tables  # noqa: E402
from wsis_d2.evaluation.run_tables import recipe_of  # noqa: E402
from wsis_d2.utils.cli import main_with_errors  # noqa: E402

VOC, CITY = "voc_2012_val_panoptic_full", "cityscapes_fine_panoptic_val_full"


def write_run(folder: Path, dataset: str, name: str = "weak", variant: str = "main",
              seed: int = 1, **tasks: dict) -> Path:  # fmt: skip
    """Write a results.json as training leaves it."""
    meta = make_meta(supervision="weak", dataset=dataset, variant=variant, seed=seed,
                     config=str(folder / "config.yaml"))  # fmt: skip
    write_results_json(folder / "results.json", name, tasks, meta)
    return folder


def run(output: Path, *arguments) -> dict[str, list[dict]]:
    """Run the tool; return the CSV files' rows."""
    with pytest.raises(SystemExit) as end:
        main_with_errors(make_tables.main, [*map(str, arguments), "--output", str(output)])
    assert end.value.code == 0
    return {p.stem: list(csv.DictReader(p.open())) for p in output.glob("*.csv")}


def row(rows: list[dict], method: str) -> dict:
    return next(r for r in rows if r["method"] == method)


def test_without_runs_the_papers_numbers_stand_alone(tmp_path) -> None:
    tables = run(tmp_path)
    assert set(tables) == {f"table_{k}" for k in range(1, 7)} | {
        "section_4_2", "figure_6", "table_2_by_mean_confidence", "table_5_by_mean_confidence",
    }  # fmt: skip
    ours = row(tables["table_5"], "Ours, weak, ImageNet")
    assert [ours[f"{k} paper"] for k in ("AP^r vol th", "PQ", "test AP th")] == [
        "17.0", "40.5", "12.8",
    ]  # fmt: skip
    for rows in tables.values():
        for line in rows:
            assert not any(v for k, v in line.items() if k.endswith((" mean", " std", " runs")))
    assert Image.open(tmp_path / "figure_6.png").size[0] > 500
    assert not (tmp_path / "runs.csv").exists()


def test_the_papers_fs_percent_is_weak_over_full_up_to_rounding() -> None:
    """Guards the typed numbers: the paper's FS% follows from its own weak and full."""
    checked = 0
    for table in paper_tables():
        for label, cells in table.rows:
            for cell in cells:
                if cell.percent_of is not None:
                    weak, full = (part.paper for part in cell.percent_of)
                    assert cell.paper == pytest.approx(100 * weak / full, abs=0.11), label
                    checked += 1
    assert checked == 5


def test_runs_fill_their_cells(tmp_path) -> None:
    out = tmp_path / "output"
    write_run(out / "voc" / "semantic_R_101_weak", VOC, sem_seg={"mIoU": 70.0})
    write_run(out / "voc" / "semantic_R_101_full", VOC, "full", sem_seg={"mIoU": 80.0})
    for seed, vol in ((1, 50.0), (2, 53.0)):
        folder = out / "voc" / f"panoptic_R_101_weak_seed{seed}"
        apr = {"APr_vol_th": vol, "APr_50_th": 60.0, "APr_vol_th-by-mean_confidence": vol - 9,
               "APr_50_th-by-mean_confidence": 55.0}  # fmt: skip
        write_run(folder, VOC, seed=seed, apr=apr, panoptic_seg={"PQ_th": None})
    # None of these is the recipe's own number.
    write_run(out / "voc" / "panoptic_R_101_weak", VOC, "x", "no_crf_head",
              apr={"APr_vol_th": 1.0})  # fmt: skip
    write_run(out / "voc" / "panoptic_R_18_weak", VOC, apr={"APr_vol_th": 2.0})
    write_run(out / "city" / "panoptic_R_101_weak", CITY,
              apr={"APr_vol_th": 15.0, "APr_vol_st-by-oracle": 35.0,
                   "APr_vol_th-by-mean_confidence": 12.0, "APr_vol_st-by-mean_confidence": 33.0,
                   "APr_vol_all-by-mean_confidence": 24.0},
              panoptic_seg={"PQ": 41.0}, sem_seg={"mIoU_th": 66.0})  # fmt: skip
    write_run(out / "sample" / "a", "sample_val_full", panoptic_seg={"PQ": 60.0})
    write_run(out / "sample" / "a", "sample_val_full", "full", panoptic_seg={"PQ": 75.0})
    tables = run(tmp_path / "tables", out / "voc", out / "city", out / "voc", out / "sample")

    first = row(tables["table_1"], "Ours, without COCO")
    assert (first["val weak mean"], first["val full mean"]) == ("70.0000", "80.0000")
    assert float(first["val FS% mean"]) == pytest.approx(87.5)
    assert first["val weak paper"] == "74.3" and first["test weak mean"] == ""
    second = row(tables["table_2"], "Ours, weak without COCO")
    assert (second["AP^r vol mean"], second["AP^r vol std"]) == ("51.5000", "2.1213")
    assert second["AP^r vol runs"] == "2" and second["AP^r 0.5 mean"] == "60.0000"
    other = row(tables["table_2_by_mean_confidence"], "Ours, weak without COCO")
    assert (other["AP^r vol mean"], other["AP^r 0.5 mean"]) == ("42.5000", "55.0000")
    assert second["PQ mean"] == "" and second["PQ paper"] == "59.0"
    assert row(tables["table_5"], "Ours, weak, ImageNet")["AP^r vol th mean"] == "15.0000"
    ranked = row(tables["table_5_by_mean_confidence"], "Ours, weak, ImageNet")
    assert [ranked[f"AP^r vol{k} mean"] for k in (" th", " st", "")] == [
        "12.0000",
        "33.0000",
        "24.0000",
    ]
    assert (ranked["AP^r vol th paper"], ranked["PQ mean"]) == ("14.6", "41.0000")
    assert row(tables["table_6"], "Oracle")["AP^r vol st mean"] == "35.0000"
    # Round 5's semantic run is missing; the panoptic run's own sem_seg stands in.
    assert row(tables["table_4"], "Ours, things")["weak mean"] == "66.0000"
    small = run(tmp_path / "small", out / "voc", "--backbone", "R_18")
    assert row(small["table_2"], "Ours, weak without COCO")["AP^r vol mean"] == "2.0000"

    text = (tmp_path / "tables" / "tables.md").read_text()
    line = next(x for x in text.splitlines() if x.startswith("| Ours, weak without COCO"))
    assert "51.5 ± 2.1 (2)" in line
    ratio = next(r for r in tables["runs"] if r["run"] == "FS%")
    assert ratio["dataset"] == "sample_val_full" and ratio["PQ"] == "80.0"
    # Every line of a Markdown table has as many cells as its head.
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({x.count("|") for x in block.splitlines()}) == 1


def test_rounds_are_found_in_the_folders_that_their_recipes_name(tmp_path) -> None:
    """Single rounds and tools/train_iterative.py share the folders round_0 to round_5."""
    out = tmp_path / "city"
    for number, iou in ((0, 50.0), (2, 60.0), (5, 63.0)):
        write_run(out / "semantic_R_101_weak" / f"round_{number}", CITY, f"round_{number}",
                  sem_seg={"mIoU": iou, "mIoU_th": iou + 1})  # fmt: skip
    write_run(out / "semantic_R_101_weak_seed2" / "round_5", CITY, "round_5",
              sem_seg={"mIoU": 65.0}, panoptic_seg={"PQ_st": 40.0})  # fmt: skip
    # Another network's rounds are no second seed of these.
    write_run(out / "semantic_R_18_weak" / "round_0", CITY, "round_0", sem_seg={"mIoU": 1.0})
    # The panoptic run has a value too; the semantic subnetwork's own is what the paper reports.
    write_run(out / "panoptic_R_101_weak", CITY, sem_seg={"mIoU": 2.0})
    tables = run(tmp_path / "tables", out)
    found = {
        (p["panel"][:8], p["line"], p["round"]): (float(p["mean"]), p["runs"])
        for p in tables["figure_6"]
    }
    assert found == {
        ("Semantic", "all", "0"): (50.0, "1"),
        ("Semantic", "all", "2"): (60.0, "1"),
        ("Semantic", "all", "5"): (64.0, "2"),
        ("Semantic", "things", "0"): (51.0, "1"),
        ("Semantic", "things", "2"): (61.0, "1"),
        ("Semantic", "things", "5"): (64.0, "1"),
        ("Instance", "stuff", "5"): (40.0, "1"),
    }
    assert row(tables["table_4"], "Ours, overall")["weak mean"] == "64.0000"


def test_figure_6_leaves_ablations_and_other_sets_out_and_no_round(tmp_path) -> None:
    rounds = tmp_path / "city" / "semantic_R_101_weak"
    for number, iou in ((0, 50.0), (7, 66.0)):
        write_run(rounds / f"round_{number}", CITY, sem_seg={"mIoU": iou})
    write_run(rounds / "round_0", CITY, "no", "no_balance", sem_seg={"mIoU": 10.0})
    write_run(rounds / "round_0", CITY.replace("_val", "_train"), "train", sem_seg={"mIoU": 90.0})
    tables = run(tmp_path / "tables", tmp_path / "city")
    found = [(p["round"], float(p["mean"]), p["runs"]) for p in tables["figure_6"]]
    assert found == [("0", 50.0, "1"), ("7", 66.0, "1")]
    line = next(
        x for x in (tmp_path / "tables" / "tables.md").read_text().splitlines()
        if x.startswith("| Semantic segmentation (IoU): all")
    )  # fmt: skip
    assert [c.strip() for c in line.split("|")[2:-1]] == ["50.0", *[""] * 6, "66.0", "63.6"]


def test_every_recipe_of_a_table_is_some_configs_output() -> None:
    outputs = set()
    for path in (ROOT / "configs").rglob("*.yaml"):
        folder = re.search(r"^OUTPUT_DIR: \"\./(output/(?:voc|cityscapes)/.+)\"$",
                           path.read_text(), re.M)  # fmt: skip
        if folder:
            outputs.add(recipe_of(Path(folder[1])))
    cells = [cell for table in paper_tables() for _, cells in table.rows for cell in cells]
    # A round is a folder of its recipe's output.
    named = {re.sub(r"_round_\d$", "", recipe) for cell in cells for recipe in cell.recipes}
    assert len(named) > 10 and named <= outputs


def test_a_path_may_be_given_its_recipe(tmp_path) -> None:
    folder = write_run(tmp_path / "mine", VOC, apr={"APr_vol_th": 54.0})
    tables = run(tmp_path / "tables", f"panoptic_R_101_weak={folder / 'results.json'}")
    assert row(tables["table_2"], "Ours, weak without COCO")["AP^r vol mean"] == "54.0000"


@pytest.mark.parametrize("content, words", [
    (None, ["nowhere", "no results.json"]),
    ("{", ["results.json", "no valid JSON"]),
    ('{"schema": 7}', ["results.json", "schema 7"]),
])  # fmt: skip
def test_bad_input_is_named_in_one_line(content, words, tmp_path, capsys) -> None:
    folder = tmp_path / "nowhere"
    if content is not None:
        folder.mkdir()
        (folder / "results.json").write_text(content)
    with pytest.raises(SystemExit) as end:
        main_with_errors(make_tables.main, [str(folder), "--output", str(tmp_path / "out")])
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and all(word in lines[0] for word in words)
    assert not (tmp_path / "out").exists()


def test_means_tell_of_how_many_seeds_and_what_they_are_mixed_of(tmp_path, caplog) -> None:
    for seed, numbers in ((1, {"PQ": 40.0}), (2, {"PQ": 42.0}), (3, {})):
        write_run(tmp_path / "a" / f"weak_seed{seed}", "own_val", seed=seed, panoptic_seg=numbers,
                  sem_seg={"mIoU": 30.0 + seed})  # fmt: skip
    only = write_run(tmp_path / "b" / "full", "own_val", "full", seed=1, panoptic_seg={"PQ": 50.0})
    write_run(tmp_path / "b" / "full_seed2", "own_val", "full", seed=2, sem_seg={"mIoU": 50.0})
    shutil.copytree(only, tmp_path / "copy" / "full")
    rows = run(tmp_path / "tables", tmp_path / "a", tmp_path / "b", tmp_path / "copy")["runs"]
    weak, full = (next(r for r in rows if r["run"] == name) for name in ("weak", "full"))
    assert (weak["seeds"], weak["IoU"], weak["PQ"]) == ("1 2 3", "32.0 ± 1.0 (3)", "41.0 ± 1.4 (2)")
    assert (full["seeds"], full["IoU"], full["PQ"]) == ("1 2", "50.0 (1)", "50.0 (1)")
    (line,) = caplog.messages
    assert "copy/full/results.json: run full is a copy of that in" in line
    # Another experiment of the same names: no spread over seeds.
    caplog.clear()
    write_run(tmp_path / "c" / "weak_seed1", "own_val", seed=1, panoptic_seg={"PQ": 10.0})
    run(tmp_path / "mixed", tmp_path / "a", tmp_path / "c")
    (line,) = caplog.messages
    assert "c/weak_seed1/results.json: run weak on own_val has the seed 1 of that in" in line
