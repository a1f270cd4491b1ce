"""Checks the other files that the metadata of a TIFF file refer to, and that tifffile would open."""

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import tifffile

from distill.errors import UserError


def check_linked(tif: tifffile.TiffFile, path: Path) -> None:
    """UserError if such a file lies outside the folder of the image.

    Otherwise the author of the image could choose which files of the user appear in results. Call it before
    `tif.series`, which opens these files.
    """
    folder = Path(tif.filehandle.dirname).resolve()
    for name in _linked(tif, folder):
        if not (folder / name).resolve().is_relative_to(folder):
            raise UserError(
                f"{path}: its metadata refer to a file outside its own folder, {name}; if you trust it, put "
                "all files that belong together into one folder"
            )


def _linked(tif: tifffile.TiffFile, folder: Path) -> Iterator[str]:
    if tif.is_ome:
        for element in ElementTree.fromstring(tif.ome_metadata or "").iter():
            if name := element.get("FileName"):
                yield name
    if tif.is_mmstack:
        yield from (file.name for file in folder.glob("*_MMStack*.tif"))  # these may be links
    if tif.is_ndtiff:
        yield from {entry[1] for entry in tifffile.read_ndtiff_index(folder / "NDTiff.index")}
