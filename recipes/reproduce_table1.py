"""Table 1 of the paper: draws of HDN and its L1 and L2 students on six data sets, and the paper's numbers.

python recipes/reproduce_table1.py                                     all of it: ten days on the paper's GPU
python recipes/reproduce_table1.py --only convallaria --data-root DIR  one data set that is already downloaded
python recipes/reproduce_table1.py --fraction 0.01 --small --draws 1 10 100             hours on a CPU

Data are downloaded on first use (pip install '.[data]'). To resume a command that was stopped, run it again.
Writes table1.md and .csv, and a report.html of each data set (there with the PSNR range of its test region).
"""

import argparse
import csv
import json
import os
from pathlib import Path
from typing import Any

import torch

from distill import PUBLISHED, UserError, evaluate, keep_freed_memory, report, train
from distill.datasets import RECORDS, DataSet, load
from losses import L1, L2
from samplers import HDN
from students import UNet

STEPS = 200_000
SMALL = "HDN of 4 levels (6 where noise is structured), 16 latents, 32 filters, 2 blocks; U-Net of 16 filters"
CELLS = "PSNR in dB: of draws their per-pixel median / mean, of the student under L1 / under L2."


def networks(data: DataSet, noise_model: Path, steps: int, small: bool) -> tuple[HDN, UNet, dict[str, Any]]:
    """Networks and settings of the paper, or small networks with suitable settings."""
    levels = data.record.active_levels
    if not small:
        sampler = HDN(str(noise_model), active_levels=levels)
        return sampler, UNet(shared_convs=True), PUBLISHED
    sizes: dict[str, Any] = dict(levels=6 if levels else 4, latents=16, filters=32, blocks=2, dropout=0.0)
    warmup = steps // 2 if levels else 0
    sampler = HDN(str(noise_model), active_levels=levels, kl_warmup=warmup, **sizes)
    return sampler, UNet(filters=16), dict(refine_steps=steps // 3, batch_size=4)


def finished(out: Path, settings: dict) -> dict | None:
    """Stored results of `measure` with the same settings, if there are any."""
    file = out / "psnrs.json"
    stored = json.loads(file.read_text()) if file.exists() else {}
    return stored.get("psnrs") if stored.get("settings") == settings else None


def measure(data: DataSet, out: Path, fraction: float, small: bool, draws: list[int]) -> dict:
    """Numbers of Table 1 for one data set, with the keys of `Record.psnrs`."""
    out.mkdir(parents=True, exist_ok=True)
    noise_model = out / "noise.npz"
    if not noise_model.exists():
        data.noise_model().write(out / "noise.tmp")
        os.replace(out / "noise.tmp", noise_model)
    steps, frames = (max(1, round(fraction * n)) for n in (STEPS, len(data.test_noisy)))
    psnrs, students = {}, []
    for name, loss in {"l1": L1(), "l2": L2()}.items():  # as published, each with its own HDN
        torch.manual_seed(0)
        sampler, student, options = networks(data, noise_model, steps, small)
        run = train(data.noisy, sampler, student, loss, out / name, steps=steps, **options)
        counts = draws if name == "l2" else []
        for row in evaluate(run, data.test_noisy, data.test_clean, draws=counts, frames=frames):
            found = [float(row[key]) for key in ("psnr_median", "psnr_mean")]
            psnrs[str(row["image"])] = [psnr + data.psnr_offset for psnr in found]
        students.append(psnrs.pop("student")[0])
    report([out / "l1", out / "l2"], out / "report.html")
    return psnrs | {"noisy input": psnrs["noisy input"][:1], "student": students}


def write(out: Path, settings: dict, scale: str) -> str:
    """Writes table1.csv and table1.md of all finished data sets -> the text of table1.md."""
    results = {name: psnrs for name in RECORDS if (psnrs := finished(out / name, settings))}
    images = list(next(iter(results.values())))  # the rows of `evaluate`
    lines = [
        f"{CELLS} {scale}",
        "",
        f"| data set | | {' | '.join(images)} |",
        "|---" * (len(images) + 2) + "|",
    ]
    rows = [["data set", "source", "image", "median or L1", "mean or L2"]]
    for name, ours in results.items():
        record = RECORDS[name]
        for source, psnrs in (("paper", record.psnrs), ("ours", ours)):
            cells = [" / ".join(f"{value:.2f}" for value in psnrs.get(image, ())) for image in images]
            lines.append(f"| {record.title} | {source} | {' | '.join(cells)} |")
            rows += [[name, source, image, *psnrs[image]] for image in images if image in psnrs]
    with open(out / "table1.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    table = "\n".join(lines) + "\n"
    (out / "table1.md").write_text(table)
    return table


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Reproduce the paper's Table 1.")
    parser.add_argument(
        "--only", nargs="+", choices=RECORDS, default=[*RECORDS], metavar="NAME", help=", ".join(RECORDS)
    )
    parser.add_argument(
        "--data-root", metavar="DIR", help="folder that holds the data, or that they are downloaded to"
    )
    parser.add_argument("--fraction", type=float, default=1.0, help="of the training steps and test frames")
    parser.add_argument("--small", action="store_true", help=f"for a CPU: {SMALL}")
    parser.add_argument(
        "--draws", nargs="+", type=int, metavar="N", default=[1, 10, 100, 1000], help="draws to average"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("runs/table1"))
    options = parser.parse_args(arguments)
    if not 0 < options.fraction <= 1 or min(options.draws) < 1:
        parser.error(
            f"got {options.fraction=}, {options.draws=}; pass 0 < fraction <= 1 and draws of 1 or more"
        )

    settings = dict(fraction=options.fraction, small=options.small, draws=options.draws)
    nets = SMALL if options.small else "the paper's networks and settings"
    scale = f"Ours: {100 * options.fraction:g} % of {STEPS:,} steps and of the test frames; {nets}."
    print(scale)
    try:
        for data in [load(name, options.data_root) for name in options.only]:  # all, before any training
            out = options.out / data.name
            if not finished(out, settings):
                psnrs = measure(data, out, **settings)
                (out / "psnrs.json").write_text(json.dumps({"settings": settings, "psnrs": psnrs}))
            print(write(options.out, settings, scale))
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    keep_freed_memory()
    main()
