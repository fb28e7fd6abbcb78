# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Every config key of wsis_d2, one comment each."""

import contextlib
import re
import textwrap
from collections.abc import Iterator, Sequence

import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from detectron2.utils.file_io import PathManager

from wsis_d2.config_checks.unused import check_used
from wsis_d2.config_checks.values import check_values
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.yaml_io import check_config_file


def read_config(config_file: str | None = None, opts: Sequence[str] | None = None) -> CN:
    """Return Detectron2's and our defaults, changed by a file and by overrides.

    Args:
        config_file: a YAML file, read without running code from it; None takes the defaults.
        opts: alternating keys and values.

    Raises:
        InputError: an unreadable file, an unknown key, a value of the wrong type or one that
            cannot be, or a setting that would do nothing.
    """
    cfg = get_cfg()
    add_wsis_config(cfg)
    defaults = cfg.clone()
    late = next((str(key) for key in (opts or [])[::2] if str(key).startswith("--")), None)
    if late is not None:
        raise InputError(f"{late} is among the KEY VALUE pairs; options come before them")
    if config_file:
        merge_file(cfg, config_file)
    given = textwrap.shorten(" ".join(map(str, opts or [])), 200)
    with _one_line(f"{config_file or ''} {given}".strip()):
        cfg.merge_from_list(list(opts or []))
    check_values(cfg)
    check_used(cfg, defaults)
    return cfg


def merge_file(cfg: CN, path: str, *, bases: bool = True) -> None:
    """Merge a file into ``cfg``, in place; nothing in it is run.

    Args:
        cfg: a config.
        path: YAML.
        bases: whether it may be based on other files (``_BASE_``).

    Raises:
        InputError: it cannot be read (:func:`wsis_d2.utils.yaml_io.check_config_file`), or has keys
            or values that ``cfg`` does not take.
    """
    with _one_line(path):
        if PathManager.isfile(path):
            check_config_file(path, bases=bases)
        cfg.merge_from_file(path, allow_unsafe=False)


@contextlib.contextmanager
def _one_line(where: str) -> Iterator[None]:
    """Turn what a config may raise while it is changed into one line."""
    try:
        yield
    except InputError as error:
        raise InputError(f"config {error}") from None
    except (
        KeyError,
        ValueError,
        TypeError,
        AssertionError,
        AttributeError,
        RecursionError,
        yaml.YAMLError,
    ) as error:
        text = error if isinstance(error, yaml.YAMLError) or not error.args else error.args[0]
        # Of a section yacs shows all values before it names the key.
        message = re.sub(r" with values \(.{200,}\) for", " for", " ".join(str(text).split()))
        message = textwrap.shorten(message, 400)
        raise InputError(f"config {where}: {message} (keys are in wsis_d2/config.py)") from error


def add_wsis_config(cfg: CN) -> None:
    """Add every key of wsis_d2 to ``cfg``, in place.

    What no key sets is an argument of the class that has it, with its default and meaning there.

    Args:
        cfg: a clone of Detectron2's default config (``get_cfg()``).
    """
    add_data_config(cfg)
    add_weak_labels_config(cfg)
    add_model_config(cfg)
    add_rounds_config(cfg)
    add_eval_config(cfg)
    add_engine_config(cfg)
    add_additions_config(cfg)


def add_data_config(cfg: CN) -> None:
    """Datasets and mappers."""
    # Own data to register before use: a list of register_weak_panoptic's keyword arguments.
    cfg.DATASETS.OWN = []
    # Label stores of the built-in weak datasets: [[dataset name, store folder], ...].
    cfg.DATASETS.LABEL_STORES = []
    # Which mapper makes training samples, a name in DATASET_MAPPER_REGISTRY.
    cfg.INPUT.DATASET_MAPPER_NAME = "PanopticMapper"
    # Range of the random scale that training images are resized by, after MIN_SIZE_TRAIN; a
    # MIN_SIZE_TRAIN of 0 leaves the size to this range alone.
    cfg.INPUT.SCALE_RANGE = [1.0, 1.0]
    # Strength of random brightness, contrast and saturation: 0.3 draws factors in [0.7, 1.3].
    cfg.INPUT.COLOR_JITTER = 0.0
    # Detectron2's default is True. Here a batch is drawn whatever its images' shapes.
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False


def add_weak_labels_config(cfg: CN) -> None:
    """Annotation to the labels of round 0 (paper 3.2, 3.3)."""
    cfg.WEAK_LABELS = CN()
    # What a box's pixels are: "agreement" of GrabCut and proposal (the method), or, to compare,
    # one part alone ("grabcut", "mcg": the proposal) or the filled "box". `--masks` overrides it.
    cfg.WEAK_LABELS.MASKS = "agreement"
    # A pixel claimed by boxes of different classes: "smaller" box wins, or "ignore".
    cfg.WEAK_LABELS.OVERLAP = "smaller"

    cfg.WEAK_LABELS.GRABCUT = CN()
    # First guess: "ellipse" inscribed in the box is probably object, or the "rectangle" is.
    cfg.WEAK_LABELS.GRABCUT.INIT = "ellipse"

    cfg.WEAK_LABELS.PROPOSALS = CN()
    # Source of region proposals: "mcg" (ours), "mcg_mat", "coco_json", "segment_anything" (boxes as
    # prompts), "none" (GrabCut alone), or another name in PROPOSAL_SOURCE_REGISTRY.
    cfg.WEAK_LABELS.PROPOSALS.NAME = "mcg"
    # Scales, trees and caps of "mcg": "default", "scg" or "mcg" (the published working points).
    cfg.WEAK_LABELS.PROPOSALS.PRESET = "default"
    # Which proposal a box takes: "bbox_area", "bbox" (the paper's words) or "mask_vs_box".
    cfg.WEAK_LABELS.PROPOSALS.SELECTION = "bbox_area"

    # Cues. A tag segmenter's are its distributions: THRESHOLD is then a probability, and LAYER has
    # no meaning.
    cfg.CAM = CN()
    # Module of the tag classifier whose activations are weighted.
    cfg.CAM.LAYER = "backbone.res5"
    # A pixel is a cue where its map reaches this share of the class's maximum in the image: 0.5 on
    # street scenes, 0.15 on ImageNet (paper 4.1).
    cfg.CAM.THRESHOLD = 0.5

    cfg.CLEAN = CN()
    # Labels less probable than this become ignore (not in round 0); 0 is off. 0.99 on Cityscapes.
    cfg.CLEAN.SCORE_THRESHOLD = 0.0
    # Drop labels that are not among the tags of the crops they lie in. Off, with PRIOR, where boxes
    # are unreliable.
    cfg.CLEAN.TAGS = True
    # Let the box masks win, in the first five rounds (round 0 is the merge with the cues).
    cfg.CLEAN.MERGE = True
    # Drop things outside the boxes of their class.
    cfg.CLEAN.PRIOR = True
    # Give boxes of which less than half is their class to it.
    cfg.CLEAN.FILL = False
    # Which pixels of a thing belong to which instance in round 0: "boxes" (the one box of its class
    # that covers it) or "masks" (the one box whose mask it is in).
    cfg.CLEAN.INSTANCES_FROM = "boxes"


def add_model_config(cfg: CN) -> None:
    """WeakPanopticRCNN and its parts (paper 3.5).

    The detector reads Detectron2's own keys (MODEL.BACKBONE, RESNETS, FPN, RPN, ROI_HEADS, ...),
    the semantic subnetwork those of MODEL.SEMANTIC and MODEL.SEM_SEG_HEAD, the instance
    subnetwork those of MODEL.INSTANCE_HEAD.
    """
    cfg.MODEL.WSIS = CN()
    # What is trained and run: "detector", "semantic", "instance_piecewise" (the CRF's weights
    # only) or "end_to_end" (semantic subnetwork and CRF).
    cfg.MODEL.WSIS.STAGE = "instance_piecewise"
    # Checkpoints (path or URL) of the separately trained parts, for the parts that MODEL.WEIGHTS
    # does not hold; only the part's own parameters are taken.
    cfg.MODEL.WSIS.DETECTOR_WEIGHTS = ""
    cfg.MODEL.WSIS.SEMANTIC_WEIGHTS = ""
    # Train even where a file fills less than the part it is for (other classes, other width), or a
    # part that is not trained has no weights: these begin, or stay, at random.
    cfg.MODEL.WSIS.PARTIAL_WEIGHTS = False
    # Where the instance stages take their boxes from while training: "detector", "gt" (the
    # annotated boxes, score 1) or "gt_jitter" (annotated boxes shaken).
    cfg.MODEL.WSIS.TRAIN_BOXES = "detector"
    # Ascending contiguous ids of the thing classes. Filled in, with ROI_HEADS.NUM_CLASSES and
    # SEM_SEG_HEAD.NUM_CLASSES, from the metadata of DATASETS.TRAIN when a run is set up.
    cfg.MODEL.WSIS.THING_IDS = []
    # Detections below this score are not used as instance labels. (In the instance stages these
    # three count, in the detector's own stage ROI_HEADS.*_THRESH_TEST, TEST.DETECTIONS_PER_IMAGE.)
    cfg.MODEL.WSIS.DETECTION_SCORE_THRESH = 0.5
    # IoU of the non-maximum suppression before detections become instance labels.
    cfg.MODEL.WSIS.DETECTION_NMS_THRESH = 0.3
    # At most so many detections of an image become instance labels.
    cfg.MODEL.WSIS.MAX_DETECTIONS = 100

    # Backbone of the semantic subnetwork: the keys of MODEL.BACKBONE, RESNETS and FPN again.
    cfg.MODEL.SEMANTIC = CN()
    cfg.MODEL.SEMANTIC.BACKBONE = cfg.MODEL.BACKBONE.clone()
    # "build_pspnet_resnet_backbone" has the stem of the public PSPNet, three 3x3 convolutions.
    cfg.MODEL.SEMANTIC.BACKBONE.NAME = "build_resnet_any_backbone"
    cfg.MODEL.SEMANTIC.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.SEMANTIC.RESNETS = cfg.MODEL.RESNETS.clone()
    cfg.MODEL.SEMANTIC.RESNETS.DEPTH = 101
    cfg.MODEL.SEMANTIC.RESNETS.OUT_FEATURES = ["res4", "res5"]
    # 4 dilates res4 by 2 too: output stride 8.
    cfg.MODEL.SEMANTIC.RESNETS.RES5_DILATION = 4
    cfg.MODEL.SEMANTIC.FPN = cfg.MODEL.FPN.clone()
    # Checkpoint (path or URL) of a network whose ResNet the semantic backbone starts from, of
    # ImageNet or e.g. the detector's; for where SEMANTIC_WEIGHTS and WEIGHTS do not fill it.
    cfg.MODEL.SEMANTIC.BACKBONE_WEIGHTS = ""
    # Per-channel mean and deviation of the semantic subnetwork's input, BGR.
    cfg.MODEL.SEMANTIC.PIXEL_MEAN = [104.008, 116.669, 122.675]
    cfg.MODEL.SEMANTIC.PIXEL_STD = [1.0, 1.0, 1.0]
    # Above 0, the network sees squares of this side alone: smaller training crops are padded to it,
    # mean colour and ignored, and images are predicted in tiles that overlap, blended. 0: it sees
    # crops and images whole.
    cfg.MODEL.SEMANTIC.TILE_SIZE = 0

    # "PSPHead", or one of Detectron2's registry: "SemSegFPNHead", "DeepLabV3PlusHead", one's own.
    cfg.MODEL.SEM_SEG_HEAD.NAME = "PSPHead"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res5"]
    # Norm of the head's new layers; FrozenBN is the identity at the start.
    cfg.MODEL.SEM_SEG_HEAD.NORM = "FrozenBN"
    # Channels that each grid of the pyramid pooling is reduced to.
    cfg.MODEL.SEM_SEG_HEAD.PPM_DIM = 512
    # Channels of the 3x3 convolution before the classifier.
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 2048
    # Channels of the auxiliary classifier on res4, for training; 0: none.
    cfg.MODEL.SEM_SEG_HEAD.AUX_DIM = 256

    cfg.MODEL.INSTANCE_HEAD = CN()
    # "InstanceCRFHead" or "BoxMergeHead" (the baseline without a CRF, nothing to train).
    cfg.MODEL.INSTANCE_HEAD.NAME = "InstanceCRFHead"
    # "raw": the box term is scaled by the detection score s; "sigmoid": by sigmoid(2s - 1).
    cfg.MODEL.INSTANCE_HEAD.BOX_SCORE = "raw"
    # Dense pairwise terms: weights at the start of training and fixed deviations in pixels and
    # in colour steps of 0 to 255.
    cfg.MODEL.INSTANCE_HEAD.BILATERAL_WEIGHT = 4.0
    cfg.MODEL.INSTANCE_HEAD.BILATERAL_XY = 49.0
    cfg.MODEL.INSTANCE_HEAD.BILATERAL_RGB = 5.0
    cfg.MODEL.INSTANCE_HEAD.GAUSSIAN_WEIGHT = 3.0
    cfg.MODEL.INSTANCE_HEAD.GAUSSIAN_XY = 3.0
    # Mean-field iterations; 0 leaves the unary term alone.
    cfg.MODEL.INSTANCE_HEAD.ITERATIONS = 3


def add_rounds_config(cfg: CN) -> None:
    """Labels made from predictions, and training in rounds (paper 3.4)."""
    cfg.REFINE = CN()
    # Refine predictions with a dense CRF before they are cleaned; DeepLab's parameters, whose
    # sizes (*_XY, pixels) are of photographs of 500 x 375: smaller images want smaller ones.
    cfg.REFINE.ENABLED = True
    cfg.REFINE.BILATERAL_WEIGHT = 4.0
    cfg.REFINE.BILATERAL_XY = 49.0
    cfg.REFINE.BILATERAL_RGB = 5.0
    cfg.REFINE.GAUSSIAN_WEIGHT = 3.0
    cfg.REFINE.GAUSSIAN_XY = 3.0
    cfg.REFINE.ITERATIONS = 10

    cfg.ITERATIVE = CN()
    # A network trained on round 0's labels already, which is then the first round's: a checkpoint
    # of tools/train_net.py. "": train it.
    cfg.ITERATIVE.FIRST_WEIGHTS = ""
    # Processes that predict, refine and clean; each loads the model.
    cfg.ITERATIVE.WORKERS = 1
    # Box masks that later rounds merge: [[dataset, boxes store], ...]. Default: STORE/parts/boxes
    # of the label store that training begins with, else that store's things.
    cfg.ITERATIVE.BOX_STORES = []


def add_eval_config(cfg: CN) -> None:
    """Metrics and ranking (paper 4.1, 4.3)."""
    # Definition of PQ: "coco" (panopticapi's) or "paper" (the authors' evaluation code).
    cfg.TEST.PQ_VARIANT = "coco"
    # IoU thresholds of AP^r, "A:B:STEP" with both ends or "A,B,..."; "" takes the dataset's.
    cfg.TEST.APR_THRESHOLDS = ""
    # Matching of AP^r: "unique" (a true segment serves one prediction) or "paper".
    cfg.TEST.MATCHING = "unique"
    # Images that evaluation and new labels put through the networks together, where they have one
    # size after padding; the result is the same.
    cfg.TEST.IMS_PER_BATCH = 1
    # What ranks segments in AP^r: "score" (the model's), "detection", "mean_confidence",
    # "both" (detection for things, mean confidence for stuff), "one" or "oracle".
    cfg.TEST.SCORE_MODE = "score"
    # AP of thing instances: "coco", "cityscapes" or "none".
    cfg.TEST.INSTANCE_AP = "coco"


def add_engine_config(cfg: CN) -> None:
    """Training."""
    # Name of the run in results.json; empty takes the supervision: weak, full or mixed.
    cfg.RUN_NAME = ""
    # "main", or the name of the ablation that this run belongs to.
    cfg.RUN_VARIANT = "main"
    # "SGD" or "AdamW" (fewer iterations from random weights).
    cfg.SOLVER.OPTIMIZER = "SGD"
    # The learning rate of new heads is BASE_LR times this.
    cfg.SOLVER.HEAD_LR_FACTOR = 10.0


def add_additions_config(cfg: CN) -> None:
    """What is not in the paper; off by default, but for GrabCut's seed and the contours.

    An addition that is a value of one of the paper's keys (WEAK_LABELS.GRABCUT.INIT "ellipse",
    PROPOSALS.PRESET "default") is with that key.
    """
    # Relative radius of the central ellipse that is surely object; 0: none, the paper's start.
    cfg.WEAK_LABELS.GRABCUT.SEED_RADIUS = 0.33
    # A box with less than this share of agreed pixels has failed.
    cfg.WEAK_LABELS.MIN_AGREEMENT = 0.0
    # What a failed box becomes: "none" (all ignore), "mcg" (its proposal), "ellipse".
    cfg.WEAK_LABELS.FALLBACK = "none"
    # Contour detector of "mcg": "gradient", "learned" (a network, shipped), or "structured" (a
    # structured forest of one's own; needs OpenCV's contrib build). PATH names other weights.
    cfg.WEAK_LABELS.PROPOSALS.CONTOURS = "gradient"
    # File or folder that a source reads: published MATLAB files ("mcg_mat"), a COCO result file
    # with masks ("coco_json"), weights of the contours ("mcg"; "" = the shipped ones), a model of
    # transformers' SAM family, its folder or its name on the hub ("segment_anything").
    cfg.WEAK_LABELS.PROPOSALS.PATH = ""

    # Weigh the distributions of a tag segmenter (META_ARCHITECTURE "TagSegmenter",
    # DATASET_MAPPER_NAME "TagRegionMapper") by how each class looks in the image itself, to this
    # power; 0: off.
    cfg.CAM.APPEARANCE_WEIGHT = 0.0

    # Leave out the classes that tags and boxes rule out before the CRF, not only when cleaning.
    cfg.REFINE.WITHIN_ANNOTATION = False
    # Divide each class's probability by its share of the labels that the network learned from, to
    # this power: a network predicts rare classes more rarely still. 0: as predicted.
    cfg.REFINE.CLASS_BALANCE = 0.0
    # Weigh the probabilities by how each class looks in the image itself, to this power, before the
    # CRF; 0: off.
    cfg.REFINE.APPEARANCE_WEIGHT = 0.0
    # Multiply each class's probability by how reliable its cues of round 0 are, to this power (a
    # segmenter finds an unreliable class without its tag too); 0: off. Needs a tag segmenter.
    cfg.REFINE.RELIABILITY_POWER = 0.0

    # Share of training samples drawn from fully annotated images when DATASETS.TRAIN holds weak
    # and full ones; -1 draws every image equally often.
    cfg.DATALOADER.FULL_FRACTION = -1.0
    # Weight of what tags and boxes say of the prediction itself, beside the loss on labels made
    # of them; 0: labels alone.
    cfg.MODEL.WSIS.ANNOTATION_LOSS_WEIGHT = 0.0

    # The detector: "GeneralizedRCNN" (Faster R-CNN, Cascade R-CNN), "RetinaNet" or another of
    # Detectron2's meta-architectures that gives instances.
    cfg.MODEL.WSIS.DETECTOR = "GeneralizedRCNN"
    # Classes of a detector that has others than the run's things, as names in its order or as the
    # data set that has them, e.g. ["coco_2017_val"]: joint stages take those of the same name.
    cfg.MODEL.WSIS.DETECTOR_CLASSES = []
    # Index among the things of each of these classes, -1: none. Filled in when a run is set up.
    cfg.MODEL.WSIS.DETECTOR_CLASS_MAP = []
    # Boxes of COCO result files instead of a detector: [[data set, file], ...].
    cfg.MODEL.WSIS.DETECTOR_BOXES = []
    # The backbones "build_timm_backbone" and, with a feature pyramid, "build_timm_fpn_backbone":
    # any model of the library timm that gives features, e.g. "tf_efficientnet_lite0". Of RESNETS
    # they read OUT_FEATURES, NORM ("FrozenBN", "BN", "SyncBN") and RES5_DILATION.
    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = ""
    cfg.MODEL.SEMANTIC.TIMM = cfg.MODEL.TIMM.clone()

    # Mixed precision (SOLVER.AMP.ENABLED) of training, evaluation and new labels: "bfloat16", or
    # "float16", whose gradients are scaled.
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    # Segments of stuff and of things with fewer pixels are dissolved into the next most probable
    # labels; 0 keeps all.
    cfg.MODEL.INSTANCE_HEAD.MIN_AREAS = [0, 0]
    # Parts replaced by the truth, to see what limits a model: some of "boxes" (detections) and
    # "semantics" (class probabilities). Needs a RUN_VARIANT other than "main".
    cfg.TEST.TRUE_PARTS = []
