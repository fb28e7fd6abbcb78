# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Training: repeatable, resumable, the same on two processes, blind to masks."""

import hashlib
import json

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from helpers.tiny_panoptic import TinyData, tiny_cfg
from PIL import Image
from torch import nn

from wsis_d2.checkpoint.start import load_for_training
from wsis_d2.engine import WSISTrainer, build_lr_scheduler, build_optimizer, launch
from wsis_d2.engine.picture_hook import build_picture_hook
from wsis_d2.engine.solver import parameter_groups
from wsis_d2.utils.errors import InputError

SEMANTIC = ("MODEL.WSIS.STAGE", "semantic")
# Without batch statistics and dropout, so that one process and two may be compared.
PLAIN = (
    "MODEL.SEMANTIC.RESNETS.NORM", "GN", "MODEL.SEM_SEG_HEAD.NORM", "",
    "SOLVER.OPTIMIZER", "SGD", "MODEL.SEM_SEG_HEAD.NAME", "PSPHeadWithoutDropout",
    "MODEL.SEMANTIC.RESNETS.STEM_OUT_CHANNELS", 32,
    "MODEL.SEMANTIC.RESNETS.RES2_OUT_CHANNELS", 32,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny") / "data"


@pytest.fixture
def data(folder):
    tiny = TinyData(folder)
    yield tiny
    tiny.close()


def train(cfg, resume: bool = False) -> WSISTrainer:
    trainer = WSISTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def weight_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def losses_of(folder) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [line["total_loss"] for line in lines if "total_loss" in line]


@pytest.mark.parametrize("stage", ["detector", "semantic", "end_to_end"])
def test_a_resumed_run_ends_like_an_uninterrupted_one(data, tmp_path, stage):
    options = [
        "MODEL.WSIS.STAGE", stage, "SOLVER.CHECKPOINT_PERIOD", 2, "INPUT.SCALE_RANGE", [1.0, 1.3],
        "MODEL.INSTANCE_HEAD.ITERATIONS", 2, "MODEL.WSIS.TRAIN_BOXES", "gt_jitter",
        "MODEL.WSIS.PARTIAL_WEIGHTS", True,
        "DATASETS.TRAIN", "('tiny_weak', 'tiny_full')", "DATALOADER.FULL_FRACTION", 0.5,
    ]  # fmt: skip
    whole = train(tiny_cfg(tmp_path / "whole", *options))
    cut = WSISTrainer(tiny_cfg(tmp_path / "cut", *options))
    cut.resume_or_load(resume=True)
    original, steps = cut.run_step, []

    def stop_after_three() -> None:
        if len(steps) == 3:
            raise KeyboardInterrupt
        steps.append(cut.iter)
        original()

    cut.run_step = stop_after_three
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    torch.rand(7), np.random.rand(5)  # noqa: NPY002  (another random state than before)
    resumed = WSISTrainer(tiny_cfg(tmp_path / "cut", *options))
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2
    resumed.train()
    assert weight_hash(resumed.model) == weight_hash(whole.model)
    rates = [group["lr"] for group in whole.optimizer.param_groups]
    assert [group["lr"] for group in resumed.optimizer.param_groups] == rates


def test_weights_depend_on_the_seed_alone(data, tmp_path):
    hashes = [
        weight_hash(train(tiny_cfg(tmp_path / str(k), *SEMANTIC, "SEED", seed)).model)
        for k, seed in enumerate((5, 5, 6))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_training_masks_turned_to_noise_change_nothing_in_weak_training(tmp_path):
    """The truth of the training images is replaced by noise: labels stay, weights stay."""
    tiny = TinyData(tmp_path / "data")
    try:
        hashes = []
        for name in ("truth", "noise"):
            if name == "noise":
                rng = np.random.default_rng(0)
                for path in sorted((tiny.folder / "panoptic").glob("*.png")):
                    shape = np.array(Image.open(path)).shape
                    Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)
                tiny.register()
            options = [*SEMANTIC, "SOLVER.MAX_ITER", 3]
            hashes.append(weight_hash(train(tiny_cfg(tmp_path / name, *options)).model))
        assert hashes[0] == hashes[1]
        with pytest.raises(InputError, match="holds segment id"):  # The full twin does read them.
            train(tiny_cfg(tmp_path / "full", *SEMANTIC, train="tiny_full"))
    finally:
        tiny.close()


def _worker(folder: str, data_folder, options: list, world: int) -> None:
    TinyData(data_folder)
    torch.set_num_threads(1)
    train(tiny_cfg(folder, *options))


@pytest.mark.parametrize("stage", ["semantic", "end_to_end"])
def test_two_processes_train_like_one_with_the_same_batch(data, tmp_path, stage):
    options = [
        "MODEL.WSIS.STAGE", stage, *PLAIN, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 3,
        "MODEL.WSIS.TRAIN_BOXES", "gt", "MODEL.INSTANCE_HEAD.ITERATIONS", 2,
        "MODEL.WSIS.PARTIAL_WEIGHTS", True,
    ]  # fmt: skip
    for world in (1, 2):
        folder = tmp_path / str(world)
        arguments = (str(folder), data.folder, options, world)
        if world == 1:
            _worker(*arguments)
        else:
            launch(_worker, world, args=arguments)
    states = [
        torch.load(tmp_path / str(w) / "model_final.pth", weights_only=False)["model"]
        for w in (1, 2)
    ]
    losses = [losses_of(tmp_path / str(w)) for w in (1, 2)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name, value in states[0].items():
        assert torch.allclose(value.float(), states[1][name].float(), atol=2e-4), name


def test_learning_rates_and_decays_by_part(data, tmp_path):
    cfg = tiny_cfg(
        tmp_path, "MODEL.WSIS.STAGE", "end_to_end", "SOLVER.HEAD_LR_FACTOR", 10.0,
        "SOLVER.BASE_LR", 0.002, "SOLVER.WEIGHT_DECAY", 1e-4, "SOLVER.WEIGHT_DECAY_NORM", 0.0,
    )  # fmt: skip
    model = build_model(cfg)
    found = {}
    names = {id(p): n for n, p in model.named_parameters()}
    for group in parameter_groups(cfg, model):
        for parameter in group["params"]:
            found[names[id(parameter)]] = (round(group["lr"], 8), group["weight_decay"])
    assert not [n for n in found if n.startswith("detector.")]
    assert found["semantic.backbone.res2.0.conv1.weight"] == (0.002, 1e-4)
    assert found["semantic.backbone.res2.0.conv1.norm.weight"] == (0.002, 0.0)
    assert found["semantic.head.predictor.weight"] == (0.02, 1e-4)
    for name in ("box_weight", "global_weight", "bilateral_weight", "gaussian_weight"):
        assert found[f"instance.{name}"] == (0.02, 0.0)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(found) == trained


def test_poly_schedule_falls_to_nothing_as_computed_by_hand(data, tmp_path):
    cfg = tiny_cfg(
        tmp_path, *SEMANTIC, "SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.MAX_ITER", 50,
        "SOLVER.BASE_LR", 0.1,
    )  # fmt: skip
    optimizer = build_optimizer(cfg, build_model(cfg))
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    # 0.8, 0.5 and 0.02 of the run are left, to the power 0.9.
    assert rates[0] == 0.1 and rates == sorted(rates, reverse=True)
    assert [rates[k] for k in (10, 25, 49)] == pytest.approx(
        [0.0818052, 0.0535887, 0.00295752], rel=1e-5
    )


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_full_model_clipping_bounds_the_norm_of_all_gradients(data, tmp_path, kind):
    cfg = tiny_cfg(
        tmp_path, *SEMANTIC, "SOLVER.OPTIMIZER", kind, "SOLVER.CLIP_GRADIENTS.ENABLED", True,
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.5,
    )  # fmt: skip
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, getattr(torch.optim, kind))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert float(norm) == pytest.approx(0.5, rel=1e-3)


def test_pictures_reach_tensorboard_and_change_nothing(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plain = train(tiny_cfg(tmp_path / "plain", *SEMANTIC, "SOLVER.MAX_ITER", 2))
    drawn = train(tiny_cfg(tmp_path / "drawn", *SEMANTIC, "SOLVER.MAX_ITER", 2, "VIS_PERIOD", 2))
    assert weight_hash(drawn.model) == weight_hash(plain.model)
    events = EventAccumulator(str(tmp_path / "drawn"), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["training"]
    (picture,) = events.Images("training")
    # Image, targets and output side by side, each with its name above.
    assert picture.height == 256 + 28 and picture.width > 2 * 256


def test_a_detectors_pictures_are_detectron2s_own(data, tmp_path):
    cfg = tiny_cfg(tmp_path, "MODEL.WSIS.STAGE", "detector", "VIS_PERIOD", 2)
    assert build_picture_hook(cfg, build_model(cfg)) is None


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(data, tmp_path):
    trainer = WSISTrainer(tiny_cfg(tmp_path, *SEMANTIC))
    trainer.resume_or_load(resume=False)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    weight = trainer.model.semantic.head.aux_predictor.weight
    weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(InputError, match="gradient of semantic.head.aux_predictor.weight"):
        trainer.train()
    after = trainer.model.parameters()
    assert all(torch.equal(new, old) for new, old in zip(after, before, strict=True))


def test_nan_stops_and_names_the_loss(data, tmp_path):
    trainer = WSISTrainer(tiny_cfg(tmp_path, *SEMANTIC))
    trainer.resume_or_load(resume=False)
    with torch.no_grad():
        trainer.model.semantic.head.aux_predictor.bias.fill_(float("nan"))
    with pytest.raises(InputError, match="loss_sem_seg_aux is nan at iteration 0.*png"):
        trainer.train()


def test_parts_are_composed_from_their_own_checkpoints(data, tmp_path):
    detector = train(tiny_cfg(tmp_path / "d", "MODEL.WSIS.STAGE", "detector", "SOLVER.MAX_ITER", 1))
    semantic = train(tiny_cfg(tmp_path / "s", *SEMANTIC, "SOLVER.MAX_ITER", 1))
    options = [
        "MODEL.WSIS.DETECTOR_WEIGHTS", str(tmp_path / "d/model_final.pth"),
        "MODEL.WSIS.SEMANTIC_WEIGHTS", str(tmp_path / "s/model_final.pth"),
    ]  # fmt: skip
    cfg = tiny_cfg(tmp_path / "i", "MODEL.WSIS.STAGE", "instance_piecewise", *options)
    model = build_model(cfg)
    load_for_training(cfg, model)
    assert weight_hash(model.detector) == weight_hash(detector.model.detector)
    assert weight_hash(model.semantic) == weight_hash(semantic.model.semantic)
    for key, value, message in (
        ("DETECTOR_WEIGHTS", str(tmp_path / "s/model_final.pth"), "fills none of .* the detector"),
        ("SEMANTIC_WEIGHTS", str(tmp_path / "none.pth"), "none.pth"),
    ):
        wrong = tiny_cfg(
            tmp_path / "w", "MODEL.WSIS.STAGE", "instance_piecewise", f"MODEL.WSIS.{key}", value
        )
        with pytest.raises(InputError, match=f"MODEL.WSIS.{key}: .*{message}"):
            load_for_training(wrong, build_model(wrong))
    other = tiny_cfg(
        tmp_path / "o", *SEMANTIC, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 12,
        "MODEL.WSIS.SEMANTIC_WEIGHTS", str(tmp_path / "s/model_final.pth"),
    )  # fmt: skip
    with pytest.raises(InputError, match=r"head.conv.weight is \(8, 80, 3, 3\), not \(12, "):
        load_for_training(other, build_model(other))


def test_training_a_head_without_parameters_is_refused(data, tmp_path):
    cfg = tiny_cfg(
        tmp_path, "MODEL.WSIS.STAGE", "instance_piecewise", "MODEL.INSTANCE_HEAD.NAME",
        "BoxMergeHead",
    )  # fmt: skip
    with pytest.raises(InputError, match="nothing to train"):
        WSISTrainer(cfg)


def test_wrong_class_counts_are_named(data, tmp_path):
    with pytest.raises(InputError, match="SEM_SEG_HEAD.NUM_CLASSES is 7, dataset tiny_weak has 4"):
        tiny_cfg(tmp_path, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 7)
    with pytest.raises(InputError, match="NO.SUCH.KEY"):
        tiny_cfg(tmp_path, "NO.SUCH.KEY", 7)


@pytest.mark.parametrize(
    "opts,message",
    [
        (("DATASETS.TEST", ("nowhere",)), "no dataset 'nowhere'"),
        (("TEST.APR_THRESHOLDS", "0.5:0.1:0.1"), "APr thresholds"),
        (("TEST.TRUE_PARTS", ["crf"], "RUN_VARIANT", "x"), "'crf'"),
    ],
)
def test_what_cannot_be_evaluated_is_told_before_training(data, tmp_path, opts, message):
    test = ("DATASETS.TEST", ("tiny_full",))
    cfg = tiny_cfg(tmp_path, "MODEL.WSIS.STAGE", "end_to_end", *test, *opts)
    with pytest.raises(InputError, match=message):
        WSISTrainer(cfg)


def test_boxes_of_files_are_missed_before_training(data, tmp_path):
    boxes = tmp_path / "boxes.json"
    boxes.write_text("[]")
    opts = ["MODEL.WSIS.STAGE", "end_to_end", "MODEL.WSIS.DETECTOR_BOXES"]
    for files, message in (
        ([["tiny_weak", str(boxes)]], "no file for data set 'tiny_full'"),
        ([["tiny_weak", str(boxes)], ["tiny_full", "no.json"]], "no.json: no such file"),
    ):
        cfg = tiny_cfg(tmp_path, *opts, files, "DATASETS.TEST", ("tiny_full",))
        with pytest.raises(InputError, match=f"DETECTOR_BOXES: {message}"):
            WSISTrainer(cfg)
