"""Runs that are shared and fetched, by a hub of folders in place of the real one."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from distill import DirectDenoiser, Run, UserError, predict, pull, push
from distill.__main__ import main
from distill.runs import checkpoint, tensors
from losses import Quantiles
from samplers import FunctionSampler, LinearGaussianField
from students import UNet

hub = pytest.importorskip("huggingface_hub")
errors = pytest.importorskip("huggingface_hub.errors")


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A run with more in its folder than is shared, in the working folder."""
    monkeypatch.chdir(tmp_path)
    folder = Path("run")
    folder.mkdir()
    denoiser = DirectDenoiser(UNet(1, 3, depth=1, filters=2), Quantiles())
    denoiser.prepare(torch.full((1, 1, 1), 700.0), torch.full((1, 1, 1), 90.0))
    checkpoint.save_run(Run(folder, LinearGaussianField(noise_std=7.0), denoiser))
    for name in ("evaluation.png", "metrics.jsonl", "checkpoint.safetensors", "secret.txt"):
        (folder / name).write_text("")
    return folder


@pytest.fixture
def shared(tmp_path, monkeypatch) -> Path:
    """Where the repositories lie, a folder each."""
    root = tmp_path / "hub"

    class Folders:
        def __init__(self, library_name: str) -> None:
            pass

        def create_repo(self, repo, private, exist_ok):
            (root / repo).mkdir(parents=True)
            return f"hub/{repo}"

        def create_commit(self, repo, operations, commit_message):
            for each in operations:
                with each.as_file() as file:
                    (root / repo / each.path_in_repo).write_bytes(file.read())

        def model_info(self, repo, revision=None, files_metadata=False):
            files = [{"rfilename": p.name, "size": p.stat().st_size} for p in (root / repo).iterdir()]
            return hub.hf_api.ModelInfo(id=repo, sha="5", private=False, siblings=files)

        def snapshot_download(self, repo, revision, local_dir, allow_patterns):
            (local_dir / ".cache").mkdir(parents=True)
            for name in allow_patterns:
                shutil.copy(root / repo / name, local_dir)

    monkeypatch.setattr(hub, "HfApi", Folders)
    monkeypatch.setattr(hub, "get_token", lambda: "hf_x")
    return root


def test_there_and_back(run, shared, capsys):
    found = {"factor": 1.25, "student": tensors.digest(*tensors.load(run / "student.safetensors"))}
    (run / "calibration.json").write_text(json.dumps(found))
    assert main(["push", "run", "lab/cells", "--license", "CC-BY-4.0"]) == 0
    assert "distill pull lab/cells" in capsys.readouterr().out
    sent = {"student.safetensors", "sampler.safetensors", "calibration.json", "README.md", "preview.png"}
    assert {path.name for path in (shared / "lab/cells").iterdir()} == sent
    assert main(["pull", "lab/cells", "--out", "runs/x"]) == 0
    assert "distill predict runs/x" in capsys.readouterr().out
    assert {path.name for path in Path("runs/x").iterdir()} == sent
    assert [path.name for path in Path("runs").iterdir()] == ["x"]
    noisy = np.random.default_rng(0).normal(700, 90, (1, 20, 24)).astype(np.float32)
    torch.manual_seed(0)
    for options in ({}, {"draws": 2}):
        assert np.array_equal(predict("runs/x", noisy, **options), predict(run, noisy, **options))
    assert checkpoint.load_denoiser("runs/x").spread == 1.25
    assert main(["pull", "lab/cells", "--out", "runs/x"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert push("runs/x", "lab/again", license="MIT") == "hub/lab/again"  # with its preview
    assert {path.name for path in (shared / "lab/again").iterdir()} == sent


def test_the_card_says_what_it_is_and_under_which_licence(run, shared, capsys):
    assert main(["push", "run", "lab/cells", "--license", "CC-BY-4.0"]) == 0
    text = (shared / "lab/cells/README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] == "cc-by-4.0" and head["library_name"] == "posterior-distill"
    assert "denoising" in head["tags"]
    for known in ("UNet(", "Quantiles(", "LinearGaussianField(", "mean 700, std 90", "(preview.png)"):
        assert known in text, known
    commands = [line.split() for line in text.splitlines() if line.startswith("    distill ")]
    assert [command[1] for command in commands] == ["pull", "predict"]
    for command in commands:
        assert main([*command[1:], "--print_config"]) == 0
    push(run, "lab/other", license="GPL-3.0-only")
    head = yaml.safe_load((shared / "lab/other/README.md").read_text().split("---")[1])
    assert head["license"] == "other" and head["license_name"] == "gpl-3.0-only"


def test_what_no_name_describes_is_left_out(run, shared, caplog):
    checkpoint.save_sampler(run / "sampler.safetensors", FunctionSampler(lambda x: x))
    push(run, "lab/student", license="MIT")
    assert "not uploaded" in caplog.text
    assert {path.name for path in (shared / "lab/student").iterdir()} == {
        "student.safetensors", "README.md", "preview.png"}  # fmt: skip


def refusing(error: Exception):
    """A client whose every method raises it, as from within the library."""
    code = compile("def refuse(*_, **__): raise error", "client", "exec")
    exec(code, space := {"__name__": "huggingface_hub.hf_api", "error": error})
    methods = dict.fromkeys(("create_repo", "model_info"), space["refuse"])
    return type("Client", (), {"__init__": lambda self, library_name: None, **methods})


def answer(kind: type, status: int) -> Exception:
    error = kind.__new__(kind)
    error.args, error.response = ("the\nhub says no",), type("Response", (), {"status_code": status})()
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (answer(errors.RepositoryNotFoundError, 404), "no such repository, or no access to it"),
        (answer(errors.RevisionNotFoundError, 404), "no such revision"),
        (answer(errors.HfHubHTTPError, 403), "access denied .*hf auth login"),
        (answer(errors.HfHubHTTPError, 503), "the hub refused the request"),
        (ConnectionError("no\nroute"), "the hub cannot be reached .*check the connection"),
    ],
)
def test_what_the_hub_refuses_is_one_line(error, message, run, shared, monkeypatch):
    monkeypatch.setattr(hub, "HfApi", refusing(error))
    for share in (lambda: push(run, "lab/x", license="MIT"), lambda: pull("lab/x", "out")):
        with pytest.raises(UserError, match=f"lab/x: {message}") as caught:
            share()
        assert "\n" not in str(caught.value) and not Path("out").exists()


def test_without_network_without_login_without_a_licence(run, offline, monkeypatch, capsys):
    for arguments, message in {
        "pull lab/x --out out": "cannot be reached",
        "push run lab/x": "license: none given",
        "push run lab/x --license whatever!": "no SPDX identifier",
        "push run x --license MIT": "must be NAME/REPO",
        "pull ../x --out out": "must be NAME/REPO",
        "push nothing lab/x --license MIT": "not a finished run",
        "push run lab/x --license MIT": "not logged in",
    }.items():
        monkeypatch.setattr(hub, "get_token", lambda: None)
        assert main(arguments.split()) == 2
        error = capsys.readouterr().err.splitlines()
        assert len(error) == 1 and message in error[0], error
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert (
        main(["pull", "lab/x", "--out", "out"]) == 2 and "'posterior-distill[hub]'" in capsys.readouterr().err
    )
    assert not Path("out").exists()


def test_private_is_not_public(run, shared):
    with pytest.raises(UserError, match="exists already and is public"):
        push(run, "lab/x", license="MIT", private=True)
    assert not list((shared / "lab/x").iterdir())


def test_nothing_that_is_damaged_foreign_or_linked_is_fetched_or_sent(run, shared, monkeypatch):
    push(run, "lab/x", license="MIT")
    student = shared / "lab/x/student.safetensors"
    whole = student.read_bytes()
    student.write_bytes(whole[:-1] + b"x")
    with pytest.raises(UserError, match=r"^lab/x/student\.safetensors: damaged"):
        pull("lab/x", "out")
    student.write_bytes(whole)
    stored, header = tensors.load(student)
    tensors.save(student, stored, header | {"backbone": {"class": "foreign.Net", "arguments": {}}})
    with pytest.raises(UserError, match=r"names the class foreign\.Net.*--trust foreign"):
        pull("lab/x", "out")
    student.unlink()
    (shared / "lab/x/sampler.safetensors").unlink()
    with pytest.raises(UserError, match="has no student"):
        pull("lab/x", "out")
    assert not list(Path().glob("out*")) and not list(Path().glob(".out*"))
    Path("private.png").touch()
    (run / "evaluation.png").unlink()
    (run / "evaluation.png").symlink_to(Path("private.png").resolve())
    with pytest.raises(UserError, match="leads out of the run"):
        push(run, "lab/y", license="MIT")
    assert not (shared / "lab/y").exists()
