"""Checkpoints in the published layout, made here from classes that are gone when they are read."""

import os
import re
import sys
import types
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from torch import nn

from distill import (
    DirectDenoiser,
    UserError,
    evaluate,
    import_published,
    load_denoiser,
    load_sampler,
    predict,
    train,
)
from distill.__main__ import main
from losses import L1, L2
from samplers import HDN, GaussianMixtureNoise, GaussianNoise, HistogramNoise
from students import UNet
from students.dimensions import channels_last

LEVELS, BLOCKS, DEPTH = 2, 2, 2
VAE = [  # ours: published
    (r"stem\.0\.", "first_bottom_up.0."),
    (r"stem\.2\.", "first_bottom_up.2.res."),
    (r"bottom_up\.(\d)\.0\.", r"bottom_up_layers.\1.net.0.pre_conv."),
    (r"bottom_up\.(\d)\.1\.", r"bottom_up_layers.\1.net.0.res."),
    (r"bottom_up\.(\d)\.2\.", r"bottom_up_layers.\1.net.1.res."),
    (r"top_down\.(\d)\.prior", r"top_down_layers.\1.top_prior_params"),
    (r"top_down\.(\d)\.to_posterior\.", r"top_down_layers.\1.stochastic.conv_in_q."),
    (r"top_down\.(\d)\.to_prior\.", r"top_down_layers.\1.stochastic.conv_in_p."),
    (r"top_down\.(\d)\.from_latent\.", r"top_down_layers.\1.stochastic.conv_out."),
    (r"top_down\.(\d)\.merge\.project\.", r"top_down_layers.\1.merge.layer.0."),
    (r"top_down\.(\d)\.merge\.block\.", r"top_down_layers.\1.merge.layer.1."),
    (r"top_down\.(\d)\.merge_latent\.project\.", r"top_down_layers.\1.skip_connection_merger.layer.0."),
    (r"top_down\.(\d)\.merge_latent\.block\.", r"top_down_layers.\1.skip_connection_merger.layer.1."),
    (r"top_down\.(\d)\.up\.0\.", r"top_down_layers.\1.deterministic_block.0.pre_conv."),
    (r"top_down\.(\d)\.up\.1\.", r"top_down_layers.\1.deterministic_block.0.res."),
    (r"top_down\.(\d)\.up\.2\.", r"top_down_layers.\1.deterministic_block.1.res."),
    (r"final\.(\d)\.", r"final_top_down.\1.res."),
    (r"head\.", "likelihood.parameter_net."),
    (r"(.*)\.body\.", r"\1.block."),
    (r"(.*)\.gate\.", r"\1.block.8.conv."),
]
UNET = [
    (r"stem\.0\.", "in_conv.block.0."),
    (r"encoders\.(\d)\.body\.(\d)\.0\.", r"encoder.\1.res_block.layers.\2.block.0."),
    (r"downs\.(\d)\.0\.", r"encoder.\1.resample.layers.block.0."),
    (r"decoders\.0\.body\.(\d)\.0\.", r"decoder.1.res_block.layers.\1.block.0."),
    (r"decoders\.1\.body\.(\d)\.0\.", r"decoder.0.res_block.layers.\1.block.0."),
    (r"ups\.0\.0\.", "decoder.1.resample.layers.1.block.0."),
    (r"ups\.1\.0\.", "decoder.0.resample.layers.1.block.0."),
    (r"merges\.0\.0\.body\.0\.0\.", "decoder.1.merge.res_block.layers.0.block.0."),
    (r"merges\.1\.0\.body\.0\.0\.", "decoder.0.merge.res_block.layers.0.block.0."),
    (r"merges\.0\.1\.0\.", "decoder.1.merge.out_conv.block.0."),
    (r"merges\.1\.1\.0\.", "decoder.0.merge.out_conv.block.0."),
    (r"head\.0\.body\.(\d)\.0\.", r"out_block.0.layers.\1.block.0."),
    (r"head\.1\.", "out_block.1.block.0."),
]
NOISE = [[0.1, 0.2], [0.0, 0.3], [3.0, 5.0], [4.0, 5.5], [0.5, 0.1], [0.2, 0.3]]


@pytest.fixture
def theirs(monkeypatch):
    """A class of nn.Module by its published name, until `theirs.gone()`."""
    names = []

    def published(name: str, base: type = nn.Module) -> type:
        package, _, kind = name.rpartition(".")
        for i in range(1, package.count(".") + 2):
            part = ".".join(package.split(".")[:i])
            if part not in sys.modules:
                sys.modules[part] = types.ModuleType(part)
                names.append(part)
        module = sys.modules[package]
        if not hasattr(module, kind):
            setattr(module, kind, type(kind, (base,), {"__module__": package}))
        return getattr(module, kind)

    def gone() -> None:
        for name in names:
            sys.modules.pop(name, None)

    published.gone = gone
    yield published
    gone()


def renamed(network: nn.Module, table: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    def name(ours: str) -> str:
        for pattern, published in table:
            ours = re.sub(rf"^{pattern}", published, ours)
        return ours

    return {name(key): value for key, value in network.state_dict().items()}


def tree(kind: type, weights: dict[str, torch.Tensor]) -> nn.Module:
    """Modules in each other, as the names of the weights have it."""
    root, inner = kind(), nn.Sequential
    for name, value in weights.items():
        *path, leaf = name.split(".")
        node = root
        for part in path:
            if part not in node._modules:
                node.add_module(part, inner())
            node = node._modules[part]
        if value.is_floating_point() and "running" not in leaf:
            node.register_parameter(leaf, nn.Parameter(value))
        else:
            node.register_buffer(leaf, value)
    return root


@cache
def networks(active: tuple[int, ...] | None = None, shared: bool = True) -> tuple[HDN, DirectDenoiser]:
    sampler = HDN(levels=LEVELS, latents=3, filters=4, blocks=BLOCKS, patch_size=8, active_levels=active)
    sampler.noise_model = GaussianMixtureNoise(NOISE, 50.0, 400.0, 9.0)
    denoiser = DirectDenoiser(UNet(depth=DEPTH, filters=3, shared_convs=shared), L1())
    for name, value in [*sampler.state_dict().items(), *denoiser.backbone.state_dict().items()]:
        if value.is_floating_point() and name.startswith("vae"):
            value.normal_(0.1, 0.2)
        if "running_var" in name:
            value.abs_().add_(0.5)
    for network in (sampler, denoiser):
        network.mean.fill_(200.0)
        network.std.fill_(30.0)
    return sampler.eval(), denoiser.eval()


def held(theirs, sampler: HDN, denoiser: DirectDenoiser | None, **vae_attributes) -> dict:
    """What Lightning's checkpoint of the published training holds."""
    vae = tree(theirs("hdn.models.lvae.LadderVAE"), renamed(sampler.vae, VAE))
    vae._modules["first_bottom_up"]._modules["1"] = nn.ELU()
    blind = [i for i in range(LEVELS) if i + 1 not in (sampler.active_levels or range(LEVELS + 1))]
    attributes = {"dropout": 0.2, "free_bits": 1.0, "use_uncond_mode_at": blind, "z_dims": [3] * LEVELS,
                  "overall_downscale_factor": np.power(2, LEVELS), "img_shape": (8, 8)}  # fmt: skip
    for name, value in (attributes | vae_attributes).items():
        setattr(vae, name, value)
    noise = theirs("hdn.lib.gaussianMixtureNoiseModel.GaussianMixtureNoiseModel")()
    for name, value in {"weight": torch.tensor(NOISE), "min_signal": torch.tensor([50.0])}.items():
        noise.register_buffer(name, value)
    noise.register_buffer("max_signal", torch.tensor([400.0]))
    noise.min_sigma = np.float64(9.0)
    if "noiseModel" not in vae_attributes:
        vae.noiseModel = noise
        vae.likelihood.noiseModel = noise
    unet = None
    state = {f"vae.{name}": value for name, value in vae.state_dict().items()}
    if denoiser is not None:
        unet = tree(theirs("unet.UNet"), renamed(denoiser.backbone, UNET))
        unet.loss_fn = denoiser.loss.__class__.__name__
        state |= {f"direct_denoiser.{name}": value for name, value in unet.state_dict().items()}
    options = {"vae": vae, "direct_denoiser": unet, "data_mean": np.float64(200), "data_std": np.float32(30),
               "gaussian_noise_std": None, "n_grad_batches": 8, "lr": 3e-4}  # fmt: skip
    return {"state_dict": state, "hyper_parameters": options, "epoch": 3, "pytorch-lightning_version": "2.1",
            "callbacks": {"EarlyStopping": {"best_score": torch.tensor(1.0), "patience": 30}}}  # fmt: skip


def saved(theirs, what, path: Path) -> Path:
    torch.save(what, path)
    theirs.gone()
    return path


NOISY = (200 + 30 * torch.randn(2, 1, 18, 21, generator=torch.Generator().manual_seed(1))).float()


def draws(sampler) -> torch.Tensor:
    torch.manual_seed(3)
    return sampler.to(memory_format=torch.channels_last).sample(NOISY, 3)


@pytest.mark.parametrize(("active", "shared"), [(None, True), ((2,), True), ((1,), False)])
def test_draws_and_student_of_a_checkpoint_are_those_of_its_networks(active, shared, theirs, tmp_path):
    sampler, denoiser = networks(active, shared)
    path = saved(theirs, held(theirs, sampler, denoiser), tmp_path / "final_model.ckpt")
    run = import_published(path, tmp_path / "run")
    mine, student = load_sampler(run), load_denoiser(run)
    assert draws(mine).equal(draws(sampler)) and mine.active_levels == (active and list(active))
    channels_last(denoiser)  # as a loaded one is: sums in another order differ
    assert student(NOISY).equal(denoiser(NOISY)) and isinstance(student.loss, L1)
    assert student.backbone.shared_convs is shared and (mine.dropout, mine.free_bits) == (0.2, 1.0)
    assert mine.patch_size == 8 and mine.noise_model.min_sigma == 9.0
    signal = torch.linspace(60, 390, 50)
    expected = sampler.noise_model.log_likelihood(signal + 5, signal)
    torch.testing.assert_close(mine.noise_model.log_likelihood(signal + 5, signal), expected)


def test_an_hdn_that_was_saved_whole_is_a_run_without_a_student(theirs, tmp_path, monkeypatch, capsys):
    sampler, _ = networks((2,))
    vae = held(theirs, sampler, None)["hyper_parameters"]["vae"]
    vae.data_mean, vae.data_std = torch.Tensor([200.0]), torch.Tensor([30.0])
    saved(theirs, vae, tmp_path / "x_last_vae.net")
    monkeypatch.chdir(tmp_path)
    assert main(["import", "x_last_vae.net", "--out", "run"]) == 0
    assert "distill predict run IMAGES --draws 100" in capsys.readouterr().out
    assert draws(load_sampler("run")).equal(draws(sampler))
    tifffile.imwrite("noisy.tif", NOISY[:, 0].numpy(), imagej=True, metadata={"axes": "TYX"})
    assert main(["info", "run"]) == 0 and "without a student" in capsys.readouterr().out
    assert main(["predict", "run", "noisy.tif", "--out", "mean.tif", "--draws", "2"]) == 0
    assert tifffile.imread("mean.tif").shape == (2, 18, 21)
    capsys.readouterr()
    for command in ("predict run noisy.tif --out student.tif", "export run --format torch-export"):
        assert main(command.split()) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "no student; pass --draws 100" in line and "--from run" in line
    rows = evaluate("run", NOISY[:, 0].numpy(), draws=[1, 2])
    assert [row["image"] for row in rows] == ["noisy input", "1 draw", "2 draws"]
    before = Path("run/sampler.safetensors").read_bytes()
    command = "train noisy.tif --from run --out next --steps 0 --refine_steps 1 --batch_size 2"
    command += " --micro_batch 2 --patch_size 16 --student LightUNet --device cpu"
    assert main(command.split()) == 0
    assert Path("run/sampler.safetensors").read_bytes() == before
    assert draws(load_sampler("next")).equal(draws(sampler))
    assert load_denoiser("next")(NOISY).shape == NOISY.shape


def test_training_goes_on_from_the_published_weights(theirs, tmp_path):
    run = import_published(saved(theirs, held(theirs, *networks()), tmp_path / "a.ckpt"), tmp_path / "run")
    again = train(NOISY[:, 0].numpy(), HDN(levels=LEVELS, latents=3, filters=4, blocks=BLOCKS, patch_size=8),
                  UNet(depth=DEPTH, filters=3, shared_convs=True), L2(), tmp_path / "next", steps=1, lr=0.0,
                  student_lr=0.0, refine_steps=0, batch_size=2, micro_batch=2, patch_size=16, device="cpu",
                  init=run, val_fraction=0)  # fmt: skip
    assert again.denoiser.backbone.stem[0].weight.equal(load_denoiser(run).backbone.stem[0].weight)
    assert predict(run, NOISY[:, 0].numpy(), draws=2).shape == (2, 18, 21)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["state_dict"].pop("vae.top_down_layers.0.merge.layer.1.block.2.weight"),
         r"nothing is there for our top_down\.0\.merge\.block\.body\.2\.weight"),
        (lambda c: c["state_dict"].update({"vae.more.weight": torch.zeros(2)}), r"more\.weight is not in"),
        (lambda c: c["state_dict"].update({"vae.likelihood.parameter_net.bias": torch.zeros(2)}),
         r"parameter_net\.bias is \(2,\), must be \(1,\)"),
        (lambda c: c["state_dict"].update({"vae.likelihood.parameter_net.bias": 3}), "is no tensor"),
        (lambda c: c["state_dict"].update({"vae.first_bottom_up.0.weight": torch.zeros(1).expand(10**7, 1, 5,
         5)}), "more numbers than the file has"),
        (lambda c: c["state_dict"].pop("direct_denoiser.in_conv.block.0.weight"), "in_conv"),
        (lambda c: c.pop("hyper_parameters"), "contains no hyper_parameters"),
        (lambda c: c["hyper_parameters"].pop("vae"), "contains no 'vae'"),
        (lambda c: c["hyper_parameters"].update(data_std=0.0), "data_std is 0.0"),
        (lambda c: c["hyper_parameters"].update(data_mean="x"), "data_mean is x"),
        (lambda c: setattr(c["hyper_parameters"]["direct_denoiser"], "loss_fn", "L7"), "loss L7"),
        (lambda c: setattr(c["hyper_parameters"]["vae"], "dropout", None), "dropout is None"),
        (lambda c: c["hyper_parameters"]["vae"].first_bottom_up.add_module("1", nn.ReLU()), "is ReLU"),
        (lambda c: delattr(c["hyper_parameters"]["vae"], "use_uncond_mode_at"), "use_uncond_mode_at"),
    ],
)  # fmt: skip
def test_another_layout_is_one_line_and_nothing_is_written(change, message, theirs, tmp_path):
    what = held(theirs, *networks())
    change(what)
    path = saved(theirs, what, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=message) as error:
        import_published(path, tmp_path / "run")
    assert "\n" not in str(error.value) and str(error.value).count(str(path)) == 1
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_replaced(theirs, tmp_path):
    path = saved(theirs, held(theirs, *networks()), tmp_path / "a.ckpt")
    import_published(path, tmp_path / "run")
    with pytest.raises(UserError, match=r"contains sampler.safetensors and student.safetensors already"):
        import_published(path, tmp_path / "run")


def test_noise_of_a_known_std_or_from_a_file(theirs, tmp_path):
    what = held(theirs, *networks(), noiseModel=None)
    what["hyper_parameters"]["gaussian_noise_std"] = 25.0
    path = saved(theirs, what, tmp_path / "a.ckpt")
    assert load_sampler(import_published(path, tmp_path / "std")).noise_model.std == 25.0
    GaussianNoise(gain=2.0).write(tmp_path / "noise.npz")
    run = import_published(path, tmp_path / "file", noise_model=tmp_path / "noise.npz")
    assert load_sampler(run).noise_model.gain == 2.0


def test_a_noise_model_of_another_kind_asks_for_its_file(theirs, tmp_path):
    histogram = theirs("hdn.lib.histNoiseModel.NoiseModel", object)()
    histogram.array = np.ones((4, 4))
    path = saved(theirs, held(theirs, *networks(), noiseModel=histogram), tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"is a NoiseModel.*--noise_model FILE"):
        import_published(path, tmp_path / "run")
    HistogramNoise(np.eye(8) + 0.1, 0.0, 400.0).write(tmp_path / "noise.npz")
    run = import_published(path, tmp_path / "run", noise_model=str(tmp_path / "noise.npz"))
    assert isinstance(load_sampler(run).noise_model, HistogramNoise)


class Call:
    def __init__(self, function, *arguments):
        self.called = (function, arguments)

    def __reduce__(self):
        return self.called


def hostile(touched: Path) -> dict[str, object]:
    command = f"touch {touched}"
    code = f"open({str(touched)!r}, 'w')"
    return {
        "posix.system": Call(os.system, command),
        "eval": Call(eval, code),
        "exec": Call(exec, code),
        "getattr": Call(getattr, "x", "upper"),
        "torch.hub.load": Call(torch.hub.load, "a/b", "c"),
        "numpy.load": Call(np.load, str(touched)),
        "torch.serialization.load": Call(torch.load, str(touched)),
        "runpy.run_path": Call(__import__("runpy").run_path, str(touched)),
        "distill.files.write_text": Call(__import__("distill.files").files.write_text, str(touched), "x"),
        "L1": L1(),  # what one of our own classes would build
    }


@pytest.mark.parametrize("name", list(hostile(Path())))
def test_nothing_that_a_file_names_is_run(name, theirs, tmp_path):
    touched, places = tmp_path / "touched", [held(theirs, *networks()) for _ in range(3)]
    evil = hostile(touched)[name]
    places[0]["hyper_parameters"]["vae"].lib = [(evil,)]
    places[1]["state_dict"]["vae.x"] = evil
    places[2]["callbacks"]["ModelCheckpoint"] = {"state": evil}
    paths = [tmp_path / f"{i}.ckpt" for i in range(4)]
    for place, path in zip([*places, evil], paths, strict=True):
        torch.save(place, path)
    theirs.gone()
    for path in paths:
        with pytest.raises(UserError, match="may run code; nothing was loaded") as error:
            import_published(path, tmp_path / "run")
        assert not touched.exists() and not (tmp_path / "run").exists()
        assert name.rpartition(".")[2] in str(error.value) and "\n" not in str(error.value)


def test_a_published_name_imports_no_module_of_that_name(theirs, tmp_path, monkeypatch):
    (tmp_path / "backbone.py").write_text(f"open({str(tmp_path / 'touched')!r}, 'w')")
    what = held(theirs, *networks())
    what["callbacks"]["x"] = theirs("backbone.Backbone")
    path = saved(theirs, what, tmp_path / "a.ckpt")
    monkeypatch.syspath_prepend(tmp_path)
    import_published(path, tmp_path / "run")
    assert not (tmp_path / "touched").exists() and "backbone" not in sys.modules


def test_modules_in_a_circle_are_one_line(theirs, tmp_path):
    vae = held(theirs, networks()[0], None)["hyper_parameters"]["vae"]
    vae._modules["first_bottom_up"]._modules["9"] = vae
    with pytest.raises(UserError, match="nested more than 20 deep"):
        import_published(saved(theirs, vae, tmp_path / "a.net"), tmp_path / "run")


def test_damage_is_one_line(theirs, tmp_path):
    whole = saved(theirs, held(theirs, *networks()), tmp_path / "a.ckpt").read_bytes()
    path = tmp_path / "b.ckpt"
    others = {"empty": b"", "text": b"hello", "first half": whole[: len(whole) // 2], "cut": whole[:-30]}
    for data in (*others.values(), whole[:3000] + whole[9000:]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"b\.ckpt: damaged, or no checkpoint") as error:
            import_published(path, tmp_path / "run")
        assert "\n" not in str(error.value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("archive/version", "3")
    with pytest.raises(UserError, match=r"b\.ckpt: "):
        import_published(path, tmp_path / "run")
    torch.save({"state_dict": {}}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"that torch 1\.6 or newer saved"):
        import_published(path, tmp_path / "run")
    with pytest.raises(UserError, match="no such file"):
        import_published(tmp_path / "none.ckpt", tmp_path / "run")
    assert not (tmp_path / "run").exists()
