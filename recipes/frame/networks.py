"""Networks of the benchmarks: ResNets for images of 32 x 32 pixels, other families at that size, MobileNetV2 from 8 bits.

Importing this file registers ``cifar_resnet14``, ``cifar_resnet20``, ``cifar_resnet18`` and ``cifar_mobilenetv2`` with timm, so
that a clone can name them as its source.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.layers import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from timm.models.resnet import BasicBlock, make_blocks
from torch import Tensor, nn

from recipes.frame.reading import CIFAR_MEAN, CIFAR_STD, HALF, MissingDataError

SIDE = 32
# architecture and constructor arguments: what a clone has to record of its source
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet14": ("cifar_resnet14", {}),
    "resnet20": ("cifar_resnet20", {}),
    "resnet18": ("cifar_resnet18", {}),
    "mobilenet": ("cifar_mobilenetv2", {}),
    "convnext": ("convnext_atto", {"dims": (32, 64, 128, 192), "depths": (1, 1, 2, 1), "patch_size": 2}),
    "vit": (
        "vit_tiny_patch16_224",
        {"img_size": SIDE, "patch_size": 4, "embed_dim": 96, "depth": 6, "num_heads": 3},
    ),
}


class CifarResNet(nn.Module):
    """ResNet of He et al. (CVPR 2016, section 4.2) for small images: timm's blocks behind a 3x3 convolution of stride 1."""

    def __init__(
        self,
        layers: Sequence[int] = (2, 2, 2),
        channels: Sequence[int] = (16, 32, 64),
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        """A stage for each of ``layers`` and ``channels``; all but the first halve the sides of the feature map."""
        super().__init__()
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.conv1 = nn.Conv2d(in_chans, channels[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.act1 = nn.ReLU(inplace=True)
        stages, _ = make_blocks((BasicBlock,) * len(channels), channels, layers, channels[0])
        for name, stage in stages:
            self.add_module(name, stage)
        self.stages = [name for name, _ in stages]
        self.num_features = self.head_hidden_size = channels[-1]
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def get_classifier(self) -> nn.Module:
        """The linear classifier."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one."""
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(
            self.num_features, num_classes, pool_type=global_pool or self.global_pool.pool_type
        )

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> the last feature map."""
        feature = self.act1(self.bn1(self.conv1(images)))
        for name in self.stages:
            feature = self.get_submodule(name)(feature)
        return feature

    def forward_head(self, feature: Tensor, pre_logits: bool = False) -> Tensor:
        """The last feature map -> logits, or the pooled feature."""
        feature = nn.functional.dropout(self.global_pool(feature), self.drop_rate, self.training)
        return feature if pre_logits else self.fc(feature)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> logits."""
        return self.forward_head(self.forward_features(images))


default_cfgs = generate_default_cfgs(
    {
        f"{name}.untrained": {
            "num_classes": 10,
            "input_size": (3, SIDE, SIDE),
            "pool_size": (SIDE // reduction, SIDE // reduction),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "mean": CIFAR_MEAN,
            "std": CIFAR_STD,
            "first_conv": first,
            "classifier": last,
        }
        for name, reduction, first, last in (
            ("cifar_resnet14", 4, "conv1", "fc"),
            ("cifar_resnet20", 4, "conv1", "fc"),
            ("cifar_resnet18", 8, "conv1", "fc"),
            ("cifar_mobilenetv2", 8, "conv_stem", "classifier"),
        )
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> CifarResNet:
    return build_model_with_cfg(CifarResNet, variant, pretrained, **kwargs)


@register_model
def cifar_resnet14(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """175 thousand parameters, 16 to 64 channels."""
    return _create("cifar_resnet14", pretrained, **{"layers": (2, 2, 2), "channels": (16, 32, 64), **kwargs})


@register_model
def cifar_resnet20(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """272 thousand parameters, 16 to 64 channels."""
    return _create("cifar_resnet20", pretrained, **{"layers": (3, 3, 3), "channels": (16, 32, 64), **kwargs})


@register_model
def cifar_resnet18(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """11 million parameters, 64 to 512 channels."""
    return _create("cifar_resnet18", pretrained, **{"layers": (2, 2, 2, 2), "channels": (64, 128, 256, 512), **kwargs})


@register_model
def cifar_mobilenetv2(pretrained: bool = False, **kwargs: Any) -> EfficientNet:
    """MobileNetV2 (Sandler et al., CVPR 2018) with fewer blocks and strides."""
    # repeats, kernel, stride, expansion and channels of each stage; the stem has stride 2
    stages = [
        ["ds_r1_k3_s1_c16"],
        ["ir_r2_k3_s1_e6_c24"],
        ["ir_r2_k3_s2_e6_c32"],
        ["ir_r3_k3_s2_e6_c64"],
        ["ir_r2_k3_s1_e6_c96"],
    ]
    own = {"block_args": decode_arch_def(stages), "num_features": 320, "act_layer": nn.ReLU6}
    return build_model_with_cfg(EfficientNet, "cifar_mobilenetv2", pretrained, **{**own, **kwargs})


def build(
    network: str,
    num_classes: int,
    seed: int = 0,
    *,
    in_chans: int = 3,
    mean: Sequence[float] = CIFAR_MEAN,
    std: Sequence[float] = CIFAR_STD,
) -> nn.Module:
    """An untrained network of ``NETWORKS`` for images [in_chans, 32, 32]; ``seed`` draws its weights."""
    architecture, arguments = NETWORKS[network]
    overlay = {"input_size": (in_chans, SIDE, SIDE), "mean": tuple(mean), "std": tuple(std), "crop_pct": 1.0}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return timm.create_model(
            architecture, num_classes=num_classes, in_chans=in_chans, pretrained_cfg_overlay=overlay, **arguments
        )


def source_args(network: str) -> dict[str, Any]:
    """Constructor arguments of a network of ``NETWORKS`` that are not timm's defaults."""
    return dict(NETWORKS[network][1])


def mobilenetv2_q8(path: Path | str, keep: Sequence[int] | None = None) -> nn.Module:
    """MobileNetV2-1.0 from 8-bit weights, in eval mode, for images with mean and standard deviation 0.5.

    Args:
        path: npz file with ``<weight>.q``, ``.scale`` and ``.zero`` per output channel, w = (q - zero) * scale, and float32
            biases; BatchNorm is folded into the convolutions.
        keep: classes that the head keeps, in this order; all by default.

    Raises:
        MissingDataError: there is no such file.
    """
    if not Path(path).is_file():
        raise MissingDataError(f"no weights at {path}; give the folder that holds weights/ with --data")
    with np.load(path) as archive:
        stored = {name: archive[name] for name in archive.files}
    model = _mobilenetv2(len(stored["classifier.bias"]))
    state = {name: _restored(name, value, stored, model) for name, value in model.state_dict().items()}
    if keep is not None:
        model = _mobilenetv2(len(keep))
        state |= {name: state[name][list(keep)] for name in ("classifier.weight", "classifier.bias")}
    model.load_state_dict(state)
    return model.eval()


def _mobilenetv2(num_classes: int) -> nn.Module:
    overlay = {"mean": HALF, "std": HALF, "crop_pct": 1.0, "interpolation": "bilinear"}
    return timm.create_model(
        "mobilenetv2_100", pad_type="same", num_classes=num_classes, pretrained_cfg_overlay=overlay
    )


def _restored(name: str, value: Tensor, stored: dict[str, np.ndarray], model: nn.Module) -> Tensor:
    if f"{name}.q" in stored:
        per_channel = [-1] + [1] * (value.dim() - 1)
        q, zero, scale = (torch.from_numpy(np.float32(stored[f"{name}.{kind}"])) for kind in ("q", "zero", "scale"))
        return (q.reshape(value.shape) - zero.reshape(per_channel)) * scale.reshape(per_channel)
    if name in stored:
        return torch.from_numpy(stored[name].astype(np.float32))
    # the folded BatchNorm adds its bias and does nothing else
    if name.endswith("running_mean"):
        return torch.zeros_like(value)
    if name.endswith("running_var"):
        return torch.full_like(value, 1 - model.get_submodule(name.rpartition(".")[0]).eps)
    return torch.ones_like(value) if name.endswith("weight") else value
