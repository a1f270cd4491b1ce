"""Several processes that train together, as `torchrun` or `accelerate launch` starts them: one for each GPU.

Each holds both networks and draws the same batches by the same generator, computes its part of them, and
adds what the others have found before the update. So all take the same steps with the same weights, which
are those of one process with the same batches. One explicit sum is simpler here than a wrapper around each
network (DistributedDataParallel, accelerate's `prepare`): these want to see every backward pass of one
network with one loss, here two learn from micro-batches, and it carries their losses and buffers too.

Batch normalisation sees one micro-batch, in one process as in many: its statistics are not synchronised
within a pass. Its running statistics, though, become those of one process that has seen all micro-batches
in order, as do the counters of steps; other running averages become the mean of all processes.
"""

import itertools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distill.errors import UserError
from distill.hardware import seed_all
from distill.training.optimizer import Optimizer

T = TypeVar("T")
_GROUPS = itertools.count()  # of this process, one after another


@contextmanager
def joined() -> Iterator[None]:
    """Inside, the processes that a launcher has started are one group, of which the first one logs. Without
    a launcher nothing happens. Of what ends them all, the first that meets it tells, the others end silently.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or dist.is_initialized():
        yield
        return
    store, rank = _rendezvous()
    dist.init_process_group(store=store, rank=rank, world_size=count)  # gloo, and what the GPUs have
    former = logging.root.manager.disable
    if rank:
        logging.disable(max(former, logging.WARNING))
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if _is_first(store):
            raise
        raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 2) from None
    finally:
        logging.disable(former)
    dist.destroy_process_group()  # not after an error: it would wait for the others


def _rendezvous() -> tuple[Any, int]:
    """(where the processes meet, the number of this one), as the launcher says."""
    from torch.distributed import PrefixStore, rendezvous  # pyright: ignore[reportPrivateImportUsage]

    store, rank, _ = next(rendezvous("env://"))
    # else a second group would find the first one's keys
    return PrefixStore(f"group {next(_GROUPS)}", store), rank


def _is_first(store: Any) -> bool:
    try:
        return store.add("ended", 1) == 1
    except RuntimeError:  # the process that holds the store is gone
        return False


def is_main() -> bool:
    """Whether this process writes, prints and logs."""
    return not dist.is_available() or not dist.is_initialized() or dist.get_rank() == 0


class Processes:
    """Those that share each batch. Without a launcher there is one, and nothing is exchanged.

    Errors: fewer patches than processes.
    """

    def __init__(self, batch_size: int, micro_batch: int) -> None:
        several = dist.is_available() and dist.is_initialized()
        self.rank, self.count = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
        self.main = self.rank == 0
        if batch_size < self.count:
            raise UserError(
                f"batch_size: got {batch_size} for {self.count} processes, must be at least {self.count}"
            )
        ends = [batch_size * i // self.count for i in range(self.count + 1)]
        self.part = slice(*ends[self.rank : self.rank + 2])  # of each batch
        later = zip(ends[self.rank + 1 :], ends[self.rank + 2 :], strict=False)
        self._later = sum(ceil((end - start) / micro_batch) for start, end in later)

    def device(self, asked: str | None) -> str | None:
        """The name of this process's own device. Errors: one that several would have to share."""
        if self.count == 1:
            return asked
        kind = asked or ("cuda" if torch.cuda.is_available() else "cpu")
        if kind not in ("cuda", "cpu"):
            raise UserError(f"device: got '{asked}' for {self.count} processes, allowed are cuda, cpu")
        if kind == "cpu":
            return kind
        mine, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if mine >= there:
            raise UserError(
                f"device: {mine + 1} processes or more on a machine with {there} GPUs; start one for each"
            )
        torch.cuda.set_device(mine)
        return f"cuda:{mine}"

    def seed(self, seed: int) -> None:
        """torch's random numbers differ between the processes; the first goes on with those it has."""
        if not self.main:
            seed_all(seed, self.rank)

    def share(self, *modules: nn.Module) -> None:
        """Gives all processes the first one's weights and buffers."""
        tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
        values = self.on_main(lambda: [t.detach().cpu() for t in tensors]) if self.count > 1 else []
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=self.count > 1):
                tensor.copy_(value)

    @torch.no_grad()
    def add_up(self, optimizers: list[Optimizer]) -> None:
        """Gradients and losses of the parts of a batch become those of the batch, in one exchange; buffers
        become what they would be after all its micro-batches."""
        if self.count == 1:
            return
        summed: list[Tensor] = []
        for each in optimizers:
            for parameter in each.parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                summed.append(parameter.grad)
            each.loss = torch.as_tensor(each.loss).clone()
            summed.append(each.loss)
            decays = _decays(each.module)
            for buffer, sound in zip(each.buffers, each.sound, strict=True):
                change = torch.where(buffer == sound, 0, buffer - sound)  # they may hold infinity
                buffer.copy_(change * self._weight(change, decays.get(id(buffer))))
                summed.append(buffer)
        self._sum(summed)
        for each in optimizers:
            for buffer, sound in zip(each.buffers, each.sound, strict=True):
                buffer.add_(sound)

    def _weight(self, change: Tensor, decay: float | None) -> float:
        """Of one process's change in the sum of all: that of batch normalisation decays with each later
        micro-batch, whole numbers count, and of anything else the mean is taken."""
        if decay is not None:
            return decay**self._later
        return 1 / self.count if change.is_floating_point() else 1

    def _sum(self, tensors: list[Tensor]) -> None:
        flat = torch.cat([t.flatten() for t in tensors])
        with _exchange():
            dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, mine: object) -> bool:
        """Whether it is true of any process."""
        if self.count == 1:
            return bool(mine)
        flag = torch.tensor([float(bool(mine))])
        self._sum([flag])
        return bool(flag)

    def gather(self, mine: T) -> list[T]:
        """The objects of all processes, in their order; also waits for all."""
        if self.count == 1:
            return [mine]
        every: list[Any] = [None] * self.count
        with _exchange():
            dist.all_gather_object(every, mine)
        return every

    def on_main(self, work: Callable[..., T], *arguments: Any) -> T:
        """What the first process, which alone does the work, has found."""
        if self.count == 1:
            return work(*arguments)
        found: list[Any] = [work(*arguments) if self.main else None]
        with _exchange():
            dist.broadcast_object_list(found)
        return found[0]


def _decays(module: nn.Module) -> dict[int, float]:
    """By how much each running statistic of batch normalisation, by its id, decays in a pass."""
    return {
        id(statistic): 1 - norm.momentum
        for norm in module.modules()
        if isinstance(norm, _BatchNorm) and norm.momentum is not None
        for statistic in (norm.running_mean, norm.running_var)
    }


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"another process of this training has ended, or cannot be reached ({reason}); the same command "
            "resumes from the last checkpoint"
        ) from error
