# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The all command: boxes, tags and merge in one."""

import numpy as np
import pytest
from helpers.tag_networks import plain_config

from wsis_d2.data.datasets.sample.dataset import CATEGORIES
from wsis_d2.relabeling.first_labels import make_all_labels
from wsis_d2.weak_labels.driver import LabelRun
from wsis_d2.weak_labels.store import LabelStore

ALONE = LabelRun(workers=1)
FIRST_TWO = LabelRun(workers=1, limit=2)
THINGS = frozenset({0, 1, 2})


def files_of(store):
    """The labels' files by name; the processes' own folder and the manifest's order left out."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and ".tmp" not in path.parts
    }


def test_all_commands_leave_the_same_bytes_with_two_processes(scenes, classifier, tmp_path):
    for workers in (1, 2):
        status = make_all_labels(
            plain_config("WEAK_LABELS.MASKS", "box"), scenes[1], CATEGORIES,
            tmp_path / str(workers), classifier=classifier, run=LabelRun(workers=workers),
        )  # fmt: skip
        assert status == 0
    one, two = files_of(tmp_path / "1"), files_of(tmp_path / "2")
    assert len(one) >= 3 * (3 * 3 + 2) and one == two


def test_all_commands_leave_the_same_bytes_on_two_ray_nodes(scenes, classifier, tmp_path):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    try:
        cluster.wait_for_nodes()
        ray.init(address=cluster.address)
        for name, options in (("ray", {"ray_address": "auto"}), ("here", {"workers": 1})):
            status = make_all_labels(
                plain_config("WEAK_LABELS.MASKS", "box"), scenes[1], CATEGORIES, tmp_path / name,
                classifier=classifier, run=LabelRun(**options),
            )  # fmt: skip
            assert status == 0
        assert files_of(tmp_path / "ray") == files_of(tmp_path / "here")
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_all_keeps_its_parts_and_continues(scenes, classifier):
    root, records = scenes
    cfg = plain_config("WEAK_LABELS.MASKS", "grabcut")
    arguments = (cfg, records, CATEGORIES, root / "all")
    assert make_all_labels(*arguments, classifier=classifier, run=FIRST_TWO) == 0
    assert make_all_labels(*arguments, classifier=classifier, run=ALONE) == 0
    store = LabelStore.open(root / "all")
    boxes = LabelStore.open(root / "all" / "parts" / "boxes")
    tags = LabelStore.open(root / "all" / "parts" / "tags")
    assert len(store.image_ids()) == 3
    assert store.recipe["boxes"] == boxes.recipe and store.recipe["tags"] == tags.recipe
    for record in records:
        merged = store.semantic(record["image_id"])
        masks, cues = boxes.semantic(record["image_id"]), tags.semantic(record["image_id"])
        is_mask = np.isin(masks, list(THINGS))
        np.testing.assert_array_equal(merged[is_mask], masks[is_mask])
        kept = ~is_mask & (merged != 255)
        np.testing.assert_array_equal(merged[kept], cues[kept])


def test_dry_run_writes_nothing(scenes, classifier, tmp_path):
    status = make_all_labels(
        plain_config(),
        scenes[1],
        CATEGORIES,
        tmp_path / "a",
        classifier=classifier,
        run=LabelRun(workers=1, dry_run=True),
    )
    assert status == 0 and not (tmp_path / "a").exists()
