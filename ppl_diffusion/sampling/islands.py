"""Islands: blocks of chains that walk apart, and the population that they make together.

An island is a population of its own: its seed, its step adaptation and its resampling do not depend on the others. A
run is a fixed set of islands, so that it does not matter which process moves which of them, nor when.

With weights, island ``i`` estimates the normaliser by ``Z_i``, without bias, and its chains stand for the target with
weights proportional to ``Z_i``. Of ``m`` islands of equal size,

    log Z = log (1/m) sum_i Z_i        a chain of island i has m Z_i / sum_j Z_j copies in the mean

To make draws equally weighted, chains are resampled once more, by the weights of their islands; a chain is copied with
its draws, and its copies are relatives. To take islands as equal would be wrong: one that missed a mode has a smaller
``Z_i``. Without resampling chains are independent of one another, and islands are put side by side.

Source: On parallel implementation of sequential Monte Carlo methods: the island particle model (Verge, Dubarry,
Del Moral and Moulines, 2015), https://arxiv.org/abs/1306.3911
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xarray as xr

from .importance import Weights, evened, systematic_resample
from .snapshots import a_few
from .trace import Trace

BEFORE_RESAMPLING = ("log_weight", "nonfinite", "resampled")
"""Statistics of a rung that are in the order of chains before they are resampled."""


class Spread(Protocol):
    """What calls a function on items, here or elsewhere: the builtin ``map``, or the ``map`` of a pool of processes."""

    def __call__(self, function: Callable[[Any], Any], items: Sequence[Any], /) -> Iterable[Any]:
        """Return ``function(item)`` of every item, in their order."""


@dataclass(frozen=True)
class Island:
    """What an island has for itself.

    Attributes:
        number: its place among the islands, from 0.
        seed: seed of all its random numbers.
        chains: number of its chains.
        init: their starting positions ``(chains, *event_shape)``, or None.
        checkpoint: its file, or None.
        asked: the checkpoint that the caller named, or None: of several islands it is a folder.
    """

    number: int
    seed: int
    chains: int
    init: Any = None
    checkpoint: str | Path | None = None
    asked: Path | None = None


def split(
    islands: int, *, chains: int, seed: int, init: np.ndarray | None, checkpoint: str | Path | None
) -> list[Island]:
    """Return islands of equal size; a single one has the seed and the checkpoint of the run itself.

    Args:
        islands: their number, a divisor of ``chains``.
        chains: number of chains of all of them.
        seed: seed of the run, of which those of islands are children.
        init: starting positions ``(chains, *event_shape)``, or None.
        checkpoint: a folder, which is made; of a single island a file; or None.

    Raises:
        ValueError: ``checkpoint`` is a file.
        FileNotFoundError: the folder that it is to be in does not exist.
    """
    if islands == 1:
        return [Island(0, seed, chains, init, checkpoint)]
    size, folder = chains // islands, None if checkpoint is None else _folder(checkpoint)
    return [
        Island(
            i,
            _seed(child),
            size,
            None if init is None else init[i * size : (i + 1) * size],
            None if folder is None else folder / f"{i}.safetensors",
            folder,
        )
        for i, child in enumerate(np.random.SeedSequence(seed).spawn(islands + 1)[1:])
    ]


def merge(traces: Sequence[Trace], *, seed: int) -> Trace:
    """Return the trace of all islands together, in the order in which they are given.

    Of a run with ``resample``, chains are resampled by the weights of their islands, with the first child of ``seed``:
    ``ancestor`` at the last rung tells which ones they are. ``ess`` and ``log_normaliser`` are those of the weights of
    all chains together; ``step_size`` is by chain; ``gradient_calls`` and ``seconds`` are sums. Snapshots are of chains
    of all islands, without their weights.

    Args:
        traces: traces of islands of equal size.
        seed: seed of the run.
    """
    first = traces[0].attributes
    log_weights, pooled = _pooled(traces)
    stats = _side_by_side([trace.stats for trace in traces])
    stats = stats.assign(pooled if first["has_energy"] else {})
    sample_stats = _side_by_side([trace.sample_stats for trace in traces])
    sample_stats.attrs["gradient_calls"] = sum(trace.sample_stats.attrs["gradient_calls"] for trace in traces)
    positions = np.concatenate([trace.positions for trace in traces])
    if first["resample"] is not None and np.any(np.isfinite(log_weights)):
        rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(1)[0])
        chosen = systematic_resample(log_weights, rng)
        positions, sample_stats = positions[chosen], sample_stats.isel(chain=chosen)
        _replace_last(stats, chosen)
    seen = [trace.snapshots["x"] for trace in traces if trace.snapshots]
    snapshots = {"x": a_few(np.concatenate(seen, axis=1))} if seen else {}
    return Trace(positions, stats, sample_stats, _attributes(traces, seed), snapshots=snapshots)


def _pooled(traces: Sequence[Trace]) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the log-weights ``(chains,)`` with which chains end, and statistics of the rungs of all weights."""
    increments = np.concatenate([trace.stats["log_weight"].to_numpy() for trace in traces], axis=1)
    resampled = np.stack([trace.stats["resampled"].to_numpy() for trace in traces], axis=1)
    weights, rows = Weights(increments.shape[1]), []
    for increment, again in zip(increments, resampled, strict=True):
        rows.append(weights.move(increment))
        if again.any():
            weights.log = evened(weights.log, again)
    pooled: dict[str, Any] = {name: ("rung", [row[name] for row in rows]) for name in ("log_normaliser", "ess")}
    size = increments.shape[1] // len(traces)
    return weights.log, pooled | {"resampled": (("rung", "chain"), np.repeat(resampled, size, axis=1))}


def _side_by_side(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """Return the statistics of islands with their chains side by side, counted through.

    Of statistics without chains, gradient calls are added up, and of others the largest is taken.
    """
    found: dict[str, Any] = {}
    for name, like in parts[0].items():
        values = [part[name].to_numpy() for part in parts]
        if name == "ancestor":
            values = [rows + i * rows.shape[1] for i, rows in enumerate(values)]
        if "chain" in like.dims:
            found[str(name)] = like.dims, np.concatenate(values, axis=like.dims.index("chain"))
        else:
            found[str(name)] = like.dims, np.sum(values, 0) if name == "gradient_calls" else np.max(values, 0)
    return xr.Dataset(found, coords=parts[0].coords)


def _replace_last(stats: xr.Dataset, chosen: np.ndarray) -> None:
    """Replace chains at the last rung by those that were ``chosen (chains,)``, as resampling on arrival does."""
    for name, values in stats.items():
        if "chain" in values.dims and name not in BEFORE_RESAMPLING:
            rows = values.to_numpy().copy()
            rows[-1] = rows[-1][chosen]
            stats[name] = (values.dims, rows)


def _attributes(traces: Sequence[Trace], seed: int) -> dict[str, Any]:
    """Return the attributes of all islands; the circulation is the largest."""
    found = [trace.attributes for trace in traces]
    measured = [a["circulation"] for a in found if a["circulation"] is not None]
    return {
        **found[0],
        "seed": int(seed),
        "islands": len(traces),
        "circulation": max(measured, key=lambda c: np.nan_to_num(c["nats"], nan=-1.0), default=None),
        "warnings": said_once([a["warnings"] for a in found]),
        "concerns": {
            about: said_once([a.get("concerns", {}).get(about, []) for a in found])
            for about in sorted({about for a in found for about in a.get("concerns", {})})
        },
        "seconds": round(sum(a["seconds"] for a in found), 3),
    }


def said_once(notes: Sequence[Sequence[str]]) -> list[str]:
    """Return the sentences of all islands, each once, however its numbers differ from island to island.

    >>> said_once([["3 of 64 chains failed", "look out"], ["look out"], ["9 of 64 chains failed", "look out"]])
    ['3 of 64 chains failed (so, or with other numbers, on 2 of 3 islands)', 'look out']
    """
    kinds: dict[str, list[str]] = {}
    for sentences in notes:
        for kind, sentence in {re.sub(r"\d[\d.e+-]*", "#", sentence): sentence for sentence in sentences}.items():
            kinds.setdefault(kind, []).append(sentence)
    return [
        told[0]
        if len(told) == len(notes) and len(set(told)) == 1
        else f"{told[0]} (so, or with other numbers, on {len(told)} of {len(notes)} islands)"
        for told in kinds.values()
    ]


def _seed(child: np.random.SeedSequence) -> int:
    """Return a child as a number of 128 bits, which can be the seed of a run."""
    return sum(int(word) << (32 * place) for place, word in enumerate(child.generate_state(4)))


def _folder(checkpoint: str | Path) -> Path:
    """Return the folder of the checkpoints of islands, which is made if it is not there."""
    folder = Path(checkpoint).resolve()
    if folder.is_file():
        raise ValueError(f"{folder} is a file, and islands have a folder of checkpoints: give another checkpoint")
    if not folder.parent.is_dir():
        raise FileNotFoundError(
            f"the folder {folder.parent} of the checkpoint does not exist: mkdir -p {folder.parent}"
        )
    folder.mkdir(exist_ok=True)
    return folder
