# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""PQ, AP^r and IoU against brute force, panopticapi and hand-computed cases."""

import contextlib
import io
import json

import numpy as np
import pytest
from helpers.metrics_by_hand import (
    average_precision,
    coco_quality,
    iou_of,
    masks_of,
    oracle_precision,
    paper_quality,
)
from helpers.panoptic_scenes import CATEGORIES, CLASSES, random_image, write_files

from wsis_d2.evaluation import AveragePrecision, Matcher, PanopticQuality, SemanticIoU
from wsis_d2.evaluation.average_precision import APrOptions, parse_thresholds
from wsis_d2.evaluation.from_files import FileOptions, evaluate_files
from wsis_d2.utils.errors import InputError

THRESHOLDS = (0.1, 0.3, 0.5, 0.7)


@pytest.fixture(scope="module")
def matcher() -> Matcher:
    return Matcher(CLASSES)


def scenes_of(seed: int, count: int = 6, **kwargs) -> list[tuple]:
    rng = np.random.default_rng(seed)
    return [random_image(rng, **kwargs) for _ in range(count)]


def matches_of(scenes: list[tuple], matcher: Matcher) -> list:
    return [matcher(*scene, key=key) for key, scene in enumerate(scenes)]


@pytest.mark.parametrize("seed", range(12))
def test_table_holds_the_pixel_counts(seed: int, matcher: Matcher) -> None:
    gt, gt_segments, pred, pred_segments = random_image(np.random.default_rng(seed))
    match = matcher(gt, gt_segments, pred, pred_segments)
    for i, (_, a) in enumerate(masks_of(gt, gt_segments)):
        assert match.gt_area[i] == a.sum()
        assert match.gt_unpredicted[i] == (a & (pred == 0)).sum()
        for j, (_, b) in enumerate(masks_of(pred, pred_segments)):
            assert match.intersection[i, j] == (a & b).sum()
            assert match.pred_area[j] == b.sum()
            assert match.pred_void[j] == (b & (gt == 0)).sum()


@pytest.mark.parametrize("seed", range(6))
def test_pictures_as_their_pngs_hold_them_give_the_same_table(seed: int, matcher: Matcher) -> None:
    gt, gt_segments, pred, pred_segments = random_image(np.random.default_rng(seed))
    match = matcher(gt, gt_segments, pred, pred_segments)
    colors = [np.stack([a & 255, a >> 8 & 255, a >> 16], -1).astype(np.uint8) for a in (gt, pred)]
    for first, second in ((colors[0], colors[1]), (gt, colors[1]), (colors[0], pred)):
        other = matcher(first, gt_segments, second, pred_segments)
        for name in ("gt_area", "pred_area", "intersection", "pred_void", "gt_unpredicted"):
            np.testing.assert_array_equal(getattr(other, name), getattr(match, name))


@pytest.mark.parametrize("variant, oracle", [("coco", coco_quality), ("paper", paper_quality)])
@pytest.mark.parametrize("seed", range(10))
def test_quality_equals_brute_force(variant, oracle, seed, matcher) -> None:
    scenes = scenes_of(seed)
    quality = PanopticQuality(CLASSES, variant)
    for match in matches_of(scenes, matcher):
        quality.update(match)
    values = quality.per_class()
    for index, category in enumerate(CLASSES.ids):
        expected = oracle(scenes, category)
        found = [values[name][index] / 100 for name in ("PQ", "SQ", "DQ")]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("void, crowd", [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("seed", range(4))
def test_quality_equals_panopticapi(seed, void, crowd, tmp_path) -> None:
    evaluation = pytest.importorskip("panopticapi.evaluation")
    files = write_files(tmp_path, scenes_of(seed + 50, 5, void=void, crowd=crowd))
    with contextlib.redirect_stdout(io.StringIO()):
        expected = evaluation.pq_compute(*map(str, _panopticapi_order(files)))
    found = evaluate_files(**files, options=FileOptions(workers=1))["panoptic_seg"]
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for theirs, ours in (("pq", "PQ"), ("sq", "SQ"), ("rq", "DQ")):
            assert found[ours + suffix] == pytest.approx(100 * expected[group][theirs], abs=1e-10)
        assert found["N" + suffix] == expected[group]["n"]


def _panopticapi_order(files: dict) -> tuple:
    return files["gt_json"], files["pred_json"], files["gt_dir"], files["pred_dir"]


def test_of_several_crowds_of_a_class_the_last_counts_as_in_panopticapi(tmp_path) -> None:
    evaluation = pytest.importorskip("panopticapi.evaluation")
    gt = np.repeat(np.array([[1, 1, 2, 2, 2, 3, 3, 3]]), 4, 0)
    gt_segments = [
        {"id": n, "category_id": c, "iscrowd": crowd, "area": int((gt == n).sum())}
        for n, c, crowd in ((1, 7, 0), (2, 21, 1), (3, 21, 1))
    ]
    pred = np.where(gt == 3, 3, np.where(gt == 2, 2, 1))
    segments = [{"id": n, "category_id": c} for n, c in ((1, 7), (2, 21), (3, 21))]
    files = write_files(tmp_path, [(gt, gt_segments, pred, segments)])
    with contextlib.redirect_stdout(io.StringIO()):
        expected = evaluation.pq_compute(*map(str, _panopticapi_order(files)))
    found = evaluate_files(**files)["panoptic_seg"]
    assert found["PQ"] == pytest.approx(100 * expected["All"]["pq"])
    assert found["PQ-car"] == 0


def _score_functions() -> dict:
    things = dict(zip(CLASSES.ids, CLASSES.isthing, strict=True))
    return {
        "score": lambda s: s["score"],
        "detection": lambda s: s["scores"]["detection"],
        "mean_confidence": lambda s: s["scores"]["mean_confidence"],
        "both": lambda s: s["scores"][
            "detection" if things[s["category_id"]] else "mean_confidence"
        ],
        "one": lambda s: 1.0,
    }


@pytest.mark.parametrize("matching", ["unique", "paper"])
@pytest.mark.parametrize("mode", ["score", "detection", "mean_confidence", "both", "one"])
@pytest.mark.parametrize("seed", range(4))
def test_average_precision_equals_brute_force(matching, mode, seed, matcher) -> None:
    # Many blobs of few classes, so that low thresholds see rivals for one segment.
    scenes = scenes_of(seed + 100, 4, blobs=12, categories=CATEGORIES[:3])
    precision = AveragePrecision(CLASSES, THRESHOLDS, matching, mode)
    for match in matches_of(scenes, matcher):
        precision.update(match)
    score_of = _score_functions()[mode]
    expected = [
        [average_precision(scenes, c, t, matching, score_of) for t in THRESHOLDS]
        for c in CLASSES.ids
    ]
    np.testing.assert_allclose(precision.per_class(), expected, rtol=1e-12)


@pytest.mark.parametrize("matching", ["unique", "paper"])
@pytest.mark.parametrize("seed", range(4))
def test_oracle_equals_exhaustive_search_and_bounds_every_mode(matching, seed, matcher) -> None:
    scenes = scenes_of(seed + 200, 4, blobs=9, categories=CATEGORIES[:3])
    matches = matches_of(scenes, matcher)
    modes = {}
    for mode in ("oracle", *_score_functions()):
        modes[mode] = AveragePrecision(CLASSES, THRESHOLDS, matching, mode)
        for match in matches:
            modes[mode].update(match)
    expected = [[oracle_precision(scenes, c, t, matching) for t in THRESHOLDS] for c in CLASSES.ids]
    oracle = modes["oracle"].per_class()
    np.testing.assert_allclose(oracle, expected, rtol=1e-12)
    for mode in _score_functions():
        values = modes[mode].per_class()
        assert (values[np.isfinite(values)] <= oracle[np.isfinite(oracle)] + 1e-12).all()


def _row(*numbers: int) -> np.ndarray:
    return np.array([numbers], np.int64)


def _segment(number: int, category: int = 21, **more) -> dict:
    return {"id": number, "category_id": category, "iscrowd": 0, **more}


def test_iou_must_pass_the_threshold_strictly(matcher) -> None:
    # Intersection 3, union 6: IoU is 0.5 exactly, right at 0.4, wrong at 0.5.
    match = matcher(_row(1, 1, 1, 1, 2, 2), [_segment(1), _segment(2, 7)],
                    _row(3, 5, 5, 5, 5, 5), [_segment(3, 7), _segment(5)])  # fmt: skip
    assert match.apr_iou[0, 1] == 0.5
    precision = AveragePrecision(CLASSES, (0.4, 0.5), "unique")
    precision.update(match)
    assert precision.per_class()[CLASSES.contiguous[21]].tolist() == [1.0, 0.0]
    quality = PanopticQuality(CLASSES)
    quality.update(match)
    assert quality.results()["PQ-car"] == 0


def test_below_half_two_predictions_may_count_for_one_in_the_paper_variant_only(matcher) -> None:
    truth = (_row(1, 1, 1, 1), [_segment(1)])
    halves = (_row(3, 3, 4, 4), [_segment(3, score=0.9), _segment(4, score=0.8)])
    match = matcher(*truth, *halves)
    values = {}
    for matching in ("unique", "paper"):
        precision = AveragePrecision(CLASSES, (0.4,), matching)
        precision.update(match)
        values[matching] = precision.per_class()[CLASSES.contiguous[21], 0]
    assert values == {"unique": 1.0, "paper": 2.0}


def test_a_prediction_wholly_in_ignore_is_a_false_positive_of_apr_but_not_of_pq(matcher) -> None:
    truth = (_row(0, 0, 1, 1), [_segment(1)])
    predicted = (_row(4, 4, 3, 3), [_segment(3, score=0.5), _segment(4, score=0.9)])
    match = matcher(*truth, *predicted)
    precision = AveragePrecision(CLASSES, (0.5,))
    precision.update(match)
    assert precision.per_class()[CLASSES.contiguous[21], 0] == 0.5
    for variant, pq in (("coco", 100.0), ("paper", 100 / 1.5)):
        quality = PanopticQuality(CLASSES, variant)
        quality.update(match)
        assert quality.results()["PQ-car"] == pytest.approx(pq)


def test_a_class_without_truth_has_no_ap_and_leaves_the_mean(matcher) -> None:
    match = matcher(_row(1, 1, 2, 2), [_segment(1), _segment(2, 7)],
                    _row(1, 1, 2, 3), [_segment(1), _segment(2, 7), _segment(3, 33)])  # fmt: skip
    precision = AveragePrecision(CLASSES, (0.4,))
    precision.update(match)
    result = precision.results()
    assert np.isnan(result["APr_vol-bus"])
    assert (result["APr_vol"], result["APr_40_th"], result["APr_vol_st"]) == (100, 100, 100)
    assert (result["N"], result["N_th"], result["N_st"]) == (2, 1, 1)


@pytest.mark.parametrize("truth", ["void", "all stuff", "all things"])
@pytest.mark.parametrize("prediction", ["nothing", "one class"])
def test_odd_sets_give_numbers_or_nan_never_a_crash(truth, prediction, matcher) -> None:
    gt = {
        "void": (_row(0, 0, 0), []),
        "all stuff": (_row(1, 1, 2), [_segment(1, 7), _segment(2, 12)]),
        "all things": (_row(1, 1, 2), [_segment(1), _segment(2, 33)]),
    }[truth]
    pred = {"nothing": (_row(0, 0, 0), []), "one class": (_row(9, 9, 9), [_segment(9, 40)])}
    match = matcher(*gt, *pred[prediction])
    for variant in ("coco", "paper"):
        quality = PanopticQuality(CLASSES, variant)
        quality.update(match)
        result = quality.results()
        occurring = {"void": 0, "all stuff": 2, "all things": 2}[truth]
        extra = prediction == "one class" and (truth != "void" or variant == "paper")
        assert result["N"] == occurring + extra
        assert np.isnan(result["PQ"]) == (result["N"] == 0)
    for matching in ("unique", "paper"):
        precision = AveragePrecision(CLASSES, (0.1, 0.5), matching)
        precision.update(match)
        result = precision.results()
        assert result["N"] == occurring
        assert np.isnan(result["APr_vol"]) if truth == "void" else result["APr_vol"] == 0
    iou = SemanticIoU(CLASSES)
    iou.update_match(match)
    assert np.isnan(iou.results()["mIoU"]) if truth == "void" else iou.results()["mIoU"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_semantic_iou_from_maps_and_from_segments_equals_brute_force(seed, matcher) -> None:
    scenes = scenes_of(seed + 300, 3)
    from_maps, from_segments = SemanticIoU(CLASSES), SemanticIoU(CLASSES)
    truths, predictions = [], []
    for scene, match in zip(scenes, matches_of(scenes, matcher), strict=True):
        gt, gt_segments, pred, pred_segments = scene
        maps = []
        for ids, segments in ((gt, gt_segments), (pred, pred_segments)):
            labels = np.full(ids.shape, 255, np.uint8)
            for segment in segments:
                labels[ids == segment["id"]] = CLASSES.contiguous[segment["category_id"]]
            maps.append(labels)
        from_maps.update_maps(*maps, "test")
        from_segments.update_match(match)
        truths.append(maps[0].ravel())
        predictions.append(maps[1].ravel())
    truth, prediction = np.concatenate(truths), np.concatenate(predictions)
    valid = truth != 255
    expected = []
    for index in range(len(CLASSES)):
        a, b = truth[valid] == index, prediction[valid] == index
        expected.append(100 * iou_of(a, b) if (a | b).any() else np.nan)
    np.testing.assert_allclose(from_maps.per_class(), expected, rtol=1e-12)
    np.testing.assert_allclose(from_segments.per_class(), expected, rtol=1e-12)


def test_sums_of_two_processes_equal_those_of_one(matcher, tmp_path) -> None:
    matches = matches_of(scenes_of(400, 8, blobs=10), matcher)
    for make in (
        lambda: PanopticQuality(CLASSES),
        lambda: PanopticQuality(CLASSES, "paper"),
        lambda: AveragePrecision(CLASSES, THRESHOLDS, "unique", "one"),
    ):
        whole, first, second = make(), make(), make()
        for number, match in enumerate(matches):
            whole.update(match)
            (first if number % 2 else second).update(match)
        first.merge(second)
        np.testing.assert_equal(first.results(), pytest.approx(whole.results(), nan_ok=True))


def test_workers_do_not_change_the_numbers(tmp_path) -> None:
    files = write_files(tmp_path, scenes_of(500, 40, height=12, width=16))
    one = evaluate_files(**files, options=FileOptions(workers=1))
    three = evaluate_files(**files, options=FileOptions(workers=3))
    for task, values in one.items():
        assert three[task] == pytest.approx(values, nan_ok=True, rel=1e-12), task


def test_the_order_of_a_truths_images_does_not_change_the_numbers(tmp_path) -> None:
    """Scores of nearly all segments are equal."""
    files = write_files(tmp_path, scenes_of(700, 12))
    found = evaluate_files(**files, options=FileOptions(workers=1))
    content = json.loads(files["gt_json"].read_text())
    content["annotations"].reverse()
    files["gt_json"].write_text(json.dumps(content))
    np.testing.assert_equal(evaluate_files(**files, options=FileOptions(workers=1)), found)


def test_score_modes_from_files_differ_only_in_the_ranking(tmp_path) -> None:
    files = write_files(tmp_path, scenes_of(600, 6, blobs=12))
    results = {
        mode: evaluate_files(**files, options=FileOptions(apr=APrOptions(score_mode=mode)))
        for mode in ("score", "both", "oracle", "mean_confidence")
    }
    assert results["score"]["panoptic_seg"]["PQ"] == results["oracle"]["panoptic_seg"]["PQ"]
    assert results["score"]["apr"]["APr_vol"] < results["oracle"]["apr"]["APr_vol"]
    assert results["both"]["apr"]["APr_vol_all-by-oracle"] == results["oracle"]["apr"]["APr_vol"]
    ranked = results["mean_confidence"]["apr"]
    assert ranked["APr_50_th"] != results["oracle"]["apr"]["APr_50_th"]
    for key in ("APr_10_th", "APr_50_th", "APr_90_th", "APr_vol_th"):
        assert results["both"]["apr"][f"{key}-by-mean_confidence"] == ranked[key]


def test_thresholds_include_both_ends() -> None:
    assert parse_thresholds("0.1:0.9:0.1") == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert parse_thresholds("0.5:0.95:0.05")[-1] == 0.95
    assert len(parse_thresholds("0.5:0.95:0.05")) == 10
    assert parse_thresholds("0.5,0.75") == (0.5, 0.75)


BAD_THRESHOLDS = (
    "", "0.5:0.9", "a:b:c", "0.9:0.1:0.1", "0.1:1.2:0.1", "nan", "0.1:0.9:0", "0.1:0.9:nan",
    "0.5,0.5", "-0.1:0.5:0.1",
)  # fmt: skip


@pytest.mark.parametrize("text", BAD_THRESHOLDS)
def test_bad_thresholds_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected A:B:STEP"):
        parse_thresholds(text)
