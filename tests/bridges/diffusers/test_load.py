"""Pipelines of diffusers: our levels and reverse steps are their schedulers' own."""

import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from bridges.blackjax import HMC
from bridges.diffusers import decode, from_diffusers
from bridges.diffusers.schedules import SCALED, SQRT_ABAR, levels_of
from ppl_diffusion import Ladder, anneal, observation
from ppl_diffusion.potentials.score import ScoreLeaf, as_noise
from ppl_diffusion.sampling.arrival import reverse_step
from ppl_diffusion.sampling.kernel import State
from ppl_diffusion.sampling.step import centred

diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

TRAINED = 20
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def scheduler_of(name, **given):
    return getattr(diffusers, f"{name}Scheduler")(**given)


def in_double_precision(scheduler):
    """Let a scheduler compute with the doubles of its own tables, whose rounding would be the largest difference."""
    for name, value in vars(scheduler).items():
        if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
            setattr(scheduler, name, value.double())


def tiny_unet(**given):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        **given,
    )


class Fixed(ScoreLeaf):
    """The gradient that a prediction implies at one point."""

    backend = "torch"

    def __init__(self, schedule):
        self.schedule, self.event_shape, self.name = schedule, (1, 4, 4), "fixed"

    def _gradient(self, x, level):
        raise AssertionError("a reverse step reads the gradient of its state, and asks for none")


class Same:
    """A generator of random numbers that all are ``value``."""

    def __init__(self, value):
        self.value = value

    def standard_normal(self, shape):
        return np.full(shape, self.value)


def our_step(levels, output, x, s, t):
    """Mean and standard deviation of our reverse step from level s to t."""
    alpha, sigma = levels.schedule.alpha(s), levels.schedule.sigma(s)
    gradient = as_noise(levels.predicts, output.double(), x.double(), alpha, sigma) / sigma
    state = State(s, x.double().numpy(), np.zeros(len(x)), gradient.numpy(), centred(0.0))
    mean, moved = (reverse_step(Fixed(levels.schedule), state, t, rng=Same(v))[0] for v in (0.0, 1.0))
    return mean, moved - mean


def their_step(scheduler, output, x, step, monkeypatch, **given):
    """Mean and standard deviation of a scheduler's own step."""
    found = []
    for value in (0.0, 1.0):
        noise = lambda *shape, value=value, **kind: torch.full(tuple(shape[0]), value, dtype=x.dtype)  # noqa: E731
        monkeypatch.setattr(sys.modules[type(scheduler).__module__], "randn_tensor", noise)
        scheduler._step_index = None
        found.append(
            scheduler.step(output, scheduler.timesteps[step], x, return_dict=False, **given)[0].double().numpy()
        )
    return found[0], found[1] - found[0]


STOCHASTIC = {
    "DDPM": ({"clip_sample": False}, {}),
    "DDPMParallel": ({"clip_sample": False}, {}),
    "DDIM": ({"clip_sample": False}, {"eta": 1.0}),
    "DDIMParallel": ({"clip_sample": False}, {"eta": 1.0}),
    "DPMSolverMultistep": ({"solver_order": 1, "algorithm_type": "sde-dpmsolver++"}, {}),
}


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_reverse_steps_are_those_of_the_scheduler(name, prediction, monkeypatch):
    settings, given = STOCHASTIC[name]
    scheduler = scheduler_of(name, num_train_timesteps=TRAINED, prediction_type=prediction, **settings)
    in_double_precision(scheduler)
    levels = levels_of(scheduler)
    scheduler.set_timesteps(TRAINED - (name == "DPMSolverMultistep"))  # it leaves out level 0
    in_double_precision(scheduler)
    x, output = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    visited = scheduler.timesteps.tolist()
    for step, (s, t) in enumerate(pairwise(visited)):
        ours = our_step(levels, output, x, s, t)
        theirs = their_step(scheduler, output, x, step, monkeypatch, **given)
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
        assert np.abs(ours[0] - np.asarray(x)).max() > 1e-3


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_ancestral_steps_in_x_over_alpha_are_ours(prediction, monkeypatch):
    scheduler = scheduler_of("EulerAncestralDiscrete", num_train_timesteps=TRAINED, prediction_type=prediction)
    in_double_precision(scheduler)
    levels = levels_of(scheduler)
    scheduler.set_timesteps(TRAINED)
    sigmas = [levels.schedule.sigma(s) / levels.schedule.alpha(s) for s in reversed(range(TRAINED))]
    np.testing.assert_allclose(scheduler.sigmas[:-1], sigmas, rtol=1e-5)  # which it rounds to single precision
    scheduler.sigmas = torch.tensor([*sigmas, 0.0], dtype=torch.float64)
    x, output = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for step, (s, t) in enumerate(zip(range(TRAINED - 1, 0, -1), range(TRAINED - 2, -1, -1), strict=True)):
        alpha_s, alpha_t = levels.schedule.alpha(s), levels.schedule.alpha(t)
        scheduler.is_scale_input_called = True
        ours = our_step(levels, output, x, s, t)
        theirs = their_step(scheduler, output, x / alpha_s, step, monkeypatch)
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, alpha_t * other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SQRT_ABAR + SCALED)
def test_levels_are_those_at_which_the_scheduler_adds_noise(name):
    scheduler = scheduler_of(name, num_train_timesteps=TRAINED)
    levels = levels_of(scheduler)
    assert levels.times == tuple(range(TRAINED))
    scheduler.set_timesteps(TRAINED)
    x, noise = torch.ones(1, 1), torch.full((1, 1), 0.0)
    for level in range(1, TRAINED):
        time = torch.tensor([level])
        if float(level) not in scheduler.timesteps.tolist():
            continue
        scale = levels.schedule.alpha(level) if name in SCALED else 1.0
        signal, spread = (float(scheduler.add_noise(a, b, time)) for a, b in ((x, noise), (noise, x)))
        np.testing.assert_allclose(scale * signal, levels.schedule.alpha(level), rtol=1e-5)
        np.testing.assert_allclose(scale * spread, levels.schedule.sigma(level), rtol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_preconditioning_of_edm(prediction):
    scheduler = scheduler_of("EDMEuler", num_train_timesteps=TRAINED, prediction_type=prediction)
    levels = levels_of(scheduler)
    x, output = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for sigma in levels.schedule.sigmas:
        into, skip, out = levels.preconditioning.scales(sigma)
        torch.testing.assert_close(into * x, scheduler.precondition_inputs(x, torch.tensor(sigma, dtype=x.dtype)))
        due = scheduler.precondition_outputs(x, output, torch.tensor(sigma, dtype=x.dtype))
        torch.testing.assert_close(skip * x + out * output, due, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        [levels.schedule.sigma(0), levels.schedule.sigma(-1 + len(levels.times))], [0.002, 80], rtol=1e-5
    )


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_with_its_shift(shift):
    scheduler = scheduler_of("FlowMatchEulerDiscrete", num_train_timesteps=TRAINED, shift=shift)
    levels = levels_of(scheduler)
    x, noise = torch.randn(2, 1, 1, generator=torch.Generator().manual_seed(0))
    assert len(levels.times) == TRAINED - 1  # without sigma = 1
    assert levels.predicts == "flow"
    for level, time in enumerate(levels.times):
        due = scheduler.scale_noise(x, torch.tensor([time], dtype=scheduler.timesteps.dtype), noise)
        ours = levels.schedule.alpha(level) * x + levels.schedule.sigma(level) * noise
        torch.testing.assert_close(ours, due, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "UniPCMultistep", "DEISMultistep", "SASolver"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_solvers_of_flows(name, shift):
    """Their steps leave the levels that the network was trained at; each of theirs lies among ours."""
    scheduler = scheduler_of(
        name, num_train_timesteps=1000, use_flow_sigmas=True, flow_shift=shift, prediction_type="flow_prediction"
    )
    levels = levels_of(scheduler)
    assert levels.predicts == "flow"
    scheduler.set_timesteps(10)
    sigmas = np.asarray(scheduler.sigmas, dtype=np.float64)
    ours = np.array(levels.schedule.sigmas)
    for sigma, time in zip(sigmas, scheduler.timesteps.tolist(), strict=False):
        if not 0 < sigma < 1:
            continue
        near = np.argmin(abs(ours - sigma))
        assert abs(ours[near] - sigma) < 2e-3 * shift
        assert abs(levels.times[near] - 1000 * sigma) < 2 * shift
        assert abs(time - 1000 * sigma) <= 1
        np.testing.assert_allclose(levels.schedule.alpha(int(near)), 1 - ours[near])


def test_labels_of_a_transformer(tmp_path):
    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=1, sample_size=4,
        patch_size=2, num_embeds_ada_norm=5, norm_num_groups=2,
    ).eval()  # fmt: skip

    class Pipeline:
        def __init__(self):
            self.transformer, self.scheduler = network, scheduler_of("DDIM", num_train_timesteps=TRAINED)

    theirs = from_diffusers(Pipeline())
    x = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for potential, label in ((theirs.given(2), 2), (theirs, 5)):  # the label after the last class is any class
        with torch.no_grad():
            noise = network(x, torch.full((3,), 7), class_labels=torch.full((3,), label)).sample[:, :4]
        torch.testing.assert_close(potential.score(x, level=7), -noise / theirs.schedule.sigma(7))
    with pytest.raises(ValueError, match=r"has no class 5: use \.given\(0\) to \.given\(4\)"):
        theirs.given(5)


def test_the_exploding_scheduler_predicts_the_score(monkeypatch):
    scheduler = scheduler_of("ScoreSdeVe", num_train_timesteps=TRAINED, sigma_max=50.0)
    scheduler.set_timesteps(TRAINED)
    scheduler.set_sigmas(TRAINED)
    levels = levels_of(scheduler)
    assert levels.predicts == "score"
    in_double_precision(scheduler)
    levels = levels_of(scheduler)
    x, output = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for step, s in enumerate(range(TRAINED - 1, 0, -1)):
        found = []
        for value in (0.0, 1.0):
            noise = lambda *shape, value=value, **kind: torch.full(tuple(shape[0]), value, dtype=x.dtype)  # noqa: E731
            monkeypatch.setattr(sys.modules[type(scheduler).__module__], "randn_tensor", noise)
            found.append(scheduler.step_pred(output, scheduler.timesteps[step], x).prev_sample.numpy())
        mean, spread = our_step(levels, output, x, s, s - 1)
        np.testing.assert_allclose(mean, found[0], rtol=1e-5)
        ratio = levels.schedule.sigma(s - 1) / levels.schedule.sigma(s)  # its noise is that of the step to more noise
        np.testing.assert_allclose(spread, ratio * (found[1] - found[0]), rtol=1e-5)


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        (lambda: scheduler_of("LCM"), "LCMScheduler is no scheduler of a score: its network was distilled"),
        (lambda: scheduler_of("TCD"), "was distilled to few steps"),
        (lambda: scheduler_of("CMStochasticIterative"), "a consistency model"),
        (lambda: scheduler_of("VQDiffusion", num_vec_classes=5), "its data are discrete"),
        (lambda: scheduler_of("DDIM", rescale_betas_zero_snr=True), "zero terminal SNR.*rescale_betas_zero_snr=False"),
        (lambda: scheduler_of("IPNDM"), "IPNDMScheduler is not known: take a scheduler of DDPM"),
    ],
)
def test_schedulers_without_a_score_are_refused_with_the_reason(scheduler, words):
    with pytest.raises(ValueError, match=words):
        levels_of(scheduler())


def test_a_folder_gives_the_score_of_its_network(tmp_path):
    pipeline = diffusers.DDPMPipeline(tiny_unet(num_class_embeds=3), scheduler_of("DDPM", num_train_timesteps=TRAINED))
    pipeline.save_pretrained(tmp_path)
    theirs = from_diffusers(tmp_path, unconditional=2)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        noise = pipeline.unet(x, torch.full((4,), 7), class_labels=torch.full((4,), 1)).sample
    torch.testing.assert_close(theirs.given(1).score(x, level=7), -noise / theirs.schedule.sigma(7))
    assert str(theirs.given(1) / theirs) == "theirs[1] / theirs"
    seen = observation(np.zeros((1, 8, 8)), scale=0.5, schedule=theirs.schedule, backend="torch")
    ladder = Ladder.spaced(theirs.schedule, rungs=3, steps=1)
    trace = anneal(theirs.given(1) * seen, HMC(step=0.05, leapfrogs=1), ladder=ladder, chains=2, seed=0)
    assert np.isfinite(trace.positions).all()
    with pytest.raises(ValueError, match=r"the model takes a class: use \.given"):
        from_diffusers(tmp_path).score(x, level=7)
    with pytest.raises(ValueError, match="is not a latent model"):
        decode(theirs, x)


@pytest.mark.parametrize("name", ["EDMEuler", "FlowMatchEulerDiscrete", "DDPM"])
def test_levels_are_those_of_training_whatever_the_pipeline_ran_last(name):
    scheduler = scheduler_of(name, num_train_timesteps=TRAINED)
    pipeline = diffusers.DDPMPipeline(tiny_unet(), scheduler)
    before = from_diffusers(pipeline).schedule
    pipeline.scheduler.set_timesteps(5)
    assert from_diffusers(pipeline).schedule == before


def test_pickled_weights_and_other_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no pipeline: give a folder that pipeline\.save_pretrained"):
        from_diffusers(tmp_path)
    pipeline = diffusers.DDPMPipeline(tiny_unet(), scheduler_of("DDPM", num_train_timesteps=TRAINED))
    pipeline.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ValueError, match=r"is a pickled checkpoint, .*safe_serialization=True"):
        from_diffusers(tmp_path)


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'ppl-diffusion\[diffusers\]'"):
        from_diffusers(tmp_path)


def test_a_latent_pipeline_takes_prompts_and_decodes(tmp_path):
    transformers = pytest.importorskip("transformers")
    vocabulary = ["<|startoftext|>", "<|endoftext|>", "a</w>", "red</w>", "cube</w>", "blue</w>"]
    words = {word: i for i, word in enumerate(vocabulary)}

    class Tokenizer:
        model_max_length = 6

        def __call__(self, prompts, **given):
            rows = [[0, *(words[f"{w}</w>"] for w in prompt.split()), 1] for prompt in prompts]
            ids = torch.tensor([row + [1] * (6 - len(row)) for row in rows])
            return transformers.BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    torch.manual_seed(0)
    encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=6, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
            max_position_embeddings=6, bos_token_id=0, eos_token_id=1,
        )
    ).eval()  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=4, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), cross_attention_dim=8,
        attention_head_dim=4,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=8,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip

    class Pipeline:
        def __init__(self):
            self.unet, self.vae, self.tokenizer, self.text_encoder = unet, vae, Tokenizer(), encoder
            self.scheduler = scheduler_of("EulerDiscrete", num_train_timesteps=TRAINED)

        def encode_prompt(self, prompt, device, num_images_per_prompt, do_classifier_free_guidance):
            return self.text_encoder(self.tokenizer(prompt)["input_ids"].to(device))[0], None

    theirs = from_diffusers(Pipeline())
    red, blue = theirs.given("a red cube"), theirs.given("a blue cube")
    x = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    calls = []
    unet.register_forward_pre_hook(lambda *_: calls.append(1))
    found = (red * blue / theirs).score(x, level=5)
    assert len(calls) == 1  # three prompts, one call
    due = red.score(x, level=5) + blue.score(x, level=5) - theirs.score(x, level=5)
    torch.testing.assert_close(found, due, rtol=1e-4, atol=1e-5)
    assert (red.score(x, level=5) - blue.score(x, level=5)).abs().max() > 1e-6
    assert str(red) == "theirs['a red cube']"
    assert decode(red, x).shape == (3, 3, 8, 8)
    prompts = red.conditions
    assert prompts.stack(["a red cube"], torch.device("meta")).device.type == "meta", "the encoder stays on the CPU"
    with pytest.raises(TypeError, match=r'theirs takes one prompt: theirs.given\("a red cube"\)'):
        theirs.given(3)
