"""Opens files that are made to do harm, under an audit hook (about half a minute).

    python benchmarks/hostile_files.py

Each case is a folder with a run, images and unwanted code, in which one file is changed and one command runs.
It counts imports from that folder, sockets and processes, files opened for writing outside the folder, files
read in the folder beside it, and exceptions that are not a UserError.
"""

import importlib
import importlib.util
import io
import json
import os
import pickle
import shutil
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from damaged_files import train_on

from distill.__main__ import main as distill
from distill.runs.rebuild import describe
from distill.runs.tensors import load, save
from losses import L2
from samplers import GaussianNoise

FOREIGN = "from pathlib import Path\nPath('owned').touch()\nrun = lambda *a: None\nclass Net: pass\n"
FORBIDDEN = ("socket.", "urllib.", "http.", "subprocess.", "os.system", "os.exec", "os.posix_spawn",
             "os.fork", "ftplib.", "smtplib.", "webbrowser.")  # fmt: skip
WRITES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.link",
          "os.symlink", "shutil.")  # fmt: skip
Change = Callable[[], object]  # of one file of the case
seen: list[tuple[str, str]] = []  # (what, of which file or name)
place: Path | None = None  # the folder of the case; None while nothing is judged


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if place is None:
        return
    if event.startswith(FORBIDDEN):
        seen.append(("socket or process", f"{event} {args!r:.80}"))
    elif event == "pickle.find_class" and str(args[0]).split(".")[0] in ("os", "posix", "pathlib", "foreign"):
        seen.append(("unpickled", f"{args[:2]}"))
    elif event == "open" and isinstance(args[0], str | bytes):
        path, writes = (
            Path(os.fsdecode(args[0])).resolve(),
            bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)),
        )
        if path.is_relative_to(place.parent / "outside"):
            seen.append(("outside", str(path)))
        elif (
            writes
            and not path.is_relative_to(place)
            and not path.is_relative_to("/dev")
            and not path.is_relative_to("/proc")
        ):
            seen.append(("written elsewhere", str(path)))
    elif event.startswith(WRITES) and args and isinstance(args[0], str | bytes | Path):
        path = Path(os.fsdecode(args[0]))
        if not path.absolute().is_relative_to(place):
            seen.append(("written elsewhere", f"{event} {path}"))


def edit(path: str, **fields: Any) -> None:
    """Other fields in a header, with the checksum that belongs to them."""
    tensors, header = load(Path(path))
    save(Path(path), tensors, header | fields)


def of(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class": name, "arguments": arguments}


def student(name: str, **arguments: Any) -> Change:
    return lambda: edit("run/student.safetensors", backbone=of(name, **arguments))


def sampler(name: str, **arguments: Any) -> Change:
    return lambda: edit("run/sampler.safetensors", sampler=of(name, **arguments))


def loss(name: str, **arguments: Any) -> Change:
    def change() -> None:
        tensors, header = load(Path("run/student.safetensors"))
        window = {"loss.window": torch.zeros(2, 1, 1, 1)} if name.startswith("losses.perceptual") else {}
        save(Path("run/student.safetensors"), tensors | window, header | {"loss": of(name, **arguments)})

    return change


def sampler_with(**arguments: Any) -> Change:
    """The run's own, but for these arguments."""

    def change() -> None:
        tensors, header = load(Path("run/sampler.safetensors"))
        header["sampler"]["arguments"] |= arguments
        save(Path("run/sampler.safetensors"), tensors, header)

    return change


class Owned:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch owned",)


def bomb(path: str, name: str) -> None:
    """An archive of 3 MB, whose one member has 3 GB of zeros."""
    stream, crc = zeros()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, stream)  # which has been compressed already, and is said to be below
        (member,) = archive.infolist()
        member.compress_type, member.file_size, member.CRC = zipfile.ZIP_DEFLATED, 3 * 10**9, crc


@cache
def zeros() -> tuple[bytes, int]:
    """3 GB of zeros, compressed, and their checksum: one part many times, because compression takes 15 s."""
    part, deflate, crc = bytes(10**6), zlib.compressobj(wbits=-15), 0
    once = deflate.compress(part) + deflate.flush(zlib.Z_FULL_FLUSH)
    for _ in range(3000):
        crc = zlib.crc32(part, crc)
    return 3000 * once + deflate.flush(), crc


def liar(path: str) -> None:
    """An array whose header promises more than memory holds."""
    array = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(array, header)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("std.npy", array.getvalue())


def climbing(path: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../owned.npy", b"x")


def ome(name: str, start: str = "", text: str = "") -> Change:
    """An OME-TIFF whose second plane is in another file."""
    part = '<TiffData FirstT="{0}" PlaneCount="1"><UUID FileName="{1}">urn:uuid:{0}</UUID></TiffData>'
    xml = (
        start + '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:0">'
        f'<Image ID="Image:0" Name="{text}"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" '
        'SizeX="32" SizeY="32" SizeZ="1" SizeC="1" SizeT="2"><Channel ID="Channel:0:0"/>'
        + part.format(0, "noisy.tif") + part.format(1, name) + "</Pixels></Image></OME>"
    )  # fmt: skip
    return lambda: tifffile.imwrite("noisy.tif", np.ones((32, 32), "u2"), description=xml, metadata=None)


def foreign_optimizer() -> None:
    settings = load(Path("run/checkpoint.safetensors"))[1]["settings"]
    edit("run/checkpoint.safetensors", settings=settings | {"optimizer": "foreign.Net"})


def absolute_ome() -> None:
    ome(os.path.abspath("../outside/secret.tif"))()


def with_link(link: str, target: str) -> Change:
    def change() -> None:
        Path(link).unlink(missing_ok=True)
        Path(link).symlink_to(Path(target).resolve())

    return change


def cache_of_objects() -> None:
    Path("draws").mkdir()
    Path("draws/draws.json").write_text(json.dumps({"images": "", "name": "", "mean": [0], "std": [1]}))
    np.save("draws/draws.npy", np.array([Owned()], dtype=object), allow_pickle=True)


def text(path: str, content: str) -> Change:
    def change() -> None:
        Path(path).write_text(content)

    return change


def packed(name: str, **arguments: Any) -> None:
    """A package whose student is of this class."""
    edit("run/student.safetensors", backbone=of(name, **arguments))
    with zipfile.ZipFile("p.zip", "w") as archive:
        archive.write("run/student.safetensors", "student.safetensors")


PACKAGE = "predict p.zip noisy.tif --out clean.tif --device cpu"
PREDICT = "predict run noisy.tif --out clean.tif --device cpu"
DRAWS = f"{PREDICT} --draws 2"
INIT = "train noisy.tif --init run --out next --steps 1 --refine_steps 0 --patch_size 16 --device cpu"
NOISE = "train noisy.tif --sampler HDN --sampler.noise_model noise.npz --out next --steps 1 --device cpu"
LAUGHS = "<!DOCTYPE x [<!ENTITY a0 'ha'>" + "".join(
    f"<!ENTITY a{i + 1} '{f'&a{i};' * 10}'>" for i in range(9)
) + "]>"  # fmt: skip
ENTITY = "<!DOCTYPE x [<!ENTITY f SYSTEM '../outside/secret.txt'>]>"
ENCODER = "students.encoder_decoder.EncoderDecoder"
CASES: dict[str, tuple[Change, str]] = {
    "a command as student": (student("os.system", command="touch owned"), PREDICT),
    "a process as student": (student("subprocess.Popen", args=["touch", "owned"]), PREDICT),
    "eval as student": (student("builtins.eval", source="open('owned', 'w')"), PREDICT),
    "code beside the run, predict": (student("foreign.Net"), PREDICT),
    "code beside the run, info": (student("foreign.Net"), "info run"),
    "code beside the run, report": (student("foreign.Net"), "report run"),
    "code beside the run, export": (student("foreign.Net"), "export run --format torch-export"),
    "code beside the run, calibrate": (student("foreign.Net"), "calibrate run noisy.tif noisy.tif"),
    "code beside the run, evaluate": (sampler("foreign.Net"), "evaluate run noisy.tif"),
    "code beside the run, table1": (sampler("foreign.Net"), "table1 --run run --data noisy.tif noisy.tif"),
    "code beside the run, cache": (sampler("foreign.Net"), "cache run noisy.tif --out draws"),
    "code beside the run, train": (sampler("foreign.Net"), INIT),
    "code in the run": (student("run.foreign.Net"), PREDICT),
    "code of a module that we import": (student("samplers.base.torch.hub.load", repo="x/y"), PREDICT),
    "a text that names a network": (
        student("students.noise_conditioned.NoiseConditioned", backbone="foreign.Net"), INIT),
    "a text that names a function": (sampler("samplers.function.FunctionSampler", fn="foreign.run"), INIT),
    "a foreign loss that downloads": (loss("lpips.LPIPS"), PREDICT),
    "a download of torch": (loss("torch.hub.load_state_dict_from_url", url="http://127.0.0.1:9/x"), PREDICT),
    "an encoder that downloads": (student(ENCODER, weights="imagenet"), PREDICT),
    "an encoder from a pickle": (student(ENCODER, weights="../outside/weights.pth"), PREDICT),
    "an encoder of a hub": (student(ENCODER, encoder="tu-hf-hub:evil/model"), PREDICT),
    "an encoder of a folder": (student(ENCODER, encoder="tu-local-dir:../outside"), PREDICT),
    "an encoder from a pickle, train": (student(ENCODER, weights="../outside/weights.pth"), INIT),
    "a perceptual loss from a pickle": (
        loss("losses.perceptual.LPIPS", weights="../outside/weights.pth"), PREDICT),
    "a perceptual loss of a hub": (loss("losses.perceptual.Features", backbone="hf-hub:evil/x"), PREDICT),
    "noise of another folder": (sampler_with(noise_model="../outside/noise.npz"), DRAWS),
    "noise of another folder, stabilized": (
        sampler("samplers.stabilized.StabilizedSampler", noise_model="../outside/noise.npz"), DRAWS),
    "draws of another folder": (sampler("samplers.cached.CachedDraws", path="../outside"), DRAWS),
    "draws of another folder, train": (sampler("samplers.cached.CachedDraws", path="../outside"), INIT),
    "code deep in a sum": (
        loss("losses.weighted.WeightedSum", losses=[describe(L2()), of("foreign.Net")]), PREDICT),
    "code deep in a sampler": (
        sampler("samplers.one_pass.OnePassSampler", denoiser=of("distill.denoiser.DirectDenoiser",
                backbone=of("foreign.Net"), loss=describe(L2()))), DRAWS),
    "code in dropout": (sampler("samplers.adapters.MonteCarloDropout", network=of("foreign.Net")), DRAWS),
    "code as an optimizer": (
        foreign_optimizer, "report run"),
    "a bomb as noise": (lambda: bomb("noise.npz", "std.npy"), NOISE),
    "a pickle in noise": (lambda: np.savez("noise.npz", std=np.array([Owned()], dtype=object)), NOISE),
    "a pickle as noise": (lambda: Path("noise.npz").write_bytes(pickle.dumps(Owned())), NOISE),
    "a lie as noise": (lambda: liar("noise.npz"), NOISE),
    "a climbing archive as noise": (lambda: climbing("noise.npz"), NOISE),
    "pixels of the folder above": (ome("../outside/secret.tif"), PREDICT),
    "pixels of an absolute path": (absolute_ome, "info noisy.tif"),
    "pixels by a link": (lambda: (ome("b.tif")(), with_link("b.tif", "../outside/secret.tif")())[0], PREDICT),
    "an entity of another file": (ome("noisy.tif", ENTITY, "&f;"), "info noisy.tif"),
    "a billion laughs": (ome("noisy.tif", LAUGHS, "&a9;"), "info noisy.tif"),
    "a link in a report": (with_link("run/cost.txt", "../outside/secret.txt"), "report run"),
    "a link as metrics": (
        with_link("run/metrics.jsonl", "../outside/secret.txt"), "info run"),
    "a link as result": (with_link("clean.tif", "../outside/secret.tif"), f"{PREDICT} --overwrite"),
    "a link as table": (
        with_link("run/evaluation.csv", "../outside/secret.txt"), "evaluate run noisy.tif --draws 2"),
    "pickles as pictures": (
        lambda: np.savez("run/evaluation.npz", student=np.array([Owned()], dtype=object)), "report run"),
    "a bomb as pictures": (lambda: bomb("run/evaluation.npz", "student.npy"), "report run"),
    "a calibration without end": (text("run/calibration.json", "[" * 10**5), PREDICT),
    "pickles as draws": (
        cache_of_objects, "train noisy.tif --sampler CachedDraws --sampler.path draws --out next --steps 1"),
    "code in a package": (lambda: packed("foreign.Net"), PACKAGE),
    "a command in a package": (lambda: packed("os.system", command="touch owned"), PACKAGE),
    "a climbing package": (lambda: climbing("p.zip"), PACKAGE),
    "a bomb as a package": (lambda: bomb("p.zip", "student.safetensors"), PACKAGE),
    "a pickle as a package": (lambda: torch.save(Owned(), "p.zip"), PACKAGE),
    "a configuration that calls": (
        text("c.yaml", "steps: !!python/object/apply:os.system ['touch owned']\n"),
        "train noisy.tif --config c.yaml"),
}  # fmt: skip


def prepare(folder: Path) -> None:
    """The whole folder that each case changes one file of, and one beside it that nobody may open."""
    (folder / "whole").mkdir()
    (folder / "outside").mkdir()
    train_on(folder / "whole" / "run")
    noisy = np.random.default_rng(0).normal(200, 10, (2, 32, 32)).astype("f4")
    tifffile.imwrite(folder / "whole" / "noisy.tif", noisy, imagej=True, metadata={"axes": "TYX"})
    for name in ("foreign.py", "lpips.py", "imagecodecs.py", "run/foreign.py", "run/__init__.py"):
        (folder / "whole" / name).write_text(FOREIGN)
    tifffile.imwrite(folder / "outside" / "secret.tif", np.ones((32, 32), "u2"))
    (folder / "outside" / "secret.txt").write_text("secret")
    GaussianNoise(3.0).write(folder / "outside" / "noise.npz")
    torch.save(Owned(), folder / "outside" / "weights.pth")


def give(command: str) -> str:
    """What became of it, but for what the hook sees."""
    before = set(sys.modules)
    try:
        code = distill(command.split())
        said = "" if code in (0, 2) else f"exit {code}"
    except Exception as error:
        said = f"traceback: {error!r}"
    here = [name for name in sys.modules.keys() - before
            if str(getattr(sys.modules[name], "__file__", "") or "").startswith(os.getcwd())]  # fmt: skip
    seen.extend(("imported", name) for name in here)
    if Path("owned").exists():
        seen.append(("run", "owned"))
    return said


def main() -> int:
    global place  # noqa: PLW0603 (an audit hook stays, and takes no arguments)
    os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "0"}
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        os.environ["MPLCONFIGDIR"] = str(folder)
        prepare(folder)
        sys.path[:] = [entry for entry in sys.path if entry not in ("", os.getcwd())]
        os.chdir(folder / "whole")
        give("evaluate run noisy.tif --draws 2")
        os.chdir(shutil.copytree(folder / "whole", folder / "first"))
        for command in (PREDICT, "report run", INIT):  # import all that they need
            give(command)
        for package in ("timm", "segmentation_models_pytorch"):  # which take seconds
            if importlib.util.find_spec(package):
                importlib.import_module(package)
        seen.clear()
        sys.addaudithook(_watch)
        for case, (change, command) in CASES.items():
            here = folder / "case"
            os.chdir(shutil.copytree(folder / "whole", here))
            change()
            tempfile.tempdir, started = str(here), time.process_time()
            place = here
            said = give(command)
            place, tempfile.tempdir = None, None
            seconds = time.process_time() - started
            found += [(case, *each) for each in seen] + ([(case, "unread", said)] if said else [])
            found += [(case, "hang", f"{seconds:.1f} s")] if seconds > 5 else []
            seen.clear()
            os.chdir(folder)
            shutil.rmtree(here)
    for case, what, detail in found:
        print(f"{case}: {what}: {detail[:300]}")
    print(f"{len(CASES)} hostile files, {len(found)} did what they should not")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
