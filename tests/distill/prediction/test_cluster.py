"""Blocks that a Dask cluster computes: the bytes of one process, also where a worker is killed."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from torch import nn

from distill import UserError, predict
from distill.__main__ import main
from distill.denoiser import DirectDenoiser
from distill.prediction.blocks import Prediction
from distill.runs.checkpoint import save_denoiser
from losses import L2, MeanVariance
from samplers import FunctionSampler
from students import LightUNet

distributed = pytest.importorskip("distributed")
psutil = pytest.importorskip("psutil")  # which distributed needs

BLOCKS = 36
TILES = dict(tile=64, device="cpu")


class Counted(nn.Module):
    """Notes who calls it, and ends that process at call number `last`, once."""

    def __init__(self, network, notes, last=None):
        super().__init__()
        self.network, self.multiple, self.notes, self.last = network, network.multiple, Path(notes), last

    def forward(self, x):
        with open(self.notes, "a") as file:
            file.write(f"{os.getpid()}\n")
        calls = self.notes.read_text().split()
        if self.last and len(calls) >= self.last and not self.notes.with_suffix(".killed").exists():
            self.notes.with_suffix(".killed").touch()
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))  # on Windows this is as sudden
        return self.network(x)

    def others(self):
        """Calls in other processes."""
        return [pid for pid in self.notes.read_text().split() if int(pid) != os.getpid()]


def denoiser(backbone, loss=None):
    return DirectDenoiser(backbone, loss or L2()).eval()


@pytest.fixture(autouse=True)
def _no_test_hangs():
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def give_up(*_):
        pytest.fail("the cluster hangs")

    former = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(150)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)


@pytest.fixture(scope="module")
def address():
    options = dict(processes=True, dashboard_address=None, host="127.0.0.1", silence_logs=50)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, **options) as here:
        yield here.scheduler_address


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "noisy.tif"
    noisy = np.random.default_rng(0).normal(100, 10, (3, 130, 200)).astype(np.float32)
    tifffile.imwrite(path, noisy, photometric="minisblack", metadata={"axes": "TYX"})
    for folder in ("one", "many"):
        (tmp_path / folder).mkdir()
    return path


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["a.tif", "a.ome.zarr"])
def test_bytes_are_those_of_one_process_and_a_killed_worker_loses_its_blocks_alone(
    tmp_path, image, address, name
):
    pytest.importorskip("zarr")
    student, options = LightUNet(out_channels=2, width=8), TILES | ({"chunks": 64} if "zarr" in name else {})
    predict(denoiser(student, MeanVariance()), image, tmp_path / "one" / name, **options)
    counted = Counted(student, tmp_path / "calls", last=20)
    predict(denoiser(counted, MeanVariance()), image, tmp_path / "many" / name, dask=address, **options)
    assert (tmp_path / "calls.killed").exists()
    assert BLOCKS < len(counted.others()) <= BLOCKS + 6  # what that worker had in hand
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


def test_volumes_have_the_bytes_of_one_process(tmp_path, image, address):
    noisy = np.random.default_rng(0).normal(100, 10, (2, 5, 130, 100)).astype(np.float32)
    tifffile.imwrite(image, noisy, photometric="minisblack", metadata={"axes": "TZYX"})
    student = denoiser(LightUNet(width=8, depth=1, dims=3))
    alone = predict(student, image, tmp_path / "one" / "a.tif", **TILES)
    counted = Counted(student.backbone, tmp_path / "calls")
    counted.dims = 3
    predict(denoiser(counted), image, tmp_path / "many" / "a.tif", dask=address, **TILES)
    assert alone.shape == noisy.shape and len(counted.others()) >= 2 * 6  # tiles of all planes
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


def test_what_one_process_has_begun_a_cluster_ends(tmp_path, image, address, monkeypatch):
    counted = Counted(LightUNet(width=8), tmp_path / "calls")
    predict(denoiser(counted), image, tmp_path / "one" / "a.tif", **TILES)
    compute, calls = Prediction.compute, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) > 12:
            raise KeyboardInterrupt
        return compute(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Prediction, "compute", stopping)
        with pytest.raises(KeyboardInterrupt):
            predict(denoiser(counted), image, tmp_path / "many" / "a.tif", **TILES)
    predict(denoiser(counted), image, tmp_path / "many" / "a.tif", dask=address, **TILES)
    assert len(counted.others()) in (BLOCKS - 12, BLOCKS - 11)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


def test_draws_in_memory_are_those_of_one_process(image, address):
    sampler = FunctionSampler(lambda noisy: noisy + torch.randn_like(noisy))
    one, many = (predict(sampler, image, draws=2, dask=dask, **TILES) for dask in (None, address))
    np.testing.assert_array_equal(one, many)


def test_what_a_worker_finds_wrong_is_one_line_and_nothing_stays(tmp_path, image, address, monkeypatch):
    broken = denoiser(LightUNet(width=8))
    broken.std.fill_(float("nan"))
    with pytest.raises(UserError, match="NaN or infinite"):
        predict(broken, image, tmp_path / "many" / "a.tif", dask=address, **TILES)
    versions = {"posterior-distill": "9.9", "torch": "0.1", "Python": "2.7"}
    monkeypatch.setattr("distill.prediction.cluster._software", lambda: versions)
    with pytest.raises(UserError, match=r"worker tcp.* has .*expected is posterior-distill 9\.9"):
        predict(broken, image, tmp_path / "many" / "a.tif", dask=address, **TILES)
    assert not contents(tmp_path / "many")


def test_a_cluster_of_this_machine_ends_with_the_command(tmp_path, image):
    save_denoiser(tmp_path / "student.safetensors", denoiser(LightUNet(width=8)))
    command = ["predict", str(tmp_path), str(image), "--tile", "128", "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "one" / "a.tif")]) == 0
    assert main([*command, "--out", str(tmp_path / "many" / "a.tif"), "--dask", "local:1"]) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
    assert not [each for each in psutil.Process().children(recursive=True) if "spawn_main" in each.cmdline()]


def test_denoise_predicts_on_a_cluster_that_it_checks_before_the_training(tmp_path, image, address):
    command = ["denoise", str(image), "--device", "cpu"]
    for folder, options in {"one": [], "many": ["--dask", address]}.items():
        out = ["--out", str(tmp_path / folder / "a.tif"), "--with", "pretrained", *options]
        assert main([*command, *out]) == 0
    results = [(tmp_path / folder / "a.tif").read_bytes() for folder in ("one", "many")]
    assert results[0] == results[1]
    assert main([*command, "--out", str(tmp_path / "b.tif"), "--dask", "local:0"]) == 2
    assert not (tmp_path / "b.run").exists()


def test_clusters_that_cannot_work_are_one_line(tmp_path, image, monkeypatch):
    monkeypatch.setattr("distill.prediction.cluster.SECONDS", 1)
    student = denoiser(LightUNet(width=8))
    (tmp_path / "other.json").write_text("[]")
    for dask in ("tcp://127.0.0.1:9", "nowhere", str(tmp_path / "other.json")):
        with pytest.raises(UserError, match=f"no scheduler answers at {dask} "):
            predict(student, image, dask=dask)
    with pytest.raises(UserError, match=r"absent\.json: no such file; pass the file"):
        predict(student, image, dask=str(tmp_path / "absent.json"))
    with pytest.raises(UserError, match="at least one worker"):
        predict(student, image, dask="local:0")
    with pytest.raises(UserError, match="open the images themselves, but got ndarray; pass the path"):
        predict(student, np.zeros((64, 64), np.float32), dask="local:2")
