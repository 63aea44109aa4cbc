"""Files of results: parts of a sweep, each of which appears when it is complete, and all of them as one dataset."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from ppl_diffusion.files import replacing


def write(data: xr.Dataset, file: Path) -> None:
    """Write a dataset as NetCDF, which appears when it is complete."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
        data.to_netcdf(partial, engine="h5netcdf", encoding={name: {"zlib": True} for name in data.data_vars})


def opened(file: Path) -> xr.Dataset:
    """Return the dataset of a file.

    Raises:
        ValueError: there is none, or it is half-written or of another kind.
    """
    if not file.is_file():
        raise ValueError(f"there is no {file}: the same command makes what is missing")
    try:
        found = xr.load_dataset(file, engine="h5netcdf").drop_encoding()  # else names are cut as in the first part
    except Exception as error:
        raise ValueError(
            f"{file} is half-written or no result: rm {file}, and the same command makes it again"
        ) from error
    if "settings" not in found.attrs:
        raise ValueError(f"{file} is no result of a benchmark: rm {file}, and the same command makes it again")
    return found


def read(files: Sequence[Path]) -> xr.Dataset:
    """Return parts as one dataset.

    Returns:
        Variables by ``target``, ``contender``, ``difficulty`` (0 is the noisiest level), ``start`` and ``seed``:
        ``value`` by ``score``; ``replicates``, bootstrap replicates of it; ``curve`` and ``curve_error``, the median
        bias squared by ``bias`` at the gradients ``grid``; ``level``, ``budget`` and ``seconds_spent``. Parts that
        are not among the files are NaN.

    Raises:
        ValueError: a file is missing or half-written.
    """
    parts = [opened(file) for file in files]
    joined = xr.combine_by_coords(
        [each.drop_vars("seconds_spent").drop_attrs() for each in parts],
        combine_attrs="drop",
        join="outer",
        data_vars="all",
        coords="different",
        compat="no_conflicts",
    )
    assert isinstance(joined, xr.Dataset)
    of_targets = ("grid", "level", "budget")
    joined = joined.assign({k: joined[k].max("contender") for k in of_targets if "contender" in joined[k].dims})
    settings = json.loads(parts[0].attrs["settings"])
    joined.attrs["settings"] = json.dumps({k: v for k, v in settings.items() if k not in ("target", "contender")})
    joined.attrs["seconds"] = float(sum(float(each.seconds_spent) for each in parts))
    return joined
