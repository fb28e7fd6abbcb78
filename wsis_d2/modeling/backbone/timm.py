# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Any network of the library ``timm`` that gives a pyramid of features. Addition, not in the paper.

The network sees what it was trained on, whatever the config's channel order and PIXEL_MEAN are:
images are brought to its own.
"""

import contextlib
import difflib
import math
from collections.abc import Mapping
from types import ModuleType

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from torch import nn

from wsis_d2.modeling.backbone.folded import fold_followed_norms
from wsis_d2.modeling.backbone.names import flattened, timm_names
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.requirements import import_optional

NORMS = ("FrozenBN", "BN", "SyncBN")
_PROBE = 65
"""Side of the image that tells how a network treats borders: a multiple of 32, plus 1."""


class TimmBackbone(Backbone):
    """Features ``res2`` to ``res5`` of strides 4 to 32, named after the stride without dilation.

    A network that halves only even sizes (patches, as ConvNeXt) has a ``size_divisibility``.
    """

    def __init__(
        self,
        name: str,
        *,
        out_features: list[str],
        output_stride: int = 32,
        norm: str = "FrozenBN",
        freeze_at: int = 0,
        in_channels: int = 3,
        pixel_mean: list[float] | None = None,
        pixel_std: list[float] | None = None,
        bgr: bool = True,
    ) -> None:
        """
        Args:
            name: timm's name of the model, with or without the weights' tag.
            out_features: names of the features to give; stages behind the last are not built.
            output_stride: 8, 16 or 32; below 32 later stages are dilated.
            norm: what batch norm becomes, one of ``NORMS``; other norms stay as they are.
            freeze_at: fix the stem (1), and the stages up to res2 (2), res3 (3) and so on.
            in_channels: channels of the image.
            pixel_mean, pixel_std: what the images given were standardized with; None: as the
                network wants them.
            bgr: whether the images given are BGR.

        Raises:
            InputError: timm is missing, knows no such model, or it has no such features.
        """
        super().__init__()
        timm = import_optional("timm", "pretrained")
        if norm not in NORMS:
            raise InputError(f"RESNETS.NORM is {norm!r}, expected one of {', '.join(NORMS)}")
        full, levels = self._levels(timm, name, output_stride, in_channels)
        unknown = [f for f in out_features if f not in levels]
        if unknown or not out_features:
            raise InputError(f"RESNETS.OUT_FEATURES is {list(out_features)}, {name} has {levels}")
        last = max(levels.index(f) for f in out_features)
        self.name = name
        self.in_channels = in_channels
        self.body = timm.create_model(
            name, features_only=True, in_chans=in_channels, out_indices=full[: last + 1],
            **({"output_stride": output_stride} if output_stride < 32 else {}),
        )  # fmt: skip
        info = self.body.feature_info
        self._out_features = list(out_features)
        self._out_feature_channels = dict(zip(levels, info.channels(), strict=False))
        self._out_feature_strides = dict(zip(levels, info.reduction(), strict=False))
        self._levels_given = levels[: last + 1]
        for level in self._levels_given:
            self.add_module(level, nn.Identity())  # so that hooks (Grad-CAM) find the features
        self._freeze(norm, freeze_at)
        self._aligned = self._probe(in_channels, fold=norm == "FrozenBN")
        self._standardize(in_channels, pixel_mean, pixel_std, bgr)

    @staticmethod
    def _levels(
        timm: ModuleType, name: str, stride: int, channels: int
    ) -> tuple[list[int], list[str]]:
        """Return timm's indices of a model's features and their names."""
        if not timm.is_model(name.split(".")[0]):
            near = difflib.get_close_matches(name, timm.list_models(), 3)
            hint = f"; near are {', '.join(near)}" if near else ""
            raise InputError(
                f"MODEL.TIMM.NAME is {name!r}, timm {timm.__version__} has no such model{hint}"
            )
        if stride not in (8, 16, 32):
            raise InputError(
                f"output stride {stride}: RESNETS.RES5_DILATION is expected to be 1 (output stride "
                "32), 2 (16) or 4 (8)"
            )
        try:
            with torch.device("meta"):
                body = timm.create_model(
                    name, features_only=True, in_chans=channels,
                    **({"output_stride": stride} if stride < 32 else {}),
                )  # fmt: skip
        except (TypeError, ValueError, RuntimeError, AssertionError, NotImplementedError) as error:
            text = " ".join(str(error).split())[:200]
            raise InputError(
                f"MODEL.TIMM.NAME {name}: gives no features at output stride {stride} ({text})"
            ) from None
        names: list[int] = []
        for reduction in body.feature_info.reduction():
            level = math.log2(reduction)
            if level != int(level) or (names and level < min(names[-1], math.log2(stride))):
                break
            # A dilated stage has its predecessor's stride, and the next one's name.
            names.append(int(level) if not names or level > names[-1] else names[-1] + 1)
        reductions = body.feature_info.reduction()
        if len(names) < len(reductions) or max(names) > 5 or reductions[-1] > stride:
            raise InputError(
                f"MODEL.TIMM.NAME {name}: its features have strides {reductions}, expected a "
                "pyramid that ends at stride 32 or below"
            )
        return list(body.feature_info.out_indices), [f"res{level}" for level in names]

    def _freeze(self, norm: str, freeze_at: int) -> None:
        from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d

        fixed = self._stem_and_stages(freeze_at)
        for name, parameter in self.body.named_parameters():
            if name in fixed:
                parameter.requires_grad_(False)
        if norm == "FrozenBN":
            self.body = freeze_batch_norm_2d(self.body)
            return
        for name, module in list(self.body.named_modules()):
            if isinstance(module, nn.BatchNorm2d) and f"{name}.weight" in fixed:
                parent, _, last = name.rpartition(".")
                setattr(self.body.get_submodule(parent), last, freeze_batch_norm_2d(module))
        if norm == "SyncBN":
            self.body = convert_sync_batchnorm(self.body)

    def _stem_and_stages(self, freeze_at: int) -> set[str]:
        """Names of the parameters up to a stage; modules are registered in the order of use."""
        if freeze_at == 0:
            return set()
        modules = [name for name, _ in self.body.named_modules()]
        first, last = {}, {}
        for level, module in zip(
            self._levels_given, self.body.feature_info.module_name(), strict=True
        ):
            # timm flattens the names of some networks' modules.
            own = module if module in modules else module.replace(".", "_")
            if own not in modules:
                raise InputError(
                    f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}: {self.name} has no stages in order, "
                    "expected 0"
                )
            inside = [i for i, n in enumerate(modules) if n == own or n.startswith(f"{own}.")]
            first[level], last[level] = inside[0], inside[-1]
        wanted = [level for level in self._levels_given if int(level[3:]) <= freeze_at]
        if wanted:
            end = max(last[level] for level in wanted) + 1
        else:
            end = first[self._levels_given[0]]
        fixed = set(modules[:end])
        names = [name for name, _ in self.body.named_parameters()]
        return {name for name in names if name.rpartition(".")[0] in fixed}

    def _probe(self, channels: int, fold: bool) -> bool:
        """Fold norms; return whether a side of 32 n + 1 gives features of n strides + 1."""
        training = self.body.training
        self.body.eval()
        parameter = next(self.body.parameters())
        example = torch.zeros(1, channels, _PROBE, _PROBE, device=parameter.device)
        try:
            if fold:
                fold_followed_norms(self.body, example[..., 1:, 1:])
            with torch.no_grad():
                found = self.body(example[..., 1:, 1:])
        except (RuntimeError, AssertionError) as error:
            text = " ".join(str(error).split())[:200]
            raise InputError(
                f"MODEL.TIMM.NAME {self.name}: cannot run on images of any size ({text})"
            ) from None
        with contextlib.suppress(RuntimeError), torch.no_grad():
            # It fails where features are joined whose sizes must be halves of one another.
            found = self.body(example)
        self.body.train(training)
        strides = [self._out_feature_strides[level] for level in self._levels_given]
        sides = [(_PROBE - 1) // s + 1 for s in strides]
        if any(f.shape[1] != self._out_feature_channels[level] for f, level in zip(
            found, self._levels_given, strict=True
        )):  # fmt: skip
            raise InputError(f"MODEL.TIMM.NAME {self.name}: its features are not (N, C, H, W)")
        return all(f.shape[-1] == side for f, side in zip(found, sides, strict=True))

    def _standardize(
        self, channels: int, mean: list[float] | None, std: list[float] | None, bgr: bool
    ) -> None:
        """Keep what brings an image as given to the network's own mean, deviation and order."""
        own = getattr(self.body, "pretrained_cfg", None) or getattr(self.body, "default_cfg", {})
        own_mean = [255.0 * v for v in own.get("mean", (0.5,) * channels)]
        own_std = [255.0 * v for v in own.get("std", (0.5,) * channels)]
        if channels != 3 or len(own_mean) != 3:
            own_mean, own_std, bgr = mean or own_mean, std or own_std, False
        self.reverse = bgr
        given_mean, given_std = list(mean or own_mean), list(std or own_std)
        if bgr and mean is not None:
            given_mean, given_std = given_mean[::-1], given_std[::-1]
        factor = [g / o for g, o in zip(given_std, own_std, strict=True)]
        shift = [
            (g - o) / s for g, o, s in zip(given_mean, own_mean, own_std, strict=True)
        ]  # fmt: skip
        self.identity = all(abs(f - 1) < 1e-4 for f in factor) and all(abs(s) < 1e-4 for s in shift)
        self.register_buffer("_factor", torch.tensor(factor).view(-1, 1, 1), False)
        self.register_buffer("_shift", torch.tensor(shift).view(-1, 1, 1), False)

    @property
    def size_divisibility(self) -> int:
        """What sides must be a multiple of; 0 where any size will do."""
        return 0 if self._aligned else max(self._out_feature_strides[f] for f in self._levels_given)

    @property
    def padding_constraints(self) -> dict[str, int]:
        """As Detectron2 asks for it; no square images are needed."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each feature."""
        return {
            f: ShapeSpec(
                channels=self._out_feature_channels[f], stride=self._out_feature_strides[f]
            )
            for f in self._out_features
        }

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Standardized images (N, channels, H, W) to features by name."""
        if self.reverse:
            x = x.flip(1)
        if not self.identity:
            x = x * self._factor + self._shift
        found = dict(zip(self._levels_given, self.body(x), strict=True))
        return {f: getattr(self, f)(found[f]) for f in self._out_features}

    def own_names(
        self, arrays: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], list[str]]:
        """Return a whole network's arrays by this backbone's names.

        Args:
            arrays: as published, by timm's names or others that ``names.py`` knows.

        Returns:
            The arrays, and the names that only the whole network has a place for: stages behind
            the last feature, classifier.
        """
        import timm

        with torch.device("meta"):
            whole = timm.create_model(self.name, in_chans=self.in_channels).state_dict()
        wanted = self.body.state_dict()
        found = {f"body.{flattened(n, wanted)}": v for n, v in timm_names(arrays, whole).items()}
        places = {f"body.{flattened(n, wanted)}" for n in whole}
        return found, sorted(places - {f"body.{n}" for n in wanted})

    def recognizes(self, arrays: Mapping[str, torch.Tensor]) -> bool:
        """Whether arrays are of the whole network: most of the backbone's names are among them."""
        found, wanted = self.own_names(arrays)[0], self.state_dict()
        return 2 * sum(name in found for name in wanted) > len(wanted)


def _bottom_up(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    name, resnets = cfg.MODEL.TIMM.NAME, cfg.MODEL.RESNETS
    if not name:
        raise InputError("MODEL.TIMM.NAME is empty, expected a model of timm, e.g. convnext_tiny")
    return TimmBackbone(
        name,
        out_features=resnets.OUT_FEATURES,
        output_stride=32 // max(1, resnets.RES5_DILATION),
        norm=resnets.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        in_channels=input_shape.channels,
        pixel_mean=list(cfg.MODEL.PIXEL_MEAN),
        pixel_std=list(cfg.MODEL.PIXEL_STD),
        bgr=cfg.INPUT.FORMAT == "BGR",
    )


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """The network MODEL.TIMM.NAME of timm, by the keys of MODEL.RESNETS and BACKBONE."""
    return _bottom_up(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """A feature pyramid on :func:`build_timm_backbone`, by the keys of MODEL.FPN."""
    return FPN(
        bottom_up=_bottom_up(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
