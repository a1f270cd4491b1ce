"""Imports published checkpoints of HDN, HDN3-6 and the Direct Denoiser as runs with identical weights.

The formats are the Lightning checkpoints of krulllab/DirectDenoiser (.ckpt, with a sampler and mostly a
student) and the whole networks that juglab/HDN saves (_vae.net, with a sampler alone).
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.denoiser import DirectDenoiser
from distill.errors import UserError, checks_of
from distill.files import check_folder
from distill.limits import check_limits
from distill.runs.checkpoint import save_denoiser, save_sampler
from distill.runs.rebuild import rebuild
from distill.runs.stubs import Stub, check_tensors, load_without_code
from losses import L1, L2
from samplers import HDN, GaussianMixtureNoise, GaussianNoise, load_noise_model
from samplers.noise import NoiseModel

MODULES = ("hdn", "unet", "backbone", "models", "lib", "torch.nn.modules", "pathlib")
LOSSES = {"L1": L1, "L2": L2}


def import_published(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    noise_model: str | os.PathLike[str] | None = None,
) -> Path:
    """Writes a checkpoint as a run and returns its folder, for `predict`, `evaluate` and `train(init=...)`.

    The code that wrote the checkpoint is not needed, and no code in the checkpoint is run. The networks give
    the results of the published networks in eval mode, with deactivated levels at their mean, as the
    published prediction does.

    Args:
        checkpoint: a .ckpt of the Direct Denoiser, or a _vae.net of HDN.
        out: folder of the run, which must not contain a run yet. HDN alone makes a run without a student.
        noise_model: .npz file of the noise model, for a checkpoint without one or with another kind.

    Raises:
        UserError: if the file is damaged, names code that is not published there, or contains another
            network. Nothing is written then.
    """
    check_limits({"checkpoint": checkpoint, "out": out, "noise_model": noise_model})
    path, out = Path(checkpoint), check_folder(out, 0)
    if there := [name for name in ("sampler.safetensors", "student.safetensors") if (out / name).exists()]:
        raise UserError(f"{out}: contains {' and '.join(there)} already; pass another folder")
    try:
        sampler, denoiser = _networks(load_without_code(path, MODULES), noise_model)
    except UserError as error:
        raise error if str(error).startswith(f"{path}: ") else UserError(f"{path}: {error}") from error
    size = sum(v.numel() * v.element_size() for v in sampler.state_dict().values())
    check_folder(out, 3.0 * size)
    out.mkdir(parents=True, exist_ok=True)
    save_sampler(out / "sampler.safetensors", sampler)
    if denoiser is not None:  # last, because with it the run is complete
        save_denoiser(out / "student.safetensors", denoiser)
    return out


def _networks(contents: Any, noise_file: str | os.PathLike[str] | None) -> tuple[HDN, DirectDenoiser | None]:
    if isinstance(contents, Stub):  # an HDN written by torch.save(model)
        tensors = {f"vae.{name}": value for name, value in contents.tensors()}
        contents = {"state_dict": tensors, "hyper_parameters": {"vae": contents}}
    tensors, options = (_entry(contents, key) for key in ("state_dict", "hyper_parameters"))
    vae, unet = options.get("vae"), options.get("direct_denoiser")
    if not isinstance(vae, Stub):
        raise UserError(
            "contains no 'vae' in its hyper_parameters, which names the deactivated levels; pass "
            "a checkpoint of the published training"
        )
    check_tensors(tensors)
    mean, std = (_number(options.get(name, vae.get(name)), name) for name in ("data_mean", "data_std"))
    if not std > 0:
        raise UserError(f"its data_std is {std}, must be above 0; pass another file")
    noise = load_noise_model(noise_file) if noise_file else _noise_model(vae, options)
    sampler = _sampler(vae, _part(tensors, "vae."), noise)
    sampler.mean.fill_(mean)
    sampler.std.fill_(std)
    weights = _part(tensors, "direct_denoiser.")
    denoiser = _denoiser(unet, weights, mean, std) if weights else None
    return sampler.eval(), denoiser


def _entry(contents: Any, key: str) -> Mapping[str, Any]:
    entry = contents.get(key) if isinstance(contents, dict) else None
    if not isinstance(entry, dict):
        raise UserError(f"contains no {key}; pass a .ckpt of the Direct Denoiser, or the _vae.net of an HDN")
    return entry


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without the noise models, which are registered twice."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix) and "noiseModel." not in name
    }


def _number(value: Any, name: str) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"its {name} is {str(value)[:100]}, must be one finite number; pass another file")
    return float(value)


def _sampler(vae: Stub, weights: dict[str, Tensor], noise_model: NoiseModel | None) -> HDN:
    levels = _count(weights, "bottom_up_layers.{}.net.0.pre_conv.weight")
    blocks = _count(weights, "bottom_up_layers.0.net.{}.res.block.0.weight")
    stem = _shape(weights, "first_bottom_up.0.weight", 4)
    prior = _shape(weights, f"top_down_layers.{levels - 1}.top_prior_params", 4)
    _check_activation(vae)
    active = _active_levels(vae, levels)
    arguments = {
        "channels": stem[1], "levels": levels, "latents": prior[1] // 2, "filters": stem[0], "blocks": blocks,
        "dropout": _number(vae.get("dropout"), "dropout"), "patch_size": prior[2] * 2**levels,
        "free_bits": _number(vae.get("free_bits"), "free_bits"),
        "active_levels": None if len(active) == levels else active,
    }  # fmt: skip
    sampler = rebuild({"class": "samplers.hdn.HDN", "arguments": arguments}, weights=weights)
    assert isinstance(sampler, HDN)
    assert isinstance(sampler.vae, nn.Module)
    _fill(sampler.vae, weights, vae_names(levels, blocks), "HDN")
    sampler.noise_model = noise_model
    return sampler


def _check_activation(vae: Stub) -> None:
    """UserError if the activation is not ELU, which neither names nor shapes of the weights show."""
    first = vae.get("first_bottom_up")
    activation = type(first.get("1") if isinstance(first, Stub) else None).__name__
    if activation != "ELU":
        raise UserError(f"its activation is {activation}; only ELU, the published one, can be imported")


def _active_levels(vae: Stub, levels: int) -> list[int]:
    """The levels that see the image, numbered from 1; the published code lists the others, from 0."""
    blind = vae.get("use_uncond_mode_at")
    if not isinstance(blind, list | tuple) or not all(isinstance(level, int) for level in blind):
        raise UserError("its vae does not say which levels are deactivated (use_uncond_mode_at)")
    return [level + 1 for level in range(levels) if level not in blind]


def _denoiser(unet: Any, weights: dict[str, Tensor], mean: float, std: float) -> DirectDenoiser:
    kind = unet.get("loss_fn", "L2") if isinstance(unet, Stub) else "L2"
    if kind not in LOSSES:
        raise UserError(f"its student has the loss {str(kind)[:100]}, allowed are {', '.join(LOSSES)}")
    depth = _count(weights, "encoder.{}.res_block.layers.0.block.0.weight")
    stem = _shape(weights, "in_conv.block.0.weight", 4)
    both = [weights.get(f"out_block.0.layers.{i}.block.0.weight") for i in range(2)]
    shared = both[0] is not None and both[1] is not None and torch.equal(both[0], both[1])
    arguments = {"in_channels": stem[1], "out_channels": stem[1], "depth": depth, "filters": stem[0],
                 "shared_convs": shared}  # fmt: skip
    backbone = rebuild({"class": "students.unet.UNet", "arguments": arguments}, weights=weights)
    _fill(backbone, weights, unet_names(depth), "student")
    denoiser = DirectDenoiser(backbone, LOSSES[kind](), stem[1])
    denoiser.mean.fill_(mean)
    denoiser.std.fill_(std)
    return denoiser.eval()


def _noise_model(vae: Stub, options: Mapping[str, Any]) -> NoiseModel | None:
    """The mixture in the network, or a Gaussian with the std of the training; None without either."""
    stub, gaussian_std = vae.get("noiseModel"), options.get("gaussian_noise_std")
    if stub is None:
        return None if gaussian_std is None else GaussianNoise(_number(gaussian_std, "gaussian_noise_std"))
    names = ("weight", "min_signal", "max_signal", "min_sigma")
    weight, *numbers = (stub.get(name) if isinstance(stub, Stub) else None for name in names)
    if not isinstance(weight, Tensor) or type(stub).__name__ != "GaussianMixtureNoiseModel":
        raise UserError(
            f"its noise model is a {type(stub).__name__}, only a GaussianMixtureNoiseModel can be "
            "imported; pass the .npz that it was made from (--noise_model FILE)"
        )
    check_tensors({"noiseModel.weight": weight})
    values = [_number(value, name) for value, name in zip(numbers, names[1:], strict=True)]
    with checks_of():
        return GaussianMixtureNoise(weight.detach().tolist(), *values)


def _count(weights: Mapping[str, Tensor], name: str) -> int:
    """Number of entries with this name, which are numbered from 0."""
    return next(i for i in range(len(weights) + 1) if name.format(i) not in weights)


def _shape(weights: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in weights or weights[name].ndim != dimensions:
        raise UserError(f"contains no {name} of {dimensions} dimensions; it is of another network")
    return tuple(weights[name].shape)


def _fill(network: nn.Module, weights: Mapping[str, Tensor], names: Mapping[str, str], what: str) -> None:
    """Copies all weights. UserError for the first that is missing, unknown or of another shape."""
    own, left, wrong = network.state_dict(), dict(weights), ""
    for name, place in names.items():
        for theirs in [key for key in left if key == name or key.startswith(f"{name}.")]:
            rest = theirs.removeprefix(name).replace(".block.8.conv.", ".gate.").replace(".block.", ".body.")
            value, target = left.pop(theirs), own.pop(place + rest, None)
            if target is not None and target.shape == value.shape:
                target.copy_(value)
            else:
                shape = "nothing" if target is None else str(tuple(target.shape))
                wrong = wrong or f"{theirs} is {tuple(value.shape)}, must be {shape}"
    if own and not wrong:
        wrong = f"nothing is there for our {next(iter(own))}"
    if left and not wrong:
        wrong = f"{next(iter(left))} is not in the published one"
    if wrong:
        raise UserError(f"its {what} is of another architecture: {wrong}; pass a published checkpoint")


def vae_names(levels: int, blocks: int) -> dict[str, str]:
    """Prefixes of the published ladder VAE -> prefixes of LadderVAE."""
    names = {"first_bottom_up.0": "stem.0", "first_bottom_up.2.res": "stem.2"}
    for i in range(levels):
        up, down, ours = f"bottom_up_layers.{i}.net", f"top_down_layers.{i}", f"top_down.{i}"
        names |= {f"{up}.0.pre_conv": f"bottom_up.{i}.0", f"{down}.top_prior_params": f"{ours}.prior"}
        names[f"{down}.deterministic_block.0.pre_conv"] = f"{ours}.up.0"
        for b in range(blocks):
            names[f"{up}.{b}.res"] = f"bottom_up.{i}.{b + 1}"
            names[f"{down}.deterministic_block.{b}.res"] = f"{ours}.up.{b + 1}"
        for theirs, place in {"in_p": "to_prior", "in_q": "to_posterior", "out": "from_latent"}.items():
            names[f"{down}.stochastic.conv_{theirs}"] = f"{ours}.{place}"
        for theirs, place in {"merge": "merge", "skip_connection_merger": "merge_latent"}.items():
            names[f"{down}.{theirs}.layer.0"] = f"{ours}.{place}.project"
            names[f"{down}.{theirs}.layer.1"] = f"{ours}.{place}.block"
    names |= {f"final_top_down.{b}.res": f"final.{b}" for b in range(blocks)}
    return names | {"likelihood.parameter_net": "head"}


def unet_names(depth: int) -> dict[str, str]:
    """Prefixes of the published U-Net -> prefixes of UNet, whose decoders are numbered from the finest."""
    names = {"in_conv.block.0": "stem.0", "out_block.1.block.0": "head.1"}
    for i in range(depth):
        ours = depth - 1 - i
        for k in range(2):
            names[f"encoder.{i}.res_block.layers.{k}.block.0"] = f"encoders.{i}.body.{k}.0"
            names[f"decoder.{i}.res_block.layers.{k}.block.0"] = f"decoders.{ours}.body.{k}.0"
        names[f"encoder.{i}.resample.layers.block.0"] = f"downs.{i}.0"
        names[f"decoder.{i}.resample.layers.1.block.0"] = f"ups.{ours}.0"
        names[f"decoder.{i}.merge.res_block.layers.0.block.0"] = f"merges.{ours}.0.body.0.0"
        names[f"decoder.{i}.merge.out_conv.block.0"] = f"merges.{ours}.1.0"
    return names | {f"out_block.0.layers.{k}.block.0": f"head.0.body.{k}.0" for k in range(2)}
