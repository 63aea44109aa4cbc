"""The context in which a walker's methods use JAX: 64-bit mode, and the CPU if torch networks are there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp

from ..torch_jax.callback import outlived_by
from ..torch_jax.convert import cpu_device_for, reraise_torch_errors

Method = TypeVar("Method", bound=Callable[..., Any])


def in_jax_context(method: Method) -> Method:
    """Run a method in 64-bit mode, on the CPU if torch networks are there, with errors of networks unchanged."""

    @wraps(method)
    def in_context(self: Any, *args: Any, **kwargs: Any) -> Any:
        host = cpu_device_for(self.potential, _default_platform())
        place = nullcontext() if host is None else jax.default_device(host)
        with reraise_torch_errors(self.potential), outlived_by(self.crossings), jax.enable_x64(True), place:
            return method(self, *args, **kwargs)

    return cast(Method, in_context)


def chosen_device() -> Any:
    """The device that was chosen as JAX's default one; None if none was."""
    return jax.config.jax_default_device  # type: ignore[attr-defined]


def _default_platform() -> str:
    """The platform of JAX's default device."""
    platform = jax.default_backend()
    return platform if platform == "cpu" else next(iter(jnp.zeros(()).devices())).platform
