"""Frozen samplers made of trained networks: ensembles, dropout networks, diffusion models.

All have the arguments `out_channels`, `scale` and `out_names` of PosteriorSampler, for draws with other
channels or another size than the noisy image. Conditions are passed to the networks in their own units.
"""

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from samplers.base import PosteriorSampler, evaluating
from students.upscale import Scale


class Ensemble(PosteriorSampler):
    """Each draw of an image is the output of a random network of an ensemble (Lakshminarayanan et al., 2017).

    Networks are drawn with replacement, because draws have to be independent; without replacement the spread
    between draws would be biased. For any number of draws, each network computes an image only once per call.

    Args:
        networks: modules (B, C, *S) -> (B, C', *S'), deterministic in eval mode, in raw counts, or in units
            of (counts - mean) / std.
        mean: mean for the networks' units, in raw counts.
        std: standard deviation for the networks' units, in raw counts.

    Raises:
        ValueError: without networks, or if std is not positive.
    """

    def __init__(
        self,
        networks: Iterable[nn.Module],
        *,
        mean: float = 0.0,
        std: float = 1.0,
        out_channels: int | None = None,
        scale: Scale = 1,
        out_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.declare(out_channels, scale, out_names)
        self.networks = nn.ModuleList(networks)
        self.mean, self.std = mean, _positive_std(self, std)
        if not len(self.networks):
            raise ValueError("Ensemble: got no networks; pass at least one")

    def draws(self, noisy: Tensor, n: int) -> Iterator[Tensor]:
        indices = torch.randint(
            len(self.networks), (n, len(noisy))
        )  # of the network, for each draw and image
        outputs = {}
        with evaluating(self):
            for i in indices.unique().tolist():
                images = (indices == i).any(dim=0).to(noisy.device)  # images that need network i in some draw
                output = self.networks[i](_standardized(self, noisy[images]))
                outputs[i] = output.new_zeros(len(noisy), *output.shape[1:])
                outputs[i][images] = output * self.std + self.mean
        for row in indices.tolist():
            yield torch.stack([outputs[i][image] for image, i in enumerate(row)])

    def sample(self, noisy: Tensor, n: int = 1) -> Tensor:
        return torch.stack(list(self.draws(noisy, n)))


class MonteCarloDropout(PosteriorSampler):
    """Each draw is a pass with new random dropout; other layers are in eval mode (Gal & Ghahramani, 2016).

    Args:
        network: module (B, C, *S) -> (B, C', *S') with dropout modules, in raw counts, or in units of
            (counts - mean) / std.
        mean: mean for the network's units, in raw counts.
        std: standard deviation for the network's units, in raw counts.

    Raises:
        ValueError: if the network has no dropout modules, or if std is not positive.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: float = 0.0,
        std: float = 1.0,
        out_channels: int | None = None,
        scale: Scale = 1,
        out_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.declare(out_channels, scale, out_names)
        self.network = network
        self.mean, self.std = mean, _positive_std(self, std)
        if not any(layer.p > 0 for layer in self._dropouts()):
            raise ValueError(
                f"MonteCarloDropout: got {type(network).__name__}, which has no dropout module with "
                "p > 0 (calls of torch.nn.functional.dropout cannot be found); all draws would be equal"
            )

    def _dropouts(self) -> list[_DropoutNd]:
        return [module for module in self.network.modules() if isinstance(module, _DropoutNd)]

    def sample(self, noisy: Tensor, n: int = 1) -> Tensor:
        with evaluating(self):
            for layer in self._dropouts():
                layer.train()
            standardized = _standardized(self, noisy)
            draws = [self.network(standardized) for _ in range(n)]
        return torch.stack(draws) * self.std + self.mean


class DiffusionSampler(PosteriorSampler):
    """Draws with a posterior-sampling reconstructor of deepinv (DPS, DiffPIR, DDRM, PosteriorDiffusion, ...).

    Each draw is a complete diffusion with its own seed. deepinv has a class of the same name, which is not
    used here because its running mean includes the noisy image as the first draw.

    Args:
        model: reconstructor on images scaled to [0, 1], called as model(y, physics), or with seed=... if it
            has that argument. Build it on the device of the images.
        black: raw counts that are 0 in the model's units. Noisy pixels may be below.
        white: raw counts that are 1 in the model's units. Noisy pixels may be above.
        noise_std: standard deviation of the noise, in raw counts, for the Denoising physics of deepinv.
        physics: a deepinv physics in units of [0, 1], instead of noise_std; or a function that returns one
            for images (B, C, H, W) in these units, if it depends on their size or content, such as
            lambda y: Inpainting(y.shape[1:], mask=(y > 0).float(), noise_model=...). For images with
            conditions the function has two arguments, with the conditions (B, conditions, H, W) in their own
            units: lambda y, mask: Inpainting(y.shape[1:], mask=mask, noise_model=...).
        scale: factor of super-resolution: 2 for Downsampling(factor=2).

    Raises:
        ValueError: if black is not less than white, or not exactly one of noise_std and physics is passed.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        black: float,
        white: float,
        noise_std: float | None = None,
        physics: nn.Module | Callable[..., nn.Module] | None = None,
        out_channels: int | None = None,
        scale: Scale = 1,
        out_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.declare(out_channels, scale, out_names)
        if not black < white:
            raise ValueError(f"DiffusionSampler: got black={black}, white={white}; black must be less")
        if (noise_std is None) == (physics is None):
            raise ValueError("DiffusionSampler: pass either noise_std, in raw counts, or physics")
        self.model, self.black, self.white = model, black, white
        self.noise_std, self.physics = noise_std, physics
        self._denoising = None if noise_std is None else _denoising(noise_std / (white - black))
        self._takes_seed = "seed" in inspect.signature(model.forward).parameters

    def sample(self, noisy: Tensor, n: int = 1) -> Tensor:
        # DPS needs gradients, which inference tensors do not have, and full precision, so no autocast.
        inference, precise = (
            torch.inference_mode(False),
            torch.autocast(noisy.device.type, enabled=False),
        )
        with inference, precise, evaluating(self):
            images, conditions = self.split(noisy.clone().float())
            y = (images - self.black) / (self.white - self.black)
            physics = self._physics_of(y, conditions)
            draws = torch.stack([self._draw(y, physics) for _ in range(n)])
            return (draws * (self.white - self.black) + self.black).to(noisy.dtype)

    def _physics_of(self, y: Tensor, conditions: Tensor) -> nn.Module | None:
        if self.physics is None or isinstance(self.physics, nn.Module):
            return self._denoising if self.physics is None else self.physics
        return (self.physics(y, conditions) if self.conditions else self.physics(y)).to(y.device)

    def _draw(self, y: Tensor, physics: nn.Module | None) -> Tensor:
        seed = int(torch.randint(1, 2**31, ()))  # not 0, which DDRM and DiffPIR ignore
        devices = [y.device] if y.device.type == "cuda" else []
        with torch.random.fork_rng(devices), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Cannot set seed"
            )  # of solvers that use torch's global generator
            torch.manual_seed(seed)
            return self.model(y, physics, **({"seed": seed} if self._takes_seed else {})).float()


def _denoising(sigma: float) -> nn.Module:
    try:
        # An optional package, which is not installed for the tests.
        from deepinv.physics import Denoising, GaussianNoise  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"DiffusionSampler: deepinv cannot be imported ({error}); "
            "pip install 'posterior-distill[diffusion]', or pass physics"
        ) from None
    return Denoising(GaussianNoise(sigma))


def _standardized(sampler: Ensemble | MonteCarloDropout, noisy: Tensor) -> Tensor:
    images, conditions = sampler.split(noisy)
    standardized = (images - sampler.mean) / sampler.std
    return torch.cat([standardized, conditions], dim=1) if sampler.conditions else standardized


def _positive_std(sampler: PosteriorSampler, std: float) -> float:
    if not std > 0:
        raise ValueError(f"{type(sampler).__name__}: got std={std}, must be positive")
    return std
