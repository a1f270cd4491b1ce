"""What an OME-Zarr image says of itself: axes, pixel size, channels, levels."""

from typing import Any

import numpy as np

from distill.images.stack import Stack
from distill.images.units import NAMES


def attributes(
    like: Stack, axes: str, shape: list[int], levels: int, version: str, name: str
) -> dict[str, Any]:
    """Of the group, checked by the models of that version, "0.4" or "0.5"."""
    from yaozarrs import v04, v05

    v: Any = v04 if version == "0.4" else v05
    time, time_unit = _time_step(like)
    scale = {a: like.pixel_size.get(a.lower(), 1.0) for a in "ZYX"} | {"T": time, "C": 1.0}
    units = dict.fromkeys("ZYX", NAMES.get(like.unit)) | {"T": time_unit}
    kinds = {"T": v.TimeAxis, "C": v.ChannelAxis}
    told = {a: {"unit": unit} for a, unit in units.items() if unit}
    described = [kinds.get(a, v.SpaceAxis)(name=a.lower(), **told.get(a, {})) for a in axes]
    datasets = [_dataset(v, axes, scale, level) for level in range(levels)]
    image = v.Multiscale(name=name.partition(".")[0], axes=described, datasets=datasets,
                         type="mean" if levels > 1 else None)  # fmt: skip
    omero = _channels(v, like, shape[axes.index("C")] if "C" in axes else 1)
    found = v.Image(multiscales=[image], omero=omero)
    found = found.model_dump(mode="json", exclude_none=True, by_alias=True)
    return {"ome": {"version": version} | found} if version == "0.5" else found


def _dataset(v: Any, axes: str, scale: dict[str, float], level: int) -> Any:
    factor = [2.0**level if a in "YX" else 1.0 for a in axes]
    transformations = [v.ScaleTransformation(scale=[scale[a] * f for a, f in zip(axes, factor, strict=True)])]
    if level:  # the first pixel's centre lies between those that it is the mean of
        shift = [scale[a] * (f - 1) / 2 for a, f in zip(axes, factor, strict=True)]
        transformations.append(v.TranslationTransformation(translation=shift))
    return v.Dataset(path=str(level), coordinateTransformations=transformations)


def _time_step(like: Stack) -> tuple[float, str | None]:
    """Between frames, and its unit's name; 1 and None where nothing tells."""
    extra = like.extra
    value = extra.get("TimeIncrement") or extra.get("finterval") or 1.0
    unit = extra.get("TimeIncrementUnit") or extra.get("tunit") or ("s" if value != 1.0 else None)
    return float(value), NAMES.get(str(unit).replace("\\u00B5", "µ")) if unit else None


def _channels(v: Any, like: Stack, channels: int) -> Any:
    """Their names, if it has them; viewers show them between the least and the most of the middle frame."""
    names = like.extra.get("Channel", {}).get("Name", [])
    if len(names) != channels:
        return None
    y, x = (slice(max(0, n // 2 - 512), n // 2 + 512) for n in like.frames.shape[-2:])
    middle = np.asarray(like.frames[len(like.frames) // 2, :, y, x])
    shown = [(float(channel.min()), float(channel.max())) for channel in middle]
    shown = shown if len(shown) == channels else [(float(middle.min()), float(middle.max()))] * channels
    windows = [v.OmeroWindow(start=low, min=low, end=high, max=high) for low, high in shown]
    return v.Omero(
        channels=[
            v.OmeroChannel(label=name, color="FFFFFF", window=window, active=True)
            for name, window in zip(names, windows, strict=True)
        ]
    )
