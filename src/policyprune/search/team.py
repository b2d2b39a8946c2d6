"""One search on several processes: rank 0 runs it and hands out the masks of a step, each rank evaluates its share.

Everything that decides is on rank 0 alone: optimizer, generators, state, files. So the result is that of one process,
bit for bit where forwards repeat exactly, for any number of processes, and a search may go on with another number.
A step sends its masks (a byte per unit) and one all-reduce of the losses. While they have nothing to do, ranks sleep in
a receive of gloo.
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

from policyprune import processes as ranks
from policyprune.errors import RunError
from policyprune.pruning.optimizers.problem import Each, Job

PATIENCE = timedelta(days=7)  # a rank that dies is noticed at once, one that waits must not give up


@dataclass(frozen=True)
class Order:
    """Masks for the ranks to evaluate: how many of `n` units each job has, its rows, and the kind of device."""

    masks: list[int]
    rows: list[Tensor]
    n: int
    device: str


class Team:
    """The processes of a run, of which this is one: rank 0 calls `begin`, `each` and `dismiss`, the others `serve`.

    Tensors on GPUs go by NCCL, the others and all orders by gloo. LOCAL_RANK names the GPU of a process; where several
    share one, which NCCL refuses, everything goes by gloo.
    """

    def __init__(self) -> None:
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if gpus:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % gpus)
        backend = "cpu:gloo,cuda:nccl" if gpus >= ranks.on_this_machine() else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._orderly = True  # all ranks wait for the next order

    def begin(self, briefing: object) -> None:
        """Let the others load what they need; `briefing` is what their `prepare` gets."""
        self._tell(briefing)

    def each(self, local: Each, jobs: Sequence[Job]) -> list[Tensor]:
        """Losses (B,) of each job, of which `local` evaluates every `size`-th here. RunError where a rank fails."""
        device = jobs[0][0].device
        masks = torch.cat([masks.to(torch.uint8) for masks, _ in jobs])
        order = Order([len(own) for own, _ in jobs], [rows for _, rows in jobs], masks.shape[1], device.type)
        self._orderly = False
        self._tell(order)
        with _connected():
            dist.broadcast(masks, 0)
        losses = self._evaluate(local, jobs, device)
        self._orderly = True
        return list(losses)

    def dismiss(self) -> None:
        """Let the others end; this process goes on alone."""
        if dist.is_initialized():
            with suppress(RunError):  # that another has ended already
                if self._orderly:
                    self._tell(None)
            dist.destroy_process_group()
            ranks.alone()

    def serve(self, prepare: Callable[[Any], Each]) -> None:
        """Do what rank 0 orders until it needs no more. RunError where it is lost or another rank fails."""
        briefing = self._hear()
        if briefing is None:
            return
        try:
            local = prepare(briefing)
        except Exception as error:  # told when rank 0 asks
            local = _failing(error)
        while (order := self._hear()) is not None:
            masks = torch.empty(sum(order.masks), order.n, dtype=torch.uint8, device=order.device)
            with _connected():
                dist.broadcast(masks, 0)
            parts = masks.float().split(order.masks)
            self._evaluate(local, list(zip(parts, order.rows, strict=True)), masks.device)

    def _evaluate(self, local: Each, jobs: Sequence[Job], device: torch.device) -> tuple[Tensor, ...]:
        counts = [len(rows) for _, rows in jobs]
        losses = torch.zeros(sum(counts), device=device)
        parts: tuple[Tensor, ...] = losses.split(counts)
        own, trouble = range(self.rank, len(jobs), self.size), None
        try:
            for index, found in zip(own, local([jobs[index] for index in own]), strict=True):
                parts[index].copy_(found)
        except Exception as error:
            trouble = " ".join(f"{type(error).__name__}: {error}".split())
        told: list[str | None] = [None] * self.size
        with _connected():
            dist.all_gather_object(told, trouble)
        for rank, words in enumerate(told):
            if words is not None:
                raise RunError(f"rank {rank} of {self.size} failed: {words}")
        with _connected():
            dist.all_reduce(losses)  # zero where another rank has the loss: exact in any order
        return parts

    def _tell(self, what: object) -> None:
        with _connected():
            dist.broadcast_object_list([what], 0)

    def _hear(self) -> Any:
        heard: list[Any] = [None]
        with _connected():
            dist.broadcast_object_list(heard, 0)
        return heard[0]


@contextmanager
def leading() -> Iterator[Team | None]:
    """The team that this process leads; None where there is none."""
    if ranks.processes() == 1:
        yield None
        return
    team = Team()
    try:
        yield team
    finally:
        team.dismiss()


@contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RunError(f"another process of this run was lost: {str(error).splitlines()[0]}") from error


def _failing(error: Exception) -> Each:
    def fail(jobs: Sequence[Job]) -> list[Tensor]:
        raise error

    return fail
