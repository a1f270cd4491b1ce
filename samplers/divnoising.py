"""DivNoising: a flat VAE that learns to denoise from noisy images alone (Prakash et al., 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samplers.ladder_vae import gaussian_kl
from samplers.noise import NoiseModel
from samplers.vae import VAESampler
from students.dimensions import CONV, CONV_TRANSPOSE, MAX_POOL, padding
from students.precision import in_float32


class FlatVAE(nn.Module):
    """A VAE on standardized images, whose latents ~ N(mean, exp(logvar)) have 1 / 2^depth of their size."""

    def __init__(self, channels: int, depth: int, filters: int, latents: int, dims: int) -> None:
        super().__init__()
        self.multiple = 2**depth
        widths = [filters * 2**i for i in range(depth)]
        wide = zip([channels, *widths], widths, strict=False)
        self.down = nn.Sequential(*[nn.Sequential(*_convs(a, b, dims), MAX_POOL[dims](2)) for a, b in wide])
        self.to_mean = CONV[dims](widths[-1], latents, 3, padding=1)
        self.to_logvar = CONV[dims](widths[-1], latents, 3, padding=1)
        narrow = zip([latents, *widths[::-1]], widths[::-1], strict=False)
        self.up = nn.Sequential(
            *[nn.Sequential(*_convs(a, b, dims), CONV_TRANSPOSE[dims](b, b, 2, stride=2)) for a, b in narrow]
        )
        self.head = CONV[dims](filters, channels, 3, padding=1)

    def encode(self, x: Tensor) -> list[Tensor]:
        """(B, C, *S) -> mean and log variance of the latents, each (B, L, *s)."""
        far_ends = padding([(0, -n % self.multiple) for n in x.shape[2:]])
        features = self.down(F.pad(x, far_ends, mode="replicate"))
        return [self.to_mean(features).float(), self.to_logvar(features).float()]

    def decode(self, latents: list[Tensor], *size: int) -> tuple[Tensor, Tensor]:
        """Draws latents once -> signal (B, C, *size), and KL to N(0, I) per image (B,) in nats."""
        mean, logvar = latents
        latent = mean + (logvar / 2).exp() * torch.randn_like(mean)
        signal = in_float32(self.head, self.up(latent)[(..., *map(slice, size))])
        return signal, gaussian_kl(mean, logvar, mean.new_zeros(()), mean.new_zeros(()))


def _convs(before: int, after: int, dims: int) -> list[nn.Module]:
    return [
        CONV[dims](before, after, 3, padding=1),
        nn.ReLU(inplace=True),
        CONV[dims](after, after, 3, padding=1),
        nn.ReLU(inplace=True),
    ]


class DivNoising(VAESampler):
    """Fully convolutional DivNoising (Prakash et al., 2021), by default with its published network.

    Args:
        noise_model: p(noisy | signal), or the .npz file of one. Default: a line, variance = gain * signal +
            offset, which is estimated from the noisy training images.
        channels: number of channels of the image.
        depth: how many times the network halves the image.
        filters: number of filters of the finest level.
        latents: number of channels of the latents.
        kl_warmup: training steps over which the weight of the KL rises from 0 to 1. It prevents posterior
            collapse, after which the authors retrained, up to 20 times, and then with such a ramp.
        in_channels: number of channels of the model, those of neighbouring planes included, see VAESampler.
            Default: `channels`, without neighbouring planes.
        dims: 2 for images, 3 for volumes, of which all axes are halved.
    """

    def __init__(
        self,
        noise_model: NoiseModel | str | None = None,
        *,
        channels: int = 1,
        depth: int = 2,
        filters: int = 32,
        latents: int = 64,
        kl_warmup: int = 500,
        in_channels: int | None = None,
        dims: int = 2,
    ) -> None:
        super().__init__(noise_model, channels, kl_warmup, in_channels, dims)
        for name, value in {"depth": depth, "filters": filters, "latents": latents}.items():
            if value < 1:
                raise ValueError(f"DivNoising: got {name}={value}, must be at least 1")
        self.depth, self.filters, self.latents = depth, filters, latents
        self.vae = FlatVAE(self.in_channels, depth, filters, latents, dims)

    def kl_cost(self, kl: Tensor) -> Tensor:
        """(B,) -> scalar: mean nats per image."""
        return kl.mean()
