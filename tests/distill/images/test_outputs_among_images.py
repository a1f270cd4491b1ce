"""An output must not be one of the noisy images, now or when the command is run again."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from distill import UserError
from distill.images.sources import check_apart


@pytest.mark.parametrize(
    ("images", "out", "message"),
    [
        ("a.tif", "a.tif", "is the noisy image itself"),
        (["a.tif", "b.tif"], "b.tif", "is the noisy image itself"),
        (".", "clean.tif", "would be taken for one of the images"),
        ("*.tif", "clean.tif", "would be taken for one of the images"),
        ("**/*.tif", "sub/clean.tif", "would be taken for one of the images"),
    ],
)
def test_an_output_that_would_be_read_again_is_refused(images, out, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(name, np.ones((8, 8), "u2"))
    with pytest.raises(UserError, match=message):
        check_apart(images, out)


@pytest.mark.parametrize(
    ("images", "out"), [("a.tif", "b.tif"), (".", "../c.tif"), ("*.tif", "sub/c.tif"), (np.ones(3), "c.tif")]
)
def test_an_output_beside_the_images_is_fine(images, out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("a.tif", np.ones((8, 8), "u2"))
    check_apart(images, out)
