import pytest
import torch

from students.anscombe import anscombe
from students.hot_pixels import fill_hot_pixels
from students.stabilized import FLAT


def test_hot_and_dead_pixels_become_like_their_neighbours():
    torch.manual_seed(0)
    z = 30 + torch.randn(2, 1, 40, 50)
    clean = z.clone()
    places = [(0, 0), (0, 20), (39, 27), (17, 30), (17, 31)]  # a corner, borders and a pair, too
    for row, column in places:
        z[0, 0, row, column] = 90.0
        z[1, 0, row, column] = 0.0
    filled = fill_hot_pixels(z)
    changed = filled != z
    assert changed.sum() == 2 * len(places)
    assert ((filled - 30).abs() < 5).all()
    assert torch.equal(filled[~changed], clean[~changed])


@pytest.mark.parametrize("sigma", [0.5, 0.85, 2.0])  # px; 0.85 is Nyquist's rate
def test_noise_spots_and_edges_stay_as_they_are(sigma):
    torch.manual_seed(0)
    edges = torch.arange(65.0) - 0.5

    def profile(at: float) -> torch.Tensor:  # integrated over each pixel
        return torch.special.ndtr((edges - at) / sigma).diff()

    spots = sum(profile(y)[:, None] * profile(x) for y in (12.0, 40.0) for x in (10.0, 30.3))
    steps = torch.zeros(64, 64)
    steps[:, 50:], steps[55] = 60, 60  # a line of one pixel, too
    for image in (torch.zeros(64, 64), 100 * spots / spots.max(), steps):
        flat = FLAT + image + torch.randn(4, 1, 64, 64)  # of Gaussian noise
        counts = torch.poisson(5 + 3 * image.expand(4, 1, 64, 64))
        dim = anscombe(counts, torch.ones(1, 1, 1), torch.zeros(1, 1, 1))
        assert torch.equal(fill_hot_pixels(flat), flat) and torch.equal(fill_hot_pixels(dim), dim)


def test_images_smaller_than_its_neighbourhood():
    for shape in [(1, 1), (1, 5), (2, 2), (3, 1)]:
        z = torch.randn(1, 1, *shape)
        assert torch.equal(fill_hot_pixels(z), z)


def test_dark_pixels_with_read_noise_stay_as_they_are():
    torch.manual_seed(0)
    for read_noise in (0.3, 1.0, 2.0, 4.0):  # photons
        counts = torch.poisson(torch.full((8, 1, 128, 128), 0.2)) + read_noise * torch.randn(8, 1, 128, 128)
        z = anscombe(counts, torch.ones(1, 1, 1), torch.full((1, 1, 1), read_noise**2))
        assert (fill_hot_pixels(counts, z) != counts).float().mean() < 1e-4
