# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Average precision of tags, against a literal reference and by hand."""

import math

import numpy as np
import pytest
import torch

from wsis_d2.evaluation.tag_evaluation import TagEvaluator, ranking_average_precision


def test_by_hand():
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    positive = np.array([True, False, True, False])
    assert ranking_average_precision(scores, positive) == pytest.approx((1 + 2 / 3) / 2)
    assert math.isnan(ranking_average_precision(scores, np.zeros(4, bool)))


def test_equal_scores_do_not_depend_on_the_order():
    positive = np.array([True, False, False, True])
    scores = np.array([0.5, 0.5, 0.5, 0.1])
    # One step of three holds one positive: precision 1/3; then 2 of 4.
    expected = (1 / 3 + 2 / 4) / 2
    for order in ([0, 1, 2, 3], [2, 1, 0, 3], [3, 2, 1, 0]):
        assert ranking_average_precision(scores[order], positive[order]) == pytest.approx(expected)


def test_against_a_literal_reference():
    rng = np.random.default_rng(0)
    for _ in range(50):
        count = rng.integers(1, 30)
        scores = rng.integers(0, 8, count) / 8
        positive = rng.random(count) < 0.4
        if not positive.any():
            continue
        precisions = [positive[scores >= scores[i]].mean() for i in range(count) if positive[i]]
        found = ranking_average_precision(scores, positive)
        assert found == pytest.approx(float(np.mean(precisions)))


def test_evaluator_uses_crops_and_leaves_unknown_and_absent_classes_out():
    evaluator = TagEvaluator(["sky", "cow", "mud"])
    crops = {
        "crop_targets": torch.tensor([[1.0, 0, 0], [0, -1, 0], [1, 1, 0]]),
        "tags": torch.tensor([1.0, 1, 0]),
    }
    scores = {"crop_tags": torch.tensor([[0.9, 0.2, 0.5], [0.8, 0.9, 0.5], [0.7, 0.6, 0.5]])}
    evaluator.process([crops], [scores])
    results = evaluator.evaluate()["tags"]
    assert results["AP-sky"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert results["AP-cow"] == pytest.approx(100)  # its only rival is unknown
    assert math.isnan(results["AP-mud"])
    assert results["mAP"] == pytest.approx((results["AP-sky"] + results["AP-cow"]) / 2)
    assert results["classes"] == 2 and results["samples"] == 3
    evaluator.reset()
    evaluator.process(
        [{"tags": torch.tensor([0.0, 1, 0])}], [{"tags": torch.tensor([0.1, 0.2, 0.3])}]
    )
    assert evaluator.evaluate()["tags"]["samples"] == 1
