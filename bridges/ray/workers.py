"""Ray as a ``map``: a function is called on items by workers, in other processes or on other machines.

    with Workers(2) as workers:
        trace = anneal(target, HMC(), chains=512, islands=8, spread=workers.map, seed=0)

A task is one call. When its worker dies, or its machine is lost, Ray gives the task to another one, which does it anew;
an exception of the function itself is raised where ``map`` was called. Functions and items travel by cloudpickle, so
that functions of a notebook or script travel too.

Source: Ray: A Distributed Framework for Emerging AI Applications (Moritz et al., 2018),
https://arxiv.org/abs/1712.05889
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import TracebackType
from typing import Any

from ppl_diffusion.arrays import check_count
from ppl_diffusion.devices.memory import keep_freed_memory

EXTRA = "pip install 'ppl-diffusion[ray]'"


class Workers:
    """Workers of a Ray cluster, from ``with`` to its end.

    Within ``with``, Ray is started on this machine with room for ``count`` tasks, unless it is running in this process
    already or ``address`` is given; what was started is stopped at the end. A cluster's machines need this package and
    its data, such as checkpoints, at the same paths; ``ray.init(runtime_env=...)`` beforehand brings them there.

    Args:
        count: how many tasks run at a time, each on one core.
        gpus: how many GPUs each task has for itself: 1 for one each, .5 for one that two share. A potential on "cuda"
            is on the GPU of its task.
        retries: how often a task is done anew after its worker has died.
        address: the address of a running cluster, as ``ray.init`` takes it, or "auto".

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: on entering, if Ray does not start, or there is no cluster at ``address``.
        ValueError: ``count`` is not a whole number >= 1, ``retries`` is negative, or ``gpus`` is.
    """

    def __init__(self, count: int, *, gpus: float = 0, retries: int = 3, address: str | None = None) -> None:
        check_count("count", count, example=2)
        if retries < 0 or gpus < 0:
            raise ValueError(f"retries and gpus are not negative, got {retries} and {gpus}: try retries=3, gpus=0")
        self.count, self.gpus, self.retries, self.address = count, gpus, retries, address
        self.ray = _ray()
        self.started = False

    def __enter__(self) -> Workers:
        if not self.ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            here: dict[str, Any] = {"num_cpus": self.count, "include_dashboard": False} if self.address is None else {}
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=r"os.fork\(\) was called")  # the copy runs another program
                try:
                    self.ray.init(address=self.address, log_to_driver=False, logging_level="error", **here)
                except Exception as error:  # Ray raises nothing more special when a machine is too busy
                    self.ray.shutdown()
                    raise ConnectionError(
                        f"Ray has not begun ({str(error).splitlines()[0]}): type ray start --head, and give "
                        'address="auto"'
                    ) from error
            self.started = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.started:
            self.ray.shutdown()
            self.started = False

    def map(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterator[Any]:
        """Yield ``function(item)`` of every item, in their order, as they are done.

        Args:
            function: any function whose result depends on its item only; it is sent once.
            items: what it is called on.

        Raises:
            RuntimeError: outside of ``with``; or the worker of an item has died more often than ``retries``.
            TypeError: the function or an item cannot be pickled.
        """
        if not self.ray.is_initialized():
            raise RuntimeError("these workers have not begun: write with Workers(2) as workers: ... workers.map")
        sent = self.ray.put(_pickled(self.ray, function))
        task = self.ray.remote(num_cpus=1, num_gpus=self.gpus, max_retries=self.retries)(_call)
        waiting = [_pickled(self.ray, item) for item in items]
        calls: list[Any] = []
        running: list[Any] = []
        done = 0
        try:
            while done < len(waiting):
                while len(running) < self.count and len(calls) < len(waiting):
                    calls.append(task.remote(sent, waiting[len(calls)]))
                    running.append(calls[-1])
                _, running = self.ray.wait(running, num_returns=1)
                while done < len(calls) and calls[done] not in running:
                    yield self._result(calls[done], done)
                    done += 1
        finally:
            for call in running:
                self.ray.cancel(call, force=True)

    def _result(self, call: Any, place: int) -> Any:
        try:
            return pickle.loads(self.ray.get(call))
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except (self.ray.exceptions.WorkerCrashedError, self.ray.exceptions.NodeDiedError) as error:
            raise RuntimeError(
                f"the worker of item {place} has died {self.retries + 1} times, as for want of memory: take fewer "
                "workers, or smaller items"
            ) from error


@contextmanager
def shared(count: int, **options: Any) -> Iterator[Callable[..., Iterable[Any]]]:
    """Give the ``map`` of so many workers, or the builtin one for a single worker, which needs no Ray.

    Raises:
        ImportError, ConnectionError, ValueError: as :class:`Workers`.
    """
    if count == 1:
        yield map
        return
    with Workers(count, **options) as workers:
        yield workers.map


def _call(function: bytes, item: bytes) -> bytes:
    """Call a function in a worker. Bytes are sent, since Ray would make arrays that cannot be written to."""
    return pickle.dumps(_unpickled(function)(pickle.loads(item)))


@lru_cache(maxsize=1)
def _unpickled(function: bytes) -> Callable[[Any], Any]:
    """Return the function that a worker is at; for its next items it has what it compiled for the first."""
    keep_freed_memory()
    return pickle.loads(function)  # type: ignore[no-any-return]


def _pickled(ray: Any, value: Any) -> bytes:
    try:
        return ray.cloudpickle.dumps(value)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise TypeError(
            f"{value!r} cannot be taken to other processes ({str(error).splitlines()[0]}): leave out what is open, "
            "such as files, locks and pools"
        ) from error


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError(f"bridges.ray needs Ray: {EXTRA}") from error
    return ray
