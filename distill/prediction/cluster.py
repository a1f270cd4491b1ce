"""Computes the blocks of an image on a Dask cluster, whose workers read them; this process writes them.

The scheduler of Dask handles lost workers, retries and the order of the blocks. Every worker computes the
same bytes for a block: tiles follow from one plan, random numbers from the block's seed, and all workers use
as many threads for arithmetic as this process, because some sums depend on the number of threads.
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
SECONDS = 5.0  # time limit for the answer of a scheduler
AHEAD = 3  # blocks per thread of a worker: one is computed, one is fetched and one waits
RETRIES = 3  # attempts for a block after temporary errors, such as those of a network file system


@contextmanager
def cluster(
    dask: str, job: Prediction, images: Any, device: str | None, precision: Precision, ceiling: float | None
) -> Iterator[Workers]:
    """The workers of a running cluster, or of a new one that is stopped afterwards: see `predict`.

    ceiling: most memory, in bytes: of all workers together that are started here, or of each worker of a
    running cluster. Default: half of their free memory.
    Raises UserError if no scheduler answers, or if the versions or devices of the workers differ.
    """
    paths = _paths(images)
    with ExitStack() as stack:
        client = stack.enter_context(_started(count) if (count := _count(dask)) else _connected(dask))
        log.info("dask: progress at %s", client.dashboard_link)
        machines = _machines(client, dask, device, precision)
        expected = next(iter(machines.values()))[0] | _software()
        for address, (machine, _) in machines.items():
            _check_alike(address, machine, expected)
        room = _room({address: free for address, (_, free) in machines.items()}, ceiling, count)
        name = stack.enter_context(_sent(client, Work(job, paths, device, precision, expected)))
        yield Workers(room, expected["device"], partial(_computed, client, name))


def _paths(images: Any) -> str | list[str]:
    """Absolute paths, because workers may have another working folder."""
    if isinstance(images, str | os.PathLike):
        path = os.fspath(images)
        return path if "://" in path else os.path.abspath(path)
    if isinstance(images, list | tuple) and all(isinstance(each, str | os.PathLike) for each in images):
        return [str(_paths(each)) for each in images]
    raise UserError(
        f"dask: its workers open the images themselves, but got {type(images).__name__}; pass the path of a "
        "file that all of them can open"
    )


def _count(dask: str) -> int | None:
    """Number of workers to start here; None for a running cluster."""
    match = re.fullmatch(r"local(?::(\d+))?", dask)
    if match is None:
        return None
    count = int(match[1]) if match[1] else cores()
    if count < 1:
        raise UserError(f"dask: got '{dask}', must be at least one worker, such as local:2")
    return count


@contextmanager
def _started(count: int) -> Iterator[Client]:
    """Starts workers. The plan limits their memory; the limits of Dask itself would stop them too early."""
    idle = {"OMP_WAIT_POLICY": "PASSIVE"}  # waiting threads leave the cores to other workers
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
    """Ctrl-C reaches every process of a terminal; a worker is stopped by the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _connected(dask: str) -> Iterator[Client]:
    """Connects to a scheduler. `connect` comes first, because closing a Client without one takes long."""
    try:
        address = _address(dask)
        with ThreadPoolExecutor(1) as other:  # this thread may have an event loop, as in Jupyter
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
    """By worker address: the properties that must be equal, and the free memory. Waits for a first worker."""
    if not client.nthreads():
        log.info("dask: no workers at %s yet, waiting for the first", dask)
        client.wait_for_workers(1)
    try:
        return cast(dict[str, Any], client.run(_machine, device, precision))  # not from a coroutine
    except UserError:
        raise
    except Exception as error:  # unpickling raises any exception if a package is missing there
        raise _not_sent(error) from error


def _machine(device: str | None, precision: Precision, dask_worker: Any) -> tuple[dict[str, str], float]:
    """(properties that must be equal, free memory in bytes). dask_worker: argument of `Client.run`."""
    hardware, limit = Hardware(device, precision), dask_worker.memory_manager.memory_limit
    bf16 = has_fast_bf16(hardware.device) if precision == "auto" else precision == "bf16"
    properties = _software() | {"device": hardware.device.type, "precision": "bf16" if bf16 else "fp32"}
    return properties, min(free_on(hardware.device), limit or float("inf"))


def _software() -> dict[str, str]:
    python = platform.python_version().rpartition(".")[0]
    return {"posterior-distill": version("posterior-distill"), "torch": torch.__version__, "Python": python}


def _check_alike(worker: str, machine: dict[str, str], expected: dict[str, str]) -> None:
    if differ := [key for key in expected if machine[key] != expected[key]]:
        got, wanted = (", ".join(f"{key} {each[key]}" for key in differ) for each in (machine, expected))
        raise UserError(
            f"dask: worker {worker} has {got}, expected is {wanted}; all workers need the same versions and "
            "kind of machine; for different machines pass --device cpu --precision fp32"
        )


def _room(free: dict[str, float], ceiling: float | None, count: int | None) -> float:
    """Memory of each worker in bytes. free: free memory by address; workers of one host share it."""
    if ceiling is not None:
        return ceiling / (count or 1)
    hosts = {address: address.rpartition(":")[0] for address in free}
    workers = Counter(hosts.values())
    return min(size / workers[hosts[address]] for address, size in free.items()) / 2


class Work(WorkerPlugin):
    """The network and the image, sent once to each worker, also to workers that join later."""

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
        """The result of `Prediction.compute`. One block at a time is computed, while other threads read."""
        with self._lock:
            job = self._job
        noisy = job.read(block)
        with self._lock:
            torch.set_num_threads(self.threads)  # for this thread; Dask sets 1
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
                f"dask: worker {worker.address} finds another image at {self.images}; pass a path to the "
                "same file on all machines"
            )
        return job


@contextmanager
def _sent(client: Client, work: Work) -> Iterator[str]:
    """Sends the work to the workers and yields its name."""
    name = f"predict-{uuid4().hex}"
    try:
        client.register_plugin(work, name)
    except Exception as error:  # pickle and imports raise any exception
        raise _not_sent(error) from error
    try:
        yield name
    finally:
        with suppress(Exception):  # the cluster may have stopped
            client.unregister_worker_plugin(name)


def _not_sent(error: Exception) -> UserError:
    return UserError(
        f"dask: the networks cannot be sent to its workers ({_reason(error)}); install the same packages "
        "everywhere, including your own modules"
    )


def _computed(
    client: Client, name: str, plan: Plan, blocks: Sequence[Block], write: Write
) -> Iterator[Block]:
    """Yields blocks after they are written, in any order. Few are submitted at once, to limit memory."""
    waiting, sent, futures = iter(enumerate(blocks)), {}, as_completed(loop=client.loop)
    while True:
        room = AHEAD * sum(cast(dict[str, int], client.nthreads()).values()) - len(sent)
        for i, block in islice(waiting, max(room, 0 if sent else 1)):
            future = client.submit(_answer, name, plan, block, key=f"{name}-{i}", retries=RETRIES, pure=False)
            sent[future.key] = block
            futures.add(future)
        if not sent:
            return
        future = next(futures)
        block = sent.pop(future.key)
        write(block, _result(future))
        del future  # lets the worker free the result
        yield block


def _answer(name: str, plan: Plan, block: Block) -> "list[np.ndarray] | UserError":
    """The result of a block, or a UserError, which is returned because a retry would raise it again."""
    try:
        return cast(Work, get_worker().plugins[name]).answer(plan, block)
    except UserError as error:
        return error


def _result(future: Any) -> list[np.ndarray]:
    try:
        answer = future.result()
    except KilledWorker as error:
        raise UserError(
            "dask: one block stopped several workers, as too little memory does; pass a smaller --memory, "
            "and look into the log of the workers"
        ) from error
    except CancelledError as error:
        raise UserError("dask: the scheduler has stopped; to resume, run the same command again") from error
    if isinstance(answer, UserError):
        raise answer
    return answer


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
