"""The six data sets of the paper's Table 1: files, splits, noise models and numbers, as published.

Files, test regions and noise models are those of the notebooks of Direct Denoiser, HDN, PPN2V and PN2V; PSNRs
are those of Salmon & Krull (arXiv:2310.18116). Training uses all frames and pixels of a Zenodo stack,
including the test region, because only noisy images are used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from samplers import GaussianMixtureNoise, HistogramNoise

Fitted = GaussianMixtureNoise | HistogramNoise
Psnrs = dict[str, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One data set as it was published.

    Attributes:
        files: the files that are needed from the archive. They are TIFF stacks (N, Y, X) of one static scene
            each, the noisy stack first, then the calibration frames if there are any; or FMD's folders of
            noisy frames and of ground truth, which contain a folder of PNG files for each field of view.
        test_region: part (Y, X) of every frame that is tested. The ground truth is the mean of all frames, or
            that of FMD.
        test_fov: field of view of FMD for testing; the others are for training.
        fit_noise: function (signal, observation) -> noise model. Our fits take 1000 steps and the published
            ones 2000 to 4000, which does not change the result. min_sigma is a variance, see
            GaussianMixtureNoise.
        active_levels: active levels of HDN, for structured noise.
        psnr_range: R in 20 log10 R - 10 log10 MSE; None for max - min of the test region's ground truth.
        psnrs: PSNR in dB by the row names of `evaluate`: of the per-pixel median and mean of draws, of the
            student under L1 and L2, and of the noisy input if the notebooks give it.
    """

    title: str
    archive: str
    url: str
    page: str  # web page of the archive
    files: tuple[str, ...]
    test_region: tuple[slice, slice] = (slice(None), slice(None))
    test_fov: int | None = None
    fit_noise: Callable[..., Fitted]
    active_levels: Sequence[int] | None = None
    psnr_range: float | None = None
    psnrs: Psnrs


def _zenodo(number: int, archive: str) -> dict[str, Any]:
    record = f"https://zenodo.org/records/{number}"
    url = f"{record}/files/{archive.replace(' ', '%20')}?download=1"
    return {"archive": archive, "url": url, "page": record}


def _fmd(archive: str, drive: str) -> dict[str, Any]:
    """Fluorescence Microscopy Denoising (Zhang et al., CVPR 2019): 20 fields of view, 50 frames each."""
    return {
        "archive": archive,
        # "confirm" keeps Google Drive from answering with a page about its virus scan.
        "url": f"https://drive.usercontent.google.com/download?id={drive}&export=download&confirm=t",
        "page": f"https://drive.google.com/file/d/{drive}/view or https://github.com/yinhaoz/denoising-fluorescence",
        "files": ("raw", "gt"),
        "test_fov": 19,
        "psnr_range": 255.0,
    }


def _table1(one, ten, hundred, thousand, student, noisy: float | None = None) -> Psnrs:
    rows = {"1 draw": one, "10 draws": ten, "100 draws": hundred, "1000 draws": thousand, "student": student}
    return rows if noisy is None else {"noisy input": (noisy,), **rows}


_mixture = partial(GaussianMixtureNoise.fit, n_gaussian=3, n_coeff=2)

RECORDS: dict[str, Record] = {
    "convallaria": Record(  # 100 x 1024 x 1024 uint16
        title="Convallaria",
        **_zenodo(5156913, "Convallaria_diaphragm.zip"),
        files=(
            "20190520_tl_25um_50msec_05pc_488_130EM_Conv.tif",
            "20190726_tl_50um_500msec_wf_130EM_FD.tif",
        ),
        test_region=(slice(512), slice(512)),
        fit_noise=partial(_mixture, min_sigma=50.0),
        psnrs=_table1(
            (33.69, 33.69), (36.59, 36.76), (37.17, 37.23), (37.19, 37.27), (37.50, 37.45), noisy=28.98
        ),
    ),
    "confocal-mice": Record(  # 20 x 50 x 512 x 512 uint8
        title="Confocal Mice",
        **_fmd("Confocal_MICE.tar", "11aflcrcatFRkv7EabjWjdlpT0DYRbUDZ"),
        fit_noise=partial(HistogramNoise.fit, bins=256),  # a bin for each grey value, as in PN2V
        psnrs=_table1(
            (35.43, 35.43), (37.30, 37.42), (37.58, 37.68), (37.62, 37.69), (37.77, 37.75), noisy=29.4
        ),
    ),
    "two-photon-mice": Record(  # 20 x 50 x 512 x 512 uint8
        title="2 Photon Mice",
        **_fmd("TwoPhoton_MICE.tar", "1lhsFAlXsXk26yqHzT0_-3R8MUb7G0NVa"),
        # Noise model and test field of view are not published, so they are those of Confocal Mice.
        fit_noise=partial(HistogramNoise.fit, bins=256),
        psnrs=_table1((31.21, 31.21), (32.63, 32.68), (32.86, 32.87), (32.89, 32.89), (33.55, 33.54)),
    ),
    "mouse-actin": Record(  # 100 x 1024 x 1024 uint16
        title="Mouse Actin",
        **_zenodo(5156937, "Mouse actin.zip"),
        files=("sample_attempt2.tif", "diaphragm.tif"),
        test_region=(slice(None), slice(512)),
        fit_noise=partial(_mixture, min_sigma=200.0),
        psnrs=_table1(
            (31.62, 31.62), (33.52, 33.66), (33.87, 33.92), (33.91, 33.95), (34.22, 34.28), noisy=23.71
        ),
    ),
    "mouse-nuclei": Record(  # 200 x 512 x 512 uint16
        title="Mouse Nuclei",
        **_zenodo(5156960, "Mouse skull nuclei.zip"),
        files=("example2_digital_offset300.tif", "edgeoftheslide_300offset.tif"),
        test_region=(slice(None), slice(256)),
        fit_noise=partial(_mixture, min_sigma=50.0),
        psnrs=_table1(
            (33.48, 33.48), (36.24, 36.44), (36.79, 36.89), (36.81, 36.90), (36.87, 36.93), noisy=28.10
        ),
    ),
    "struct-convallaria": Record(  # 100 frames without calibration: the frames and their mean
        title="Struct. Convallaria",
        **_zenodo(5160338, "Struct_Convallaria.zip"),
        files=("flower.tif",),
        test_region=(slice(512), slice(512)),
        fit_noise=partial(_mixture, min_sigma=50.0),
        active_levels=range(3, 7),  # HDN3-6
        psnrs=_table1((29.02, 29.02), (30.88, 31.00), (31.22, 31.27), (31.27, 31.29), (31.58, 31.64)),
    ),
}
