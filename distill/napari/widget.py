"""The Denoise widget: choices of the image layer and the networks, buttons, and the progress."""

# pyright: reportMissingImports=false

import re
from pathlib import Path
from typing import Any

import numpy as np
from magicgui.types import FileDialogMode
from magicgui.widgets import ComboBox, Container, FileEdit, ProgressBar, PushButton
from napari.layers import Image
from napari.qt.threading import create_worker
from napari.utils.notifications import show_error
from napari.viewer import Viewer
from qtpy.QtCore import Signal  # pyright: ignore[reportPrivateImportUsage]
from qtpy.QtWidgets import QLabel, QVBoxLayout, QWidget

from distill.denoising import run_beside
from distill.errors import UserError
from distill.napari.curve import Curve
from distill.napari.layers import beside, shown_frame, stack_of
from distill.napari.work import FINISHED, answer
from distill.prediction.pretrained import PRETRAINED
from distill.training.budget import seconds

BUDGETS = ("1 min", "5 min", "15 min", "1 h")
NETWORKS = [
    ("shipped weights, no training", PRETRAINED),
    *((f"trained on this image for {budget}", budget) for budget in BUDGETS),
    ("a finished run", FINISHED),
]


class Denoise(QWidget):
    """The widget. A thread does the work and emits `news`, because only the main thread may use layers."""

    news = Signal(object)

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self.viewer = viewer
        self.worker: Any = None  # the running worker
        self.preview: Any = None  # the preview layer
        self.image = ComboBox(label="image", choices=self._images)
        self.networks = ComboBox(label="networks", choices=NETWORKS)
        self.folder = FileEdit(label="run folder", mode=FileDialogMode.EXISTING_DIRECTORY)
        self.button, self.cancel = PushButton(text="Denoise"), PushButton(text="Cancel", enabled=False)
        self.bar = ProgressBar(min=0, max=1000, label="")
        self.status, self.curve = QLabel(), Curve()
        self.status.setWordWrap(True)
        self.curve.hide()
        layout = QVBoxLayout(self)
        form = [self.image, self.networks, self.folder, self.button, self.cancel, self.bar]
        self.form = Container(widgets=form)
        for each in (self.form.native, self.status, self.curve):
            layout.addWidget(each)
        self._connect()
        self._suggest()

    def _connect(self) -> None:
        self.image.changed.connect(self._suggest)
        self.networks.changed.connect(self._suggest)
        self.button.clicked.connect(self.start)
        self.cancel.clicked.connect(self.stop)
        self.news.connect(self._show_news)
        self.destroyed.connect(self.stop)
        for event in (self.viewer.layers.events.inserted, self.viewer.layers.events.removed):
            event.connect(self.form.reset_choices)

    def _images(self, _: Any = None) -> list[Image]:
        return [layer for layer in reversed(self.viewer.layers) if isinstance(layer, Image)]

    def _suggest(self) -> None:
        """Suggests the folder of a new run. The user selects that of a finished run."""
        self.folder.enabled = self.networks.value != PRETRAINED
        if self.image.value is not None and self.networks.value in BUDGETS:
            self.folder.value = run_folder(self.image.value)

    def start(self) -> None:
        try:
            if self.image.value is None:
                raise UserError("image: there is no image layer; open one, or File > Open Sample")
            layer = self.image.value
            stacks = {dims: stack_of(layer, dims) for dims in (2, 3)}
        except UserError as error:
            self._refuse(str(error))
            return
        folder, networks = Path(str(self.folder.value)), self.networks.value
        self._end_preview()
        self.curve.begin(folder if networks in BUDGETS else None)

        def tell(news: dict[str, Any]) -> None:
            if worker.abort_requested:
                raise KeyboardInterrupt
            self.news.emit(news | {"layer": layer, "networks": networks})

        worker: Any = create_worker(
            answer, stacks, networks, folder,
            lambda: shown_frame(layer, stacks[2], self.viewer.dims.point), tell,
        )  # fmt: skip
        worker.finished.connect(self._finished)
        self.worker = worker
        self.button.enabled, self.cancel.enabled = False, True
        self._show(0.0, "preparing ...")
        worker.start()

    def stop(self) -> None:
        """Stops the worker; napari does the same when it closes."""
        if self.worker is not None:
            self.worker.quit()
            self.status.setText("stopping after the current steps ...")

    def _show_news(self, news: dict[str, Any]) -> None:
        layer = news["layer"]
        if "step" in news:
            self.curve.add(news)
            share = min(1.0, news["seconds"] / seconds(news["networks"]))
            self._show(share, f"training, step {news['step']}")
        if "share" in news:
            self._show(news["share"], "denoising ...")
        if "preview" in news:
            self._preview(layer, news["preview"])
        if "refused" in news:
            self._refuse(news["refused"])
        if "maps" in news:
            self._add(layer, news["maps"])

    def _show(self, share: float, text: str) -> None:
        self.bar.value = round(1000 * share)
        self.status.setText(text)

    def _refuse(self, text: str) -> None:
        self._show(0.0, text)
        show_error(text)

    def _preview(self, layer: Image, image: np.ndarray) -> None:
        if self.preview in self.viewer.layers:
            self.preview.data = image
        else:
            self.preview = self.viewer.add_image(image, **beside(layer, image, "preview"))

    def _end_preview(self) -> None:
        if self.preview in self.viewer.layers:
            self.viewer.layers.remove(self.preview)
        self.preview = None

    def _add(self, layer: Image, maps: dict[str, np.ndarray]) -> None:
        """Adds the central image on top, and others such as a std or quantiles as hidden layers below."""
        self._end_preview()
        (_, centre), *others = maps.items()
        for name, image in reversed(others):
            self.viewer.add_image(image, visible=False, **beside(layer, image, name))
        colours = {} if "channel_axis" in beside(layer, centre, "") else {"colormap": layer.colormap}
        self.viewer.add_image(centre, **colours, **beside(layer, centre, "denoised"))
        self._show(1.0, "done")

    def _finished(self) -> None:
        self.button.enabled, self.cancel.enabled = True, False
        if self.worker is not None and self.worker.abort_requested:
            self._show(0.0, "stopped; press Denoise with the same choices to resume")
        self.worker = None


def run_folder(layer: Image) -> Path:
    """Folder of a new run: beside the file of the layer, or in the home folder."""
    if layer.source.path:
        return run_beside(layer.source.path)
    return Path.home() / "posterior-distill" / (re.sub(r"[^\w.-]+", "_", layer.name) + ".run")
