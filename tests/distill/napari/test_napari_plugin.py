"""The napari plugin, without a window: layers as stacks, the answers' place, and the widget's thread."""

import json
import os
import threading
import time
import tomllib
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
pytest.importorskip("napari.layers")  # this folder alone would do for `napari`
pytest.importorskip("qtpy.QtWidgets", exc_type=ImportError)

import napari.utils.notifications as notes
from napari.components import ViewerModel
from napari.layers import Image
from npe2 import PluginManifest
from qtpy.QtWidgets import QApplication

from distill import DirectDenoiser, Stack, UserError, predict, read, specimen, specimen_volume
from distill.napari import layers, widget, work
from distill.runs.checkpoint import save_denoiser
from losses import L2, Quantiles
from students import LightUNet, UNet

ROOT = Path(__file__).parents[3]
SCALE, TRANSLATE = (2.0, 0.5, 0.25), (1.0, 10.0, 20.0)
UNITS, LABELS = ("s", "µm", "µm"), ("t", "y", "x")


@pytest.fixture
def panel(monkeypatch, tmp_path):
    """The widget on a viewer with one noisy layer, and budgets of a second."""
    monkeypatch.setattr(widget, "BUDGETS", ("1s",))
    monkeypatch.setattr(widget, "NETWORKS", [*widget.NETWORKS, ("a second", "1s")])
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    # In bf16, rounding depends on the tiles.
    monkeypatch.setattr("distill.hardware.has_fast_bf16", lambda _: False)
    app, viewer = QApplication.instance() or QApplication([]), ViewerModel()
    viewer.add_image(specimen(3, 64).noisy, name="cells", scale=SCALE, translate=TRANSLATE, units=UNITS,
                     axis_labels=LABELS)  # fmt: skip
    panel = widget.Denoise(viewer)
    yield panel
    panel.stop()
    wait(panel)
    panel.close()
    app.processEvents()


def wait(panel, until=lambda: False, limit=120) -> None:
    """Lets the window live until the work ends, or something is so."""
    end = time.monotonic() + limit
    while panel.worker is not None and not until():
        QApplication.processEvents()
        assert time.monotonic() < end, panel.status.text()
        time.sleep(0.005)
    QApplication.processEvents()


def names(panel) -> list[str]:
    return [layer.name for layer in panel.viewer.layers]


def test_the_manifest_names_what_there_is():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, file = project["entry-points"]["napari.manifest"][project["name"]].split(":")
    manifest = PluginManifest.from_file(ROOT.joinpath(*module.split("."), file))
    assert manifest.name == project["name"]
    named = [command.python_name.split(":") for command in manifest.contributions.commands or []]
    assert len(named) == 2 and all(callable(getattr(import_module(at), name)) for at, name in named)


def test_the_sample_is_the_specimen_with_its_scale():
    truth, noisy = layers.specimen_layers()
    first = specimen(1, 256)
    assert np.array_equal(noisy[0][:1], first.noisy) and np.array_equal(truth[0][:1], first.clean)
    layer = Image(noisy[0], **noisy[1])
    assert list(layer.scale) == [1, layers.PIXEL, layers.PIXEL] and layers.stack_of(layer).axes == "TYX"


@pytest.mark.parametrize(
    ("shape", "labels", "axes"),
    [
        ((8, 9), None, "YX"),
        ((2, 8, 9), None, "TYX"),
        ((2, 3, 8, 9), None, "TZYX"),
        ((2, 4, 3, 8, 9), None, "TCZYX"),
        ((2, 3, 8, 9), ("time", "channel", "y", "x"), "TCYX"),
        ((8, 2, 9), ("Y", "Z", "X"), "YZX"),
        ((2, 8, 9), ("plane", "row", "column"), "TYX"),  # no axes of ours
        ((2, 8, 9), ("y", "t", "t"), "TYX"),
    ],
)
def test_axes_of_layers(shape, labels, axes):
    pixels = np.random.default_rng(0).integers(0, 99, shape).astype(np.uint16)
    stack = layers.stack_of(Image(pixels, axis_labels=labels, name="cells", rgb=False))
    assert (stack.axes, stack.name) == (axes, "cells") and np.array_equal(stack.restore(stack.frames), pixels)


def test_layers_that_are_refused():
    with pytest.raises(UserError, match="cells: is an RGB picture"):
        layers.stack_of(Image(np.zeros((8, 9, 3), np.uint8), rgb=True, name="cells"))
    with pytest.raises(UserError, match="has 6 dimensions, must be 2 to 5"):
        layers.stack_of(Image(np.zeros((1, 1, 1, 1, 8, 9)), name="cells"))


def test_lazy_layers_stay_lazy(tmp_path):
    da, zarr = pytest.importorskip("dask.array"), pytest.importorskip("zarr")
    pixels, read = np.random.default_rng(0).random((4, 16, 16), np.float32), []
    lazy = da.map_blocks(lambda block: read.append(1) or block, da.from_array(pixels, (1, 16, 16)),
                         meta=pixels[:0])  # fmt: skip
    layer = Image(lazy, contrast_limits=(0, 1), cache=False)
    del read[:]
    stack = layers.stack_of(layer)
    assert not read and np.array_equal(stack.frames[2], pixels[2:3]) and len(read) == 1
    stored = zarr.create_array(tmp_path / "a.zarr", data=pixels, chunks=(1, 16, 16))
    stack = layers.stack_of(Image(stored, contrast_limits=(0, 1)))
    assert stack.pixels is stored and np.array_equal(stack.frames[3], pixels[3:])
    pyramid = Image([pixels, pixels[:, ::2, ::2]], multiscale=True)
    assert np.array_equal(layers.stack_of(pyramid).pixels, pixels)


def test_the_frame_that_a_viewer_shows():
    layer = Image(np.zeros((3, 4, 8, 9), np.uint8), scale=(2, 0.5, 1, 1), translate=(10, 0, 0, 0))
    stack = layers.stack_of(layer)
    assert layers.shown_frame(layer, stack, (12.0, 1.0, 0.0, 0.0)) == 1 * 4 + 2
    assert layers.shown_frame(layer, stack, (99.0, 99.0, 0.0, 0.0)) == 11  # other layers reach farther
    flat = Image(np.zeros((8, 9), np.uint8))
    assert layers.shown_frame(flat, layers.stack_of(flat), (3.0, 0.0, 0.0)) == 0


def test_answers_lie_where_their_layer_does():
    layer = Image(np.zeros((2, 8, 9), np.uint8), scale=SCALE, translate=TRANSLATE, units=UNITS,
                  axis_labels=LABELS, rotate=20, name="cells")  # fmt: skip
    same = Image(np.zeros((2, 8, 9)), **layers.beside(layer, np.zeros((2, 8, 9)), "denoised"))
    assert same.name == "cells denoised" and same.units == layer.units and same.axis_labels == LABELS
    assert np.allclose(same.data_to_world((1, 7, 3)), layer.data_to_world((1, 7, 3)))
    layer.rotate = 0
    fine = Image(np.zeros((2, 16, 27)), **layers.beside(layer, np.zeros((2, 16, 27)), "denoised"))
    assert np.allclose(fine.data_to_world((1, -0.5, -0.5)), layer.data_to_world((1, -0.5, -0.5)))
    assert np.allclose(fine.data_to_world((1, 15.5, 26.5)), layer.data_to_world((1, 7.5, 8.5)))
    images = ViewerModel().add_image(image := np.zeros((2, 4, 8, 9)), **layers.beside(layer, image, "mean"))
    assert len(images) == 4 and list(images[0].scale) == list(SCALE)


def is_same(answer: np.ndarray, expected: np.ndarray) -> bool:
    """But for rounding, which the number of threads of the calling thread changes."""
    return answer.shape == expected.shape and np.allclose(
        answer, expected, rtol=1e-5, atol=1e-4 * np.ptp(expected)
    )


def test_shipped_weights(panel):
    panel.start()
    assert not panel.button.enabled and panel.worker is not None  # it has not waited
    wait(panel)
    noisy, answer = panel.viewer.layers
    assert answer.name == "cells denoised" and panel.status.text() == "done" and panel.button.enabled
    assert is_same(answer.data, predict("pretrained", noisy.data))
    assert np.array_equal(answer.scale, SCALE) and np.array_equal(answer.translate, TRANSLATE)
    assert answer.units == noisy.units and answer.axis_labels == LABELS


def test_quantiles_of_a_finished_run(panel, tmp_path):
    denoiser = DirectDenoiser(UNet(1, 3, depth=1, filters=2), Quantiles((0.05, 0.5, 0.95))).eval()
    save_denoiser(tmp_path / "student.safetensors", denoiser)
    panel.networks.value, panel.folder.value = "run", tmp_path
    panel.start()
    wait(panel)
    outputs = denoiser.loss.outputs
    assert names(panel) == ["cells", *(f"cells {name}" for name in outputs[:0:-1]), "cells denoised"]
    assert [layer.visible for layer in panel.viewer.layers] == [True, False, False, True]
    predict(denoiser, specimen(3, 64).noisy, tmp_path / "a.tif")
    for file, name in (("a", "denoised"), ("a_q05", "q05"), ("a_q95", "q95")):
        assert is_same(panel.viewer.layers[f"cells {name}"].data, read(tmp_path / f"{file}.tif").pixels)


def test_a_finished_run_of_volumes_sees_all_planes_of_a_stack(panel, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(widget, "show_error", told.append)
    denoiser = DirectDenoiser(LightUNet(width=8, depth=1, dims=3), L2()).eval()
    save_denoiser(tmp_path / "student.safetensors", denoiser)
    panel.networks.value, panel.folder.value = "run", tmp_path
    panel.start()  # a movie, by its labels
    wait(panel)
    assert len(told) == 1 and "cells: axes TYX of (3, 64, 64) have no Z of several planes" in told[0]
    noisy = specimen_volume(9, 40).noisy
    for axes in (None, ("z", "y", "x"), ("y", "z", "x")):
        panel.viewer.layers.clear()
        pixels = noisy.swapaxes(0, 1) if axes == ("y", "z", "x") else noisy
        panel.viewer.add_image(pixels, name="cells", axis_labels=axes)
        panel.start()
        wait(panel)
        assert names(panel) == ["cells", "cells denoised"] and panel.status.text() == "done"
        expected = predict(denoiser, Stack(noisy, "ZYX"))
        expected = expected.swapaxes(0, 1) if axes == ("y", "z", "x") else expected
        assert is_same(panel.viewer.layers[1].data, expected)


def test_what_cannot_work_is_told_in_one_line(panel, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(widget, "show_error", told.append)
    monkeypatch.setattr(notes.notification_manager, "receive_error", pytest.fail)  # with its traceback
    panel.networks.value, panel.folder.value = "run", tmp_path / "none"
    panel.start()
    wait(panel)
    assert len(told) == 1 and "none" in told[0] and told == [panel.status.text()] and "\n" not in told[0]
    panel.viewer.layers.clear()
    panel.start()
    assert "there is no image layer" in panel.status.text() and panel.worker is None


def test_a_training_that_was_cancelled_resumes(panel, tmp_path, monkeypatch):
    threads, stopped, train = [], threading.Event(), work.train

    def short(*networks, on_log, budget, **options):
        def log(row):
            on_log(row)
            assert stopped.wait(60)

        threads.append(threading.current_thread())
        quick = {"steps": 0, "refine_steps": 3, "batch_size": 2, "patch_size": 32, "validate_every": 1}
        return train(*networks, on_log=log, **options | quick)

    monkeypatch.setattr(work, "train", short)
    panel.networks.value = "1s"
    folder = tmp_path / "posterior-distill" / "cells.run"
    assert panel.folder.value == folder
    panel.start()
    wait(panel, lambda: panel.preview is not None)
    preview = panel.viewer.layers["cells preview"]
    assert preview.data.shape == (3, 64, 64) and preview.data.strides[0] == 0  # one frame at every place
    panel.stop()
    stopped.set()
    wait(panel)
    assert "cells denoised" not in names(panel) and "resume" in panel.status.text()
    assert (folder / "checkpoint.safetensors").exists() and not (folder / "student.safetensors").exists()
    panel.start()
    wait(panel)
    assert names(panel) == ["cells", "cells denoised"]
    assert list(panel.curve.training.get_xdata()) == [1, 2, 3]
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3]
    assert is_same(panel.viewer.layers[1].data, predict(folder, specimen(3, 64).noisy))
    assert len(threads) == 2 and threading.main_thread() not in threads
