"""Distils common kinds of samplers: is one pass as good as the mean of 100 draws?

python benchmarks/teachers.py [NAME ...]     20 minutes of CPU for all; without deepinv its case is omitted

Small networks and synthetic images of 96 x 96 pixels. PSNR to the truth and of the student to the mean of 100
draws, seconds of each, and whether ONNX Runtime gives the same results as the student.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import context
import numpy as np
import torch
from torch import Tensor, nn

from distill import export, psnr, specimen, train
from distill.images.context import in_context
from distill.images.sources import as_stack
from losses import L2
from recipes import super_resolution_unet_l2 as enlarging
from recipes import unmixing_unet_l2 as unmixing
from samplers import (
    HDN,
    LIGHT,
    DiffusionSampler,
    Ensemble,
    FlowMatching,
    GaussianNoise,
    NextPhoton,
    NumpySampler,
    PosteriorSampler,
    WithLevel,
    WithTime,
    posterior_mean,
)
from students import LightUNet

SIZE, FRAMES, DRAWS = 96, 12, 100
STEPS, STUDENT_STEPS, PATCH = 400, 1600, 48  # of samplers, of students; px


class Teacher(NamedTuple):
    """noisy (N, C, Y, X) and clean (N, C', Y', X') in raw counts; the last image of each is for the test.

    conditions: what both networks are told of it (N, K, Y, X).
    """

    sampler: PosteriorSampler
    student: nn.Module
    noisy: np.ndarray
    clean: np.ndarray
    conditions: np.ndarray | None = None


def trained(network: nn.Module, loss: Callable[[Tensor], Tensor], images: np.ndarray) -> None:
    """On random patches of (N, C, Y, X), all but the last image."""
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        y, x = torch.randint(SIZE - PATCH + 1, (2,)).tolist()
        chosen = torch.randint(len(images) - 1, (4,)).numpy()
        optimizer.zero_grad()
        loss(torch.from_numpy(images[chosen, :, y : y + PATCH, x : x + PATCH])).backward()
        optimizer.step()
        schedule.step()


def pairs() -> np.ndarray:
    """(N, 2, Y, X), noisy and clean."""
    cells = specimen(FRAMES, SIZE)
    return np.stack([cells.noisy, cells.clean], axis=1).astype(np.float32)


def numpy_function() -> Teacher:
    """The middling structures of the recipe in noise, by Matheron's rule."""
    rng = np.random.default_rng(0)
    clean = 100 + unmixing.structures(FRAMES, SIZE, SIZE, rng)[:, 1:2]
    noisy = clean + 25 * rng.standard_normal(clean.shape)

    def draw(noisy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        n, _, height, width = noisy.shape
        power = unmixing.powers(height, width)[1:2]
        prior = unmixing.structures(n, height, width, rng)[:, 1:2]
        lacking = noisy - 100 - prior - 25 * rng.standard_normal(noisy.shape)
        return 100 + prior + np.fft.ifft2(power / (power + 25**2) * np.fft.fft2(lacking)).real

    return Teacher(NumpySampler(draw), LightUNet(width=16), noisy, clean)


def ensemble() -> Teacher:
    images = pairs()
    mean, std = float(images[:, 0].mean()), float(images[:, 0].std())
    networks = [LightUNet(width=16, depth=2) for _ in range(3)]
    for network in networks:

        def loss(patches: Tensor, network: nn.Module = network) -> Tensor:
            noisy, clean = ((patches - mean) / std).chunk(2, dim=1)
            return (network(noisy) - clean).square().mean()

        trained(network, loss, images)
    return Teacher(Ensemble(networks, mean=mean, std=std), LightUNet(width=16), images[:, :1], images[:, 1:])


def flow() -> Teacher:
    images = pairs()
    mean, std = float(images[:, 0].mean()), float(images[:, 0].std())
    sampler = FlowMatching(WithTime(LightUNet(3, width=16)), mean=mean, std=std, steps=10)
    trained(sampler, sampler.squared_error, images)
    return Teacher(sampler, LightUNet(width=16), images[:, :1], images[:, 1:])


def next_photon() -> Teacher:
    clean = specimen(FRAMES, SIZE).clean[:, None]
    clean = (clean - clean.min()) / 4  # about 15 photons where it is brightest
    photons = np.random.default_rng(0).poisson(clean).astype(np.float32)
    bright = np.random.default_rng(1).poisson(10 * clean).astype(np.float32)
    sampler = NextPhoton(WithLevel(LightUNet(2, 2, width=16)), gain=1.0, growth=0.25, accumulation=10)
    trained(sampler, sampler.cross_entropy, bright)
    return Teacher(sampler, LightUNet(width=16), photons, clean)


def unmixing_1_to_3() -> Teacher:
    rng = np.random.default_rng(0)
    clean = unmixing.MEANS + unmixing.structures(FRAMES, SIZE, SIZE, rng)
    sampler = NumpySampler(unmixing.unmixed, out_channels=3)
    student = LightUNet(out_channels=3, width=16, depth=4)
    return Teacher(sampler, student, unmixing.observed(clean, rng)[:, None], clean)


def super_resolution() -> Teacher:
    rng = np.random.default_rng(0)
    clean = enlarging.MEAN + enlarging.signals(FRAMES, 2 * SIZE, 2 * SIZE, rng)
    sampler = NumpySampler(enlarging.enlarged, scale=2)
    return Teacher(
        sampler, LightUNet(width=16, scale=2), enlarging.observed(clean, rng)[:, None], clean[:, None]
    )


def deepinv_with_holes() -> Teacher:
    """30 % of the pixels are missing, as a mask tells; the denoiser is exact for the prior.

    What the student needs, in dB to the mean of 100 draws: 24.3 without the mask and with missing pixels at 0
    counts; 32.1 with them at the mean; 33.4 with the mask too; 37.0 with unshuffle=1 too, since holes are
    single pixels. 1600 steps in place of 400 instead of all that: 32.3.
    """
    from deepinv import physics, sampling  # pyright: ignore[reportMissingImports]
    from deepinv.models import Denoiser  # pyright: ignore[reportMissingImports]
    from deepinv.optim.data_fidelity import L2 as DataFidelity  # pyright: ignore[reportMissingImports]

    class Exact(Denoiser):
        def forward(self, x: Tensor, sigma: Any, **_: Any) -> Tensor:
            power = torch.from_numpy(unmixing.powers(*x.shape[2:])[1]).float() / 200**2
            variance = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1, 1, 1) ** 2
            return 0.5 + torch.fft.ifft2(power / (power + variance) * torch.fft.fft2(x - 0.5)).real

    rng = np.random.default_rng(0)
    clean = 150 + unmixing.structures(FRAMES, SIZE, SIZE, rng)[:, 1:2]
    noisy = clean + 10 * rng.standard_normal(clean.shape)
    known = rng.random(noisy.shape) >= 0.3
    noisy[~known] = noisy[known].mean()
    model = sampling.DiffPIR(Exact(), DataFidelity(), sigma=0.05, max_iter=20)
    sensor = physics.GaussianNoise(0.05)

    def holes(y: Tensor, known: Tensor) -> nn.Module:
        return physics.Inpainting(y.shape[1:], mask=known, noise_model=sensor)

    sampler = DiffusionSampler(model, black=50, white=250, physics=holes)
    return Teacher(sampler, LightUNet(2, width=16, unshuffle=1), noisy, clean, known)


def hdn_in_context() -> Teacher:
    """The movie of context.py; each frame with the two before and after it as further channels."""
    noisy, clean = context.specimen(0)
    half = len(noisy) // 2  # so that the middle frame comes last, which is for the test
    frames = np.roll(in_context(as_stack(noisy), "T2").frames[:], half, axis=0)
    options: dict[str, Any] = LIGHT | {"filters": 12, "latents": 4, "blocks": 1, "kl_warmup": STEPS // 4}
    sampler, images = HDN(GaussianNoise(context.NOISE), in_channels=5, **options), torch.from_numpy(frames)
    sampler.prepare(images, images.mean((0, 2, 3))[:, None, None], images.std((0, 2, 3))[:, None, None])
    trained(sampler, lambda patches: sampler.training_step(patches)[0], frames)
    truth = np.roll(clean, half, axis=0)[:, None]
    return Teacher(sampler, LightUNet(5, 1, width=16, depth=2), frames, truth)


TEACHERS = {
    "function of NumPy": numpy_function,
    "ensemble of 3": ensemble,
    "deepinv, missing pixels": deepinv_with_holes,
    "flow matching": flow,
    "next photon (GAP)": next_photon,
    "unmixing 1 -> 3": unmixing_1_to_3,
    "super-resolution x2": super_resolution,
    "HDN with context": hdn_in_context,
}


def timed(work: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What it gives, and its CPU seconds."""
    started = time.process_time()
    with torch.inference_mode():
        return work(), time.process_time() - started


def row(name: str, teacher: Teacher, folder: Path) -> list[str]:
    noisy, clean = (torch.from_numpy(each).float() for each in (teacher.noisy, teacher.clean))
    images = teacher.noisy[:-1].astype(np.float32)
    told = None if teacher.conditions is None else teacher.conditions[:-1]
    run = train(images, teacher.sampler, teacher.student, L2(), folder / "run", steps=0,
                refine_steps=STUDENT_STEPS, batch_size=4, patch_size=PATCH, val_fraction=0, device="cpu",
                axes="TCYX", conditions=told)  # fmt: skip
    test, truth = noisy[-1:], clean[-1:]
    if teacher.conditions is not None:
        test = torch.cat([test, torch.from_numpy(teacher.conditions[-1:]).float()], dim=1)
    run.denoiser(test)  # the first pass allocates
    consensus, of_draws = timed(lambda: posterior_mean(run.sampler, test, DRAWS))
    student, of_student = timed(lambda: run.denoiser(test))
    written = export(run.path, format="onnx", out=folder / "student.onnx")
    scores = [psnr(consensus, truth), psnr(student, truth), psnr(student, consensus)]
    seconds = [f"{each:.3g}" for each in (of_draws, of_student)]
    return [name, *(f"{score:.2f}" for score in scores), *seconds, f"{written.stat().st_size / 1e6:.2f} MB"]


def main(names: list[str]) -> None:
    print(
        "| sampler | mean of 100, dB | student, dB | to that mean, dB | 100 draws, CPU s | student | ONNX |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|", flush=True)
    for name, make in TEACHERS.items():
        if names and not any(each in name for each in names):
            continue
        torch.manual_seed(0)
        try:
            teacher = make()
        except ImportError as error:
            print(f"| {name} | left out: {error} |")
            continue
        with tempfile.TemporaryDirectory() as folder:
            print("| " + " | ".join(row(name, teacher, Path(folder))) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
