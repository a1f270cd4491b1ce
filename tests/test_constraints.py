"""constraints.txt pins what pyproject.toml asks for, to public versions."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def test_every_direct_dependency_has_one_pin_within_its_bounds():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    versions = {canonicalize_name(name): version for name, version in pins.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked_for = project["dependencies"] + [
        each for name, extra in extras.items() if name not in ("dev", "diffusion", "napari") for each in extra
    ]
    for each in map(Requirement, asked_for):
        if each.name != project["name"]:
            assert versions[canonicalize_name(each.name)] in each.specifier, each
    assert not [version for version in versions.values() if "+" in version]  # such as torch's +cpu
