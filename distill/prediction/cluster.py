"""Blocks of an image on the workers of a Dask cluster: each reads, computes and writes its own.

Which worker takes which block, what becomes of a lost one, and the dashboard are the scheduler's. Workers see
the same files as this process: on a cluster, a shared file system.
"""

import json
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from itertools import islice
from typing import Any

from distill.errors import UserError
from distill.images.targets import Target, open_target
from distill.prediction.blocks import Prediction
from distill.prediction.plan import Block, Plan
from distill.prediction.tiles import FittingTiles

log = logging.getLogger(__name__)
RETRIES = 2  # of a block that failed, such as on a file system that was away
WAITING = 4  # blocks per thread of the cluster that are handed out at once
_one_at_a_time = threading.Lock()  # torch uses all cores by itself, and its random numbers are the process's


def run_on_cluster(address: str, settings: dict[str, Any], blocks: Sequence[Block]) -> Iterator[Block]:
    """Yields each block when it is written, in any order.

    address: of a scheduler, such as tcp://10.0.0.1:8786, or local:N for N workers on this machine. settings:
    what `_loaded` makes the networks and the images of, in the terms of JSON.
    """
    from distributed import as_completed

    text, rest = json.dumps(settings), iter(blocks)
    with _client(address) as client:
        log.info("dashboard: %s", client.dashboard_link)
        at_once = WAITING * max(1, sum(client.nthreads().values()))
        by_future = {_submit(client, text, block): block for block in islice(rest, at_once)}
        done = as_completed(list(by_future))
        for future in done:
            _result(future)
            yield by_future.pop(future)
            for block in islice(rest, 1):
                by_future[following := _submit(client, text, block)] = block
                done.add(following)


def check_address(address: str) -> None:
    if not re.fullmatch(r"local:[1-9]\d*|\w+://\S+|[\w.-]+:\d+", address):
        raise UserError(
            f"dask: got '{address}'; pass local:N, or a scheduler's address such as tcp://host:8786"
        )
    try:
        import distributed  # noqa: F401
    except ImportError:
        raise UserError("dask is not installed; run: pip install 'posterior-distill[dask]'") from None


@contextmanager
def _client(address: str) -> Iterator[Any]:
    from distributed import Client, LocalCluster

    with ExitStack() as opened:
        where: Any = address
        if address.startswith("local:"):
            workers = int(address.removeprefix("local:"))
            where = opened.enter_context(
                LocalCluster(n_workers=workers, threads_per_worker=1, memory_limit=0, dashboard_address=":0")
            )
        try:
            client = opened.enter_context(Client(where))
        except OSError as error:
            raise UserError(f"dask: no scheduler answers at {address} ({error}); start one first") from error
        yield client


def _submit(client: Any, text: str, block: Block) -> Any:
    return client.submit(_work, text, block, pure=False, retries=RETRIES)


def _result(future: Any) -> None:
    from distributed import KilledWorker

    try:
        future.result()
    except KilledWorker as error:
        raise UserError(f"dask: {error}; what is done is kept, the same command goes on") from error


def _work(text: str, block: Block) -> None:
    """On a worker. The networks are loaded once, and stay."""
    with _one_at_a_time:
        job, in_tiles, batch, targets = _loaded(text)
    noisy = job.read(block)
    with _one_at_a_time:
        images = job.compute(in_tiles, batch, block, noisy)
    for target, image in zip(targets, images, strict=True):
        target.write(block.first, block.rows[0], block.columns[0], image)


@lru_cache(maxsize=1)
def _loaded(text: str) -> tuple[Prediction, FittingTiles, int, list[Target]]:
    settings = json.loads(text)
    job = Prediction(**settings["prediction"])
    plan, channels = Plan(**settings["plan"]), job.stack.frames.shape[1]
    targets = [open_target(path, job.stack, channels, kind, **settings["options"])
               for path, kind in settings["files"]]  # fmt: skip
    in_tiles = FittingTiles(job.answer, None, lambda: job.halo if plan.halo is None else plan.halo)
    return job, in_tiles, plan.batch, targets
