# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Every key of Detectron2 is read by some run, or refused by name once it is set."""

import pytest
import torch
import yaml
from detectron2.config import get_cfg
from helpers.tiny_panoptic import TinyData, tiny_cfg
from yacs.config import CfgNode

from wsis_d2.config import read_config
from wsis_d2.config_checks.kinds import OWN
from wsis_d2.config_checks.unused import UNUSED
from wsis_d2.engine import WSISTrainer
from wsis_d2.utils.errors import InputError

TAGS = ["MODEL.BACKBONE.NAME", "build_resnet_any_backbone", "MODEL.RESNETS.OUT_FEATURES", ["res5"]]
KINDS = {
    **{stage: ["MODEL.META_ARCHITECTURE", "WeakPanopticRCNN", "MODEL.WSIS.STAGE", stage,
               "MODEL.BACKBONE.NAME", "build_resnet_any_fpn_backbone"]
       for stage in ("detector", "semantic", "instance_piecewise", "end_to_end")},
    "TagClassifier": ["MODEL.META_ARCHITECTURE", "TagClassifier", "INPUT.DATASET_MAPPER_NAME",
                      "TagMapper", *TAGS],
    "TagSegmenter": ["MODEL.META_ARCHITECTURE", "TagSegmenter", "INPUT.DATASET_MAPPER_NAME",
                     "TagRegionMapper", *TAGS],
}  # fmt: skip
# What makes keys be read that a tiny run has no use for.
READING = [
    "SOLVER.OPTIMIZER", "SGD", "SOLVER.CLIP_GRADIENTS.ENABLED", True,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm", "SOLVER.MAX_ITER", 1,
    "MODEL.WSIS.PARTIAL_WEIGHTS", True,
]  # fmt: skip
IMAGES = ["INPUT.MIN_SIZE_TRAIN", [40], "INPUT.CROP.ENABLED", True]
# Read by Detectron2's own set-up; what each says is told beside it.
ELSEWHERE = {
    "VERSION",  # merge_from_file
    "TEST.EVAL_PERIOD",  # with a test set
    "DATALOADER.ASPECT_RATIO_GROUPING",  # refused where training begins; below
}
# Of these rows the run reads the key, and another one overrules it or the reader has one answer.
OVERRULED = {
    "MODEL.KEYPOINT_ON", "MODEL.MASK_ON", "SOLVER.GAMMA", "SOLVER.STEPS",
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "INPUT.RANDOM_FLIP", "VIS_PERIOD", "SOLVER.AMP",
    "SOLVER.MOMENTUM", "SOLVER.NESTEROV",
}  # fmt: skip


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


DEFAULTS = dict(leaves(get_cfg()))


def name_nodes(node, prefix=""):
    """Let every node know where it stands; its copies do too."""
    node.__dict__["where"] = prefix
    for key, value in node.items():
        if isinstance(value, CfgNode):
            name_nodes(value, f"{prefix}{key}.")


@pytest.fixture(scope="module")
def keys_read(tmp_path_factory):
    """Kind of run to the keys of Detectron2 that building and training its model looks up."""
    root = tmp_path_factory.mktemp("keys")
    data, found = TinyData(root / "data", 4), {}
    with pytest.MonkeyPatch.context() as patch:
        plain, read = CfgNode.__getattr__, set()

        def look_up(node, name):
            value = plain(node, name)
            if "where" in node.__dict__:
                read.add(node.__dict__["where"] + name)
            return value

        for kind, opts in KINDS.items():
            more = [] if kind in ("TagClassifier", "TagSegmenter") else IMAGES
            cfg = tiny_cfg(root / kind, *opts, *READING, *more)
            name_nodes(cfg)
            # The checks look at everything: what they see is not used.
            patch.setattr("wsis_d2.engine.trainer.check_trainable", lambda cfg: None)
            patch.setattr("wsis_d2.engine.trainer.check_used", lambda cfg, defaults: None)
            patch.setattr(CfgNode, "__getattr__", look_up)
            read.clear()
            trainer = WSISTrainer(cfg)
            trainer.resume_or_load(resume=False)
            trainer.train()
            patch.setattr(CfgNode, "__getattr__", plain)
            found[kind] = read & set(DEFAULTS)
    data.close()
    return found


def refused(kind: str, key: str, value: object) -> bool:
    try:
        read_config(None, [*KINDS[kind], key, value])
    except InputError as error:
        assert str(error).startswith(key) and "\n" not in str(error)
        return True
    return False


def other(value: object) -> object:
    """Another value of the same type, which the type's range allows."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return f"{value}x"
    return (*value, *value[:1]) if len(value) else (1.0,)


def test_what_no_run_reads_is_refused_in_every_kind_of_run(keys_read):
    unread = set(DEFAULTS) - set.union(*keys_read.values()) - ELSEWHERE
    assert len(unread) > 40  # the keys of other meta-architectures alone are more
    accepted = {
        (key, kind)
        for key in unread
        for kind in KINDS
        if not refused(kind, key, other(DEFAULTS[key]))
    }
    assert not accepted, sorted(accepted)


def test_what_is_refused_is_not_read(keys_read):
    wrong = []
    for row in UNUSED:
        for kind in row.kinds or KINDS:
            # The runs are the kinds' own configs, of which a row with a condition may not speak.
            holds = row.prefix not in OVERRULED and row.where(read_config(None, KINDS[kind]))
            for key in keys_read[kind] if holds else ():
                if key == row.prefix or key.startswith(row.prefix + "."):
                    wrong.append((kind, key))
    assert not wrong


@pytest.mark.parametrize(
    "kind,key,value,hint",
    [
        ("TagSegmenter", "SOLVER.AMP.ENABLED", True, "full precision"),
        ("detector", "TEST.AUG.ENABLED", True, "the semantic subnetwork's predictions alone"),
        ("semantic", "TEST.AUG.FLIP", False, "TEST.AUG.ENABLED is False"),
        ("end_to_end", "TEST.PRECISE_BN.ENABLED", True, "FrozenBN"),
        ("detector", "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "FULL_FRACTION"),
        ("detector", "DATALOADER.REPEAT_THRESHOLD", 0.1, "equally often"),
        ("detector", "DATASETS.PROPOSAL_FILES_TRAIN", ("a.pkl",), "its own proposals"),
        ("detector", "MODEL.LOAD_PROPOSALS", True, "its own proposals"),
        ("detector", "MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "expected 'RPN'"),
        ("detector", "MODEL.MASK_ON", True, "boxes alone"),
        ("end_to_end", "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH", 0.7, "INSTANCE_HEAD"),
        ("semantic", "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 0, "255"),
        ("semantic", "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res4", "res5"], "one feature"),
        ("semantic", "MODEL.SEMANTIC.RESNETS.DEFORM_MODULATED", True, "deformable"),
        ("TagClassifier", "INPUT.CROP.ENABLED", True, "crop_tags"),
        ("TagClassifier", "INPUT.RANDOM_FLIP", "vertical", "left to right"),
        ("TagSegmenter", "INPUT.MIN_SIZE_TRAIN", (600,), "INPUT.SCALE_RANGE"),
        ("TagSegmenter", "VIS_PERIOD", 20, "no label map"),
        ("semantic", "GLOBAL.HACK", 2.0, "no code"),
        ("BoxesFromFiles", "VIS_PERIOD", 20, "training crops"),
    ],
)
def test_a_setting_that_does_nothing_is_named(kind, key, value, hint):
    opts = KINDS.get(kind) or [*KINDS["end_to_end"], "MODEL.WSIS.DETECTOR_BOXES", [["a", "b"]]]
    with pytest.raises(InputError, match=f"^{key} is ") as error:
        read_config(None, [*opts, key, value])
    assert hint in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "kind,opts",
    [
        ("detector", ["TEST.DETECTIONS_PER_IMAGE", 7, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3]),
        ("detector", ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads",
                      "MODEL.ROI_BOX_CASCADE_HEAD.IOUS", (0.5, 0.6, 0.8)]),
        # Another part of the pipeline: a shared file tells of all.
        ("semantic", ["MODEL.RPN.NMS_THRESH", 0.6, "MODEL.FPN.OUT_CHANNELS", 64]),
        ("semantic", ["SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", 0.8]),
        ("end_to_end", ["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (300,)]),
        ("TagClassifier", ["INPUT.MIN_SIZE_TRAIN", (0,), "INPUT.MIN_SIZE_TEST", 0]),
        # Another model than ours reads the keys that it likes.
        ("detector", ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.NUM_CONVS", 2]),
        ("detector", ["MODEL.META_ARCHITECTURE", "PanopticFPN", "MODEL.MASK_ON", True]),
    ],
)  # fmt: skip
def test_a_setting_that_does_something_is_taken(kind, opts):
    read_config(None, [*KINDS[kind], *opts])


@pytest.mark.parametrize(
    "opts,key",
    [
        (["SOLVER.OPTIMIZER", "AdamW", "SOLVER.MOMENTUM", 0.8], "SOLVER.MOMENTUM"),
        (["SOLVER.OPTIMIZER", "AdamW", "SOLVER.NESTEROV", True], "SOLVER.NESTEROV"),
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.GAMMA", 0.5], "SOLVER.GAMMA"),
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.STEPS", (5,)], "SOLVER.STEPS"),
    ],
)
def test_keys_of_another_optimiser_or_schedule_are_named(opts, key):
    with pytest.raises(InputError, match=f"^{key} is "):
        read_config(None, opts)


@pytest.mark.parametrize("kind", OWN)
def test_a_config_that_was_written_is_read_again(kind, tmp_path):
    """YAML makes lists of tuples, which must not pass for other values."""
    file = tmp_path / "config.yaml"
    file.write_text(read_config(None, KINDS[kind]).dump())
    assert read_config(str(file)).MODEL.META_ARCHITECTURE in KINDS[kind]


def test_keys_of_deeplab_are_refused_by_name(tmp_path):
    file = tmp_path / "deeplab.yaml"
    text = {"MODEL": {"RESNETS": {"RES5_MULTI_GRID": [1, 2, 4]}}}
    file.write_text(yaml.safe_dump(text))
    with pytest.raises(InputError, match="MODEL.RESNETS.RES5_MULTI_GRID"):
        read_config(str(file))


def test_keys_that_another_project_adds_are_its_own(data, tmp_path):
    cfg = tiny_cfg(tmp_path / "out", "MODEL.WSIS.STAGE", "semantic").clone()
    cfg.defrost()
    cfg.OTHER = CfgNode({"RATE": 0.5, "FILE": None})
    cfg.MODEL.OTHER_HEAD = CfgNode({"DIM": 8})
    cfg.MODEL.ROI_MASK_HEAD.OTHER = True
    WSISTrainer(cfg)
    cfg.SOLVER.BASE_LR = None
    with pytest.raises(InputError, match="SOLVER.BASE_LR"):
        WSISTrainer(cfg)


@pytest.fixture
def data(tmp_path):
    tiny = TinyData(tmp_path / "data", 4)
    yield tiny
    tiny.close()


def test_aspect_ratio_grouping_is_off_and_cannot_be_had(data, tmp_path):
    assert read_config().DATALOADER.ASPECT_RATIO_GROUPING is False
    cfg = tiny_cfg(tmp_path / "out", "DATALOADER.ASPECT_RATIO_GROUPING", True)
    with pytest.raises(InputError, match="^DATALOADER.ASPECT_RATIO_GROUPING is True, expected Fal"):
        WSISTrainer(cfg)


def test_reference_world_size_scales_the_run(data, tmp_path):
    """For 2 processes of 2 images each, on one: half the batch and rate, twice as long."""
    opts = ["SOLVER.REFERENCE_WORLD_SIZE", 2, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.BASE_LR", 0.08,
            "SOLVER.MAX_ITER", 6, "MODEL.WSIS.STAGE", "semantic"]  # fmt: skip
    trainer = WSISTrainer(tiny_cfg(tmp_path / "out", *opts))
    assert (trainer.cfg.SOLVER.IMS_PER_BATCH, trainer.max_iter) == (2, 12)
    assert trainer.optimizer.param_groups[0]["initial_lr"] == pytest.approx(0.04)
    assert trainer.identity["config"]["SOLVER"]["MAX_ITER"] == 6
    wrong = tiny_cfg(tmp_path / "out", *opts[:2], "SOLVER.IMS_PER_BATCH", 3)
    with pytest.raises(InputError, match="SOLVER.REFERENCE_WORLD_SIZE is 2, expected a divisor"):
        WSISTrainer(wrong)


def test_cudnn_benchmark_reaches_torch(data, tmp_path):
    before = torch.backends.cudnn.benchmark
    try:
        for value in (True, False):
            WSISTrainer(tiny_cfg(tmp_path / "out", "CUDNN_BENCHMARK", value))
            assert torch.backends.cudnn.benchmark is value
    finally:
        torch.backends.cudnn.benchmark = before


def test_expected_results_are_verified(data, tmp_path):
    def train(expected):
        opts = ["MODEL.WSIS.STAGE", "semantic", "SOLVER.MAX_ITER", 1, "DATASETS.TEST",
                "('tiny_full',)", "TEST.EXPECTED_RESULTS", expected]  # fmt: skip
        trainer = WSISTrainer(tiny_cfg(tmp_path / "out", *opts))
        trainer.resume_or_load(resume=False)
        return trainer.train()

    value = train([["sem_seg", "mIoU", 50.0, 50.0]])["sem_seg"]["mIoU"]
    assert 0 <= value <= 100
    for wrong in (["sem_seg", "mIoU", value + 1.0, 0.5], ["sem_seg", "no such", 50.0, 50.0]):
        with pytest.raises(SystemExit) as left:
            train([wrong])
        assert left.value.code == 1
    with pytest.raises(InputError, match=r"task 'segm' is not among .* one of \['sem_seg'\]"):
        train([["segm", "AP", 1.0, 0.2]])
    with pytest.raises(InputError, match="TEST.EXPECTED_RESULTS.*task, metric, value, tolerance"):
        train([["sem_seg", "mIoU"]])
    with pytest.raises(InputError, match="TEST.EXPECTED_RESULTS: DATASETS.TEST is"):
        WSISTrainer(tiny_cfg(tmp_path, "TEST.EXPECTED_RESULTS", [["bbox", "AP", 1.0, 0.2]]))


@pytest.mark.parametrize("part", ["MODEL.", "MODEL.SEMANTIC."])
@pytest.mark.parametrize(
    "name,value", [("PIXEL_MEAN", [1.0]), ("PIXEL_STD", [0.0, 1.0, 1.0]), ("PIXEL_STD", [1.0] * 4)]
)
def test_colours_of_photographs_are_three(part, name, value):
    """One mean makes a network of grey pictures, and a deviation of 0 a loss that is no number."""
    with pytest.raises(InputError, match=rf"^{part}{name} is .*expected three numbers"):
        read_config(None, [f"{part}{name}", value])
