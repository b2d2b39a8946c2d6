"""One search on several processes: rank 0 runs it and hands out the masks of a step, each process evaluates its share.

Everything that decides is on rank 0 alone: optimizer, generators, state, files. So the result is that of one process,
bit for bit where forwards repeat exactly, for any number of processes, and a search may go on with another number.
A step sends its masks (a byte per unit) and one all-reduce of the losses. While they have nothing to do, the workers
sleep in a receive of gloo.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from policyprune import processes
from policyprune.errors import RunError
from policyprune.pruning.optimizers.problem import Each, Job

PATIENCE = timedelta(days=7)  # a process that dies is noticed at once, one that waits must not give up


@dataclass(frozen=True, kw_only=True)
class Order:
    """Masks to evaluate: how many of `n` units each job has, its rows, and the kind of device that they are on."""

    masks: list[int]
    rows: list[Tensor]
    n: int
    device: str


def join() -> None:
    """Meet the other processes, on a GPU of one's own where there are as many."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % gpus)
    backend = "cpu:gloo,cuda:nccl" if gpus >= processes.on_this_machine() else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)


class Team:
    """The processes of a run, of which this is one: rank 0 calls `begin`, `each` and `dismiss`, the workers `serve`.

    Tensors on GPUs go by NCCL, the others and all orders by gloo. LOCAL_RANK names the GPU of a process; where several
    share one, which NCCL refuses, everything goes by gloo.
    """

    def __init__(self) -> None:
        join()
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._waiting = True  # all workers wait for the next order

    def begin(self, briefing: object) -> None:
        """Let the workers load what they need; `briefing` is what their `prepare` gets."""
        self._send(briefing)

    def each(self, local: Each, jobs: Sequence[Job]) -> list[Tensor]:
        """Losses (B,) of each job, of which `local` evaluates every `size`-th here. RunError where a process fails."""
        device = jobs[0][0].device
        masks = torch.cat([masks.to(torch.uint8) for masks, _ in jobs])
        counts = [len(masks) for masks, _ in jobs]
        self._waiting = False
        self._send(Order(masks=counts, rows=[rows for _, rows in jobs], n=masks.shape[1], device=device.type))
        with _connected():
            dist.broadcast(masks, 0)
        losses = self._evaluate(local, jobs, device)
        self._waiting = True
        return list(losses)

    def dismiss(self) -> None:
        """Let the workers end; this process goes on alone."""
        if dist.is_initialized():
            with suppress(RunError):  # that another has ended already
                if self._waiting:
                    self._send(None)
            dist.destroy_process_group()
            processes.alone()

    def serve(self, prepare: Callable[[Any], Each]) -> None:
        """Do what rank 0 orders until it needs no more. RunError where it is lost or another process fails."""
        briefing = self._receive()
        if briefing is None:
            return
        try:
            local = prepare(briefing)
        except Exception as error:  # told when rank 0 asks
            local = _failing(error)
        while (order := self._receive()) is not None:
            masks = torch.empty(sum(order.masks), order.n, dtype=torch.uint8, device=order.device)
            with _connected():
                dist.broadcast(masks, 0)
            parts = masks.float().split(order.masks)
            self._evaluate(local, list(zip(parts, order.rows, strict=True)), masks.device)

    def _evaluate(self, local: Each, jobs: Sequence[Job], device: torch.device) -> tuple[Tensor, ...]:
        """Losses of all jobs, of which this process evaluates its share. RunError naming a process that failed."""
        counts = [len(rows) for _, rows in jobs]
        losses = torch.zeros(sum(counts), device=device)
        parts: tuple[Tensor, ...] = losses.split(counts)
        share, failure = range(self.rank, len(jobs), self.size), None
        try:
            for index, of_job in zip(share, local([jobs[index] for index in share]), strict=True):
                parts[index].copy_(of_job)
        except Exception as error:
            failure = " ".join(f"{type(error).__name__}: {error}".split())
        failures: list[str | None] = [None] * self.size
        with _connected():
            dist.all_gather_object(failures, failure)
        for rank, words in enumerate(failures):
            if words is not None:
                raise RunError(f"rank {rank} of {self.size} failed: {words}")
        with _connected():
            dist.all_reduce(losses)  # zero where another process has the loss: exact in any order
        return parts

    def _send(self, message: object) -> None:
        with _connected():
            dist.broadcast_object_list([message], 0)

    def _receive(self) -> Any:
        messages: list[Any] = [None]
        with _connected():
            dist.broadcast_object_list(messages, 0)
        return messages[0]


@contextmanager
def leading() -> Iterator[Team | None]:
    """The team that this process leads; None where it is alone."""
    if processes.processes() == 1:
        yield None
        return
    team = Team()
    try:
        yield team
    finally:
        team.dismiss()


@contextmanager
def _connected() -> Iterator[None]:
    """RunError where another process was lost."""
    try:
        yield
    except RuntimeError as error:
        raise RunError(f"another process of this run was lost: {str(error).splitlines()[0]}") from error


def _failing(error: Exception) -> Each:
    """An evaluation that raises `error`."""

    def fail(jobs: Sequence[Job]) -> list[Tensor]:
        raise error

    return fail
