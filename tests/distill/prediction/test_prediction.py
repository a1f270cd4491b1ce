import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill import UserError, load_denoiser, predict, train
from distill.denoiser import DirectDenoiser
from distill.images.sources import as_stack
from distill.images.tiff import read
from distill.prediction.predict import PARTS, predict_maps
from distill.prediction.tiles import in_tiles
from losses import L2, Quantiles
from students import LightUNet, UNet


@pytest.fixture
def run(noisy, tiny_hdn, tiny_unet, tmp_path):
    train(noisy, tiny_hdn, tiny_unet, L2(), tmp_path / "run", steps=2, refine_steps=0, batch_size=2,
          micro_batch=2, patch_size=16, device="cpu")  # fmt: skip
    return tmp_path / "run"


def test_one_pass_keeps_axes_pixel_size_and_counts(run, noisy, tmp_path):
    path = tmp_path / "noisy.tif"
    metadata = {"axes": "ZYX", "spacing": 0.5, "unit": "um"}
    tifffile.imwrite(path, noisy, imagej=True, resolution=(4.0, 4.0), metadata=metadata)
    denoised = predict(run, path, tmp_path / "clean.tif", precision="fp32")
    with torch.inference_mode():
        direct = load_denoiser(run)(torch.from_numpy(noisy)[:, None])[:, 0].numpy()
    np.testing.assert_allclose(denoised, direct, rtol=1e-4)
    written, original = read(tmp_path / "clean.tif"), read(path)
    np.testing.assert_array_equal(written.pixels, denoised)
    assert (written.axes, written.pixel_size) == (original.axes, original.pixel_size)
    assert written.axes == "ZYX" and written.pixels.dtype == np.float32


def test_the_inputs_own_type_on_request(run, noisy, tmp_path):
    predict(run, noisy.astype(np.uint8), tmp_path / "clean.tif", dtype="input")
    assert read(tmp_path / "clean.tif").pixels.dtype == np.uint8


@pytest.mark.parametrize("statistic", ["mean", "median", "std"])
def test_draws_of_the_sampler(run, noisy, statistic):
    image = predict(run, noisy[:1], draws=4, statistic=statistic)
    assert image.shape == (1, 48, 40)
    assert (image > 0).all() and (image.mean() < 50) == (statistic == "std")


@pytest.mark.parametrize("student", [UNet(depth=2, filters=2), LightUNet(width=4, depth=2)])
@settings(max_examples=40)
@given(st.tuples(*[st.integers(1, 200)] * 2), st.integers(64, 220), st.integers(64, 150))
def test_tiles_are_the_whole_image_when_the_halo_covers_the_receptive_field(student, size, tile, halo):
    denoiser = DirectDenoiser(student, L2()).eval()
    noisy = torch.randn(1, 1, *size)
    with torch.inference_mode():
        tiled, whole = in_tiles(denoiser, noisy, tile, halo), denoiser(noisy)
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=1e-5)


@given(data=st.data(), axes=st.sampled_from(["YX", "XY", "TYX", "YXZ", "CYX", "YCX", "XTCY"]))
def test_any_axes_sizes_and_types_are_the_same_frames(data, axes):
    dtype = data.draw(st.sampled_from(["?", "u1", "i2", ">u2", "u4", "i8", "f2", ">f4", "f8"]))
    shape = [2 if a == "C" else data.draw(st.integers(1, 9)) for a in axes]
    stack = as_stack(np.random.default_rng(0).integers(0, 100, shape).astype(dtype), axes)
    denoiser = DirectDenoiser(
        UNet(depth=1, filters=2, in_channels=(c := stack.frames.shape[1]), out_channels=c), L2(), c
    )
    denoised = predict(denoiser.eval(), stack, precision="fp32")
    with torch.inference_mode():
        direct = denoiser(torch.from_numpy(np.asarray(stack.frames, np.float32)))
    assert denoised.shape == stack.pixels.shape and denoised.dtype == np.float32
    np.testing.assert_allclose(denoised, stack.restore(direct.numpy()), atol=1e-4)


def test_bad_input_is_one_line_and_nothing_is_written(run, noisy, tmp_path):
    out = tmp_path / "clean.tif"
    broken = noisy.copy()
    broken[2, 3, 4] = np.nan
    for images, options, message in [
        (tmp_path / "no.tif", {}, "no such file"),
        (noisy[:, None].repeat(2, axis=1), {}, "2 channels"),
        (broken, {}, r"1 pixel in 1 of 4 frames \(first in frame 2\) are NaN"),
        (noisy.astype(float) * 1e300, {}, r"7680 pixels in 4 of 4 frames"),
        (noisy, dict(statistic="mode"), "statistic"),
        (noisy, dict(draws=-1), "draws"),
        (noisy, dict(draws=1, statistic="std"), "at least 2"),
        (noisy, dict(tile=8), "tile"),
        (noisy, dict(dtype="int3"), "dtype"),
        (noisy, dict(device="cuda:7"), "device"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            predict(run, images, out, **options)
        assert "\n" not in str(caught.value) and not out.exists()
    with pytest.raises(UserError, match="no such file"):
        predict(tmp_path / "no_run", noisy, out)
    out.write_bytes(b"precious")
    with pytest.raises(UserError, match="exists already"):
        predict(run, noisy, out)
    assert out.read_bytes() == b"precious"


def test_a_result_with_nan_is_never_written(run, noisy, tmp_path):
    denoiser = load_denoiser(run)
    torch.nn.init.constant_(next(denoiser.backbone.parameters()), torch.nan)
    with pytest.raises(UserError, match="frame 0 of array has 1920 pixels that are NaN"):
        predict(denoiser, noisy, tmp_path / "clean.tif")
    assert not (tmp_path / "clean.tif").exists()


def test_all_maps_in_memory_tell_how_far_they_are_and_can_be_stopped(tmp_path):
    noisy = np.random.default_rng(0).poisson(50, (2 * PARTS, 1, 16, 24)).astype(np.uint16)
    denoiser, shares = DirectDenoiser(UNet(1, 3, depth=1, filters=2), Quantiles()).eval(), []
    maps = predict_maps(denoiser, noisy, shares.append)
    assert np.allclose(shares, np.arange(1, PARTS + 1) / PARTS)
    predict(denoiser, noisy, tmp_path / "a.tif")
    files = dict(zip(denoiser.loss.outputs, ("a", "a_q05", "a_q95"), strict=True))
    assert list(maps) == list(files)
    for name, file in files.items():
        assert np.allclose(maps[name], read(tmp_path / f"{file}.tif").pixels.reshape(noisy.shape), rtol=1e-5)

    def stop(share):
        shares.append(share)
        raise KeyboardInterrupt

    shares.clear()
    with pytest.raises(KeyboardInterrupt):
        predict_maps(denoiser, noisy, stop)
    assert shares == [1 / PARTS]
