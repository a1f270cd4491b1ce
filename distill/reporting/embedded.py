"""Pictures for the report, as data URIs. All images of a frame have the same grey scale."""

import base64
import io
from typing import Any

import numpy as np

from distill.evaluation.compare import INPUT, TRUTH
from distill.evaluation.tables import in_counts
from distill.plots.pictures import typical
from distill.plots.residuals import Curves

STD = "student std"  # a map of the uncertainty, not an estimate of the image
STDS = 3  # largest residual that is shown, in units of its std
SHOWN, ZOOMED = 256, 64  # px; sides of the pictures and their zooms, so that pages stay below a few MB


def pictures(
    images: dict[str, np.ndarray], scores: dict[str, float], residuals: dict[str, Curves]
) -> dict[str, Any]:
    """Pictures of every image of the first frame, for the template.

    For each image there is a part with a typical texture, a zoom into it, and its error with ground truth
    (blue below, red above the truth), or without it its residual, noisy - image, in units of the residual's
    std at that brightness. All parts have one grey scale, and all errors one colour scale. A student's std is
    a map with a grey scale of its own, from 0.

    images: images (Y, X) by name. scores: PSNR of the images in dB, by name. residuals: curves of
    `residual_curves` by name, of images without ground truth.
    """
    results = [image for name, image in images.items() if name not in (TRUTH, STD)]
    result = images.get("student", results[-1])  # without a student, the mean of the most draws
    reference = images.get(TRUTH, result)
    y, x = typical(reference, min(SHOWN, *reference.shape))
    cut = (slice(y, y + SHOWN), slice(x, x + SHOWN))
    low, high = (float(v) for v in np.percentile(reference[cut], (0.1, 99.95)))
    size = min(ZOOMED, *reference[cut].shape)
    y, x = typical(reference[cut], size)
    limit = 3 * float(np.std(result - images[TRUTH])) if TRUTH in images else STDS
    differences = {name: part[cut] for name, part in _differences(images, residuals).items()}
    figures = []
    for name, image in images.items():
        caption, scale = _caption(name, scores.get(name)), (low, high)
        if name == STD:
            scale = 0.0, float(np.percentile(image[cut], 99.95))
            caption.append(f"0 to {in_counts(scale[1])} counts")
        parts = [_png(part, *scale) for part in (image[cut], image[cut][y : y + size, x : x + size])]
        if name in differences:
            parts.append(_png(differences[name], -limit, limit, "RdBu_r"))
        figures.append((caption, parts))
    height, width = reference[cut].shape
    frame = {"left": x / width, "top": y / height, "width": size / width, "height": size / height}
    return {
        "scale": [in_counts(v) for v in (low, high)],
        "error": in_counts(limit) if TRUTH in images else "",
        "residual": limit if residuals else "",
        "frame": {side: f"{share:.2%}" for side, share in frame.items()},
        "images": figures,
    }


def _differences(images: dict[str, np.ndarray], residuals: dict[str, Curves]) -> dict[str, np.ndarray]:
    """Errors of the images; without ground truth, residuals in units of the std at that brightness."""
    if TRUTH in images:
        return {name: image - images[TRUTH] for name, image in images.items() if name not in (TRUTH, STD)}
    stds = {name: np.interp(images[name], own["signal"], own["std"]) for name, own in residuals.items()}
    return {name: (images[INPUT] - images[name]) / np.maximum(std, 1e-12) for name, std in stds.items()}


def _caption(name: str, score: float | None) -> list[str]:
    """Lines of a picture's caption."""
    averaged = name.endswith(" draws")
    return [f"mean of {name}" if averaged else name, *([] if score is None else [f"{score:.2f} dB"])]


def _png(image: np.ndarray, low: float, high: float, colours: str = "gray") -> str:
    """An image as a PNG with one byte per pixel, since a page has many pictures."""
    from matplotlib import colormaps
    from PIL import Image

    span = max(high - low, 1e-12)  # for constant images
    levels = np.clip(256 * (image - low) / span, 0, 255).astype(np.uint8)
    picture = Image.fromarray(levels)
    picture.putpalette(colormaps[colours](np.arange(256), bytes=True)[:, :3].tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
