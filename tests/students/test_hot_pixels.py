import torch

from students.hot_pixels import fill_hot_pixels


def test_single_hot_and_dead_pixels_become_like_their_neighbours():
    torch.manual_seed(0)
    z = 30 + torch.randn(2, 1, 40, 50)
    clean = z.clone()
    places = [(0, 0), (0, 20), (39, 27), (17, 30)]  # a corner and borders, too
    for row, column in places:
        z[0, 0, row, column] = 90.0
        z[1, 0, row, column] = 0.0
    filled = fill_hot_pixels(z)
    changed = filled != z
    assert changed.sum() == 2 * len(places)
    assert ((filled - 30).abs() < 5).all()
    assert torch.equal(filled[~changed], clean[~changed])


def test_noise_spots_and_edges_stay_as_they_are():
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    spots = sum(
        torch.exp(-((y - a) ** 2 + (x - b) ** 2) / (2 * 0.85**2)) for a in (12, 40) for b in (10.0, 30.3)
    )
    edges = 60.0 * (x > 50) + 60.0 * (y == 55)  # a line of one pixel, too
    for image in (torch.zeros(64, 64), 100 * spots, edges):  # 0.85 px: Nyquist's rate
        z = 20 + image + torch.randn(4, 1, 64, 64)
        assert torch.equal(fill_hot_pixels(z), z)


def test_images_smaller_than_its_neighbourhood():
    for shape in [(1, 1), (1, 5), (2, 2), (3, 1)]:
        z = torch.randn(1, 1, *shape)
        assert torch.equal(fill_hot_pixels(z), z)
