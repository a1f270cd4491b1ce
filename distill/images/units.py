"""Units of length and time by the names that microscope files give them."""

NAMES = {"Å": "angstrom", "nm": "nanometer", "µm": "micrometer", "mm": "millimeter", "cm": "centimeter"}
NAMES |= {"m": "meter", "s": "second", "ms": "millisecond", "µs": "microsecond", "min": "minute", "h": "hour"}
"""Names of units in OME-Zarr, by their symbols."""
SYMBOLS = {name: symbol for symbol, name in NAMES.items()} | {"in": "inch"}
SYMBOLS |= dict.fromkeys(("um", "micron", "microns", "μm", r"\u00b5m"), "µm")
NAMES |= {"inch": "inch", "sec": "second"}
MICRONS = {"Å": 1e-4, "nm": 1e-3, "µm": 1.0, "mm": 1e3, "cm": 1e4, "inch": 25400, "m": 1e6}


def symbol(unit: str) -> str:
    """The symbol of a unit: micrometer, um or microns -> µm. Unknown units are returned unchanged."""
    return SYMBOLS.get(unit.lower(), unit)


def in_one_unit(sizes: dict[str, tuple[float, str]]) -> tuple[dict[str, float], str]:
    """(sizes of axes in the unit of the first axis, that unit), from sizes with a unit each."""
    first = next((unit for _, unit in sizes.values()), "")
    scale = {axis: MICRONS.get(unit, 1) / MICRONS.get(first, 1) for axis, (_, unit) in sizes.items()}
    return {axis: size * scale[axis] for axis, (size, _) in sizes.items()}, first
