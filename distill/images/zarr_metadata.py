"""Metadata of an OME-Zarr image: axes, pixel size, channels and levels."""

from typing import Any

import numpy as np

from distill.images.stack import Stack
from distill.images.units import NAMES


def attributes(
    like: Stack, axes: str, shape: list[int], levels: int, version: str, name: str
) -> dict[str, Any]:
    """Attributes of the group, checked by the models of that version, "0.4" or "0.5"."""
    from yaozarrs import v04, v05

    v: Any = v04 if version == "0.4" else v05
    time, time_unit = _time_step(like)
    scale = {a: like.pixel_size.get(a.lower(), 1.0) for a in "ZYX"} | {"T": time, "C": 1.0}
    units = dict.fromkeys("ZYX", NAMES.get(like.unit)) | {"T": time_unit}
    kinds = {"T": v.TimeAxis, "C": v.ChannelAxis}
    options = {a: {"unit": unit} for a, unit in units.items() if unit}
    described = [kinds.get(a, v.SpaceAxis)(name=a.lower(), **options.get(a, {})) for a in axes]
    datasets = [_dataset(v, axes, scale, level) for level in range(levels)]
    image = v.Multiscale(name=name.partition(".")[0], axes=described, datasets=datasets,
                         type="mean" if levels > 1 else None)  # fmt: skip
    omero = _channels(v, like, shape[axes.index("C")] if "C" in axes else 1)
    model = v.Image(multiscales=[image], omero=omero)
    metadata = model.model_dump(mode="json", exclude_none=True, by_alias=True)
    return {"ome": {"version": version} | metadata} if version == "0.5" else metadata


def _dataset(v: Any, axes: str, scale: dict[str, float], level: int) -> Any:
    factor = [2.0**level if a in "YX" else 1.0 for a in axes]
    transformations = [v.ScaleTransformation(scale=[scale[a] * f for a, f in zip(axes, factor, strict=True)])]
    if level:  # a pixel's centre is the mean of those that it averages
        shift = [scale[a] * (f - 1) / 2 for a, f in zip(axes, factor, strict=True)]
        transformations.append(v.TranslationTransformation(translation=shift))
    return v.Dataset(path=str(level), coordinateTransformations=transformations)


def _time_step(like: Stack) -> tuple[float, str | None]:
    """(time between frames, name of its unit); (1, None) if it is unknown."""
    extra = like.extra
    value = extra.get("TimeIncrement") or extra.get("finterval") or 1.0
    unit = extra.get("TimeIncrementUnit") or extra.get("tunit") or ("s" if value != 1.0 else None)
    return float(value), NAMES.get(str(unit).replace("\\u00B5", "µ")) if unit else None


def _channels(v: Any, like: Stack, channels: int) -> Any:
    """Names of the channels, if there are any, with the range of the middle plane for display in viewers."""
    names = like.extra.get("Channel", {}).get("Name", [])
    if len(names) != channels:
        return None
    n, _, *depth, height, width = like.frames.shape
    z = [slice(planes // 2, planes // 2 + 1) for planes in depth]  # frames of Volumes have a Z
    y, x = (slice(max(0, side // 2 - 512), side // 2 + 512) for side in (height, width))
    frame = np.asarray(like.frames[(n // 2, slice(None), *z, y, x)])
    ranges = [(float(channel.min()), float(channel.max())) for channel in frame]
    ranges = ranges if len(ranges) == channels else [(float(frame.min()), float(frame.max()))] * channels
    windows = [v.OmeroWindow(start=low, min=low, end=high, max=high) for low, high in ranges]
    return v.Omero(
        channels=[
            v.OmeroChannel(label=name, color="FFFFFF", window=window, active=True)
            for name, window in zip(names, windows, strict=True)
        ]
    )
