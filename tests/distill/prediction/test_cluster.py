"""Prediction by the workers of a Dask cluster."""

import numpy as np
import pytest
import tifffile

from distill import UserError, predict, train
from students import LightUNet

pytest.importorskip("distributed")
pytest.importorskip("zarr")


@pytest.fixture
def files(tmp_path, noisy, tiny_hdn):
    train(noisy, tiny_hdn, LightUNet(width=8), out=tmp_path / "run", steps=1, refine_steps=0, batch_size=2,
          micro_batch=2, patch_size=16, device="cpu")  # fmt: skip
    image = np.random.default_rng(0).normal(200, 20, (2, 500, 700)).astype(np.float32)
    tifffile.imwrite(tmp_path / "noisy.tif", image)
    return tmp_path


def test_bad_addresses_and_targets_are_one_line(files):
    run, noisy = files / "run", files / "noisy.tif"
    for arguments, dask, message in [
        ((run, noisy, files / "a.zarr"), "local:0", "dask: got 'local:0'"),
        ((run, noisy, files / "a.tif"), "local:2", "several workers cannot write one file"),
        ((run, np.zeros((9, 9)), files / "a.zarr"), "local:2", "pass the paths"),
    ]:
        with pytest.raises(UserError, match=message):
            predict(*arguments, dask=dask, device="cpu")
    assert not (files / "a.zarr").exists()
