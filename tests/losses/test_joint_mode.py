from itertools import product

import pytest
import torch
from torch import Tensor, nn

from distill import train
from losses import JointMode, Loss, Tukey
from losses.tukey import STEEPEST
from samplers import ThreeScenes


class Pixelwise(nn.Sequential):
    """Enough where the answer of a pixel follows from that pixel."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(nn.Conv2d(1, width, 1), nn.ReLU(), nn.Conv2d(width, 1, 1))
        self.width = width


def spots(n: int) -> Tensor:
    """Draws (n, 1, 1, 1, 3) of a spot in one of three places, the first of which is the likeliest."""
    place = torch.multinomial(torch.tensor([0.4, 0.3, 0.3]), n, replacement=True)
    return nn.functional.one_hot(place, 3).reshape(n, 1, 1, 1, 3) + 0.05 * torch.randn(n, 1, 1, 1, 3)


def descended(loss: Loss, draws: Tensor) -> Tensor:
    """What gradient descent makes of zeros, with as many draws a step as the loss needs."""
    prediction = torch.zeros_like(draws[0], requires_grad=True)
    optimizer = torch.optim.Adam([prediction], 0.03)
    for step in range(250):
        loss.schedule(step / 250)
        optimizer.zero_grad()
        loss(prediction, draws[torch.randperm(len(draws))[:32]]).backward()
        optimizer.step()
    return prediction.detach()


def test_one_patch_has_the_triweight_density_of_its_draws():
    draws, at = torch.randn(20, 1, 2, 2, 2), 1.5 * torch.randn(50, 1, 2, 2, 2)
    points, places = draws.flatten(1).double(), at.flatten(1).double()
    apart = torch.cdist(points, points).fill_diagonal_(torch.inf) / 8**0.5
    radius = 1.5 * apart.amin(1).sort().values[9]
    u = torch.cdist(places, points) / 8**0.5 / radius
    density = (1 - u.square()).clamp_min(0).pow(3).mean(1)
    assert (density > 0).sum() > 10
    far = ((places - points.mean(0)).square().mean(1).sqrt() - 3 * points.var(0, False).mean().sqrt()).relu()
    loss = torch.stack([JointMode(c=1.5, window=2)(each, draws) for each in at]).double()
    torch.testing.assert_close(loss, radius / STEEPEST * (1 - density) + far)


def test_an_image_has_the_mean_over_all_of_its_patches():
    draws, prediction = torch.randn(16, 2, 1, 5, 6), torch.randn(2, 1, 5, 6)
    loss = JointMode(window=3)
    for progress in (0.0, 0.4, 1.0):
        loss.schedule(progress)
        patches = [(..., slice(y, y + 3), slice(x, x + 3)) for y, x in product(range(3), range(4))]
        each = torch.stack([loss(prediction[patch], draws[patch]) for patch in patches])
        torch.testing.assert_close(loss(prediction, draws), each.mean())


def test_a_spot_in_one_of_three_places_is_seen_by_the_joint_mode_alone():
    torch.manual_seed(0)
    draws = spots(2000)
    assert (descended(JointMode(), draws) - torch.tensor([1.0, 0.0, 0.0])).abs().max() < 0.1
    assert descended(Tukey(c=0.8, min_draws=32), draws).abs().max() < 0.1


@pytest.mark.parametrize("joint", [True, False])
def test_a_student_reaches_the_joint_mode_or_that_of_each_pixel(joint, tmp_path):
    torch.manual_seed(0)
    sampler, bright = ThreeScenes(), torch.rand(32, 1, 16, 16) < 0.5
    noisy = torch.where(bright, 120.0, 80.0) + 4 * torch.randn(32, 1, 16, 16)
    loss = JointMode() if joint else Tukey(min_draws=16)
    run = train(noisy.numpy()[:, 0], sampler, Pixelwise(), loss, tmp_path, steps=0, refine_steps=160,
                patch_size=16, student_lr=0.02, val_fraction=0, validate_every=1000)  # fmt: skip
    with torch.no_grad():
        answer = run.denoiser(noisy)
    wanted, other = sampler.joint_mode(noisy), sampler.mode(noisy)
    if not joint:
        wanted, other = other, wanted
    error, apart = ((answer - each).square().mean().sqrt() for each in (wanted, other))
    assert error < (0.2 if joint else 1.0) * sampler.std and apart > 0.6 * sampler.separation


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_a_prediction_far_from_all_draws_is_drawn_to_them(progress, spread):
    draws, prediction = spread * torch.randn(16, 1, 1, 3, 3), torch.full((1, 1, 3, 3), 5.0)
    loss = JointMode()
    loss.schedule(progress)
    loss(prediction.requires_grad_(), draws).backward()
    assert prediction.grad is not None and (prediction.grad * 9 >= 0.9).all()  # of the distance: 1


def test_the_first_radius_gives_nearly_the_mean():
    draws = spots(4000)
    loss = JointMode()
    loss.schedule(0.0)
    prediction = draws.mean(0).requires_grad_()
    loss(prediction, draws).backward()
    assert prediction.grad is not None and prediction.grad.abs().max() < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(c=0.0), "c=0.0"),
        (dict(window=1), "use Tukey"),
        (dict(warmup=0.8, anneal=0.3), "warmup=0.8"),
        (dict(anneal=0.0), "anneal"),
        (dict(min_scale=0.0), "min_scale"),
        (dict(min_draws=2), "min_draws=2"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        JointMode(**arguments)
    assert "\n" not in str(caught.value)


def test_too_few_draws_are_refused():
    with pytest.raises(ValueError, match="got 3 draws, needs at least min_draws=16"):
        JointMode()(torch.zeros(1, 1, 3, 3), torch.zeros(3, 1, 1, 3, 3))
