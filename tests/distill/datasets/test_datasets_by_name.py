"""The paper's data sets: splits, ground truth and noise models, from small archives."""

import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from archives import stack, tarred, zipped

from distill.datasets import RECORDS, load
from distill.errors import UserError
from samplers import GaussianMixtureNoise, HistogramNoise

REGIONS = {  # of frames of 516 x 520 pixels
    "convallaria": (512, 512),
    "mouse-actin": (516, 512),
    "mouse-nuclei": (516, 256),
    "struct-convallaria": (512, 512),
}


@pytest.mark.parametrize("name", REGIONS)
def test_a_zenodo_stack(name, tmp_path):
    record = RECORDS[name]
    noisy = stack(0, (3, 516, 520))
    zipped(record, tmp_path / record.archive, noisy)
    data = load(name, tmp_path)
    np.testing.assert_array_equal(data.noisy, noisy)
    assert isinstance(data.noisy, np.memmap)
    height, width = REGIONS[name]
    test = noisy[:, :height, :width]
    np.testing.assert_array_equal(data.test_noisy, test)
    np.testing.assert_allclose(data.test_clean, test.mean(0), rtol=1e-6)
    assert data.test_clean.dtype == np.float32 and data.psnr_offset == 0
    assert data.calibration.shape == ((1, 3, 516, 520) if name == "struct-convallaria" else (1, 8, 32, 64))


@pytest.mark.parametrize("name", ["confocal-mice", "two-photon-mice"])
def test_fields_of_view(name, tmp_path):
    tarred(tmp_path / RECORDS[name].archive)
    data = load(name, tmp_path)
    assert data.noisy.shape == (57, 32, 32) and data.noisy.dtype == np.uint8
    others = [*range(1, 19), 20]  # in numeric order
    np.testing.assert_array_equal(data.noisy[:, 0, 0], np.repeat(others, 3))
    np.testing.assert_array_equal(data.noisy[:, 0, 1], np.tile([0, 1, 2], 19))
    np.testing.assert_array_equal(data.test_noisy[:, 0, :2], [[19, i] for i in range(3)])
    np.testing.assert_array_equal(data.test_clean[1], np.full(32, 119, np.float32))
    assert data.psnr_offset == pytest.approx(20 * np.log10(255 / 69))
    model = data.noise_model()
    assert isinstance(model, HistogramNoise)
    # One bin for each grey value, each in the middle of its bin.
    width = (model.high - model.low) / len(model.table)
    assert (width, model.low % 1) == (1, 0.5)
    folder = tmp_path / Path(RECORDS[name].archive).stem
    assert {path.name for path in folder.iterdir()} == {"raw", "gt"}  # not the averages of 2, 4, ...
    assert not list(tmp_path.glob(".*"))


def test_the_noise_model_is_fitted_to_the_calibration(tmp_path, monkeypatch):
    record = RECORDS["mouse-actin"]
    quick = partial(record.fit_noise, steps=10)
    monkeypatch.setitem(RECORDS, "mouse-actin", replace(record, fit_noise=quick))
    zipped(record, tmp_path / record.archive, np.zeros((2, 20, 20), np.uint16))
    model = load("mouse-actin", tmp_path).noise_model()
    assert isinstance(model, GaussianMixtureNoise)
    assert (model.min_sigma, np.shape(model.weight)) == (200, (9, 2))
    calibration = stack(9, (8, 32, 64)).mean(0)
    assert (model.min_signal, model.max_signal) == pytest.approx((calibration.min(), calibration.max()))


def test_the_paper_s_numbers():
    assert [r.title for r in RECORDS.values()] == [
        "Convallaria", "Confocal Mice", "2 Photon Mice", "Mouse Actin", "Mouse Nuclei", "Struct. Convallaria",
    ]  # fmt: skip
    for record in RECORDS.values():
        medians, means = zip(*(v for k, v in record.psnrs.items() if "draw" in k), strict=True)
        assert [*medians] == sorted(medians) and [*means] == sorted(means)
        assert all(mean >= median for median, mean in zip(medians, means, strict=True))
        assert min(record.psnrs["student"]) > max(medians)
    assert [*RECORDS["convallaria"].psnrs] == [
        "noisy input", "1 draw", "10 draws", "100 draws", "1000 draws", "student",
    ]  # fmt: skip


def test_wrong_input(tmp_path):
    with pytest.raises(UserError, match="got 'Convallaria', allowed are convallaria, confocal-mice"):
        load("Convallaria", tmp_path)
    (tmp_path / "Mouse actin").mkdir()
    with pytest.raises(
        UserError, match=r"lacks sample_attempt2.tif and diaphragm.tif; complete it, or remove"
    ):
        load("mouse-actin", tmp_path)
    with zipfile.ZipFile(tmp_path / "Struct_Convallaria.zip", "w") as archive:
        archive.writestr("other.tif", b"")
    with pytest.raises(UserError, match=r"Struct_Convallaria.zip: lacks flower.tif"):
        load("struct-convallaria", tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fovs": range(1, 19)}, r"lacks the fields of view 19, 20"),
        ({"less": 1}, "fields of view of different shapes"),
        ({"less": 3}, r"lacks the fields of view 2;"),
    ],
)
def test_fields_of_view_that_lack_something(wrong, message, tmp_path):
    tarred(tmp_path / "Confocal_MICE.tar", **wrong)
    with pytest.raises(UserError, match=message):
        load("confocal-mice", tmp_path)
