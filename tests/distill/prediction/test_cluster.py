"""Prediction by the workers of a Dask cluster."""

import os
import signal
import threading
import time

import numpy as np
import pytest
import tifffile

from distill import UserError, predict, train
from students import LightUNet

distributed = pytest.importorskip("distributed")
pytest.importorskip("zarr")


@pytest.fixture
def files(tmp_path, noisy, tiny_hdn):
    train(noisy, tiny_hdn, LightUNet(width=8), out=tmp_path / "run", steps=1, refine_steps=0, batch_size=2,
          micro_batch=2, patch_size=16, device="cpu")  # fmt: skip
    image = np.random.default_rng(0).normal(200, 20, (2, 500, 700)).astype(np.float32)
    tifffile.imwrite(tmp_path / "noisy.tif", image)
    predict(tmp_path / "run", tmp_path / "noisy.tif", tmp_path / "here.zarr", **OPTIONS)
    return tmp_path


OPTIONS = dict(tile=64, chunks=64, device="cpu", precision="fp32")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(files, name):
    here, there = contents(files / "here.zarr"), contents(files / name)
    about = [each for each in here if each.name == "zarr.json" and len(each.parts) == 1]  # it has the name
    return {k: v for k, v in here.items() if k not in about} == {
        k: v for k, v in there.items() if k not in about
    } and here.keys() == there.keys()


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


@pytest.mark.slow
def test_workers_give_what_one_process_gives(files):
    predict(files / "run", files / "noisy.tif", files / "there.zarr", dask="local:2", **OPTIONS)
    assert same(files, "there.zarr")
    assert sorted(path.name for path in files.iterdir()) == ["here.zarr", "noisy.tif", "run", "there.zarr"]


@pytest.mark.slow
def test_the_blocks_of_a_killed_worker_are_done_by_others(files):
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=0,
                                  dashboard_address=":0") as cluster:  # fmt: skip
        killer = threading.Thread(target=kill_one, args=(cluster, files / ".there.zarr.part"))
        killer.start()
        predict(files / "run", files / "noisy.tif", files / "there.zarr", dask=cluster.scheduler_address,
                **OPTIONS)  # fmt: skip
        killer.join()
    assert same(files, "there.zarr")


def kill_one(cluster, part):
    """As soon as some chunks are there."""
    while len(list(part.glob("0/c/*/*/*"))) < 5:
        time.sleep(0.01)
    with distributed.Client(cluster) as client:
        pids = client.run(os.getpid)
    os.kill(next(iter(pids.values())), signal.SIGKILL)
