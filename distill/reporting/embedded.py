"""Pictures inside a page: every image of a frame on one scale, as data URIs."""

import base64
import io
from typing import Any

import numpy as np

from distill.evaluation.compare import TRUTH
from distill.plots.pictures import typical

SHOWN, ZOOMED = 256, 64  # px of the first frame: pages stay below a few MB


def pictures(images: dict[str, np.ndarray], scores: dict[str, float]) -> dict[str, Any]:
    """Every image of the first frame on one grey scale: a part with its typical texture, a zoom into it,
    and its error (blue below, red above the truth), on one scale too. scores: PSNR of each, in dB."""
    answers = [image for name, image in images.items() if name != TRUTH]
    answer = images.get("student", answers[-1])  # without a student, the mean of the most draws
    reference = images.get(TRUTH, answer)
    y, x = typical(reference, min(SHOWN, *reference.shape))
    cut = (slice(y, y + SHOWN), slice(x, x + SHOWN))
    low, high = np.percentile(reference[cut], (0.1, 99.95))
    size = min(ZOOMED, *reference[cut].shape)
    y, x = typical(reference[cut], size)
    limit = 3 * float(np.std(answer - reference)) if TRUTH in images else 0.0
    figures = []
    for name, image in images.items():
        if name == "student std":
            continue
        shown = image[cut]
        parts = [_png(shown, low, high), _png(shown[y : y + size, x : x + size], low, high)]
        if limit and name != TRUTH:
            parts.append(_png(shown - reference[cut], -limit, limit, "RdBu_r"))
        figures.append((name, scores.get(name), parts))
    return {"low": low, "high": high, "limit": limit, "images": figures}


def _png(image: np.ndarray, low: float, high: float, colours: str = "gray") -> str:
    """One byte for each pixel: a page holds many."""
    from matplotlib import colormaps
    from PIL import Image

    span = max(high - low, 1e-12)  # of a flat image
    levels = np.clip(256 * (image - low) / span, 0, 255).astype(np.uint8)
    picture = Image.fromarray(levels)
    picture.putpalette(colormaps[colours](np.arange(256), bytes=True)[:, :3].tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG")
    return data_uri(file.getvalue())


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
