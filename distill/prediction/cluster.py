"""A Dask cluster reads and computes the blocks of an image; this process writes them.

Lost workers, retries and the order of the blocks are the scheduler's. Whoever computes a block gives the same
bytes: its tiles come from the one plan, its random numbers from its own seed, and the arithmetic of every
worker has as many threads as that of this process, because some sums depend on their number.
"""

import asyncio
import json
import logging
import os
import platform
import re
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property, partial
from importlib.metadata import version
from itertools import islice
from threading import Lock
from typing import Any, cast
from uuid import uuid4

import numpy as np
import torch
from distributed import Client, KilledWorker, LocalCluster, WorkerPlugin, as_completed, get_worker
from distributed.client import CancelledError  # pyright: ignore[reportPrivateImportUsage]
from distributed.comm import connect  # pyright: ignore[reportPrivateImportUsage]

from distill.errors import UserError
from distill.files import check_readable
from distill.hardware import Hardware, Precision, cores, has_fast_bf16
from distill.images.chunks import CACHE
from distill.memory import free_on
from distill.prediction.blocks import Prediction, fingerprint
from distill.prediction.plan import CACHED, Block, Plan
from distill.prediction.stream import Workers, Write

log = logging.getLogger(__name__)
SECONDS = 5.0  # in which a scheduler has to answer
AHEAD = 3  # blocks that each thread of a worker has in hand: computed, to be fetched, and to come
RETRIES = 3  # of a block, after errors that may pass, such as those of a network's file system


@contextmanager
def cluster(
    dask: str, job: Prediction, images: Any, device: str | None, precision: Precision, ceiling: float | None
) -> Iterator[Workers]:
    """Those of a running cluster, or of one that lives as long as the block: see `predict`.

    ceiling: most memory of all workers that are started here, or of each worker elsewhere. Default: half of
    what is free for them.
    Errors: no scheduler answers, or its workers differ.
    """
    paths = _paths(images)
    with ExitStack() as stack:
        client = stack.enter_context(_started(count) if (count := _count(dask)) else _connected(dask))
        log.info("dask: progress at %s", client.dashboard_link)
        found = _machines(client, dask, device, precision)
        expected = next(iter(found.values()))[0] | _software()
        for address, (machine, _) in found.items():
            _check_alike(address, machine, expected)
        room = _room({address: free for address, (_, free) in found.items()}, ceiling, count)
        name = stack.enter_context(_sent(client, Work(job, paths, device, precision, expected)))
        yield Workers(room, expected["device"], partial(_computed, client, name))


def _paths(images: Any) -> str | list[str]:
    """As every worker finds them, wherever it was started."""
    if isinstance(images, str | os.PathLike):
        path = os.fspath(images)
        return path if "://" in path else os.path.abspath(path)
    if isinstance(images, list | tuple) and all(isinstance(each, str | os.PathLike) for each in images):
        return [str(_paths(each)) for each in images]
    raise UserError(
        f"dask: its workers read the images themselves, got {type(images).__name__}; pass the path of a file "
        "that all of them can open"
    )


def _count(dask: str) -> int | None:
    """Of the workers to start here; None for a cluster that runs."""
    found = re.fullmatch(r"local(?::(\d+))?", dask)
    if found is None:
        return None
    count = int(found[1]) if found[1] else cores()
    if count < 1:
        raise UserError(f"dask: got '{dask}', must be at least one worker, such as local:2")
    return count


@contextmanager
def _started(count: int) -> Iterator[Client]:
    """Memory is as the plan has it: Dask's own limits, of equal parts of the machine, would stop workers."""
    idle = {"OMP_WAIT_POLICY": "PASSIVE"}  # threads that wait leave the cores to other workers
    with (
        LocalCluster(
            n_workers=count, threads_per_worker=1, processes=True, host="127.0.0.1", memory_limit=0,
            dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL, env=idle,
        ) as here,
        Client(here, set_as_default=False) as client,
    ):  # fmt: skip
        client.run(_ignore_interrupts)
        yield client


def _ignore_interrupts() -> None:
    """Ctrl-C goes to every process of a terminal; this one is ended by the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _connected(dask: str) -> Iterator[Client]:
    """A Client that finds no scheduler, or something else, waits long when it is closed: hence `connect`."""
    try:
        address = _address(dask)
        with ThreadPoolExecutor(1) as other:  # this thread may have an event loop of its own, as in Jupyter
            other.submit(asyncio.run, _try_to_connect(address)).result()
        client = Client(address, timeout=4 * SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"dask: no scheduler answers at {dask} ({_reason(error)}); pass the address that it prints when "
            "it starts, such as tcp://10.0.0.5:8786, its scheduler file (.json), or local:2 for workers here"
        ) from error
    with client:
        yield client


def _address(dask: str) -> str:
    if not dask.endswith(".json"):
        return dask
    return json.loads(check_readable(dask, "pass the file that the scheduler writes").read_text())["address"]


async def _try_to_connect(address: str) -> None:
    comm = await asyncio.wait_for(connect(address, timeout=SECONDS), 2 * SECONDS)
    await comm.close()


def _machines(client: Client, dask: str, device: str | None, precision: Precision) -> dict[str, Any]:
    """By the address of each worker: what must be alike, and its free memory. The first worker is awaited."""
    if not client.nthreads():
        log.info("dask: no workers at %s yet, waiting for the first", dask)
        client.wait_for_workers(1)
    try:
        return cast(dict[str, Any], client.run(_machine, device, precision))  # not from a coroutine
    except UserError:
        raise
    except Exception as error:  # from the unpickling of what is not installed there, anything
        raise _not_sent(error) from error


def _machine(device: str | None, precision: Precision, dask_worker: Any) -> tuple[dict[str, str], float]:
    """dask_worker: given by `Client.run`."""
    hardware, limit = Hardware(device, precision), dask_worker.memory_manager.memory_limit
    bf16 = has_fast_bf16(hardware.device) if precision == "auto" else precision == "bf16"
    alike = _software() | {"device": hardware.device.type, "precision": "bf16" if bf16 else "fp32"}
    return alike, min(free_on(hardware.device), limit or float("inf"))


def _software() -> dict[str, str]:
    python = platform.python_version().rpartition(".")[0]
    return {"posterior-distill": version("posterior-distill"), "torch": torch.__version__, "Python": python}


def _check_alike(worker: str, machine: dict[str, str], expected: dict[str, str]) -> None:
    if differ := [key for key in expected if machine[key] != expected[key]]:
        there, here = (", ".join(f"{key} {each[key]}" for key in differ) for each in (machine, expected))
        raise UserError(
            f"dask: worker {worker} has {there}, expected is {here}; all need the same versions and kind of "
            "machine, else pass --device cpu --precision fp32"
        )


def _room(free: dict[str, float], ceiling: float | None, count: int | None) -> float:
    """Bytes of each worker. free: by their addresses; those of one host share what is free there."""
    if ceiling is not None:
        return ceiling / (count or 1)
    hosts = {address: address.rpartition(":")[0] for address in free}
    workers = Counter(hosts.values())
    return min(size / workers[hosts[address]] for address, size in free.items()) / 2


class Work(WorkerPlugin):
    """What every worker needs to know, sent once to each that there is, and to each that comes."""

    def __init__(
        self,
        job: Prediction,
        images: str | list[str],
        device: str | None,
        precision: Precision,
        machine: dict[str, str],
    ) -> None:
        self.network, self.images, self.name, self.machine = job.network, images, job.name, machine
        self.options = {"draws": job.draws, "statistic": job.statistic, "seed": job.seed, "device": device,
                        "precision": precision, "axes": job.axes,
                        "conditions": None if job.conditions is None else _paths(job.conditions)}  # fmt: skip
        self.fingerprint, self.threads = fingerprint(job.stack), torch.get_num_threads()

    def setup(self, worker: Any) -> None:
        self._worker, self._lock, self._tiles, self._limits = worker, Lock(), None, ExitStack()
        self._limits.enter_context(CACHE.limited_to(CACHED))

    def teardown(self, worker: Any) -> None:
        self._limits.close()

    def answer(self, plan: Plan, block: Block) -> list[np.ndarray]:
        """See `Prediction.compute`; one block at a time, while other threads of the worker read theirs."""
        with self._lock:
            job = self._job
        noisy = job.read(block)
        with self._lock:
            torch.set_num_threads(self.threads)  # in this thread; Dask asks for 1
            self._tiles = self._tiles or job.in_tiles(plan.halo)
            return job.compute(self._tiles, plan.batch, block, noisy)

    @cached_property
    def _job(self) -> Prediction:
        worker, device, precision = self._worker, self.options["device"], self.options["precision"]
        _check_alike(worker.address, _machine(device, precision, worker)[0], self.machine)
        job = Prediction(self.network, self.images, **self.options)
        job.name = self.name
        if fingerprint(job.stack) != self.fingerprint:
            raise UserError(
                f"dask: worker {worker.address} finds another image at {self.images}; pass a path that is "
                "the same file for all"
            )
        return job


@contextmanager
def _sent(client: Client, work: Work) -> Iterator[str]:
    """The name by which workers know it."""
    name = f"predict-{uuid4().hex}"
    try:
        client.register_plugin(work, name)
    except Exception as error:  # pickle and the imports of others raise anything
        raise _not_sent(error) from error
    try:
        yield name
    finally:
        with suppress(Exception):  # the cluster may be gone
            client.unregister_worker_plugin(name)


def _not_sent(error: Exception) -> UserError:
    return UserError(
        f"dask: the networks cannot be sent to its workers ({_reason(error)}); install the same packages "
        "everywhere, your own modules too"
    )


def _computed(
    client: Client, name: str, plan: Plan, blocks: Sequence[Block], write: Write
) -> Iterator[Block]:
    """As they come. Only so many are asked for that their answers never pile up."""
    waiting, sent, coming = iter(enumerate(blocks)), {}, as_completed(loop=client.loop)
    while True:
        room = AHEAD * sum(cast(dict[str, int], client.nthreads()).values()) - len(sent)
        for i, block in islice(waiting, max(room, 0 if sent else 1)):
            future = client.submit(_answer, name, plan, block, key=f"{name}-{i}", retries=RETRIES, pure=False)
            sent[future.key] = block
            coming.add(future)
        if not sent:
            return
        future = next(coming)
        block = sent.pop(future.key)
        write(block, _result(future))
        del future  # the worker may forget it
        yield block


def _answer(name: str, plan: Plan, block: Block) -> "list[np.ndarray] | UserError":
    """An error that would only come again is an answer too."""
    try:
        return cast(Work, get_worker().plugins[name]).answer(plan, block)
    except UserError as error:
        return error


def _result(future: Any) -> list[np.ndarray]:
    try:
        answer = future.result()
    except KilledWorker as error:
        raise UserError(
            "dask: one block has ended several workers, as too little memory does; pass a smaller --memory, "
            "and look into the log of the workers"
        ) from error
    except CancelledError as error:
        raise UserError("dask: the scheduler is gone; the same command goes on from here") from error
    if isinstance(answer, UserError):
        raise answer
    return answer


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
