"""Training in several processes, one per GPU, as started by `torchrun` or `accelerate launch`.

Every process has both networks and draws the same batches from the same random generator. It computes its
part of each batch, and the gradients of all processes are summed before the update. So all processes take the
same steps with the same weights, as a single process with the same batches would. One explicit sum is simpler
here than a wrapper around each network (DistributedDataParallel, or `prepare` of accelerate): such a wrapper
has to intercept each backward pass of one network with one loss, but here two networks learn from
micro-batches, and the sum includes their losses and buffers as well.

Batch normalisation uses the statistics of one micro-batch, in one process as in several; they are not
synchronised within a pass. Its running statistics and the step counters become those of a single process that
computes all micro-batches in order. Other running averages become the mean over all processes.
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
_GROUPS = itertools.count()  # numbers of the groups that this process joins, one after another


@contextmanager
def joined() -> Iterator[None]:
    """Joins the processes that a launcher started into one group; only the first one logs.

    Without a launcher it does nothing. If an error ends all processes, only the first one to meet it reports
    it, and the others exit silently.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or dist.is_initialized():
        yield
        return
    store, rank = _rendezvous()
    dist.init_process_group(store=store, rank=rank, world_size=count)  # gloo, and nccl for GPUs
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
    dist.destroy_process_group()  # not after an error, because it waits for the others


def _rendezvous() -> tuple[Any, int]:
    """(the store through which the processes meet, the rank of this one), from the launcher's environment."""
    from torch.distributed import PrefixStore, rendezvous  # pyright: ignore[reportPrivateImportUsage]

    store, rank, _ = next(rendezvous("env://"))
    # With a common prefix, a second group would read the keys of the first.
    return PrefixStore(f"group {next(_GROUPS)}", store), rank


def _is_first(store: Any) -> bool:
    try:
        return store.add("ended", 1) == 1
    except RuntimeError:  # the process with the store has exited
        return False


def is_main() -> bool:
    """Whether this process writes, prints and logs."""
    return not dist.is_available() or not dist.is_initialized() or dist.get_rank() == 0


class Processes:
    """The processes that share each batch. Without a launcher there is one, which exchanges nothing.

    Raises UserError if there are fewer patches in a batch than processes.
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
        self.part = slice(*ends[self.rank : self.rank + 2])  # this process's patches of each batch
        passes = [ceil((end - start) / micro_batch) for start, end in itertools.pairwise(ends)]
        self.passes = sum(passes)  # micro-batches of a step, over all processes
        self._later = sum(passes[self.rank + 1 :])

    def device(self, name: str | None) -> str | None:
        """The device of this process. UserError if several processes would have to share one."""
        if self.count == 1:
            return name
        kind = name or ("cuda" if torch.cuda.is_available() else "cpu")
        if kind not in ("cuda", "cpu"):
            raise UserError(f"device: got '{name}' for {self.count} processes, allowed are cuda, cpu")
        if kind == "cpu":
            return kind
        index, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if index >= count:
            raise UserError(
                f"device: {index + 1} processes or more on a machine with {count} GPUs; start one per GPU"
            )
        torch.cuda.set_device(index)
        return f"cuda:{index}"

    def seed(self, seed: int) -> None:
        """Gives each process its own random numbers of torch. The first keeps its current state."""
        if not self.main:
            seed_all(seed, self.rank)

    def share(self, *modules: nn.Module) -> None:
        """Copies the weights and buffers of the first process to all others."""
        tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
        values = self.on_main(lambda: [t.detach().cpu() for t in tensors]) if self.count > 1 else []
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=self.count > 1):
                tensor.copy_(value)

    @torch.no_grad()
    def add_up(self, optimizers: list[Optimizer]) -> None:
        """Sums gradients and losses over the processes, so that they are those of the whole batch.

        Buffers become what they would be after all micro-batches of the batch. All of it is one exchange,
        because each exchange costs a round trip between the processes.
        """
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
                change = torch.where(buffer == sound, 0, buffer - sound)  # inf - inf would be NaN
                buffer.copy_(change * self._weight(change, decays.get(id(buffer))))
                summed.append(buffer)
        self._sum(summed)
        for each in optimizers:
            for buffer, sound in zip(each.buffers, each.sound, strict=True):
                buffer.add_(sound)

    def _weight(self, change: Tensor, decay: float | None) -> float:
        """Weight of this process's change of a buffer in the sum over all processes.

        A change of batch normalisation decays with each later micro-batch, integers are counters and add
        up, and of other buffers the mean is taken.
        """
        if decay is not None:
            return decay**self._later
        return 1 / self.count if change.is_floating_point() else 1

    def _sum(self, tensors: list[Tensor]) -> None:
        flat = torch.cat([t.flatten() for t in tensors])
        with _exchange():
            dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, value: object) -> bool:
        """Whether the value is true in any of the processes."""
        if self.count == 1:
            return bool(value)
        flag = torch.tensor([float(bool(value))])
        self._sum([flag])
        return bool(flag)

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks. Waits for all processes."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with _exchange():
            dist.all_gather_object(values, value)
        return values

    def on_main(self, work: Callable[..., T], *arguments: Any) -> T:
        """Result of `work`, which only the first process does and sends to the others."""
        if self.count == 1:
            return work(*arguments)
        result: list[Any] = [work(*arguments) if self.main else None]
        with _exchange():
            dist.broadcast_object_list(result)
        return result[0]


def _decays(module: nn.Module) -> dict[int, float]:
    """Decay per pass of each running statistic of batch normalisation, by the id of its tensor."""
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
            f"another process of this training has ended or cannot be reached ({reason}); run the same "
            "command again to resume from the last checkpoint"
        ) from error
