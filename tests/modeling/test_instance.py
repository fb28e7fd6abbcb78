# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Unary terms, matching, loss and the baseline merge against loops and brute force."""

import itertools

import numpy as np
import pytest
import torch

from wsis_d2.modeling.instance import (
    BoxMergeHead,
    box_masks,
    instance_loss,
    make_labels,
    match_instances,
    to_matched_labels,
    unary_scores,
)
from wsis_d2.modeling.instance.matching import mask_iou, tight_boxes
from wsis_d2.modeling.postprocessing import (
    assign_labels,
    panoptic_result,
    segments_to_instances,
)

H, W = 9, 11


def random_labels(seed: int, things: int = 3, classes: int = 4, stuff=(2, 3)):
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(things, 2, generator=g) * torch.tensor([W - 3.0, H - 3.0])
    side = 1 + torch.rand(things, 2, generator=g) * 6
    boxes = torch.cat([corner, corner + side], 1)
    return make_labels(
        boxes,
        torch.rand(things, generator=g),
        torch.randint(0, 2, (things,), generator=g),
        list(stuff),
        (H, W),
    )


def random_probabilities(seed: int, classes: int = 4) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.softmax(3 * torch.randn(classes, H, W, generator=g), 0)


def test_box_pixels_are_truncated_inclusive_and_clamped():
    boxes = torch.tensor([[1.9, 2.1, 3.9, 4.0], [-5.0, -1.0, 2.0, 99.0]])
    masks = box_masks(boxes, (H, W))
    first = np.zeros((H, W), bool)
    first[2:5, 1:4] = True
    second = np.zeros((H, W), bool)
    second[:, 0:3] = True
    assert np.array_equal(masks[0].numpy(), first)
    assert np.array_equal(masks[1].numpy(), second)


@pytest.mark.parametrize(
    "mode,inside,stuff", [("raw", -0.2957142, -0.6931472), ("sigmoid", -0.3555559, -0.7920061)]
)
def test_unary_scores_of_a_pixel_are_those_computed_by_hand(mode, inside, stuff):
    # A thing of score 0.8 where its class has 0.4, stuff of score 1 with 0.25; weights 0.7, 1.3.
    # Raw: 0.7 0.8 0.4 + 1.3 0.4 = 0.744, outside the box 0.52; stuff 0.7 0.25 + 1.3 0.25 = 0.5.
    # The sigmoid of 2 s - 1 makes 0.645656 of 0.8 and 0.731059 of 1.
    boxes = torch.tensor([[2.0, 3.0, 5.0, 6.0]])
    labels = make_labels(boxes, torch.tensor([0.8]), torch.tensor([0]), [2], (H, W))
    q = torch.tensor([0.4, 0.35, 0.25]).view(3, 1, 1).expand(3, H, W)
    scores = unary_scores(q, labels, 0.7, 1.3, epsilon=1e-8, box_score=mode)
    expected = np.full((2, H, W), [[[-0.6539265]], [[stuff]]])
    expected[0, 3:7, 2:6] = inside
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-5)


def test_stuff_dummies_cover_the_image_with_score_one():
    labels = random_labels(1, things=2)
    assert labels.num_things == 2 and labels.classes[2:].tolist() == [2, 3]
    assert labels.scores[2:].tolist() == [1.0, 1.0]
    assert box_masks(labels.boxes[2:], (H, W)).all()
    assert labels.is_thing.tolist() == [True, True, False, False]


def test_without_detections_the_stuff_labels_remain():
    labels = make_labels(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long),
                         [1, 3], (H, W))  # fmt: skip
    scores = unary_scores(random_probabilities(3), labels, 1.0, 1.0)
    assert scores.shape == (2, H, W)
    segmentation, segments = panoptic_result(scores.argmax(0), random_probabilities(3), labels)
    assert {s["category_id"] for s in segments} <= {1, 3}
    assert (segmentation > 0).all()
    assert len(segments_to_instances(segmentation, segments)) == 0


def iou_by_loops(a: np.ndarray, b: np.ndarray) -> float:
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 0.0


def test_mask_iou_and_tight_boxes_equal_loops():
    rng = np.random.default_rng(0)
    first = torch.from_numpy(rng.integers(-1, 4, (H, W)))
    second = torch.from_numpy(rng.integers(0, 3, (H, W)))
    first[first == 2] = 3  # leaves region 2 empty
    table = mask_iou(first, 4, second, 3)
    boxes = tight_boxes(first, 4)
    valid = (first >= 0).numpy()
    for i in range(4):
        region = (first == i).numpy()
        for j in range(3):
            assert table[i, j] == pytest.approx(iou_by_loops(region, (second == j).numpy() & valid))
        ys, xs = np.nonzero(region)
        wanted = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(ys) else [0, 0, 0, 0]
        assert boxes[i].tolist() == wanted


def best_total(weights: np.ndarray) -> float:
    """Greatest sum over one-to-one assignments, by trying all of them."""
    rows, columns = weights.shape
    if rows > columns:
        weights, rows, columns = weights.T, columns, rows
    return max(
        sum(weights[r, c] for r, c in enumerate(chosen))
        for chosen in itertools.permutations(range(columns), rows)
    )


@pytest.mark.parametrize("seed", range(8))
def test_matching_is_optimal_and_keeps_classes(seed):
    rng = np.random.default_rng(seed)
    labels = random_labels(seed, things=4)
    classes = torch.tensor([0, 1, 0, 1, 2])
    inst = torch.from_numpy(rng.integers(-1, 5, (H, W)))
    prediction = torch.from_numpy(rng.integers(0, len(labels), (H, W)))
    found = match_instances(inst, classes, prediction, labels, box_weight=0.0)
    assert found[4] == 4  # class 2 is the first stuff dummy, after four things
    valid = (inst >= 0).numpy()
    weights = np.zeros((4, 4))
    for i, j in itertools.product(range(4), range(4)):
        if classes[i] == labels.classes[j]:
            weights[i, j] = iou_by_loops((inst == i).numpy(), (prediction == j).numpy() & valid)
    total = sum(weights[i, j] for i, j in enumerate(found[:4].tolist()) if j >= 0)
    assert total == pytest.approx(best_total(weights))
    taken = [j for j in found[:4].tolist() if j >= 0]
    assert len(set(taken)) == len(taken)
    assert all(classes[i] == labels.classes[j] for i, j in enumerate(found.tolist()) if j >= 0)


def test_boxes_break_the_ties_of_masks():
    """Nothing is predicted as a thing yet, so only boxes can tell the instances apart."""
    inst = torch.full((H, W), -1)
    inst[1:4, 1:4], inst[5:8, 6:10] = 0, 1
    boxes = torch.tensor([[6.0, 5, 10, 8], [1, 1, 4, 4], [0, 7, 2, 9]])
    labels = make_labels(boxes, torch.ones(3), torch.zeros(3, dtype=torch.long), [2], (H, W))
    nothing = torch.full((H, W), 3)
    classes = torch.tensor([0, 0])
    assert match_instances(inst, classes, nothing, labels).tolist() == [1, 0]
    assert match_instances(inst, classes, nothing, labels, box_weight=0).tolist() == [-1, -1]


def test_loss_does_not_depend_on_the_order_of_instances_or_detections():
    labels = random_labels(5, things=3)
    inst = torch.from_numpy(np.random.default_rng(5).integers(-1, 4, (H, W)))
    classes = torch.tensor([0, 1, 0, 3])
    scores = torch.randn(len(labels), H, W, generator=torch.Generator().manual_seed(5))
    loss = float(instance_loss(scores, labels, inst, classes))
    order = torch.tensor([2, 0, 3, 1])
    table = torch.empty(5, dtype=torch.long)
    table[order], table[4] = torch.arange(4), -1
    again = instance_loss(scores, labels, table[inst], classes[order])
    assert float(again) == pytest.approx(loss, rel=1e-5)
    turn = torch.tensor([2, 0, 1])
    turned = make_labels(
        labels.boxes[:3][turn], labels.scores[:3][turn], labels.classes[:3][turn], [2, 3], (H, W)
    )
    again = instance_loss(scores[torch.tensor([2, 0, 1, 3, 4])], turned, inst, classes)
    assert float(again) == pytest.approx(loss, rel=1e-5)


def test_loss_is_the_mean_over_matched_pixels():
    labels, q = random_labels(6, things=2), random_probabilities(6)
    inst = torch.from_numpy(np.random.default_rng(6).integers(-1, 3, (H, W)))
    classes = torch.tensor([0, 1, 2])
    scores = unary_scores(q, labels, 1.0, 1.0)
    target = to_matched_labels(inst, match_instances(inst, classes, scores.argmax(0), labels))
    logs = torch.log_softmax(scores, 0)
    values = [
        -float(logs[target[y, x], y, x])
        for y, x in itertools.product(range(H), range(W))
        if target[y, x] >= 0
    ]
    assert 0 < len(values) < H * W
    assert float(instance_loss(scores, labels, inst, classes)) == pytest.approx(
        sum(values) / len(values), rel=1e-5
    )


@pytest.mark.parametrize("classes", [[], [1]])
def test_loss_without_a_valid_pixel_is_zero_with_a_graph(classes):
    labels = random_labels(7, things=0)
    scores = torch.zeros(len(labels), H, W, requires_grad=True)
    inst = torch.full((H, W), 0 if classes else -1)
    loss = instance_loss(scores, labels, inst, torch.tensor(classes, dtype=torch.long))
    loss.backward()
    assert float(loss.detach()) == 0 and scores.grad.abs().sum() == 0


def test_unary_gradients_match_finite_differences():
    labels = random_labels(8)
    q = random_probabilities(8).double()
    weights = torch.tensor([0.9, 1.2], dtype=torch.double)

    def value(w: torch.Tensor) -> torch.Tensor:
        return unary_scores(q, labels, w[0], w[1]).double().pow(2).mean()

    tracked = weights.clone().requires_grad_()
    value(tracked).backward()
    for i in range(2):
        step = torch.zeros(2, dtype=torch.double)
        step[i] = 1e-3
        slope = (value(weights + step) - value(weights - step)) / 2e-3
        assert float(tracked.grad[i]) == pytest.approx(float(slope), rel=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_baseline_gives_pixels_to_the_best_detection_of_their_class(seed):
    labels, q = random_labels(seed, things=4), random_probabilities(seed)
    answer = BoxMergeHead()(q, torch.zeros(3, H, W), labels).argmax(0)
    masks = box_masks(labels.boxes, (H, W))
    for y, x in itertools.product(range(H), range(W)):
        ranked = sorted(range(4), key=lambda c: -float(q[c, y, x]))
        for category in ranked:
            covering = [
                k for k in range(len(labels)) if labels.classes[k] == category and masks[k, y, x]
            ]
            if covering:
                break
        best = max(covering, key=lambda k: float(labels.scores[k]))
        assert answer[y, x] == best


def test_small_segments_dissolve_into_the_next_best_label():
    labels = random_labels(9, things=1)
    scores = torch.zeros(3, H, W)
    scores[1] = 1.0
    scores[0, 0, :4] = 3.0  # thing of 4 pixels
    scores[2, 5, :3] = 3.0  # stuff of 3 pixels
    assert assign_labels(scores, labels).unique().tolist() == [0, 1, 2]
    assert assign_labels(scores, labels, 0, 4).unique().tolist() == [0, 1]
    assert assign_labels(scores, labels, 5, 4).unique().tolist() == [1]
    assert assign_labels(scores, labels, 99, 9999).equal(scores.argmax(0))


def test_panoptic_result_scores_every_segment():
    labels, q = random_labels(10), random_probabilities(10)
    assignment = unary_scores(q, labels, 1.0, 1.0).argmax(0)
    segmentation, segments = panoptic_result(assignment, q, labels)
    assert segmentation.dtype == torch.int32 and (segmentation > 0).all()
    assert sorted(segmentation.unique().tolist()) == [s["id"] for s in segments]
    for segment in segments:
        mask = segmentation == segment["id"]
        label = segment["label"]
        assert (assignment[mask] == label).all() and segment["area"] == int(mask.sum())
        confidence = float(q[segment["category_id"]][mask].mean())
        assert segment["scores"]["mean_confidence"] == pytest.approx(confidence, abs=1e-6)
        detection = float(labels.scores[label]) if segment["isthing"] else 1.0
        assert segment["scores"]["detection"] == pytest.approx(detection)
        mode = "detection" if segment["isthing"] else "mean_confidence"
        assert segment["score"] == segment["scores"][mode]
    instances = segments_to_instances(segmentation, segments)
    assert len(instances) == sum(s["isthing"] for s in segments)
    for mask, box in zip(instances.pred_masks, instances.pred_boxes.tensor, strict=True):
        ys, xs = torch.nonzero(mask, as_tuple=True)
        assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
