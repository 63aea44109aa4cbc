"""Several devices of one machine: chains of a density in JAX are divided among them, and walk as on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from bridges.blackjax import HMC
from ppl_diffusion import GaussianMixture, Ladder, NoiseSchedule, anneal

SCRIPT = """
import json, sys
import jax
from bridges.blackjax import HMC
from tests.bridges.blackjax.test_devices import target, walk

kernel = HMC(leapfrogs=2)
found = {}
for chains, backend in ((8, "jax"), (7, "jax"), (8, "torch")):
    walker = kernel.bind(target(backend))
    state = walker.arrive(target(backend).sample(chains, level=5, seed=0), 5, None, seed=0)
    state, _ = walker.move(state, 2, seed=1)
    found[f"{chains} {backend}"] = len(state.positions.sharding.device_set)
with jax.default_device(jax.devices()[1]):
    state = kernel.bind(target("jax")).arrive(target("jax").sample(8, level=5, seed=0), 5, None, seed=0)
    found["chosen"] = len(state.positions.sharding.device_set)
print(json.dumps({"devices": found, "positions": walk().positions.tolist()}))
"""


def target(backend):
    schedule = NoiseSchedule.cosine(10)
    return GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], [0.2, 0.3], schedule=schedule, backend=backend)


def walk():
    modes = target("jax")
    return anneal(modes, HMC(leapfrogs=2), ladder=Ladder.spaced(modes.schedule, rungs=3, steps=2), chains=8, seed=0)


@pytest.mark.long
def test_chains_are_divided_among_devices_and_walk_as_on_one():
    flags = "--xla_force_host_platform_device_count=2 " + os.environ.get("XLA_FLAGS", "")
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["devices"] == {"8 jax": 2, "7 jax": 1, "8 torch": 1, "chosen": 1}
    np.testing.assert_allclose(found["positions"], walk().positions, rtol=0, atol=1e-9)
