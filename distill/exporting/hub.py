"""Shares runs as Hugging Face repositories with a model card, and fetches and checks shared runs."""

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
    """Uploads a run to a Hugging Face repository -> its address.

    It uploads the networks, the calibration of the student, a model card and, if `evaluate` wrote a picture,
    a preview, which shows a part of your image. It uploads nothing else of the folder.

    Args:
        run: a finished run or its folder.
        repo: NAME/REPO. It is created if it does not exist; otherwise the files get a new version.
        license: licence of the model for others, an SPDX identifier such as MIT or CC-BY-4.0. Required.
        private: make the repository visible to yourself only.
        trust: your own modules that the run's files may import classes from. Default: none.

    Raises:
        UserError: if the run is not finished or damaged, nobody is logged in, or the upload fails.
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
        raise UserError(f"{repo}: you are not logged in; {LOGIN}")
    with _in_one_line(repo):
        api = hub.HfApi(library_name="posterior-distill")
        address = api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise UserError(f"{repo}: exists already and is public; pass another name, or omit --private")
        added = [
            hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in files.items()
        ]
        api.create_commit(repo, added, commit_message="A run of posterior-distill")
    return str(address)


def pull(
    repo: str, out: str | os.PathLike[str], *, revision: str | None = None, trust: str | Sequence[str] = ()
) -> Path:
    """Downloads a run that was shared with `push` -> its folder, which is only written if all is complete.

    Args:
        repo: NAME/REPO.
        out: folder to write, which must not exist yet.
        revision: branch, tag or commit. Default: the newest.
        trust: your own modules that the run's files may import classes from. Default: none.

    Raises:
        UserError: if the download fails, or the files are damaged or would run code.
    """
    check_limits({"repo": repo, "out": out, "revision": revision, "trust": trust})
    _check_name(repo)
    out = Path(out)
    if os.path.lexists(out):
        raise UserError(f"{out}: exists already; pass a new folder")
    check_folder(out)
    hub = extra("huggingface_hub", "hub", "pull")
    with _in_one_line(repo):
        api = hub.HfApi(library_name="posterior-distill")
        info = api.model_info(repo, revision=revision, files_metadata=True)
    sizes = {each.rfilename: each.size or 0 for each in info.siblings or [] if each.rfilename in FETCHED}
    if not sizes.keys() & {*NETWORKS}:
        raise UserError(
            f"{repo}: has no {' or '.join(NETWORKS)}; distill opens repositories of `distill push` only"
        )
    check_folder(out, sum(sizes.values()))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        download, run = Path(folder, "download"), Path(folder, "run")
        with _in_one_line(repo):
            api.snapshot_download(repo, revision=info.sha, local_dir=download, allow_patterns=[*sizes])
        run.mkdir()
        for name in sizes:  # without the files of the hub's client
            os.replace(download / name, run / name)
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
    """Files to upload, by their names in the repository.

    Raises UserError for damaged files, for classes that are neither ours nor trusted, and if no network is
    left that others could open.
    """
    files: dict[str, Any] = {}
    for name, load in NETWORKS.items():
        if (run / name).exists() and _is_described(run / name):
            load(run, trust=trust)
            files[name] = run / name
    if not files:
        raise UserError(
            f"{run}: its networks cannot be rebuilt by name; share the code that builds them instead"
        )
    pictures = [run / name for name in ("evaluation.png", PREVIEW) if (run / name).exists()]
    files |= {CALIBRATION: run / CALIBRATION} if (run / CALIBRATION).exists() else {}
    return files | ({PREVIEW: pictures[0]} if pictures else {})


def _is_described(path: Path) -> bool:
    """Whether others can rebuild the network. No file contains, for instance, a plain function."""
    header = tensors.load(path)[1]
    is_complete = not [key for key in ("sampler", "backbone", "loss") if header.get(key, ...) is None]
    if not is_complete:
        log.warning("%s: not uploaded, because it cannot be rebuilt by name", path)
    return is_complete


@contextmanager
def _in_one_line(repo: str) -> Iterator[None]:
    """Raises UserError in one line for the errors of the hub's client, which have many kinds and lines."""
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
            what = "no such revision; pass a branch, a tag or a commit"
        elif isinstance(error, errors.RepositoryNotFoundError):
            what = f"no such repository, or no access to it; check its name, or {LOGIN}"
        elif isinstance(error, errors.LocalTokenNotFoundError) or status in (401, 403):
            what = f"access denied ({reason}); {LOGIN} as a user with access"
        elif status:
            what = f"the hub refused the request ({reason}); correct that, or try again later"
        else:
            what = f"the hub cannot be reached ({reason}); check the connection, and try again"
        raise UserError(f"{repo}: {what}") from error
