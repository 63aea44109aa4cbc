"""Run the chains of Pyro's kernels in several processes.

Processes are used instead of threads because Pyro's handler stack is global to a process. They are spawned, so the
model must be importable: a function of a module, not one defined in a notebook or inside another function. Each
process builds the joint density once; after that it receives only :class:`~bridges.pyro.walker.Task` objects.
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

from ppl_diffusion.potentials.target import Target

from .joint import JointPotential
from .sites import HeldParameters
from .walker import PyroWalker, RunTasks, StepResult, Task

_walker: PyroWalker | None = None
"""In a worker process: the bound kernel that steps its chains."""


@dataclass(frozen=True)
class MultiprocessKernel:
    """A Pyro kernel whose chains are stepped by other processes; built by :func:`spread_over_processes`."""

    kernel: Any
    run_tasks: RunTasks

    @property
    def adjusted(self) -> bool:
        """Whether the wrapped kernel leaves the density invariant."""
        return self.kernel.adjusted

    @property
    def needs_energy(self) -> bool:
        """Whether the wrapped kernel compares energies."""
        return self.kernel.needs_energy

    def bind(self, potential: Target) -> PyroWalker:
        """Return the wrapped kernel bound to ``potential``, a copy of which the processes have built already."""
        return PyroWalker(self.kernel, potential, run_tasks=self.run_tasks)

    def __str__(self) -> str:
        return str(self.kernel)


@contextmanager
def spread_over_processes(kernel: Any, joint: JointPotential, workers: int) -> Iterator[MultiprocessKernel]:
    """Yield ``kernel`` with its chains distributed over ``workers`` processes, which end with the context.

    Raises:
        ValueError: a model, or an argument of it, that cannot be pickled for another process; a worker has stopped.
    """
    blob = _pickled(kernel, joint)
    threads = max(1, torch.get_num_threads() // workers)
    settings = (blob, threads, torch.get_default_dtype())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_init_worker, initargs=settings) as pool:

        def run_tasks(tasks: Sequence[Task]) -> list[StepResult]:
            count = min(workers, len(tasks))
            parts = [[tasks[i] for i in rows] for rows in np.array_split(np.arange(len(tasks)), count)]
            try:
                return [moved for part in pool.map(_run_in_worker, parts) for moved in part]
            except BrokenProcessPool as error:
                raise ValueError(
                    f"a worker has stopped. If it never started: {joint.name} must be importable, and a script that "
                    'uses workers= must run under if __name__ == "__main__":. If it was killed, as for want of memory, '
                    "take fewer workers, or leave workers= out"
                ) from error

        yield MultiprocessKernel(kernel, run_tasks)


def _pickled(kernel: Any, joint: JointPotential) -> bytes:
    """Pickle what a worker needs to build the joint density and the kernel."""
    main = sys.modules["__main__"]
    interactive = getattr(joint.given, "__module__", "") == "__main__" and not hasattr(main, "__file__")
    try:
        if interactive:
            raise pickle.PicklingError("it was defined in an interactive session")
        return pickle.dumps((kernel, joint.given, joint.parameters, joint.args, joint.kwargs, joint.likelihood))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{joint.name} cannot be taken to other processes ({str(error).splitlines()[0]}): write it, and what it "
            "uses, at the top level of a module, or leave workers= out"
        ) from error


def _init_worker(blob: bytes, threads: int, dtype: torch.dtype) -> None:
    """Initialise a worker process."""
    global _walker
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    kernel, model, parameters, args, kwargs, likelihood = pickle.loads(blob)
    held = HeldParameters(parameters)(model) if parameters else model
    _walker = kernel.bind(JointPotential(held, args, kwargs, likelihood=likelihood))


def _run_in_worker(tasks: Sequence[Task]) -> list[StepResult]:
    assert _walker is not None
    return _walker.step_chains(tasks)
