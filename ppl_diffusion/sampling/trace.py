"""The result of a run: recorded positions, and statistics of every rung and chain.

A :class:`Trace` is plain data. ``bridges.arviz`` converts it to an ArviZ object and diagnoses it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import xarray as xr

from ..files import replacing
from .ancestry import families, log_normaliser_error

FORMAT = "ppl-diffusion trace 1"


@dataclass(frozen=True, repr=False, eq=False)
class Trace:
    """The result of annealed sampling.

    Attributes:
        positions: draws at the last rung, shape ``(chains, draws, *event_shape)``, float64.
        stats: per rung and chain (dimensions ``rung``, ``chain``): ``acceptance_rate``, ``step_size``,
            ``diverging`` and ``nonfinite`` (counts), ``jump_distance`` (mean over steps), energies in nats
            before the first, after half and after the last kernel step (``energy_arrival``,
            ``energy_midway``, ``energy``; where only a score is known, minus its work since arrival),
            ``log_weight`` (increment on arrival, nats), ``ancestor`` (index
            of the chain that it continues, in the order before resampling); per rung: ``ess`` (of the
            accumulated weights before resampling, in chains), ``log_normaliser`` (increment, nats),
            ``resampled`` (of islands also per chain), ``gradient_calls`` (see the property), and of wide reverse steps
            ``widening`` (factor of the variance; of islands the largest). Coordinate ``level``.
            Statistics that a kernel does not report are NaN. A chain's ``log_weight``, and the failure in ``nonfinite``
            of an energy on arrival, come before resampling; everything else is of the chain that took its place.
        sample_stats: per chain and draw (dimensions ``chain``, ``draw``): ``lp`` (log-density up to a
            constant), ``acceptance_rate``, ``diverging``, ``energy`` (the Hamiltonian) and others, under ArviZ's names.
        attributes: settings and provenance of the run: ``potential``, ``kernel``, ``adjusted``, ``seed``, ``levels``,
            ``steps``, ``resample``, ``reverse_step``, ``still`` (whether the kernel leaves chains
            where they are), ``init`` (whether positions to start from were given), ``has_energy``, ``circulation`` (of
            a score, see :class:`~ppl_diffusion.potentials.circulation.Circulation`; else None), ``versions``,
            ``warnings``, ``concerns`` (those that are not about the result, by what they are about, see
            :data:`~ppl_diffusion.sampling.walk.Concern`), ``seconds``; ``islands``, their number, if there are several.
        sites: for Pyro models, constrained values of each latent site, shape ``(chains, draws, ...)``.
        groups: for Pyro models, ``log_likelihood`` (by observed site, ``(chains, draws, ...)``) and
            ``observed_data`` (by observed site, ``(...)``).
        snapshots: positions of a few chains at some rungs, as ``anneal(..., snapshots=8)`` keeps them: ``x``, or the
            constrained values of each latent site of a Pyro model, shape ``(snapshots, chains, *event_shape)``, of the
            levels :attr:`snapshot_levels`. Empty without any.
    """

    positions: np.ndarray
    stats: xr.Dataset
    sample_stats: xr.Dataset
    attributes: Mapping[str, Any]
    sites: Mapping[str, np.ndarray] = field(default_factory=dict)
    groups: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    snapshots: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def snapshot_levels(self) -> list[int]:
        """Noise levels of the snapshots, noisiest first."""
        return [self.attributes["levels"][rung] for rung in self.attributes.get("snapshot_rungs", [])]

    @property
    def log_normaliser(self) -> float:
        """Estimate of the log-normaliser ``log int exp(-U(x)) dx`` at the last rung, in nats.

        With ``init=`` it is the log-ratio of the normalisers at the last and the first rung, for starting positions
        that are independent draws at the first. It is meaningful if the weights can be trusted; see
        ``bridges.arviz.diagnose``. Its exponential has no bias; it is itself too low by about half of the squared
        :attr:`log_normaliser_error`. NaN where only a score is known.
        """
        return float(self.stats["log_normaliser"].sum(skipna=False))

    @property
    def log_normaliser_error(self) -> float:
        """Standard error of :attr:`log_normaliser`, in nats: that of its exponential, relative to it.

        It is estimated from the weights of families of chains that continue the same starting chain, see
        :func:`ppl_diffusion.sampling.ancestry.log_normaliser_error`. Above about .5 it is rough, and the distribution
        of the log-normaliser skewed. It cannot know of modes that no chain has found, and is too small where weights
        have no finite variance, as those of reverse steps that are not wide near the clean end. It is NaN for a single
        chain, or if no chain has a finite energy, and infinite if all chains continue a single one.
        """
        if "log_normaliser_error" in self.attributes:  # of an exchange, which has no weights
            return float(self.attributes["log_normaliser_error"])
        names = ("log_weight", "ancestor", "resampled")
        islands = self.attributes.get("islands", 1)
        return log_normaliser_error(*(self.stats[name].to_numpy() for name in names), islands=islands)

    @property
    def families(self) -> np.ndarray:
        """The starting chain that each chain continues, shape ``(chains,)``: chains with the same one are relatives.

        After resampling chains are not independent, families nearly are. See ``bridges.arviz.summary``.
        """
        return families(self.stats["ancestor"].to_numpy())[-1]

    @property
    def gradient_calls(self) -> float:
        """Number of evaluations of the potential by the walk, including recorded draws; NaN if it is not known.

        With BlackJAX kernels each is of all chains, or of all of an island. With Pyro's kernels the evaluation on
        arrival at a level is of all chains, and every other one of a single chain. On a potential without torch parts,
        NUTS may make more than are reported (by a tenth in one case), since chains wait for each other, and so may
        kernels of ``from_blackjax``.
        Not counted are the few evaluations that check quotients for tails that cannot be normalised.
        """
        calls = self.stats["gradient_calls"].sum(skipna=False).item() + self.sample_stats.attrs.get("gradient_calls", 0)
        return calls if np.isnan(calls) else int(calls)

    def __repr__(self) -> str:
        chains, draws = self.positions.shape[:2]
        made, rungs = self.attributes, self.stats.sizes["rung"]
        return (
            f"Trace({made.get('potential')} by {made.get('kernel')}: {chains} chains x {draws} draws of shape "
            f"{self.positions.shape[2:]}, {rungs} rungs, {self.gradient_calls} gradient calls, "
            f"{len(made.get('warnings', ()))} warnings)"
        )

    def _repr_html_(self) -> str:
        """For notebooks: how the run was made, in a table."""
        (chains, draws), made = self.positions.shape[:2], self.attributes
        levels = made.get("levels", [])
        rows = {
            "potential": made.get("potential"),
            "kernel": made.get("kernel"),
            "draws": f"{chains} chains x {draws}, of shape {self.positions.shape[2:]}",
            "ladder": f"{len(levels)} rungs, level {levels[0]} to {levels[-1]}" if levels else "",
            "gradient calls": self.gradient_calls,
            "log-normaliser": f"{self.log_normaliser:.6g} +- {self.log_normaliser_error:.2g}",
            "warnings": "; ".join(map(str, made.get("warnings", ()))) or "none; diagnose(trace) tells more",
        }
        cells = (f'<tr><th scope="row">{k}</th><td>{escape(str(value))}</td></tr>' for k, value in rows.items())
        return f"<table><caption>Trace</caption>{''.join(cells)}</table>"

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the trace to a NetCDF file, atomically: ``path`` appears only when the file is complete.

        Args:
            path: path of the file; its folder must exist.
            overwrite: replace an existing file.

        Raises:
            FileExistsError: ``path`` exists and ``overwrite`` is False.
            FileNotFoundError: the folder does not exist.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists and is kept: choose another name, or say overwrite=True")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"the folder {path.parent} does not exist: mkdir -p {path.parent}")
        with replacing(path) as partial:
            self._tree().to_netcdf(partial, engine="h5netcdf", mode="w")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace that :meth:`save` wrote.

        Raises:
            FileNotFoundError: ``path`` is not a file.
            ValueError: the file is not a trace, or it is damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no trace at {path}: give the file that trace.save(path) wrote")
        try:
            with xr.open_datatree(path, engine="h5netcdf") as stored:
                tree = stored.load()
            if tree.attrs.get("format") != FORMAT:
                raise ValueError("it has another format")
            return cls(
                positions=tree["positions"].to_dataset()["x"].to_numpy(),
                stats=tree["stats"].to_dataset(),
                sample_stats=tree["sample_stats"].to_dataset(),
                attributes=json.loads(tree.attrs["attributes"]),
                sites=_as_arrays(tree["sites"].to_dataset()),
                groups={name: _as_arrays(group.to_dataset()) for name, group in tree["groups"].children.items()},
                snapshots=_as_arrays(tree["snapshots"].to_dataset()) if "snapshots" in tree.children else {},
            )
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{path} is not a trace, or it is damaged ({reason}): sample again and save it") from error

    def _tree(self) -> xr.DataTree:
        event = [f"x_dim_{i}" for i in range(self.positions.ndim - 2)]
        groups = {
            "positions": xr.Dataset({"x": (["chain", "draw", *event], self.positions)}),
            "stats": self.stats,
            "sample_stats": self.sample_stats,
            "sites": _as_dataset(self.sites),
        }
        if self.snapshots:
            groups["snapshots"] = _as_dataset(self.snapshots)
        groups["groups"] = xr.Dataset()
        for group, values in self.groups.items():
            groups[f"groups/{group}"] = _as_dataset(values)
        tree = xr.DataTree.from_dict(groups)
        tree.attrs = {"format": FORMAT, "attributes": json.dumps(dict(self.attributes))}
        return tree


def _as_dataset(arrays: Mapping[str, np.ndarray]) -> xr.Dataset:
    """Return named arrays as a dataset whose variable names are valid in NetCDF.

    Names with ``/`` or ``%`` are percent-encoded: a slash would create a group, and dimensions are called ``%i%name``.
    """
    named = {quote(name, safe=" ") if set(name) & set("/%") else name: value for name, value in arrays.items()}
    return xr.Dataset({k: ([f"%{i}%{k}" for i in range(value.ndim)], value) for k, value in named.items()})


def _as_arrays(dataset: xr.Dataset) -> dict[str, np.ndarray]:
    """Return the arrays of :func:`_as_dataset` by name."""
    return {unquote(str(name)): values.to_numpy() for name, values in dataset.items()}
