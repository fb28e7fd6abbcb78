# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Every config key of wsis_d2, one comment each."""

import textwrap
from collections.abc import Sequence

import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from wsis_d2.config_checks import check_used, check_values
from wsis_d2.utils.errors import InputError


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
        raise InputError(f"{late} stands among the KEY VALUE pairs; options come before them")
    where = str(config_file or "")
    try:
        if config_file:
            cfg.merge_from_file(config_file, allow_unsafe=False)
        where = f"{where} {textwrap.shorten(' '.join(map(str, opts or [])), 200)}".strip()
        cfg.merge_from_list(list(opts or []))
    except (
        KeyError,
        ValueError,
        TypeError,
        AssertionError,
        AttributeError,
        yaml.YAMLError,
    ) as error:
        text = error if isinstance(error, yaml.YAMLError) or not error.args else error.args[0]
        message = " ".join(str(text).split())
        raise InputError(f"config {where}: {message} (keys are in wsis_d2/config.py)") from error
    check_values(cfg)
    check_used(cfg, defaults)
    return cfg


def add_wsis_config(cfg: CN) -> None:
    """Add every key of wsis_d2 to ``cfg``, in place.

    Args:
        cfg: a clone of Detectron2's default config (``get_cfg()``).
    """
    add_data_config(cfg)
    add_weak_labels_config(cfg)
    add_model_config(cfg)
    add_tag_config(cfg)
    add_eval_config(cfg)
    add_engine_config(cfg)


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
    # Pad what is smaller than the crop to CROP.SIZE for the semantic subnetwork, mean colour and
    # ignored, so that it trains on one size. Needs CROP.ENABLED and TYPE "absolute".
    cfg.INPUT.CROP.PAD = False
    # Strength of random brightness, contrast and saturation: 0.3 draws factors in [0.7, 1.3].
    cfg.INPUT.COLOR_JITTER = 0.0
    # Detectron2's default is True. Here a batch is drawn whatever its images' shapes.
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    # Share of training samples drawn from fully annotated images when DATASETS.TRAIN holds weak
    # and full ones; -1 draws every image equally often.
    cfg.DATALOADER.FULL_FRACTION = -1.0


def add_weak_labels_config(cfg: CN) -> None:
    """Annotation to pseudo ground truth."""
    cfg.WEAK_LABELS = CN()
    # What a box's pixels are: "agreement" of GrabCut and proposal (the method), or, to compare,
    # one part alone ("grabcut", "mcg") or the filled "box". `--masks` overrides it.
    cfg.WEAK_LABELS.MASKS = "agreement"
    # A box with less than this share of agreed pixels has failed.
    cfg.WEAK_LABELS.MIN_AGREEMENT = 0.0
    # What a failed box becomes: "none" (all ignore), "mcg" (its proposal), "ellipse".
    cfg.WEAK_LABELS.FALLBACK = "none"
    # Relative radius of the fallback's ellipse; 1 is inscribed in the box.
    cfg.WEAK_LABELS.FALLBACK_RADIUS = 0.8
    # A box with a side shorter than this many pixels is tiny: it counts as failed.
    cfg.WEAK_LABELS.MIN_BOX_SIDE = 4
    # A box that covers at least this share of the image has no background to compare with: failed.
    cfg.WEAK_LABELS.MAX_BOX_SHARE = 0.98
    # A pixel claimed by boxes of different classes: "smaller" box wins, or "ignore".
    cfg.WEAK_LABELS.OVERLAP = "smaller"

    cfg.WEAK_LABELS.GRABCUT = CN()
    # First guess: "ellipse" inscribed in the box is probably object, or the "rectangle" is.
    cfg.WEAK_LABELS.GRABCUT.INIT = "ellipse"
    # Relative radius of the central ellipse that is surely object; 0 = none (the literal start).
    cfg.WEAK_LABELS.GRABCUT.SEED_RADIUS = 0.33
    # Background seen around the box, as a share of its sides.
    cfg.WEAK_LABELS.GRABCUT.MARGIN = 0.5
    # Longer side of the crop GrabCut works on; larger ones are scaled down; 0 = never.
    cfg.WEAK_LABELS.GRABCUT.SIZE = 160
    # Smaller crops are scaled up to this longer side; 0 = never.
    cfg.WEAK_LABELS.GRABCUT.MIN_SIZE = 96
    # GrabCut iterations.
    cfg.WEAK_LABELS.GRABCUT.ITERATIONS = 2
    # Seed of OpenCV's generator, set before each call.
    cfg.WEAK_LABELS.GRABCUT.RNG_SEED = 0

    cfg.WEAK_LABELS.PROPOSALS = CN()
    # Source of region proposals: "mcg" (ours), "mcg_mat", "coco_json", "none" (GrabCut alone), or
    # another name in PROPOSAL_SOURCE_REGISTRY.
    cfg.WEAK_LABELS.PROPOSALS.NAME = "mcg"
    # What other sources read: a folder of published MATLAB files ("mcg_mat"), or a COCO result file
    # with masks ("coco_json").
    cfg.WEAK_LABELS.PROPOSALS.PATH = ""
    # Folder where hierarchies of "mcg" are kept between runs, 0.2 to 1 MB an image; "" = nowhere.
    cfg.WEAK_LABELS.PROPOSALS.CACHE = ""
    # Scales, trees and caps of "mcg": "default", "scg" or "mcg" (the published working points).
    cfg.WEAK_LABELS.PROPOSALS.PRESET = "default"
    # Contour detector of "mcg": "learned" (shipped weights), "gradient" (none), or "structured" (a
    # structured-forest model of one's own; needs OpenCV's contrib build).
    cfg.WEAK_LABELS.PROPOSALS.CONTOURS = "gradient"
    # File of other weights for it; "" = the shipped ones.
    cfg.WEAK_LABELS.PROPOSALS.CONTOUR_WEIGHTS = ""
    # Which proposal a box takes: "bbox_area", "bbox" (literal) or "mask_vs_box".
    cfg.WEAK_LABELS.PROPOSALS.SELECTION = "bbox_area"
    # Larger images are scaled down to this longer side before proposals are made; 0 = never.
    cfg.WEAK_LABELS.PROPOSALS.MAX_SIDE = 1024
    # Boundaries of regions below this share of the image count less; 0 = off.
    cfg.WEAK_LABELS.PROPOSALS.SIZE_DAMPING = 0.002


def add_model_config(cfg: CN) -> None:
    """WeakPanopticRCNN and its parts.

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
    # Where the instance stages take their boxes from while training: "detector", "gt" (the
    # annotated boxes, score 1) or "gt_jitter" (annotated boxes shaken).
    cfg.MODEL.WSIS.TRAIN_BOXES = "detector"
    # Each side of a gt_jitter box moves by up to this share of the box's width or height.
    cfg.MODEL.WSIS.BOX_JITTER = 0.05
    # Ascending contiguous ids of the thing classes. Filled in, with ROI_HEADS.NUM_CLASSES and
    # SEM_SEG_HEAD.NUM_CLASSES, from the metadata of DATASETS.TRAIN when a run is set up.
    cfg.MODEL.WSIS.THING_IDS = []
    # Weight of the per-pixel semantic loss in the end_to_end stage, beside the instance loss.
    cfg.MODEL.WSIS.SEMANTIC_LOSS_WEIGHT = 1.0
    # Weight of what tags and boxes say of the prediction itself, beside the loss on labels made
    # of them; 0 (the paper): labels alone. Shares as MODEL.TAG_SEGMENTER's.
    cfg.MODEL.WSIS.ANNOTATION_LOSS_WEIGHT = 0.0
    # Detections below this score are not used as instance labels. (In the instance stages these
    # three count, in the detector's own stage ROI_HEADS.*_THRESH_TEST, TEST.DETECTIONS_PER_IMAGE.)
    cfg.MODEL.WSIS.DETECTION_SCORE_THRESH = 0.5
    # IoU of the non-maximum suppression before detections become instance labels.
    cfg.MODEL.WSIS.DETECTION_NMS_THRESH = 0.3
    # At most so many detections of an image become instance labels.
    cfg.MODEL.WSIS.MAX_DETECTIONS = 100
    # Run convolutions in channels-last memory order, faster on most CPUs and tensor cores.
    cfg.MODEL.WSIS.CHANNELS_LAST = True

    # The backbones "build_timm_backbone" and, with a feature pyramid, "build_timm_fpn_backbone":
    # any model of the library timm that gives features, e.g. "tf_efficientnet_lite0".
    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = ""
    # Features to give, of strides 4 ("res2") to 32 ("res5") where nothing is dilated.
    cfg.MODEL.TIMM.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # 32, 16 or 8; below 32 the last stages are dilated.
    cfg.MODEL.TIMM.OUTPUT_STRIDE = 32
    # What its batch norm becomes: "FrozenBN", "BN" or "SyncBN"; other norms stay.
    cfg.MODEL.TIMM.NORM = "FrozenBN"

    # Backbone of the semantic subnetwork: the keys of MODEL.BACKBONE, RESNETS, TIMM and FPN again.
    cfg.MODEL.SEMANTIC = CN()
    cfg.MODEL.SEMANTIC.BACKBONE = cfg.MODEL.BACKBONE.clone()
    cfg.MODEL.SEMANTIC.BACKBONE.NAME = "build_dilated_resnet_backbone"
    cfg.MODEL.SEMANTIC.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.SEMANTIC.RESNETS = cfg.MODEL.RESNETS.clone()
    cfg.MODEL.SEMANTIC.RESNETS.DEPTH = 101
    cfg.MODEL.SEMANTIC.RESNETS.OUT_FEATURES = ["res4", "res5"]
    cfg.MODEL.SEMANTIC.RESNETS.RES5_DILATION = 4
    # Dilation of the 3x3 convolutions of res4; 2 with RES5_DILATION 4 gives output stride 8.
    cfg.MODEL.SEMANTIC.RESNETS.RES4_DILATION = 2
    # Factors of RES5_DILATION, block by block.
    cfg.MODEL.SEMANTIC.RESNETS.RES5_MULTI_GRID = [1, 1, 1]
    # "basic": one 7x7 convolution (MSRA); "deep": three 3x3 convolutions (the public PSPNet).
    cfg.MODEL.SEMANTIC.RESNETS.STEM_TYPE = "basic"
    cfg.MODEL.SEMANTIC.TIMM = cfg.MODEL.TIMM.clone()
    cfg.MODEL.SEMANTIC.FPN = cfg.MODEL.FPN.clone()
    # Checkpoint (path or URL) of a network whose ResNet the semantic backbone starts from, of
    # ImageNet or e.g. the detector's; for where SEMANTIC_WEIGHTS and WEIGHTS do not fill it.
    cfg.MODEL.SEMANTIC.BACKBONE_WEIGHTS = ""
    # Per-channel mean and deviation of the semantic subnetwork's input, BGR.
    cfg.MODEL.SEMANTIC.PIXEL_MEAN = [104.008, 116.669, 122.675]
    cfg.MODEL.SEMANTIC.PIXEL_STD = [1.0, 1.0, 1.0]

    # "PSPHead", or one of Detectron2's registry: "SemSegFPNHead", "DeepLabV3PlusHead", one's own.
    cfg.MODEL.SEM_SEG_HEAD.NAME = "PSPHead"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res5"]
    # Norm of the head's new layers; FrozenBN is the identity at the start.
    cfg.MODEL.SEM_SEG_HEAD.NORM = "FrozenBN"
    # Grid sizes of the pyramid pooling and the channels each is reduced to.
    cfg.MODEL.SEM_SEG_HEAD.PPM_BINS = [1, 2, 3, 6]
    cfg.MODEL.SEM_SEG_HEAD.PPM_DIM = 512
    # Channels of the 3x3 convolution before the classifier.
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 2048
    cfg.MODEL.SEM_SEG_HEAD.DROPOUT = 0.1
    # Auxiliary classifier on an earlier stage: its feature, channels and loss weight (0: none).
    cfg.MODEL.SEM_SEG_HEAD.AUX_FEATURE = "res4"
    cfg.MODEL.SEM_SEG_HEAD.AUX_DIM = 256
    cfg.MODEL.SEM_SEG_HEAD.AUX_LOSS_WEIGHT = 0.4

    # DeepLabV3PlusHead, beside CONVS_DIM and COMMON_STRIDE: channels that all IN_FEATURES but the
    # last are reduced to, the pyramid of dilated convolutions on the last, and the loss,
    # "cross_entropy" or "hard_pixel_mining".
    cfg.MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS = [48]
    cfg.MODEL.SEM_SEG_HEAD.ASPP_CHANNELS = 256
    cfg.MODEL.SEM_SEG_HEAD.ASPP_DILATIONS = [6, 12, 18]
    cfg.MODEL.SEM_SEG_HEAD.ASPP_DROPOUT = 0.1
    cfg.MODEL.SEM_SEG_HEAD.USE_DEPTHWISE_SEPARABLE_CONV = False
    cfg.MODEL.SEM_SEG_HEAD.LOSS_TYPE = "cross_entropy"

    # How semantic probabilities are made at test time: "whole", or "tiles" (blended) of the size a
    # network trained on crops has seen; smaller images are padded to one.
    cfg.MODEL.SEMANTIC.INFERENCE = CN()
    cfg.MODEL.SEMANTIC.INFERENCE.MODE = "whole"
    cfg.MODEL.SEMANTIC.INFERENCE.TILE_SIZE = 521
    # Share of a tile that overlaps its neighbour.
    cfg.MODEL.SEMANTIC.INFERENCE.TILE_OVERLAP = 0.33
    # Probabilities are averaged over these scales of the image, and over its mirror image.
    cfg.MODEL.SEMANTIC.INFERENCE.SCALES = [1.0]
    cfg.MODEL.SEMANTIC.INFERENCE.FLIP = False

    cfg.MODEL.INSTANCE_HEAD = CN()
    # "InstanceCRFHead" or "BoxMergeHead" (the baseline without a CRF, nothing to train).
    cfg.MODEL.INSTANCE_HEAD.NAME = "InstanceCRFHead"
    # Weights of the box and of the global unary term at the start of training.
    cfg.MODEL.INSTANCE_HEAD.BOX_WEIGHT = 1.0
    cfg.MODEL.INSTANCE_HEAD.GLOBAL_WEIGHT = 1.0
    # "raw": the box term is scaled by the detection score s; "sigmoid": by sigmoid(2s - 1).
    cfg.MODEL.INSTANCE_HEAD.BOX_SCORE = "raw"
    cfg.MODEL.INSTANCE_HEAD.EPSILON = 1e-8
    # Dense pairwise terms: weights at the start of training and fixed deviations in pixels and
    # in colour steps of 0 to 255.
    cfg.MODEL.INSTANCE_HEAD.BILATERAL_WEIGHT = 4.0
    cfg.MODEL.INSTANCE_HEAD.BILATERAL_XY = 49.0
    cfg.MODEL.INSTANCE_HEAD.BILATERAL_RGB = 5.0
    cfg.MODEL.INSTANCE_HEAD.GAUSSIAN_WEIGHT = 3.0
    cfg.MODEL.INSTANCE_HEAD.GAUSSIAN_XY = 3.0
    # Mean-field iterations; 0 leaves the unary term alone.
    cfg.MODEL.INSTANCE_HEAD.ITERATIONS = 3
    # Weight, in the matching of ground truth to labels, of the IoU of boxes beside that of masks.
    cfg.MODEL.INSTANCE_HEAD.MATCH_BOX_WEIGHT = 1e-3
    cfg.MODEL.INSTANCE_HEAD.LOSS_WEIGHT = 1.0
    # Segments with fewer pixels are dissolved into the next most probable labels; 0 keeps all.
    cfg.MODEL.INSTANCE_HEAD.MIN_STUFF_AREA = 0
    cfg.MODEL.INSTANCE_HEAD.MIN_THING_AREA = 0
    # Score that ranks stuff segments: "mean_confidence" or "detection" (constant 1).
    cfg.MODEL.INSTANCE_HEAD.STUFF_SCORE = "mean_confidence"
    # Score that ranks thing segments: "detection" or "mean_confidence".
    cfg.MODEL.INSTANCE_HEAD.THING_SCORE = "detection"


def add_tag_config(cfg: CN) -> None:
    """Tag classifier, class activation maps, label cleaning, refinement."""
    cfg.MODEL.TAG_CLASSIFIER = CN()
    # Whose backbone keys the classifier uses: "MODEL" or, dilated, "MODEL.SEMANTIC".
    cfg.MODEL.TAG_CLASSIFIER.BACKBONE_FROM = "MODEL"
    # Output of the backbone that is pooled over the image.
    cfg.MODEL.TAG_CLASSIFIER.IN_FEATURE = "res5"
    # The learning rate of the linear layer is BASE_LR times this.
    cfg.MODEL.TAG_CLASSIFIER.HEAD_LR_FACTOR = 1.0
    # Share of a box inside a crop from which its class counts as a tag of the crop; a box that
    # meets the crop with less leaves the class unknown there. Above 1: boxes give no tags.
    cfg.INPUT.TAG_BOX_SHARE = 0.5

    # The tag segmenter: META_ARCHITECTURE "TagSegmenter", DATASET_MAPPER_NAME "TagRegionMapper".
    cfg.MODEL.TAG_SEGMENTER = CN()
    # Longer side that images are resized to; cells are 4 of its pixels wide.
    cfg.MODEL.TAG_SEGMENTER.SIZE = 240
    # Width of its two hidden layers.
    cfg.MODEL.TAG_SEGMENTER.HIDDEN = 64
    # Share of a crop's cells that must show a class of its tags, and of a box's its class.
    cfg.MODEL.TAG_SEGMENTER.TAG_SHARE = 0.01
    cfg.MODEL.TAG_SEGMENTER.BOX_SHARE = 0.3
    # Weights of the boxes' and of the entropy's losses; the others weigh 1.
    cfg.MODEL.TAG_SEGMENTER.BOX_WEIGHT = 0.3
    cfg.MODEL.TAG_SEGMENTER.ENTROPY_WEIGHT = 0.1
    # Above 0, also learn where each class is possible, which tells rare classes from those that
    # always come with them; exponent of that evidence beside the distribution's, 0 to 1.
    cfg.MODEL.TAG_SEGMENTER.EVIDENCE = 0.0

    # Cues. A tag segmenter's are its distributions: THRESHOLD is then a probability, LAYER and
    # SCALES have no meaning.
    cfg.CAM = CN()
    # Module of the tag classifier whose activations are weighted.
    cfg.CAM.LAYER = "backbone.res5"
    # A pixel is a cue where its map reaches this share of the class's maximum in the image: 0.5 on
    # street scenes, 0.15 on ImageNet (paper 4.1).
    cfg.CAM.THRESHOLD = 0.5
    # Maps are averaged over these sizes of the image, and over its mirror image.
    cfg.CAM.SCALES = [1.0]
    cfg.CAM.FLIP = False
    # Give cues for things too; their masks come from boxes, so the merge drops them.
    cfg.CAM.THINGS = False
    # Weigh a tag segmenter's distributions by how each class looks in the image itself, to this
    # power; 0: off.
    cfg.CAM.APPEARANCE_WEIGHT = 0.0

    cfg.CLEAN = CN()
    # Labels less probable than this become ignore (not in round 0); 0 is off. 0.99 on Cityscapes.
    cfg.CLEAN.SCORE_THRESHOLD = 0.0
    # Drop labels that are not among the tags of the crops they lie in.
    cfg.CLEAN.TAGS = True
    # Let the box masks win, in this many rounds (round 0 is the merge with the cues).
    cfg.CLEAN.MERGE = True
    cfg.CLEAN.MERGE_ROUNDS = 5
    # What the merge leaves of predictions inside boxes but beside their masks: "stuff" (as the
    # authors' code), "nothing" (as round 0's box masks, paper 3.2) or "things" in a box of theirs.
    cfg.CLEAN.KEEP_IN_BOXES = "stuff"
    # Drop things outside the boxes of their class.
    cfg.CLEAN.PRIOR = True
    # Give boxes that hold too little of their class to it, and what is too little.
    cfg.CLEAN.FILL = False
    cfg.CLEAN.FILL_THRESHOLD = 0.5
    # Count the classes of boxes as tags of the crops they meet.
    cfg.CLEAN.ADD_BOX_CLASSES_TO_TAGS = True
    # Make instance labels. Off, with TAGS and PRIOR, where boxes are unreliable (train_extra).
    cfg.CLEAN.INSTANCES = True
    # Which pixels of a thing belong to which instance in round 0: "boxes" (the one box of its class
    # that covers it) or "masks" (the one box whose mask it is in).
    cfg.CLEAN.INSTANCES_FROM = "boxes"

    cfg.REFINE = CN()
    # Refine predictions with a dense CRF before they are cleaned; DeepLab's parameters, whose sizes
    # (*_XY) are pixels of photographs of 500 x 375: smaller images want smaller ones.
    cfg.REFINE.ENABLED = True
    cfg.REFINE.BILATERAL_WEIGHT = 4.0
    cfg.REFINE.BILATERAL_XY = 49.0
    cfg.REFINE.BILATERAL_RGB = 5.0
    cfg.REFINE.GAUSSIAN_WEIGHT = 3.0
    cfg.REFINE.GAUSSIAN_XY = 3.0
    cfg.REFINE.ITERATIONS = 10
    # "auto", "native", "exact", or "pydensecrf" (optional package).
    cfg.REFINE.BACKEND = "auto"
    # Leave out the classes that tags and boxes rule out before the CRF, not only when cleaning.
    cfg.REFINE.WITHIN_ANNOTATION = False
    # Divide each class's probability by its share of the labels that the network learned from, to
    # this power: a network predicts rare classes more rarely still. 0: as predicted.
    cfg.REFINE.CLASS_BALANCE = 0.0
    # Multiply the probability of the class that round 0's labels give a pixel; 1: as predicted.
    cfg.REFINE.FIRST_LABELS_VOTE = 1.0
    # Weigh the probabilities by how each class looks in the image itself, to this power, before the
    # CRF; 0: off.
    cfg.REFINE.APPEARANCE_WEIGHT = 0.0
    # Multiply each class's probability by how far tags vouch for the cues of round 0, to this
    # power; 0: off. Needs the labels of a tag segmenter.
    cfg.REFINE.RELIABILITY_POWER = 0.0
    # Predictions are averaged over these sizes of the image, and over its mirror image.
    cfg.REFINE.SCALES = [1.0]
    cfg.REFINE.FLIP = False

    cfg.ITERATIVE = CN()
    # Begin each round from the config's weights instead of the last round's.
    cfg.ITERATIVE.RESTART = False
    # A network trained on round 0's labels already, which is then the first round's: a checkpoint
    # of tools/train_net.py. "": train it.
    cfg.ITERATIVE.FIRST_WEIGHTS = ""
    # Processes that predict, refine and clean; each loads the model.
    cfg.ITERATIVE.WORKERS = 1
    # Box masks to merge in rounds up to CLEAN.MERGE_ROUNDS: [[dataset, boxes store], ...]. Default:
    # STORE/parts/boxes of the label store that training begins with, else that store's things.
    cfg.ITERATIVE.BOX_STORES = []
    # While training with train_net.py, make new labels every so many iterations; 0: never.
    cfg.ITERATIVE.PERIOD = 0


def add_eval_config(cfg: CN) -> None:
    """Metrics and ranking."""
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
    # Parts replaced by the truth, to see what limits a model: some of "boxes" (detections) and
    # "semantics" (class probabilities). Needs a RUN_VARIANT other than "main".
    cfg.TEST.TRUE_PARTS = []
    # Write panoptic_pred.json, panoptic_pred/ and semantic_pred/ into the evaluation's folder.
    cfg.TEST.WRITE_PREDICTIONS = True


def add_engine_config(cfg: CN) -> None:
    """Training and iterative training."""
    # Name of the run in results.json; empty takes the supervision: weak, full or mixed.
    cfg.RUN_NAME = ""
    # "main", or the name of the isolating experiment that this run belongs to.
    cfg.RUN_VARIANT = "main"
    # Mixed precision (SOLVER.AMP.ENABLED) of training, evaluation and new labels: "bfloat16", or
    # "float16", whose gradients are scaled.
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    # "SGD" or "AdamW" (fewer iterations from random weights).
    cfg.SOLVER.OPTIMIZER = "SGD"
    # The learning rate of new heads is BASE_LR times this.
    cfg.SOLVER.HEAD_LR_FACTOR = 10.0
    # The learning rate of the CRF's weights is BASE_LR times this; they have no weight decay.
    cfg.SOLVER.CRF_LR_FACTOR = 10.0
    # Beside Detectron2's schedules, LR_SCHEDULER_NAME "WarmupPolyLR" decays with this power.
    cfg.SOLVER.POLY_LR_POWER = 0.9
