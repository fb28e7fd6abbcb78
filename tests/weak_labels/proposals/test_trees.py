# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Contours, hierarchies, grouping and proposal sets, against brute force."""

import itertools

import cv2
import numpy as np
import pytest

from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.proposals import MCGSource, build_proposal_source, select_proposal
from wsis_d2.weak_labels.proposals.contours import (
    WEIGHTS,
    contour_features,
    gradient_contours,
    load_weights,
    make_contours,
)
from wsis_d2.weak_labels.proposals.dead_leaves import draw_scene, outlines
from wsis_d2.weak_labels.proposals.deduplicate import distinct_proposals
from wsis_d2.weak_labels.proposals.files import SuperpixelProposals
from wsis_d2.weak_labels.proposals.grouping import group_tree
from wsis_d2.weak_labels.proposals.hierarchy import build_hierarchies


def scene(height=60, width=80):
    """Two discs on ground, a little noise; image and the discs."""
    y, x = np.mgrid[:height, :width]
    left = (x - 25) ** 2 + (y - 30) ** 2 < 15**2
    right = (x - 56) ** 2 + (y - 30) ** 2 < 12**2
    image = np.full((height, width, 3), (70, 140, 60), float)
    image[left], image[right] = (40, 50, 190), (190, 180, 60)
    image += np.random.default_rng(0).normal(0, 4, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), [left, right]


@pytest.fixture(scope="module")
def proposals():
    return MCGSource()(scene()[0], {})


def test_areas_boxes_and_intersections_are_those_of_the_masks(proposals):
    box = (20, 10, 61, 44)
    window = np.zeros(proposals.image_size, bool)
    window[10:44, 20:61] = True
    inside, same = proposals.intersections(box), proposals.mask_intersections(window)
    np.testing.assert_allclose(inside, same)
    for k in np.random.default_rng(0).choice(len(proposals), 60, replace=False):
        mask = np.isin(proposals.superpixels, proposals.leaves(k))
        rows, columns = np.nonzero(mask)
        assert proposals.areas[k] == mask.sum()
        assert tuple(proposals.boxes[k]) == (
            columns.min(), rows.min(), columns.max() + 1, rows.max() + 1,
        )  # fmt: skip
        assert inside[k] == (mask & window).sum()
        assert (proposals.mask(k) >= mask).all()  # holes are filled


def test_every_proposal_is_connected(proposals):
    for k in np.random.default_rng(1).choice(len(proposals), 60, replace=False):
        mask = np.isin(proposals.superpixels, proposals.leaves(k)).astype(np.uint8)
        assert cv2.connectedComponents(mask, connectivity=4)[0] == 2


def test_objects_are_among_the_proposals(proposals):
    for disc in scene()[1]:
        shared = proposals.mask_intersections(disc)
        assert (shared / (proposals.areas + disc.sum() - shared)).max() > 0.9


def test_each_measure_selects_its_own_proposal():
    # The box has 100 pixels. Its two outer sides fill its tight box and 19 of its pixels; all but
    # one column 90 of both; the whole with a pixel far off 100 of 101, in a tight box of 400.
    masks = np.zeros((3, 20, 20), bool)
    masks[0, 0, :10] = masks[0, :10, 0] = True
    masks[1, :10, 1:10] = True
    masks[2, :10, :10] = masks[2, 19, 19] = True
    _, superpixels = np.unique(masks.T @ [1, 2, 4], return_inverse=True)
    superpixels = superpixels.reshape(20, 20).T
    found = SuperpixelProposals(superpixels, [np.unique(superpixels[mask]) for mask in masks])
    box = (0, 0, 10, 10)
    assert select_proposal(found, box, "bbox") == 0  # 1, 0.9 and 0.25
    assert select_proposal(found, box, "bbox_area") == 1  # 1.095, 1.35 and 0.745
    assert select_proposal(found, box, "mask_vs_box") == 2  # 0.19, 0.9 and 0.99
    assert select_proposal(found, (12, 0, 15, 3), "bbox") == 2  # 9 of its 400
    assert select_proposal(found, (12, 0, 15, 3), "mask_vs_box") is None


def test_selected_proposal_is_the_object(proposals):
    left = scene()[1][0]
    mask = proposals.mask(select_proposal(proposals, (11, 16, 40, 45)))
    assert (mask & left).sum() / (mask | left).sum() > 0.9


def random_tree(rng, count):
    """A random binary tree over a path of superpixels with some extra contacts."""
    edges = {(i, i + 1) for i in range(count - 1)}
    edges |= {tuple(sorted(rng.choice(count, 2, replace=False).tolist())) for _ in range(count)}
    groups, parents, node = {i: {i} for i in range(count)}, np.zeros(2 * count - 1, int), count
    while len(groups) > 1:
        touching = [
            (a, b)
            for a, b in itertools.combinations(sorted(groups), 2)
            if any(tuple(sorted((u, v))) in edges for u in groups[a] for v in groups[b])
        ]
        a, b = touching[rng.integers(len(touching))]
        parents[a] = parents[b] = node
        groups[node] = groups.pop(a) | groups.pop(b)
        node += 1
    parents[-1] = node - 1
    return parents, edges


def brute_force(parents, edges, count):
    """All connected sets of up to four regions of each cut, as sets of superpixels."""
    leaves = {i: frozenset([i]) for i in range(count)}
    for node in range(count, 2 * count - 1):
        leaves[node] = frozenset().union(*(leaves[c] for c in np.flatnonzero(parents[:-1] == node)))
    found, cut = set(), {2 * count - 2}

    def connected(group):
        seen, todo = {group[0]}, [group[0]]
        while todo:
            a = todo.pop()
            for b in set(group) - seen:
                if any(tuple(sorted((u, v))) in edges for u in leaves[a] for v in leaves[b]):
                    seen.add(b)
                    todo.append(b)
        return len(seen) == len(group)

    for node in range(2 * count - 2, count - 2, -1):
        for size in (1, 2, 3, 4):
            for group in itertools.combinations(sorted(cut), size):
                if connected(group):
                    found.add(frozenset().union(*(leaves[g] for g in group)))
        if node >= count:
            cut = (cut - {node}) | set(np.flatnonzero(parents[:-1] == node).tolist())
    return found


@pytest.mark.parametrize("seed", range(6))
def test_grouping_finds_every_connected_set_of_every_cut(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 10))
    parents, edges = random_tree(rng, count)
    altitudes = np.concatenate([np.zeros(count), np.arange(1, count)])
    pairs = np.array(sorted(edges))
    order, runs, nodes = group_tree(parents, altitudes, (pairs[:, 0], pairs[:, 1]), (10**5,) * 4)
    assert sorted(order) == list(range(count))
    mine = [
        frozenset(int(s) for n in row if n >= 0 for s in order[runs[n, 0] : runs[n, 1]])
        for row in nodes
    ]
    assert set(mine) == brute_force(parents, edges, count)
    rows = [tuple(sorted(row)) for row in nodes.tolist()]
    assert len(set(rows)) == len(rows)  # no set of nodes twice


def test_fewer_superpixels_still_touch_as_the_graph_says():
    image = scene()[0]
    contours = gradient_contours(image)
    colour = image.astype(np.float32)
    found = build_hierarchies([contours], colour, colour, size_damping=0, max_superpixels=25)
    assert len(found.trees) == 5
    labels = found.superpixels
    assert len(np.unique(labels)) == labels.max() + 1 == 25
    sides = [(labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])]
    pairs = np.concatenate([np.stack([a.ravel(), b.ravel()], axis=1) for a, b in sides])
    touching = {tuple(sorted(p)) for p in pairs.tolist() if p[0] != p[1]}
    assert {tuple(sorted(p)) for p in np.stack(found.edges, axis=1).tolist()} == touching
    for label in range(25):
        assert cv2.connectedComponents((labels == label).astype(np.uint8), connectivity=4)[0] == 2


def test_caps_bound_each_kind():
    image = scene()[0]
    contours = gradient_contours(image)
    found = build_hierarchies([contours], image.astype(np.float32), size_damping=0)
    assert len(found.trees) == 1
    caps = (30, 40, 50, 60)
    _, _, nodes = group_tree(*found.trees[0], found.edges, caps)
    sizes = (nodes >= 0).sum(axis=1)
    assert tuple(np.bincount(sizes, minlength=5)[1:]) == caps


def test_distinct_proposals_against_brute_force():
    image = cv2.resize(scene()[0], (28, 21), interpolation=cv2.INTER_AREA)
    small = MCGSource(contours="gradient", preset_name="scg")(image, {})
    chosen = distinct_proposals(small, 0.9)
    masks = np.stack(
        [np.isin(small.superpixels, small.leaves(k)).ravel() for k in range(len(small))]
    ).astype(np.float32)
    kept = masks[chosen]
    shared = kept @ kept.T
    area = kept.sum(axis=1)
    iou = shared / (area[:, None] + area[None] - shared)
    np.fill_diagonal(iou, 0)
    assert iou.max() <= 0.9
    dropped = np.setdiff1d(np.arange(len(small)), chosen)
    shared = masks[dropped] @ kept.T
    iou = shared / (masks[dropped].sum(axis=1)[:, None] + area[None] - shared)
    assert (iou.max(axis=1) > 0.9).all()
    np.testing.assert_array_equal(distinct_proposals(small, 0.9, limit=7), chosen[:7])


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (3, 3), (9, 16)])
@pytest.mark.parametrize("noisy", [False, True])
def test_smallest_and_uniform_images(shape, noisy):
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3)).astype(np.uint8) * noisy
    found = MCGSource()(image, {})
    assert len(found) >= 1 and found.areas.max() == shape[0] * shape[1]
    assert found.mask(select_proposal(found, (0, 0, 1, 1))).shape == shape


def test_a_larger_image_is_worked_on_small_and_answered_large():
    image, (left, _) = scene()
    large = cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    found = MCGSource(max_side=80)(large, {})
    assert found.superpixels.shape == (60, 80) and found.image_size == (240, 320)
    mask = found.mask(select_proposal(found, (44, 64, 160, 180)))
    truth = np.kron(left, np.ones((4, 4), bool))
    assert mask.shape == (240, 320) and (mask & truth).sum() / (mask | truth).sum() > 0.85
    assert found.areas.max() == pytest.approx(240 * 320)


@pytest.mark.parametrize("name", ["learned", "gradient"])
def test_contours_are_strong_on_outlines(name):
    image, discs = scene()
    found = make_contours(name)(image)
    assert found.shape == image.shape[:2] and found.dtype == np.float32
    assert 0 <= found.min() and found.max() <= 1
    edge = outlines(discs[0].astype(int) + 2 * discs[1])
    assert (
        found[edge].mean()
        > 3 * found[~cv2.dilate(edge.astype(np.uint8), np.ones((5, 5))).astype(bool)].mean()
    )


def test_learned_contours_tell_outlines_from_texture_better_than_the_gradient():
    rng = np.random.default_rng(7)
    scores = {"learned": [], "gradient": []}
    for _ in range(4):
        image, leaves, _ = draw_scene(rng, [], 120, 160)
        edge = outlines(leaves)
        for name, values in scores.items():
            found = make_contours(name)(image)
            # Chance that an outline pixel is stronger than another one.
            ranks = found.ravel().argsort().argsort()
            inside = ranks[edge.ravel()]
            values.append((inside.mean() - inside.size / 2) / (edge.size - inside.size))
    assert np.mean(scores["learned"]) > np.mean(scores["gradient"])


def test_features_are_finite_on_flat_and_noisy_images():
    for value in (0, 255):
        assert np.isfinite(contour_features(np.full((40, 50, 3), value, np.uint8))).all()
    noise = np.random.default_rng(0).integers(0, 256, (33, 47, 3)).astype(np.uint8)
    assert np.isfinite(contour_features(noise)).all()


def test_scenes_come_from_their_generator_alone():
    first, second = (draw_scene(np.random.default_rng(3), [])[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_shipped_weights_say_where_they_come_from():
    with np.load(WEIGHTS, allow_pickle=False) as file:
        text = str(file["provenance"])
    assert "dead-leaves" in text and "astronaut.png" in text and "BSDS" not in text
    assert WEIGHTS.stat().st_size < 20_000


def test_bad_weights_and_names_are_refused(tmp_path):
    (tmp_path / "w.npz").write_bytes(b"no weights")
    with pytest.raises(InputError, match="w.npz.*train_contours"):
        load_weights(tmp_path / "w.npz")
    np.savez(tmp_path / "few.npz", weight0=np.zeros((3, 1)), bias0=np.zeros(1))
    with pytest.raises(InputError, match="other features"):
        load_weights(tmp_path / "few.npz")
    with np.load(WEIGHTS, allow_pickle=False) as file:
        sound = {name: file[name] for name in file.files}
    for change, told in (
        ({"bias0": sound["bias0"] * np.nan}, "not finite"),
        ({"weight1": np.repeat(sound["weight1"], 2, 1), "bias1": np.zeros(2)}, "last layer"),
    ):
        np.savez(tmp_path / "odd.npz", **(sound | change))
        with pytest.raises(InputError, match=f"odd.npz: .*{told}"):
            make_contours("learned", str(tmp_path / "odd.npz"))
    with pytest.raises(InputError, match="PROPOSALS.CONTOURS.*learned"):
        MCGSource(contours="canny")
    with pytest.raises(InputError, match="PROPOSALS.PRESET"):
        MCGSource(preset_name="fast")


def test_weights_of_a_file_that_has_changed_are_read_again(tmp_path):
    with np.load(WEIGHTS, allow_pickle=False) as file:
        sound = {name: file[name] for name in file.files}
    path = tmp_path / "w.npz"
    digests = set()
    for bias in (sound["bias1"], sound["bias1"] + 1):
        np.savez(path, **(sound | {"bias1": bias}))
        digests.add(make_contours("learned", str(path)).digest)
    assert len(digests) == 2


def test_structured_forest_names_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.delattr(cv2, "ximgproc", raising=False)
    with pytest.raises(InputError, match="contrib"):
        make_contours("structured", str(tmp_path / "model.yml.gz"))


def test_structured_forest_is_asked_for_rgb_floats(tmp_path, monkeypatch):
    seen = {}

    class Forest:
        def detectEdges(self, image):
            seen["image"] = image
            return image[..., 0] * 2

    class Module:
        @staticmethod
        def createStructuredEdgeDetection(path):
            seen["path"] = path
            return Forest()

    monkeypatch.setattr(cv2, "ximgproc", Module, raising=False)
    model = tmp_path / "mine.yml.gz"
    model.write_bytes(b"model")
    image = np.zeros((4, 5, 3), np.uint8)
    image[..., 2] = 255
    found = make_contours("structured", str(model))(image)
    assert seen["path"] == str(model) and seen["image"][0, 0].tolist() == [1, 0, 0]
    assert (found == 1).all()


def test_unknown_source_is_refused():
    from detectron2.config import get_cfg

    from wsis_d2.config import add_wsis_config

    cfg = get_cfg()
    add_wsis_config(cfg)
    assert isinstance(build_proposal_source(cfg), MCGSource)
    cfg.WEAK_LABELS.PROPOSALS.NAME = "sam"
    with pytest.raises(InputError, match="PROPOSALS.NAME is 'sam', expected one of coco_json, mcg"):
        build_proposal_source(cfg)
