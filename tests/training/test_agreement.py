"""Agreement of levels in training: what its loss measures, and that it finds what denoising is blind to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ppl_diffusion import EnergyFunction, NoiseSchedule
from ppl_diffusion.models.networks import build_network
from ppl_diffusion.sampling.transitions import log_forward, log_reverse
from ppl_diffusion.training import agreement
from ppl_diffusion.training.agreement import GROUP, agreement_losses

SCHEDULES = {
    "cosine": NoiseSchedule.cosine(20),
    "linear": NoiseSchedule.linear(20),
    "exploding": NoiseSchedule.edm(20),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_ratio_of_steps_is_that_of_the_walk(name):
    schedule, rng = SCHEDULES[name], np.random.default_rng(0)
    target = EnergyFunction(lambda x, level: (x**2).sum(-1), schedule=schedule, event_shape=(3,), backend="torch")
    for t in (0, 7, 18):
        s = t + 1
        x_t, noise = rng.normal(size=(2, 5, 3)) * schedule.sigma(t)
        alpha, sigma = schedule.forward(t, s)
        x_s = alpha * x_t + sigma * rng.normal(size=(5, 3))
        noise = rng.normal(size=(5, 3))
        expected = log_forward(target, x_s, x_t, s, t) - log_reverse(target, x_t, x_s, noise / schedule.sigma(s), s, t)
        levels = (torch.full((5,), k) for k in (t, s))
        found = agreement._log_ratio(schedule, *map(torch.from_numpy, (x_t, x_s, noise)), *levels).numpy()
        np.testing.assert_allclose(found - found.mean(), expected - expected.mean(), atol=1e-8)


class Blind(nn.Module):
    """Two Gaussians far apart, with an energy offset between them at each level that gradients do not show."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        alphas, sigmas = (torch.tensor(values, dtype=torch.float64) for values in (schedule.alphas, schedule.sigmas))
        self.deviations = [(alphas**2 * std**2 + sigmas**2).sqrt() for std in (0.02, 0.3)]
        self.mistake = nn.Parameter(2 * torch.sin(3 * torch.arange(len(schedule), dtype=torch.float64)))

    def noise_potential(self, network, form, schedule, x, level, condition, reference):
        x, alpha = x[:, 0], schedule.alpha(level)
        modes = [
            (0.3 if sign > 0 else 0.7) * torch.exp(-0.5 * ((x - 2 * sign * alpha) / std[level]) ** 2) / std[level]
            for sign, std in zip((-1, 1), self.deviations, strict=True)
        ]
        return schedule.sigma(level) * (self.mistake[level] * torch.tanh(8 * x) - torch.log(sum(modes) + 1e-300))


@pytest.fixture
def mistakes(monkeypatch):
    """``run(weight)`` trains with a weight of the loss of agreement, and returns the offsets by level."""
    cosine = NoiseSchedule.cosine(100)
    schedule = NoiseSchedule(*(tuple(t[i] for i in (0, 3, 6, 10, 15)) for t in (cosine.alphas, cosine.sigmas)))

    def draw(generator):
        wide = torch.rand(256, 1, generator=generator) < 0.3
        noise = torch.randn(256, 1, generator=generator)
        return torch.where(wide, 2 + 0.3 * noise, -2 + 0.02 * noise).double()

    def run(weight):
        network, generator = Blind(schedule.finer(agreement.FINER)), torch.Generator().manual_seed(0)
        monkeypatch.setattr(agreement, "noise_potential", network.noise_potential)
        optimiser = torch.optim.Adam([network.mistake], lr=0.05)
        for step in range(200):
            optimiser.param_groups[0]["lr"] = 0.05 * (1 - step / 200)
            losses = agreement_losses(network, "inner_product", schedule, draw(generator), generator=generator)
            optimiser.zero_grad()
            (losses.denoising + weight * losses.agreement).backward()
            optimiser.step()
        return network.mistake.detach()

    return run


def test_levels_agree_where_denoising_is_blind(mistakes, monkeypatch):
    """An energy offset between two modes is invisible in gradients; only comparing levels reveals it."""
    blind, seeing = mistakes(0.0), mistakes(1.0)
    assert blind.std() > 0.6, "denoising does not see it"
    assert seeing.std() < 0.1 * blind.std()
    right = agreement._log_ratio
    monkeypatch.setattr(agreement, "_log_ratio", lambda *given: -right(*given))
    assert mistakes(1.0).std() > 3 * seeing.std(), "negative control: the ratio of the steps upside down"


def test_what_a_step_varies_by_with_exact_energies_is_about_a_unit_at_every_level(monkeypatch):
    """Of Gaussian data of variance v the log-weight varies by ``dlambda m sqrt(d / 2)``, and the unit is ``dlambda
    sqrt(m d / 2)``, where ``m = v / (v + sigma^2 / alpha^2)``: in these units the variance is m."""
    schedule, variance, size = NoiseSchedule.cosine(100), 0.5, 16
    generator = torch.Generator().manual_seed(0)
    data = (variance**0.5 * torch.randn(600, GROUP, size, generator=generator)).double()

    def exact(network, form, schedule, x, level, condition, reference):
        total = schedule.alpha(level) ** 2 * variance + schedule.sigma(level) ** 2
        return schedule.sigma(level) * 0.5 * (x**2).sum(1) / total

    monkeypatch.setattr(agreement, "noise_potential", exact)
    fine = schedule.finer(agreement.FINER)
    for t in (40, 150, 250, 330):
        monkeypatch.setattr(torch, "randint", lambda *given, t=t, **further: torch.tensor([t]))
        losses = [agreement_losses(None, "inner_product", schedule, clean, generator=generator) for clean in data]
        found = 2 * float(torch.stack([loss.agreement.detach() for loss in losses]).mean())
        told = variance / (variance + (fine.sigma(t + 1) / fine.alpha(t + 1)) ** 2)
        # Of a group the mean is taken off. A step of finite length varies by a little more.
        assert found == pytest.approx(told * (1 - 1 / GROUP), rel=0.15), t


def test_constants_of_levels_do_not_matter_and_points_are_compared_at_the_same_levels(monkeypatch):
    schedule = NoiseSchedule.cosine(20)
    network = build_network("mlp", size=2, width=16, hidden=16, blocks=1, classes=0)
    clean = torch.randn(4 * GROUP, 2, generator=torch.Generator().manual_seed(0))
    right, seen = agreement.noise_potential, []

    def shifted(network, form, schedule, x, level, *further):
        seen.append(level)
        return right(network, form, schedule, x, level, *further) + schedule.sigma(level) * 100 * level

    def run():
        losses = agreement_losses(network, "squared_norm", schedule, clean, generator=torch.Generator().manual_seed(1))
        return [float(loss.detach()) for loss in losses]

    plain = run()
    monkeypatch.setattr(agreement, "noise_potential", shifted)
    assert run() == pytest.approx(plain, rel=1e-9)
    (levels,) = seen
    t, s = levels.chunk(2)
    assert torch.equal(s, t + 1)
    assert len(t.unique()) == 4
    assert all(int((t == level).sum()) == GROUP for level in t.unique())


def test_noise_at_the_noisier_level_is_that_of_its_points(monkeypatch):
    """What denoising is told at ``x_s`` is the noise that is in it: ``x_s = alpha_s x_0 + sigma_s noise``."""
    schedule, seen, right = NoiseSchedule.cosine(20), {}, agreement.noise_potential
    network = build_network("mlp", size=2, width=16, hidden=16, blocks=1, classes=0)
    clean = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))

    def observed(network, form, schedule, x, level, *further):
        seen.update(x=x.detach(), level=level, schedule=schedule)
        return right(network, form, schedule, x, level, *further)

    def error(estimate, noise, *further):
        seen.update(noise=noise)
        return estimate.sum()

    monkeypatch.setattr(agreement, "noise_potential", observed)
    monkeypatch.setattr(agreement, "mean_error", error)
    agreement_losses(network, "squared_norm", schedule, clean, generator=torch.Generator().manual_seed(1))
    x, level, fine = seen["x"], seen["level"], seen["schedule"]
    alpha, sigma = (scale(level)[:, None].float() for scale in (fine.alpha, fine.sigma))
    torch.testing.assert_close(alpha * torch.cat([clean] * 2) + sigma * seen["noise"], x, atol=1e-5, rtol=0)


def test_pairs_without_a_signal_are_not_compared_and_are_drawn_more_often(monkeypatch):
    schedule = NoiseSchedule.cosine(100)
    last = len(schedule.finer(agreement.FINER)) - 2
    network = build_network("mlp", size=2, width=16, hidden=16, blocks=1, classes=0)
    clean = torch.randn(GROUP, 2, generator=torch.Generator().manual_seed(0))
    right, seen = agreement.noise_potential, []

    def observed(network, form, schedule, x, level, *further):
        seen.append(int(level[0]))
        return right(network, form, schedule, x, level, *further)

    monkeypatch.setattr(agreement, "noise_potential", observed)
    generator = torch.Generator().manual_seed(1)
    losses = [agreement_losses(network, "squared_norm", schedule, clean, generator=generator) for _ in range(800)]
    compared = {t: float(loss.agreement.detach()) > 0 for t, loss in zip(seen, losses, strict=True)}
    assert not compared[last], "the noisiest level of a cosine schedule"
    assert all(compared[t] for t in compared if t < last - 4)
    assert all(torch.isfinite(loss.denoising) for loss in losses)
    expected = 800 * agreement.NOISIEST / (last + agreement.NOISIEST)
    assert abs(seen.count(last) - expected) < 4 * expected**0.5
