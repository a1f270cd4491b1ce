"""The model card of a repository: a README with a header for the hub."""

from pathlib import Path

import yaml

from distill.runs.describe import describe_run

# The hub lists these by their SPDX identifiers in lower case; others need a name and a link.
LISTED = ("mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0",
          "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "mpl-2.0", "unlicense", "isc")  # fmt: skip
TAGS = ["denoising", "image-restoration", "microscopy", "unsupervised-learning", "posterior-distill"]
HIDDEN = ("last",)  # line of `distill info` that the card omits: the last metrics
TEXT = """# {name}

A {what} of posterior-distill ([Salmon & Krull 2023](https://arxiv.org/abs/2310.18116)), for noisy images
like those that it was trained on: same microscope, same settings. Input and output are raw counts.
{picture}
| what | in this model |
|---|---|
{table}

## Use

    pip install 'posterior-distill[hub]'
    distill pull {repo} --out runs/{name}
    distill predict runs/{name} noisy.tif --out clean.tif{draws}

It was trained without ground truth. Before you measure anything in denoised images, check what the model
removes (`distill evaluate runs/{name} noisy.tif`).
"""


def card(run: Path, repo: str, license: str, has_picture: bool) -> str:
    """The model card of a run. repo: NAME/REPO. has_picture: whether the repository has a preview."""
    has_student = (run / "student.safetensors").exists()
    lines = [line.partition(" ") for line in describe_run(run).splitlines()[1:]]
    rows = [(key, value.strip().replace("|", r"\|")) for key, _, value in lines if key not in HIDDEN]
    text = TEXT.format(
        name=repo.partition("/")[2],
        repo=repo,
        what="one-pass denoiser" if has_student else "posterior sampler",
        picture="\n![part of an image: noisy, draws, student](preview.png)\n" if has_picture else "",
        table="\n".join(f"| {key} | {value} |" for key, value in rows),
        draws="" if has_student else " --draws 100",
    )
    head = {"library_name": "posterior-distill", "pipeline_tag": "image-to-image", "tags": TAGS}
    return f"---\n{yaml.safe_dump(_license(license) | head, sort_keys=False)}---\n\n{text}"


def _license(license: str) -> dict[str, str]:
    if license.lower() in LISTED:
        return {"license": license.lower()}
    link = f"https://spdx.org/licenses/{license}.html"
    return {"license": "other", "license_name": license.lower(), "license_link": link}
