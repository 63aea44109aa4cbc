"""Chains of Pyro's kernels over several processes.

Processes and not threads, because Pyro's handler stack is global to a process. They are started afresh, so the model
must be importable: a function of a module, not one that was defined in a notebook or inside another function.
Each process builds the joint density once and gets nothing but positions afterwards.
"""

from __future__ import annotations

import multiprocessing
import pickle
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ppl_diffusion.potential import Potential

from .joint import JointPotential
from .walker import Moved, PyroWalker, Spread, Task

_walker: PyroWalker | None = None
"""In a worker: what it walks with."""


@dataclass(frozen=True)
class SpreadKernel:
    """A Pyro kernel whose chains are walked by other processes; built by :func:`over_processes`."""

    kernel: Any
    spread: Spread

    @property
    def adjusted(self) -> bool:
        """As the kernel that is spread."""
        return self.kernel.adjusted

    def bind(self, potential: Potential) -> PyroWalker:
        """Prepare to walk on ``potential``, which the processes have already."""
        return PyroWalker(self.kernel, potential, spread=self.spread)

    def __str__(self) -> str:
        return str(self.kernel)


@contextmanager
def over_processes(kernel: Any, joint: JointPotential, workers: int) -> Iterator[SpreadKernel]:
    """``kernel``, with its chains spread over ``workers`` processes that live as long as the context.

    Raises:
        ValueError: a model, or an argument of it, that another process cannot import.
    """
    blob = _packed(kernel, joint)
    threads = max(1, torch.get_num_threads() // workers)
    settings = (blob, threads, torch.get_default_dtype())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=settings) as pool:

        def spread(tasks: Sequence[Task]) -> list[Moved]:
            count = min(workers, len(tasks))
            parts = [[tasks[i] for i in rows] for rows in np.array_split(np.arange(len(tasks)), count)]
            try:
                return [moved for part in pool.map(_step, parts) for moved in part]
            except BrokenProcessPool as error:
                raise ValueError(
                    f"a worker has stopped. If it never started: {joint.name} must be importable, and a script that "
                    'uses workers= must run under if __name__ == "__main__":. If it was killed, as for want of memory, '
                    "take fewer workers, or leave workers= out"
                ) from error

        yield SpreadKernel(kernel, spread)


def _packed(kernel: Any, joint: JointPotential) -> bytes:
    main = sys.modules["__main__"]
    interactive = getattr(joint.model, "__module__", "") == "__main__" and not hasattr(main, "__file__")
    try:
        if interactive:
            raise pickle.PicklingError("it was defined in an interactive session")
        return pickle.dumps((kernel, joint.model, joint.args, joint.kwargs, joint.likelihood))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{joint.name} cannot be taken to other processes ({str(error).splitlines()[0]}): write it, and what it "
            "uses, at the top level of a module, or leave workers= out"
        ) from error


def _begin(blob: bytes, threads: int, dtype: torch.dtype) -> None:
    global _walker
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    kernel, model, args, kwargs, likelihood = pickle.loads(blob)
    _walker = kernel.bind(JointPotential(model, args, kwargs, likelihood=likelihood))


def _step(tasks: Sequence[Task]) -> list[Moved]:
    assert _walker is not None
    return _walker.step_chains(tasks)
