"""Runs as Hugging Face repositories: sent with a model card, and checked when they are fetched."""

import logging
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill.errors import UserError, went_through
from distill.exporting.card import card
from distill.exporting.license import check_license
from distill.extras import extra
from distill.files import check_folder
from distill.limits import check_limits
from distill.runs import tensors
from distill.runs.checkpoint import CALIBRATION, load_denoiser, load_sampler
from distill.runs.describe import check_links, is_finished

NETWORKS = {"student.safetensors": load_denoiser, "sampler.safetensors": load_sampler}
log = logging.getLogger(__name__)
CARD, PREVIEW = "README.md", "preview.png"
FETCHED = (*NETWORKS, CALIBRATION, CARD, PREVIEW)
LOGIN = "log in (`hf auth login`, or HF_TOKEN in the environment)"


def push(
    run: str | os.PathLike[str],
    repo: str,
    *,
    license: str | None = None,
    private: bool = False,
    trust: str | Sequence[str] = (),
) -> str:
    """Shares a run as a Hugging Face repository -> its address.

    Sent are its networks, the calibration of its student, a model card and, where `evaluate` has left its
    picture, a preview, which shows a part of your image; nothing else of the folder.

    Args:
        run: a finished run or its folder.
        repo: NAME/REPO, which is made if there is none; a new version of the files if there is.
        license: what others may do with the model, an SPDX identifier such as MIT or CC-BY-4.0. No default.
        private: let nobody else see the repository.
        trust: your modules whose classes the run's files may name, and so have imported. Default: none.
    """
    check_limits({"run": run, "repo": repo, "license": license, "trust": trust})
    _check_name(repo)
    license, run = check_license(license), Path(run)
    hub = extra("huggingface_hub", "hub", "push")
    if not is_finished(run):
        raise UserError(f"{run}: not a finished run; pass the folder that `distill train` wrote")
    check_links(run)
    files = _files(run, trust)
    files[CARD] = card(run, repo, license, PREVIEW in files).encode()
    if hub.get_token() is None:
        raise UserError(f"{repo}: nobody is logged in who could write there; {LOGIN}")
    with _in_one_line(repo):
        api = hub.HfApi(library_name="posterior-distill")
        address = api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise UserError(
                f"{repo}: is there already, and public; pass another name, or leave out --private"
            )
        added = [
            hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in files.items()
        ]
        api.create_commit(repo, added, commit_message="A run of posterior-distill")
    return str(address)


def pull(
    repo: str, out: str | os.PathLike[str], *, revision: str | None = None, trust: str | Sequence[str] = ()
) -> Path:
    """Fetches a run that `push` has shared -> its folder, which is there whole and checked, or not at all.

    Args:
        repo: NAME/REPO.
        out: folder to write, which is not there yet.
        revision: a branch, a tag or a commit. Default: the newest.
        trust: your modules whose classes the run's files may name, and so have imported. Default: none.
    """
    check_limits({"repo": repo, "out": out, "revision": revision, "trust": trust})
    _check_name(repo)
    out = Path(out)
    if os.path.lexists(out):
        raise UserError(f"{out}: exists already; pass a folder that does not")
    check_folder(out)
    hub = extra("huggingface_hub", "hub", "pull")
    with _in_one_line(repo):
        api = hub.HfApi(library_name="posterior-distill")
        there = api.model_info(repo, revision=revision, files_metadata=True)
    sizes = {each.rfilename: each.size or 0 for each in there.siblings or [] if each.rfilename in FETCHED}
    if not sizes.keys() & {*NETWORKS}:
        raise UserError(
            f"{repo}: holds no {' or '.join(NETWORKS)}; distill opens what `distill push` has sent"
        )
    check_folder(out, sum(sizes.values()))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        fetched, run = Path(folder, "fetched"), Path(folder, "run")
        with _in_one_line(repo):
            api.snapshot_download(repo, revision=there.sha, local_dir=fetched, allow_patterns=[*sizes])
        run.mkdir()
        for name in sizes:  # the hub's client leaves notes of its own beside them
            os.replace(fetched / name, run / name)
        check_links(run)
        try:
            for name in sizes.keys() & {*NETWORKS}:
                NETWORKS[name](run, trust=trust)
        except UserError as error:
            raise UserError(str(error).replace(str(run), repo)) from error
        os.replace(run, out)
    return out


def _check_name(repo: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo, re.ASCII):
        raise UserError(f"repo: got '{repo}', must be NAME/REPO: a user or an organisation, and a repository")


def _files(run: Path, trust: str | Sequence[str]) -> dict[str, Any]:
    """Their names in the repository, and where they are. UserError for damage, for classes that are neither
    ours nor trusted, and where nothing is left that others could open."""
    files: dict[str, Any] = {}
    for name, load in NETWORKS.items():
        if (run / name).exists() and _is_described(run / name):
            load(run, trust=trust)
            files[name] = run / name
    if not files:
        raise UserError(f"{run}: none of its networks can be rebuilt by name; share what made them instead")
    pictures = [run / name for name in ("evaluation.png", PREVIEW) if (run / name).exists()]
    files |= {CALIBRATION: run / CALIBRATION} if (run / CALIBRATION).exists() else {}
    return files | ({PREVIEW: pictures[0]} if pictures else {})


def _is_described(path: Path) -> bool:
    """Whether others can build it: a plain function, for instance, is in no file."""
    header = tensors.load(path)[1]
    is_whole = not [key for key in ("sampler", "backbone", "loss") if header.get(key, ...) is None]
    if not is_whole:
        log.warning("%s: not sent, since it cannot be rebuilt by name", path)
    return is_whole


@contextmanager
def _in_one_line(repo: str) -> Iterator[None]:
    """The hub's client raises errors of many kinds and many lines."""
    from huggingface_hub import errors

    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not went_through(error, "huggingface_hub"):
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, errors.RevisionNotFoundError):
            what = "no such revision; pass a branch, a tag or a commit of it"
        elif isinstance(error, errors.RepositoryNotFoundError):
            what = f"no such repository, or none that you may see; check its name, or {LOGIN}"
        elif isinstance(error, errors.LocalTokenNotFoundError) or status in (401, 403):
            what = f"refused to you ({reason}); {LOGIN} as somebody who may"
        elif status:
            what = f"the hub refuses it ({reason}); mend that, or try again later"
        else:
            what = f"the hub cannot be reached ({reason}); check the connection, and try again"
        raise UserError(f"{repo}: {what}") from error
