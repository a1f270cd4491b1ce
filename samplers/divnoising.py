"""DivNoising: a flat VAE that learns to denoise from noisy images alone (Prakash et al., 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samplers.ladder_vae import gaussian_kl
from samplers.noise import NoiseModel
from samplers.vae import VAESampler
from students.precision import in_float32


class FlatVAE(nn.Module):
    """Standardized images -> latents ~ N(mean, exp(logvar)) at 1 / 2^depth of their size -> signal."""

    def __init__(self, channels: int, depth: int, filters: int, latents: int, in_channels: int) -> None:
        super().__init__()
        self.multiple = 2**depth
        widths = [filters * 2**i for i in range(depth)]
        wide = zip([in_channels, *widths], widths, strict=False)
        self.down = nn.Sequential(*[nn.Sequential(*_convs(a, b), nn.MaxPool2d(2)) for a, b in wide])
        self.to_mean = nn.Conv2d(widths[-1], latents, 3, padding=1)
        self.to_logvar = nn.Conv2d(widths[-1], latents, 3, padding=1)
        narrow = zip([latents, *widths[::-1]], widths[::-1], strict=False)
        self.up = nn.Sequential(
            *[nn.Sequential(*_convs(a, b), nn.ConvTranspose2d(b, b, 2, stride=2)) for a, b in narrow]
        )
        self.head = nn.Conv2d(filters, channels, 3, padding=1)

    def encode(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> mean and log variance of the latents, (B, L, h, w) each."""
        height, width = x.shape[-2:]
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        features = self.down(F.pad(x, padding, mode="replicate"))
        return [self.to_mean(features).float(), self.to_logvar(features).float()]

    def decode(self, latents: list[Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
        """One draw -> signal (B, C, height, width), and KL to N(0, I) per image (B,) in nats."""
        mean, logvar = latents
        latent = mean + (logvar / 2).exp() * torch.randn_like(mean)
        signal = in_float32(self.head, self.up(latent)[..., :height, :width])
        return signal, gaussian_kl(mean, logvar, mean.new_zeros(()), mean.new_zeros(()))


def _convs(before: int, after: int) -> list[nn.Module]:
    return [
        nn.Conv2d(before, after, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(after, after, 3, padding=1),
        nn.ReLU(inplace=True),
    ]


class DivNoising(VAESampler):
    """Fully convolutional DivNoising with its published network: depth 2, 32 filters, 64 latents.

    noise_model: p(noisy | signal), or the .npz file of one; None estimates variance = gain *
    signal + offset from the noisy training images. kl_warmup: see HDN (the authors trained anew
    on posterior collapse, up to 20 times, and then with such a ramp). in_channels: `channels`, and those of
    neighbouring planes that the encoder sees too; by default none.
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
    ) -> None:
        super().__init__(noise_model, channels, kl_warmup, in_channels)
        for name, value in {"depth": depth, "filters": filters, "latents": latents}.items():
            if value < 1:
                raise ValueError(f"DivNoising: got {name}={value}, must be at least 1")
        self.depth, self.filters, self.latents = depth, filters, latents
        self.vae = FlatVAE(channels, depth, filters, latents, self.in_channels)

    def kl_cost(self, kl: Tensor) -> Tensor:
        """(B,) -> scalar: mean nats per image."""
        return kl.mean()
