# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Which weights go where: coverage by names and shapes, for every network and file."""

import logging
import pickle

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from helpers.tiny_panoptic import TinyData, tiny_cfg
from torch import nn

from wsis_d2.checkpoint.coverage import load_into
from wsis_d2.checkpoint.names import match_ends, read_weights
from wsis_d2.checkpoint.parts import (
    backbones_of,
    load_for_evaluation,
    load_for_training,
    load_trained,
    only_weights,
)
from wsis_d2.utils.errors import InputError

DETECTOR, SEMANTIC, JOINT, PIECEWISE = (
    ("MODEL.WSIS.STAGE", stage)
    for stage in ("detector", "semantic", "end_to_end", "instance_piecewise")
)
# Both networks on the ResNet-50 of ImageNet, narrow above it.
R50 = (
    "MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.NORM", "FrozenBN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 64, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256,
    "MODEL.SEMANTIC.RESNETS.DEPTH", 50, "MODEL.SEMANTIC.RESNETS.NORM", "FrozenBN",
    "MODEL.SEMANTIC.RESNETS.STEM_OUT_CHANNELS", 64,
    "MODEL.SEMANTIC.RESNETS.RES2_OUT_CHANNELS", 256,
)  # fmt: skip
# The widths of torchvision's ResNet-18.
R18 = (
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 64, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64,
    "MODEL.SEMANTIC.RESNETS.STEM_OUT_CHANNELS", 64, "MODEL.SEMANTIC.RESNETS.RES2_OUT_CHANNELS", 64,
)  # fmt: skip
ANEW = ("MODEL.WSIS.PARTIAL_WEIGHTS", True)
NARROW = ("MODEL.FPN.OUT_CHANNELS", 12, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 12)


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    tiny = TinyData(tmp_path_factory.mktemp("tiny") / "data")
    yield tiny
    tiny.close()


@pytest.fixture
def network(tmp_path):
    """Config and network with overrides."""

    def build(*opts):
        cfg = tiny_cfg(tmp_path / "out", *opts)
        return cfg, build_model(cfg)

    return build


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Checkpoints as training leaves them: detector, semantic, end_to_end, plain Detectron2."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(4)
    files = {}
    for stage in ("detector", "semantic", "end_to_end"):
        state = build_model(tiny_cfg(folder, "MODEL.WSIS.STAGE", stage)).state_dict()
        files[stage] = str(folder / f"{stage}.pth")
        torch.save({"model": state, "iteration": 3}, files[stage])
        if stage == "detector":
            plain = {k.removeprefix("detector.rcnn."): v for k, v in state.items()}
            # A detector of the zoo may have a mask head too, and buffers of older versions.
            plain["roi_heads.mask_head.deconv.weight"] = torch.zeros(2)
            plain["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4)
            files["plain"] = str(folder / "plain.pth")
            torch.save({"model": plain}, files["plain"])
    return files


def arrays_of(path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def save(path, arrays) -> str:
    torch.save({"model": arrays}, path)
    return str(path)


def same(module, arrays, prefix="") -> bool:
    return all(torch.equal(v, arrays[prefix + n]) for n, v in module.state_dict().items())


def caffe2_resnet50() -> dict[str, np.ndarray]:
    """Detectron's R-50.pkl: its names and shapes, each array one number of its own."""
    shapes = {"conv1_w": (64, 3, 7, 7), "conv1_b": (64,), "fc1000_w": (1000, 2048),
              "fc1000_b": (1000,), "res_conv1_bn_s": (64,), "res_conv1_bn_b": (64,)}  # fmt: skip
    inputs = 64
    for stage, blocks in zip(range(2, 6), (3, 4, 6, 3), strict=True):
        inner, outputs = 32 * 2 ** (stage - 1), 128 * 2 ** (stage - 1)
        for block in range(blocks):
            own = {"2a": (inner, inputs, 1, 1), "2b": (inner, inner, 3, 3),
                   "2c": (outputs, inner, 1, 1)}  # fmt: skip
            if block == 0:
                own["1"] = (outputs, inputs, 1, 1)
            for branch, shape in own.items():
                name = f"res{stage}_{block}_branch{branch}"
                shapes |= {f"{name}_w": shape, f"{name}_bn_s": shape[:1], f"{name}_bn_b": shape[:1]}
            inputs = outputs
    arrays = {}
    for number, (name, shape) in enumerate(shapes.items(), 1):
        arrays[name] = np.full(shape, number / 1024, np.float32)
    arrays["conv1_w"] += np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1)
    return arrays


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """R-50.pkl of Detectron and its arrays."""
    path = tmp_path_factory.mktemp("imagenet") / "R-50.pkl"
    arrays = caffe2_resnet50()
    path.write_bytes(pickle.dumps(arrays))
    return str(path), arrays


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    """resnet18.pth of torchvision, with statistics that are not the initial ones."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = resnet18()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.1)
    path = tmp_path_factory.mktemp("torchvision") / "resnet18.pth"
    torch.save(model.state_dict(), path)
    return str(path), model.eval()


# ImageNet networks


def check_resnet50(module, arrays) -> None:
    """Some arrays of every kind, by hand from one naming to the other."""
    for theirs, ours in {
        "conv1_w": "stem.conv1.weight",
        "res_conv1_bn_s": "stem.conv1.norm.weight",
        "res2_0_branch2a_w": "res2.0.conv1.weight",
        "res3_0_branch1_w": "res3.0.shortcut.weight",
        "res3_0_branch1_bn_b": "res3.0.shortcut.norm.bias",
        "res4_5_branch2b_bn_s": "res4.5.conv2.norm.weight",
        "res5_2_branch2c_w": "res5.2.conv3.weight",
    }.items():
        assert np.array_equal(module.state_dict()[ours].numpy(), arrays[theirs]), ours


def test_caffe2_weights_fill_both_backbones_of_a_joint_stage(network, imagenet, trained):
    path, arrays = imagenet
    cfg, model = network(*JOINT, *R50, *ANEW, "MODEL.WEIGHTS", path)
    assert backbones_of(model) == ["detector.rcnn.backbone.bottom_up", "semantic.backbone"]
    load_for_training(cfg, model)
    check_resnet50(model.semantic.backbone, arrays)
    check_resnet50(model.detector.rcnn.backbone.bottom_up, arrays)
    # The heads of the detector, which is not trained, have no weights: named without the option.
    cfg.defrost()
    cfg.MODEL.WSIS.PARTIAL_WEIGHTS = False
    with pytest.raises(InputError, match="^MODEL.WSIS.DETECTOR_WEIGHTS: .* never trained would"):
        load_for_training(cfg, model)


def test_caffe2_weights_leave_alone_what_has_its_own(network, imagenet, trained):
    path, arrays = imagenet
    cfg, model = network(
        *JOINT, *R50[8:], "MODEL.WEIGHTS", path, "MODEL.WSIS.DETECTOR_WEIGHTS", trained["detector"]
    )
    load_for_training(cfg, model)
    check_resnet50(model.semantic.backbone, arrays)
    assert same(model.detector, arrays_of(trained["detector"]), "detector.")
    cfg.defrost()
    cfg.MODEL.WSIS.SEMANTIC_WEIGHTS = trained["semantic"]
    small = network(*JOINT)[1]
    with pytest.raises(InputError, match="holds a backbone, and every backbone of .* its weights"):
        load_for_training(cfg, small)


def test_caffe2_weights_start_the_semantic_backbone(network, imagenet):
    path, arrays = imagenet
    cfg, model = network(*SEMANTIC, *R50, "MODEL.SEMANTIC.BACKBONE_WEIGHTS", path)
    load_for_training(cfg, model)
    check_resnet50(model.semantic.backbone, arrays)
    cfg, model = network(
        *SEMANTIC, *R50, "MODEL.SEMANTIC.BACKBONE_WEIGHTS", path, "INPUT.FORMAT", "RGB"
    )
    load_for_training(cfg, model)
    found = model.semantic.backbone.stem.conv1.weight.detach().numpy()
    assert np.array_equal(found, arrays["conv1_w"][:, ::-1])


@pytest.mark.parametrize("blocks", [-1, 1])
def test_a_backbone_of_another_depth_is_refused(network, imagenet, tmp_path, blocks):
    """A deeper network has every array of a shallower one."""
    arrays = dict(imagenet[1])
    for name in [n for n in arrays if n.startswith("res4_5_")]:
        value = arrays.pop(name) if blocks < 0 else arrays[name]
        if blocks > 0:
            arrays[name.replace("res4_5", "res4_6")] = value
    path = tmp_path / "other.pkl"
    path.write_bytes(pickle.dumps(arrays))
    cfg, model = network(*SEMANTIC, *R50, "MODEL.WEIGHTS", str(path))
    message = "has 9 arrays that" if blocks > 0 else "lacks 9 of 159 arrays of"
    with pytest.raises(InputError, match=f"MODEL.WEIGHTS: .*other.pkl: {message} .*res4.[56]"):
        load_for_training(cfg, model)


def test_two_backbones_that_differ_name_the_keys_of_each(network, imagenet):
    cfg, model = network(*JOINT, *R50[:8], *ANEW, "MODEL.WEIGHTS", imagenet[0])
    with pytest.raises(InputError, match="DETECTOR_WEIGHTS and MODEL.SEMANTIC.BACKBONE_WEIGHTS$"):
        load_for_training(cfg, model)


def test_torchvisions_resnet_computes_the_same_here(network, resnet18):
    path, theirs = resnet18
    cfg, model = network(*JOINT, *R18, *ANEW, "MODEL.WEIGHTS", path)
    load_for_training(cfg, model.eval())
    ours = model.detector.rcnn.backbone.bottom_up
    rgb = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        found = ours(rgb.flip(1))  # the network sees BGR
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(rgb))))
        for stage in (2, 3, 4, 5):
            x = getattr(theirs, f"layer{stage - 1}")(x)
            assert torch.allclose(found[f"res{stage}"], x, atol=1e-5)
    assert same(model.semantic.backbone, ours.state_dict())


def test_torchvisions_resnet_in_a_network_of_other_colours_or_strides(network, resnet18, tmp_path):
    from torchvision.models import resnet50

    cfg, model = network(*SEMANTIC, *R18, "MODEL.SEMANTIC.PIXEL_STD", [1.0, 1.0, 1.0],
                         "MODEL.WEIGHTS", resnet18[0])  # fmt: skip
    with pytest.raises(InputError, match=r"resnet18.pth: .*set MODEL.SEMANTIC.PIXEL_STD \[57"):
        load_for_training(cfg, model)
    with torch.device("meta"):
        shapes = resnet50().state_dict()
    path = tmp_path / "resnet50.pth"
    torch.save({n: torch.zeros(v.shape, dtype=v.dtype) for n, v in shapes.items()}, path)
    cfg, model = network(*SEMANTIC, *R50, "MODEL.WEIGHTS", str(path))
    with pytest.raises(InputError, match="set MODEL.SEMANTIC.RESNETS.STRIDE_IN_1X1 False"):
        load_for_training(cfg, model)
    cfg, model = network(*SEMANTIC, *R50, "MODEL.WEIGHTS", str(path),
                         "MODEL.SEMANTIC.RESNETS.STRIDE_IN_1X1", False)  # fmt: skip
    load_for_training(cfg, model)
    assert not any(p.any() for p in model.semantic.backbone.parameters())


def test_weights_of_no_known_network_are_refused(network, tmp_path):
    from torchvision.models import mobilenet_v3_small

    path = tmp_path / "mobilenet.pth"
    torch.save(mobilenet_v3_small().state_dict(), path)
    for stage in (SEMANTIC, DETECTOR, JOINT):
        cfg, model = network(*stage, *ANEW, "MODEL.WEIGHTS", str(path))
        before = {n: v.clone() for n, v in model.state_dict().items()}
        with pytest.raises(InputError, match="mobilenet.pth: "):
            load_for_training(cfg, model)
        assert same(model, before)


# Checkpoints of parts


def test_a_plain_detectron2_model_fills_the_detector(network, trained, tmp_path, caplog):
    wanted = arrays_of(trained["detector"])
    for key in ("MODEL.WEIGHTS", "MODEL.WSIS.DETECTOR_WEIGHTS"):
        cfg, model = network(*DETECTOR, key, trained["plain"])
        load_for_training(cfg, model)
        assert same(model, wanted)
    # Other classes: an error that names what differs, or, with the option, said in the log.
    other = {
        n: v[:2] if n.startswith("roi_heads.box_predictor.cls_score") else v
        for n, v in arrays_of(trained["plain"]).items()
    }
    path = save(tmp_path / "classes.pth", other)
    cfg, model = network(*DETECTOR, "MODEL.WEIGHTS", path)
    with pytest.raises(InputError) as caught:
        load_for_training(cfg, model)
    text = str(caught.value)
    assert text.startswith(f"MODEL.WEIGHTS: {path}: has 2 arrays of the detector in another shape")
    assert "cls_score.weight is (2, 16), not (3, 16)" in text and "\n" not in text
    assert "MODEL.WSIS.PARTIAL_WEIGHTS True" in text
    cfg, model = network(*DETECTOR, *ANEW, "MODEL.WEIGHTS", path)
    with caplog.at_level(logging.INFO, "wsis_d2"):
        load_for_training(cfg, model)
    assert "new, without weights of a file: detector.rcnn.roi_heads (2 arrays)" in caplog.text
    assert same(model.detector.rcnn.backbone, wanted, "detector.rcnn.backbone.")


def test_a_detector_is_no_semantic_network(network, trained):
    for name in ("plain", "detector"):
        cfg, model = network(*SEMANTIC, "MODEL.WEIGHTS", trained[name])
        with pytest.raises(InputError, match="detector, which the stage 'semantic' does not have"):
            load_for_training(cfg, model)
        cfg, model = network(*SEMANTIC, "MODEL.SEMANTIC.BACKBONE_WEIGHTS", trained[name])
        load_for_training(cfg, model)
        wanted = arrays_of(trained["detector"])
        assert same(model.semantic.backbone, wanted, "detector.rcnn.backbone.bottom_up.")


@pytest.mark.parametrize("stage", [JOINT, PIECEWISE])
def test_what_is_never_trained_needs_weights(network, trained, stage):
    missing = {"MODEL.WSIS.DETECTOR_WEIGHTS": trained["detector"]}
    if stage is PIECEWISE:
        missing["MODEL.WSIS.SEMANTIC_WEIGHTS"] = trained["semantic"]
    for key in missing:
        given = [x for k, v in missing.items() if k != key for x in (k, v)]
        cfg, model = network(*stage, *given)
        with pytest.raises(InputError, match=f"^{key}: .* at random: .*[.]PARTIAL_WEIGHTS True$"):
            load_for_training(cfg, model)
        cfg, model = network(*stage, *given, *ANEW)
        load_for_training(cfg, model)
    cfg, model = network(*stage, *[x for pair in missing.items() for x in pair])
    load_for_training(cfg, model)
    assert same(model.detector, arrays_of(trained["detector"]), "detector.")


def test_frozen_stages_of_a_backbone_need_weights(network, imagenet):
    cfg, model = network(*DETECTOR, *R50, "MODEL.BACKBONE.FREEZE_AT", 2)
    with pytest.raises(InputError, match="^MODEL.WEIGHTS: 11 arrays .*stem.conv1.weight"):
        load_for_training(cfg, model)
    cfg, model = network(
        *DETECTOR, *R50, "MODEL.BACKBONE.FREEZE_AT", 2, "MODEL.WEIGHTS", imagenet[0]
    )
    load_for_training(cfg, model)


def test_a_whole_checkpoint_fills_the_parts_of_a_stage(network, trained, caplog):
    wanted = arrays_of(trained["end_to_end"])
    for stage in (DETECTOR, SEMANTIC, JOINT, PIECEWISE):
        cfg, model = network(*stage, "MODEL.WEIGHTS", trained["end_to_end"])
        load_for_training(cfg, model)
        assert same(model, wanted)
    # What a run's config still names is not loaded over it, and that is said.
    cfg, model = network(*JOINT, "MODEL.WEIGHTS", trained["end_to_end"],
                         "MODEL.WSIS.DETECTOR_WEIGHTS", trained["detector"])  # fmt: skip
    load_for_training(cfg, model)
    assert same(model, wanted) and "DETECTOR_WEIGHTS is not used" in caplog.text


@pytest.mark.parametrize(
    ("stage", "key"),
    [(DETECTOR, "MODEL.WSIS.SEMANTIC_WEIGHTS"), (DETECTOR, "MODEL.SEMANTIC.BACKBONE_WEIGHTS")],
)
def test_weights_for_a_part_that_is_not_there_are_refused(network, trained, stage, key):
    cfg, model = network(*stage, key, trained["semantic"])
    with pytest.raises(InputError, match=f"^{key} is .*; leave it empty$"):
        load_for_training(cfg, model)


# Trained networks


def test_an_evaluation_without_weights_is_refused(network, trained):
    for stage in (DETECTOR, SEMANTIC, JOINT):
        cfg, model = network(*stage, *ANEW)
        with pytest.raises(InputError, match="^MODEL.WEIGHTS is empty: .*model_final.pth$"):
            load_for_evaluation(cfg, model)
    cfg, model = network(*JOINT, "MODEL.WSIS.SEMANTIC_WEIGHTS", trained["semantic"])
    with pytest.raises(InputError, match="^MODEL.WEIGHTS is empty, MODEL.WSIS.DETECTOR_WEIGHTS t"):
        load_for_evaluation(cfg, model)
    parts = ("MODEL.WSIS.SEMANTIC_WEIGHTS", trained["semantic"],
             "MODEL.WSIS.DETECTOR_WEIGHTS", trained["detector"])  # fmt: skip
    cfg, model = network(*JOINT, *parts)
    load_for_evaluation(cfg, model)
    assert same(model.detector, arrays_of(trained["detector"]), "detector.")
    assert same(model.semantic, arrays_of(trained["semantic"]), "semantic.")
    cfg, model = network(*JOINT, *parts, "MODEL.WEIGHTS", trained["end_to_end"])
    load_for_evaluation(cfg, model)
    assert same(model, arrays_of(trained["end_to_end"]))


@pytest.mark.parametrize("stage", [DETECTOR, SEMANTIC, JOINT])
def test_a_network_of_another_width_is_not_half_loaded(network, trained, stage):
    cfg, model = network(*stage, *NARROW, *ANEW, "MODEL.WEIGHTS", trained[stage[1]])
    before = {n: v.clone() for n, v in model.state_dict().items()}
    with pytest.raises(InputError, match=r"MODEL.WEIGHTS: .*in another shape: .* is .*, not .*12"):
        load_for_evaluation(cfg, model)
    assert same(model, before)


def test_a_trained_network_is_the_whole_network(network, trained, imagenet, tmp_path):
    _, model = network(*SEMANTIC)
    arrays = arrays_of(trained["end_to_end"])
    load_trained(model, trained["end_to_end"], key="KEY")  # its semantic part
    released = {n: v for n, v in arrays.items() if ".aux_" not in n}
    load_trained(model, save(tmp_path / "released.pth", released), key="KEY")
    wrapped = {f"module.{n}": v.half() for n, v in arrays.items() if n.startswith("semantic.")}
    load_trained(model, save(tmp_path / "wrapped.pth", wrapped), key="KEY")
    _, merge = network(*JOINT, "MODEL.INSTANCE_HEAD.NAME", "BoxMergeHead")
    load_trained(merge, trained["end_to_end"], key="KEY")  # the CRF has no place in it
    deeper = {**arrays, "semantic.backbone.res5.2.conv1.weight": torch.zeros(64, 64, 3, 3)}
    gone = {n: v for n, v in arrays.items() if "predictor" not in n}
    for changed, message in (
        (deeper, r"has 1 arrays that .*: semantic.backbone.res5.2.conv1.weight"),
        (gone, r"lacks 2 of \d+ arrays of .*: semantic.head.predictor.weight, .*bias"),
    ):
        with pytest.raises(InputError, match=rf"^KEY: .*changed.pth: {message}"):
            load_trained(model, save(tmp_path / "changed.pth", changed), key="KEY")
    for other in (trained["detector"], imagenet[0]):
        with pytest.raises(InputError, match="fills none of the"):
            load_trained(model, other, key="KEY")
    with pytest.raises(InputError, match="^KEY: gone.pth: no such file; how to get it"):
        load_trained(model, "gone.pth", key="KEY", hint="how to get it")


# The pieces


def test_missing_arrays_are_listed_and_counted():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(5)))
    arrays = {"0.weight": torch.ones(2, 2), "1.weight": torch.ones(3, 2)}
    with pytest.raises(InputError) as caught:
        load_into(model, arrays, source="S", what="W", hint="H")
    assert str(caught.value) == (
        "S: lacks 8 of 10 arrays of W: 0.bias, 1.bias, 2.weight and 5 more; "
        "has 1 arrays of W in another shape: 1.weight is (3, 2), not (2, 2); H"
    )
    assert not torch.equal(model[0].weight, torch.ones(2, 2))  # nothing was loaded
    left = load_into(model, arrays, source="S", partial=True)
    assert torch.equal(model[0].weight, torch.ones(2, 2)) and len(left) == 9
    del arrays["1.weight"]
    left = load_into(model, arrays, source="S", allow_missing=("0.", "1.", "2.", "3.", "4."))
    assert len(left) == 9


def test_statistics_of_a_norm_are_missing_or_folded():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    affine = {f"{k}.{n}": torch.full((2,), 0.5) for k in "01" for n in ("weight", "bias")}
    with pytest.raises(InputError, match="lacks 4 of 8 .*0.running_mean, 0.running_var, 1.run"):
        load_into(model, affine, source="S")
    assert load_into(model, affine, source="S", folded=True) == []
    del affine["1.weight"]
    with pytest.raises(InputError, match="lacks 1 of 4 arrays of the model: 1.weight;"):
        load_into(model, affine, source="S", folded=True)


def test_names_of_detectron_are_matched_by_their_longest_end():
    arrays = {"conv.weight": 1, "res2.conv.weight": 2, "fc.bias": 3}
    found = match_ends(arrays, ["a.res2.conv.weight", "b.res2.conv.weight", "b.conv.weight", "x"])
    assert found == {"a.res2.conv.weight": 2, "b.res2.conv.weight": 2, "b.conv.weight": 1,
                     "fc.bias": 3}  # fmt: skip


def test_a_detector_of_detectron_fills_by_names(network, trained, tmp_path):
    """Caffe2 puts the background first and gives its boxes a place."""
    _, model = network(*DETECTOR)
    ours = {
        "fc6_w": "rcnn.roi_heads.box_head.fc1.weight",
        "fc7_b": "rcnn.roi_heads.box_head.fc2.bias",
        "cls_score_w": "rcnn.roi_heads.box_predictor.cls_score.weight",
    }
    state = model.detector.state_dict()
    blobs = {c2: state[name].numpy().copy() for c2, name in ours.items()}
    path = tmp_path / "detection.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs}))
    weights = read_weights(str(path), "KEY")
    assert weights.loose and not weights.backbone
    found = match_ends(weights.arrays, state)
    assert torch.equal(found[ours["fc6_w"]], state[ours["fc6_w"]])
    scores = found[ours["cls_score_w"]]
    assert torch.equal(scores, state[ours["cls_score_w"]].roll(-1, 0))


def test_only_the_named_weights_stay(network):
    cfg, _ = network(*SEMANTIC, "MODEL.WEIGHTS", "a", "MODEL.WSIS.DETECTOR_WEIGHTS", "b",
                     "MODEL.SEMANTIC.BACKBONE_WEIGHTS", "c",
                     "ITERATIVE.FIRST_WEIGHTS", "d")  # fmt: skip
    found = only_weights(cfg, semantic="e")
    assert found.is_frozen() and cfg.MODEL.WEIGHTS == "a"
    assert [found.MODEL.WEIGHTS, found.MODEL.WSIS.DETECTOR_WEIGHTS,
            found.MODEL.WSIS.SEMANTIC_WEIGHTS, found.MODEL.SEMANTIC.BACKBONE_WEIGHTS,
            found.ITERATIVE.FIRST_WEIGHTS] == ["", "", "e", "", ""]  # fmt: skip
