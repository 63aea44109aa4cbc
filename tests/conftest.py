"""Fixtures that all tests share."""

from __future__ import annotations

import os

import jax
import pytest
import torch
from hypothesis import settings

from ppl_diffusion import NoiseSchedule


def pytest_configure(config):
    """Let XLA:CPU compile with its simpler emitters, in a third of the time, in this process and in those it starts.

    XLA reads its flags once, before the first program. The long checks are compiled as for users.

    Hypothesis draws the same examples in every run: what fails is what was changed.
    """
    settings.register_profile("same examples", derandomize=True, deadline=None)
    settings.load_profile("same examples")
    if config.option.markexpr != "long":
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false".strip()


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Small tensors are faster on one thread, and the result does not depend on the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def processes_compile_quickly():
    """Processes that tests start compile with few optimisations, as most tests do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield


AS_COMPILED_FOR_USERS = ("test_exact", "test_invariance")


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_are_freed(request):
    """XLA maps memory for each program; a process that ran all the tests would reach Linux's limit of maps, and die.

    Most tests compile for longer than they run: their programs are optimised less, but not those of long walks.
    """
    jax.config.update(
        "jax_disable_most_optimizations", request.module.__name__.rpartition(".")[2] not in AS_COMPILED_FOR_USERS
    )
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


@pytest.fixture
def schedule() -> NoiseSchedule:
    return NoiseSchedule.cosine(100)


@pytest.fixture(params=["jax", "torch"])
def backend(request) -> str:
    return request.param
