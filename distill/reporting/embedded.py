"""Pictures for the report, as data URIs. All images of a frame have the same grey scale."""

import base64
import io
from typing import Any

import numpy as np

from distill.evaluation.compare import TRUTH
from distill.plots.pictures import typical

SHOWN, ZOOMED = 256, 64  # px; sides of the pictures and their zooms, so that pages stay below a few MB


def pictures(images: dict[str, np.ndarray], scores: dict[str, float]) -> dict[str, Any]:
    """Pictures of every image of the first frame, for the template.

    For each image there is a part with a typical texture, a zoom into it, and with ground truth its error
    (blue below, red above the truth). All parts have one grey scale, and all errors one colour scale.

    images: images (Y, X) by name. scores: PSNR of the images in dB, by name.
    """
    results = [image for name, image in images.items() if name != TRUTH]
    result = images.get("student", results[-1])  # without a student, the mean of the most draws
    reference = images.get(TRUTH, result)
    y, x = typical(reference, min(SHOWN, *reference.shape))
    cut = (slice(y, y + SHOWN), slice(x, x + SHOWN))
    low, high = np.percentile(reference[cut], (0.1, 99.95))
    size = min(ZOOMED, *reference[cut].shape)
    y, x = typical(reference[cut], size)
    limit = 3 * float(np.std(result - reference)) if TRUTH in images else 0.0
    figures = []
    for name, image in images.items():
        if name == "student std":
            continue
        part = image[cut]
        parts = [_png(part, low, high), _png(part[y : y + size, x : x + size], low, high)]
        if limit and name != TRUTH:
            parts.append(_png(part - reference[cut], -limit, limit, "RdBu_r"))
        figures.append((name, scores.get(name), parts))
    return {"low": low, "high": high, "limit": limit, "images": figures}


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
    return data_uri(file.getvalue())


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
