"""Imports run one way, and the common package names are our own."""

import ast
import importlib
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import distill

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "samplers": {"distill", "recipes"},
    "students": {"distill", "samplers", "losses", "recipes"},
    "losses": {"distill", "samplers", "students", "recipes"},
    "distill": {"recipes"},
}
EXTRAS = {"scipy", "skimage", "matplotlib", "jsonargparse", "imagecodecs", "timm", "lpips", "torchvision"}
EXTRAS |= {"segmentation_models_pytorch", "pooch", "onnx", "onnxscript", "onnxruntime", "bioimageio"}
EXTRAS |= {"zarr", "numcodecs", "yaozarrs", "nd2", "czifile", "liffile", "dask", "distributed"}
EXTRAS |= {"fsspec", "huggingface_hub", "napari", "npe2", "magicgui", "qtpy"}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_run_one_way(package):
    for path in (ROOT / package).rglob("*.py"):
        assert not imported(path) & FORBIDDEN[package], path


def test_type_checkers_see_the_names_that_python_finds():
    tree = ast.parse((ROOT / "distill" / "__init__.py").read_text())
    (guarded,) = (
        node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    )
    seen = {}
    for node in guarded.body:
        assert isinstance(node, ast.ImportFrom) and node.module
        assert all(alias.name == alias.asname for alias in node.names)  # else it is not a public name
        seen |= dict.fromkeys((alias.name for alias in node.names), node.module)
    assert seen == {name: f"distill.{module}" for name, module in distill._HOMES.items()}
    assert all((ROOT / package / "py.typed").exists() for package in FORBIDDEN)


def arrows() -> dict[str, set[str]]:
    """Module of distill: the modules of distill that it imports, anywhere in its file."""
    modules = {}
    for path in (ROOT / "distill").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts).removesuffix(".__init__")] = path
    found = {}
    for module, path in modules.items():
        named = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}: a relative import"
                below = {f"{node.module}.{alias.name}" for alias in node.names}
                inside = below & modules.keys()
                named |= inside if len(inside) == len(below) else inside | {node.module}
        found[module] = named & modules.keys()
    return found


def room(module: str) -> str:
    """What lies directly in distill."""
    return ".".join(module.split(".")[:2])


def test_no_import_runs_in_a_circle():
    files = arrows()
    rooms: dict[str, set[str]] = {}
    for module, targets in files.items():
        rooms.setdefault(room(module), set()).update({room(target) for target in targets} - {room(module)})
    for graph in (files, rooms):
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            pytest.fail(f"imports in a circle, each of the next: {' <- '.join(error.args[1])}")
    assert len(files) > 40 and sum(map(len, files.values())) > 100
    assert "distill.evaluation" not in rooms["distill.training"]
    assert "distill.training" not in rooms["distill.evaluation"]


def test_no_module_takes_the_place_of_a_public_function():
    """`import distill.export` would replace the function `distill.export` by the module."""
    children = {path.stem for path in (ROOT / "distill").iterdir()} - {"__init__", "__main__"}
    assert not children & set(distill.__all__)
    for path in (ROOT / "distill").glob("*/__init__.py"):
        if path.parent.name != "datasets":
            body = ast.parse(path.read_text()).body
            assert len(body) == 1 and isinstance(body[0], ast.Expr), f"{path}: more than a docstring"


def test_what_is_no_code_is_installed_too():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package in FORBIDDEN:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                patterns = listed.get(".".join(path.parent.relative_to(ROOT).parts), [])
                assert any(path.match(pattern) for pattern in patterns), path


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.py")), ids=lambda path: path.stem)
def test_a_recipe_is_a_whole_script_on_public_names(recipe):
    tree = ast.parse(recipe.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            package = importlib.import_module(node.module) if node.module.split(".")[0] in FORBIDDEN else None
            assert node.module != "recipes"
            assert package is None or {alias.name for alias in node.names} <= {*package.__all__}, node.module
    assert isinstance(tree.body[-1], ast.If)
    assert ast.unparse(tree.body[-1].body[0]) == "keep_freed_memory()"
    assert not (ROOT / "recipes" / "__init__.py").exists()  # nor is it installed


def test_the_core_runs_on_torch_numpy_and_tifffile():
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}));"
        "from distill import train, predict, evaluate, read, specimen; from samplers import HDN;"
        "from students import UNet; from losses import L1, L2; specimen(1, 32)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_takes_seconds_to_import_is_imported_where_it_is_needed(tmp_path):
    code = """
import sys
from distill import specimen
from distill.__main__ import main
from tifffile import imwrite

imwrite("noisy.tif", specimen(1, 64).noisy[0])
assert main(["predict", "pretrained", "noisy.tif", "--out", "clean.tif"]) == 0
assert not {"torch._dynamo", "matplotlib.figure"} & sys.modules.keys()
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0


def test_a_shadowing_package_is_named(tmp_path):
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "__init__.py").touch()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import distill"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert str(tmp_path / "losses" / "__init__.py") in result.stderr.splitlines()[-1]


def test_no_block_is_indented_more_than_the_training_loop():
    """Five levels: function, with, for, for, with."""
    for path in (ROOT / "distill").rglob("*.py"):
        lines = path.read_text().splitlines()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.stmt):
                line = lines[node.lineno - 1]
                assert len(line) - len(line.lstrip()) <= 5 * 4, f"{path}:{node.lineno}: too deep"
