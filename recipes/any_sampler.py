"""Distils other samplers than HDN: any function that draws, and a posterior in closed form.

python recipes/any_sampler.py
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from distill import keep_freed_memory, psnr, report, train
from losses import L2
from samplers import FunctionSampler, LinearGaussianField, posterior_mean
from students import UNet


def shrink_shifted_haar(noisy: Tensor, sigma: float = 25.0) -> Tensor:
    """Haar wavelet shrinkage of a randomly shifted image (B, 1, H, W).

    It is one draw of cycle spinning (Coifman & Donoho, 1995), whose consensus is the mean over all shifts.
    """
    shift = torch.randint(0, 8, (2,)).tolist()
    approximation, details = noisy.roll(shift, (2, 3)), []
    for _ in range(3):
        haar = torch.tensor([[[1, 1], [1, 1]], [[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]])
        bands = F.conv2d(approximation, haar[:, None].to(noisy) / 2, stride=2)
        approximation, detail = bands[:, :1], bands[:, 1:]
        details.append(detail * (detail.abs() > 3 * sigma))
    for detail in reversed(details):
        bands = torch.cat([approximation, detail], dim=1)
        approximation = F.conv_transpose2d(bands, haar[:, None].to(noisy) / 2, stride=2)
    return approximation.roll([-s for s in shift], (2, 3))


def main(*, out: str = "runs/any_sampler", steps: int = 300) -> None:
    torch.manual_seed(0)
    # Gaussian random fields with white noise, whose posterior mean is the Wiener filter.
    field = LinearGaussianField(mean=100.0, std=40.0, correlation_length=6.0, noise_std=25.0)
    clean = field.prior(16, (128, 128))
    noisy = field.observe(clean)
    samplers = {"Wiener posterior": field, "shifted Haar": FunctionSampler(shrink_shifted_haar)}
    for name, sampler in samplers.items():
        folder = f"{out}/{name.replace(' ', '_')}"
        # Neither can be trained, so all steps train the student alone.
        run = train(noisy, sampler, UNet(depth=3, filters=16), L2(), folder, steps=steps, refine_steps=0)
        with torch.inference_mode():
            images = {
                "noisy": noisy,
                "1 draw": sampler.sample(noisy)[0],
                "100 draws": posterior_mean(sampler, noisy, 100),
                "student": run.denoiser(noisy),
            }
        print(
            name,
            *(f"{what} {psnr(image, clean):.2f} dB" for what, image in images.items()),
            sep="  ",
        )
        report(run)
    print(f"Wiener filter itself: {psnr(field.posterior_mean(noisy), clean):.2f} dB")


if __name__ == "__main__":
    keep_freed_memory()
    main()
