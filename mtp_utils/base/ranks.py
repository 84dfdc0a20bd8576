"""Several processes on one measurement: which one this is, its share, and what they tell each other.

They are those of torchrun or accelerate launch, which say so in the environment (RANK, WORLD_SIZE); one process alone is the
first of one. Every process runs the same notebooks: a measuring function works on its share and puts all shares together, so
that every process holds the same table, which the first one writes.
"""

import atexit
import functools
import os


def count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def number() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK") or 0)


def first() -> bool:
    """Whether this is the process that writes."""
    return number() == 0


@functools.cache
def meet(cpu: bool | None = None) -> None:
    """Find the others, once: gloo between CPUs (by default where no accelerator is found), else NCCL between GPUs. RuntimeError
    where fewer meet than were asked for."""
    import torch
    import torch.distributed as dist
    from accelerate import PartialState

    state = PartialState(cpu=not torch.accelerator.is_available() if cpu is None else cpu)
    if state.num_processes != count():
        raise RuntimeError(f"{count()} processes were asked for and {state.num_processes} met; start them by torchrun")
    atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())  # its threads do not outlive Python


def gather(value) -> list:
    """What every process gives, in their order, in every process."""
    if count() == 1:
        return [value]
    import torch.distributed as dist

    meet()
    found = [None] * count()
    dist.all_gather_object(found, value)
    return found


def first_says(value):
    """What the first process gives, in every process."""
    return gather(value)[0]


def share(n: int) -> slice:
    """This process's stretch of n things."""
    return slice(n * number() // count(), n * (number() + 1) // count())
