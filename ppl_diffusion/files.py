"""Files that appear only when they are complete, and the versions that are recorded in them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from safetensors.torch import save as to_bytes
from torch import Tensor


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` on success and remove it on any error."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def versions() -> dict[str, str]:
    """Return the installed versions of this package and of the libraries on which the draws depend."""
    packages = ("ppl-diffusion", "torch", "jax", "blackjax", "pyro-ppl", "numpy")
    return {package: found for package in packages if (found := _version(package)) is not None}


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write(tensors: Mapping[str, Tensor], header: Mapping[str, str], path: Path) -> Path:
    """Write a safetensors file, which appears at ``path`` only when it is complete, and return ``path``."""
    content = to_bytes({k: v.contiguous() for k, v in tensors.items()}, metadata=dict(header))
    try:
        with replacing(path) as partial:
            partial.write_bytes(content)  # a file that safetensors creates can be read by its owner only
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror or error}): give another path") from error
    return path
