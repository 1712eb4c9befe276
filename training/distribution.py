"""Training by several processes on shares of every batch, started by torchrun; a single process is all and has all.

Every process draws the same batches and takes its `share` of the images. What it minimises is its part of the whole
batch's loss: its own sum, divided by the `total` of the words or images of all. So the sum of the gradients over the
processes is the gradient of the whole batch, however uneven the shares, and all processes move the same weights alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

T = TypeVar("T")

_PATIENCE = timedelta(days=1)
"""How long processes wait for one another: the main one may annotate or validate for hours. Nobody waits for a process
that died: torchrun ends them all."""


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started, if it started this one: gloo carries what is on CPUs, NCCL the rest."""
    if not distributed.is_torchelastic_launched():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group(timeout=_PATIENCE)
    yield
    distributed.destroy_process_group()  # not after an error: it might wait for those that wait for this process


def device_number() -> int:
    """The GPU of this process: one each on every machine."""
    return int(os.environ["LOCAL_RANK"]) if distributed.is_torchelastic_launched() else 0


def processes() -> int:
    """How many train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def number() -> int:
    """Which of the processes this is, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_main() -> bool:
    """Whether this process writes, validates and speaks for all."""
    return number() == 0


def share() -> slice:
    """Which images of every batch are this process's."""
    return slice(number(), None, processes())


def total(value: Tensor) -> Tensor:
    """The sum of a value over the processes, without gradient. All of them have to ask for it."""
    if processes() == 1:
        return value
    value = value.detach().clone()
    distributed.all_reduce(value)
    return value


def total_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients by their sums over the processes, in one message."""
    if processes() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    summed = total(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = torch.split(summed, [gradient.numel() for gradient in gradients])
    for gradient, flat in zip(gradients, parts, strict=True):
        gradient.copy_(flat.view(gradient.shape))


def from_main(work: Callable[[], T]) -> T:
    """What `work` returns in the main process, given to every process; the others wait for it."""
    if processes() == 1:
        return work()
    answer = [work() if is_main() else None]
    distributed.broadcast_object_list(answer)
    return answer[0]  # type: ignore[return-value]


@contextmanager
def main_first() -> Iterator[None]:
    """The main process goes through the block, then the others do."""
    if not is_main():
        from_main(lambda: None)
    yield
    if is_main():
        from_main(lambda: None)
