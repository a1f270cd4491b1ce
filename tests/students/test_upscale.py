import pytest
import torch

from students import EncoderDecoder, LightUNet, NoiseConditioned, UNet
from students.upscale import Nearest, factors, upscaled

TINY = {
    UNet: dict(depth=2, filters=4),
    LightUNet: dict(width=4, depth=2),
    EncoderDecoder: dict(encoder="tu-mobilenetv3_small_050", depth=3),
}


@pytest.mark.parametrize("scale", [(1, 2), (3, 1), 2])
def test_every_pixel_is_repeated(scale):
    image = torch.rand(2, 3, 4, 5)
    y, x = factors(scale)
    assert Nearest(scale)(image).equal(image.repeat_interleave(y, 2).repeat_interleave(x, 3))


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "2", True, (1,), (1, 2, 3), (2, 0), None])
def test_what_is_no_scale_is_one_line(wrong):
    with pytest.raises(ValueError, match=r"scale: got .* must be a whole number from 1 on"):
        LightUNet(width=4, depth=1, scale=wrong)


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("scale", [(1, 1), 2, (1, 3), [2, 1]])
def test_the_answer_has_the_size_that_was_asked_for(kind, scale):
    if kind is EncoderDecoder:
        pytest.importorskip("segmentation_models_pytorch")
    student, (y, x) = kind(in_channels=2, out_channels=3, scale=scale, **TINY[kind]), factors(scale)
    answer = student(torch.rand(1, 2, 32, 48))
    assert answer.shape == (1, 3, 32 * y, 48 * x)
    answer.square().mean().backward()
    assert all(p.grad is not None for p in student.parameters())


@pytest.mark.parametrize("kind", [UNet, LightUNet])
def test_scale_1_is_the_network_without_it(kind):
    torch.manual_seed(3)
    plain = kind(**TINY[kind])
    after = torch.rand(())
    torch.manual_seed(3)
    scaled = kind(scale=1, **TINY[kind])
    assert after.equal(torch.rand(()))  # as many random numbers
    assert plain.state_dict().keys() == scaled.state_dict().keys()
    assert all(a.equal(b) for a, b in zip(plain.parameters(), scaled.parameters(), strict=True))


def test_a_flat_image_stays_flat():
    """No checkerboard: all pixels of an image without structure come out the same."""
    head = upscaled(4, 2, (2, 3)).eval()
    answer = head(torch.rand(1, 4, 1, 1).expand(1, 4, 8, 8))
    assert answer.std((2, 3)).max() < 1e-6


def test_draws_of_a_noise_conditioned_student_are_as_large():
    student = NoiseConditioned(LightUNet(3, 1, scale=(1, 2), **TINY[LightUNet]), samples=2)
    assert student(torch.rand(2, 1, 16, 16)).shape == (2, 2, 16, 32)
