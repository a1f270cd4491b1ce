"""The quality table: the student after some minutes of one core, compared with its alternatives.

    DISTILL_TEST_DATA=... python benchmarks/quality.py rivals          BM3D and the ceiling
    DISTILL_TEST_DATA=... python benchmarks/quality.py gap             what separates the student from it
    DISTILL_TEST_DATA=... python benchmarks/quality.py n2v --minutes 5 20
    DISTILL_TEST_DATA=... python benchmarks/quality.py widefield
    DISTILL_TEST_DATA=... python benchmarks/quality.py confocal --minutes 0 1 5 --seeds 0 1 2
    python benchmarks/quality.py specimen --minutes 0 1 5 --seeds 0 1 2

confocal: trained on the 50 noisy frames of FOV 1 alone; FOV 19 is never used. specimen: the built-in one,
which the training of the shipped weights did not use either. PSNR by the paper's definition, of the middle
frame (specimen: of two). 0 minutes: the shipped weights, without training. BM3D (`pip install bm3d`, for
non-commercial use) in the Anscombe domain of our noise line, by its exact unbiased inverse (Makitalo & Foi
2013) and by the algebraic one. The ceiling is the same student, from the same start, taught by a
second image of each signal: the next repeat on FOV 1 (Noise2Noise), the clean image on 60 other specimens.
gap: the same on FOV 1 with a part of the light as the input, then also with a part of the next repeat's light
as the target, and then with the rest of the image's own light, as the student learns.
N2V is that of CAREamics (`pip install careamics`), its defaults, 16 patches a batch, stopped when time is up.
Appends to runs/quality/quality.csv: one line for each image, minutes and seed.
"""

import argparse
import csv
import math
import time
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from cached_confocal import DATA, stack

from distill import DirectDenoiser, psnr, read, specimen, train
from distill.hardware import keep_freed_memory
from distill.images.sources import as_stack
from distill.prediction.pretrained import pretrained_denoiser, pretrained_sampler
from losses import L2
from samplers import GaussianNoise, PosteriorSampler, StabilizedSampler, posterior_mean
from samplers.noise.split import LightSplit
from students import StabilizedUNet

STEPS = {1: (40, 360), 5: (300, 1900), 20: (1200, 7600)}  # minutes of one core: (co-training, student alone)
OUT = Path("runs/quality")
Case = tuple[str, torch.Tensor, torch.Tensor, GaussianNoise]  # name, noisy and clean (1, 1, H, W), noise line


def confocal() -> tuple[np.ndarray, list[Case]]:
    cases: list[Case] = []
    for fov in ("fov1", "fov19"):
        noisy, clean = (read(path).frames for path in stack(fov))
        line = GaussianNoise.estimate(np.asarray(noisy[:8]))
        middle, truth = (torch.from_numpy(np.array(v, "f4"))[None] for v in (noisy[25], clean[0]))
        cases.append((fov, middle, truth, line))
    return np.asarray(read(stack("fov1")[0]).pixels), cases


def built_in() -> tuple[np.ndarray, list[Case]]:
    cells = specimen()
    line = GaussianNoise(gain=cells.gain, offset=cells.offset)
    frames = (len(cells.noisy) // 4, 3 * len(cells.noisy) // 4)
    pairs = [
        [torch.from_numpy(v[i].astype("f4"))[None, None] for v in (cells.noisy, cells.clean)] for i in frames
    ]
    return cells.noisy, [("specimen", noisy, clean, line) for noisy, clean in pairs]


def bm3d_anscombe(noisy: np.ndarray, gain: float, offset: float) -> dict[str, np.ndarray]:
    """The denoised image by the algebraic inverse (corrected by a / 4) and by the exact unbiased one."""
    import bm3d  # pyright: ignore[reportMissingImports]: not for commercial use, hence no dependency

    if not gain:  # noise that does not depend on the signal
        plain = np.asarray(bm3d.bm3d(noisy, offset**0.5))
        return {"algebraic": plain, "exact": plain}
    z = 2 * np.sqrt(np.maximum(noisy / gain + offset / gain**2 + 3 / 8, 1e-6))
    low, span = z.min(), np.ptp(z)
    d = bm3d.bm3d((z - low) / span, 1 / span) * span + low
    d = np.maximum(d, 2 * math.sqrt(3 / 8))
    root = math.sqrt(1.5)
    exact = d**2 / 4 + root / 4 / d - 11 / 8 / d**2 + 5 / 8 * root / d**3 - 1 / 8
    return {name: gain * y - offset / gain for name, y in (("algebraic", d**2 / 4 - 1 / 8), ("exact", exact))}


def ceiling(
    first: np.ndarray, second: np.ndarray, seed: int = 0, steps: int = 2000, target: str = "all"
) -> DirectDenoiser:
    """The student of `ours`, from the same start, but taught by a second image of each signal.

    first, second: (N, Y, X), with independent noise, or second without noise. Who has a new file has neither.
    target: "all", or after splitting the input's light "repeat", "its part" or "own part", see `gap`.
    """
    torch.manual_seed(seed)
    rng, pairs = np.random.default_rng(seed), np.stack([first, second], axis=1).astype("f4")
    light = LightSplit.fit(torch.from_numpy(pairs[:8, :1]))
    denoiser = pretrained_denoiser(as_stack(pairs[:, 0])).train()
    adam = torch.optim.AdamW(denoiser.parameters(), lr=5e-4, betas=(0.9, 0.99), weight_decay=0.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    side = pairs.shape[-1] - 63
    for _ in range(steps):
        places = [(rng.integers(len(pairs)), *rng.integers(0, side, 2)) for _ in range(8)]
        patches = np.stack([pairs[i, :, y : y + 64, x : x + 64] for i, y, x in places])
        noisy, wanted = torch.from_numpy(patches).split(1, dim=1)
        seen, share, rest = noisy, 1.0, 1.0
        if target != "all":
            share = light.random_share()
            seen, own = light(noisy, share)
            if target != "repeat":
                rest, wanted = 1 - share, own if target == "own part" else light(wanted, share)[1]
        adam.zero_grad()
        light.error(denoiser.image(seen, share), wanted, noisy, 1 - rest).backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 5.0)
        adam.step()
        cosine.step()
    return denoiser.eval()


def gap() -> None:
    _, cases = confocal()
    pairs = second_images("confocal")
    for target in ("all", "repeat", "its part", "own part"):
        started, denoiser = time.process_time(), ceiling(*pairs, target=target)
        with torch.no_grad():
            answers = [denoiser(noisy) for _, noisy, _, _ in cases]
        record(f"gap: {target}", 5, 0, time.process_time() - started, cases, answers)


@torch.no_grad()
def record(method: str, minutes: float, seed: int, cpu: float, cases: list[Case], images: list) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    scores: dict[str, list[float]] = {}
    for image, (name, noisy, clean, _) in zip(images, cases, strict=True):
        scores.setdefault(name, []).append(psnr(torch.as_tensor(image).view_as(clean), clean))
        scores.setdefault(f"{name} noisy", []).append(psnr(noisy, clean))
    with open(OUT / "quality.csv", "a", newline="") as file:
        for name, values in scores.items():
            if not name.endswith("noisy"):
                row = [method, minutes, seed, round(cpu), name, f"{np.mean(scores[name + ' noisy']):.2f}",
                       f"{np.mean(values):.2f}"]  # fmt: skip
                csv.writer(file).writerow(row)
                print(*row, flush=True)


def rivals() -> None:
    for _, cases in (confocal(), built_in()):
        started = time.process_time()
        made = [bm3d_anscombe(noisy[0, 0].numpy(), float(line.gain or 0), float(line.offset or 0))
                for _, noisy, _, line in cases]  # fmt: skip
        cpu = (time.process_time() - started) / len(cases)
        for inverse in ("algebraic", "exact"):
            record(f"BM3D {inverse}", 0, 0, cpu, cases, [each[inverse] for each in made])
        pairs = second_images(cases[0][0])
        started = time.process_time()
        denoiser = ceiling(*pairs)
        with torch.no_grad():
            answers = [denoiser(noisy) for _, noisy, _, _ in cases]
        record("ceiling", 5, 0, time.process_time() - started, cases, answers)


def second_images(
    what: str, noise: Literal["poisson-gaussian", "lines"] = "poisson-gaussian"
) -> tuple[np.ndarray, np.ndarray]:
    """Two images of each signal: neighbouring repeats of FOV 1; of other specimens, noisy and clean."""
    if what == "specimen":
        others = [specimen(noise=noise, seed=seed) for seed in (1, 2, 3)]
        return np.concatenate([each.noisy for each in others]), np.concatenate(
            [each.clean for each in others]
        )
    frames = np.asarray(read(stack("fov1")[0]).frames)[:, 0]
    return frames[:-1], frames[1:]


def widefield() -> None:
    """Noise that is correlated: the shipped weights, which notice, and BM3D for white noise, which does not.
    One frame each; structured.py has BM3D that knows the power spectrum, and trained samplers."""
    for kind in ("g", "r"):
        frames, clean = (
            read(DATA / f"widefield_bpae_{kind}_{name}.tif").frames for name in ("noisy", "mean50")
        )
        image, truth = np.array(frames[0, 0], "f4"), torch.from_numpy(np.array(clean[0], "f4"))[None]
        line = GaussianNoise.estimate(np.asarray(frames[:8]))
        case = (f"widefield {kind}", torch.from_numpy(image)[None, None], truth, line)
        started = time.process_time()
        with torch.no_grad():
            answer = pretrained_denoiser(as_stack(image))(case[1])
        record("student", 0, 0, time.process_time() - started, [case], [answer])
        made = bm3d_anscombe(image, float(line.gain or 0), float(line.offset or 0))
        record("BM3D exact", 0, 0, time.process_time() - started, [case], [made["exact"]])


def n2v(images: np.ndarray, cases: list[Case], minutes: int, seed: int, what: str) -> None:
    from careamics import CAREamist  # pyright: ignore[reportMissingImports]: in an environment of its own
    from careamics.config import create_advanced_n2v_config  # pyright: ignore[reportMissingImports]
    from lightning.pytorch.callbacks import Callback  # pyright: ignore[reportMissingImports]

    started = time.process_time()

    class Budget(Callback):
        def on_train_batch_end(self, trainer, *_) -> None:
            trainer.should_stop = time.process_time() - started > 60 * minutes

    config = create_advanced_n2v_config(
        f"n2v_{what}", "array", "SYX", [64, 64], 16, num_epochs=1000, num_steps=100, num_workers=0,
        trainer_params={"accelerator": "cpu"}, seed=seed + 1,
    )  # fmt: skip
    engine = CAREamist(config, work_dir=OUT / f"n2v_{what}_{minutes}_{seed}", callbacks=[Budget()],
                       enable_progress_bar=False)  # fmt: skip
    engine.train(train_data=images[3:].astype("f4"), val_data=images[:3].astype("f4"))
    cpu = time.process_time() - started
    answers = [engine.predict(noisy[0].numpy().astype("f4"))[0][0] for _, noisy, _, _ in cases]
    record("N2V", minutes, seed, cpu, cases, answers)


def ours(images: np.ndarray, cases: list[Case], minutes: int, seed: int, out: Path, known_line: bool) -> None:
    started = time.process_time()
    line = cases[0][3] if known_line else None
    if minutes == 0:
        stacks = [as_stack(noisy[0, 0].numpy()) for _, noisy, _, _ in cases]
        with torch.no_grad():
            answers = [pretrained_denoiser(stack)(case[1]) for stack, case in zip(stacks, cases, strict=True)]
        record("student", 0, seed, (time.process_time() - started) / len(cases), cases, answers)
        samplers: list[PosteriorSampler] = [pretrained_sampler(stack) for stack in stacks]
    else:
        torch.manual_seed(seed)
        steps, refine_steps = STEPS[minutes]
        run = train(images, StabilizedSampler(line), StabilizedUNet(), L2(), out, steps=steps,
                    refine_steps=refine_steps, seed=seed)  # fmt: skip
        cpu = time.process_time() - started
        with torch.no_grad():
            answers = [run.denoiser(noisy) for _, noisy, _, _ in cases]
        record("student", minutes, seed, cpu, cases, answers)
        samplers = [run.sampler] * len(cases)
    for n in (1, 10, 100, 1000)[: 4 if seed == 0 and minutes == 5 else 3]:
        started = time.process_time()
        means = [posterior_mean(each, case[1], n) for each, case in zip(samplers, cases, strict=True)]
        record(f"{n} draws", minutes, seed, (time.process_time() - started) / len(cases), cases, means)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["rivals", "gap", "n2v", "widefield", "confocal", "specimen"])
    parser.add_argument("--minutes", type=int, nargs="+", default=[0, 5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    if options.what in ("rivals", "gap"):
        {"rivals": rivals, "gap": gap}[options.what]()
        return
    if options.what == "widefield":
        widefield()
        return
    if options.what == "n2v":
        for what, data in (("confocal", confocal), ("specimen", built_in)):
            images, cases = data()
            for minutes in options.minutes:
                for seed in options.seeds:
                    n2v(images, cases, minutes, seed, what)
        return
    images, cases = confocal() if options.what == "confocal" else built_in()
    for minutes in options.minutes:
        for seed in options.seeds if minutes else [0]:
            out = OUT / f"{options.what}_{minutes}_{seed}"
            ours(images, cases, minutes, seed, out, known_line=options.what == "specimen")


if __name__ == "__main__":
    main()
