"""The command line: files that it writes, arguments that it rejects, and its state after an interruption."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from matplotlib.image import imread

import ppl_diffusion
from bridges.terminal import commands as cli
from ppl_diffusion import GaussianMixture, Trace, load
from ppl_diffusion.models.library import names
from ppl_diffusion.potentials.expression import parse
from ppl_diffusion.potentials.planar import NAMES, SCHEDULE, exact

QUICK = ["--chains", "8", "--steps", "1", "--rungs", "4"]


@pytest.fixture
def run(monkeypatch, capsys):
    """``run(*arguments)`` returns exit status, standard output and standard error."""

    def act(*arguments):
        monkeypatch.setattr(sys, "argv", ["ppl-diffusion", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (ended.value.code or 0, *capsys.readouterr())

    return act


@pytest.mark.slow
def test_sample_writes_trace_summary_and_pictures(run, tmp_path):
    out = tmp_path / "runs" / "ring-bar"
    status, printed, progress = run("sample", "ring * bar", "--out", out, *QUICK, "--draws", 6, "--seed", 3)
    assert status == 0
    assert {p.name for p in out.iterdir()} == {"trace.nc", "diagnosis.txt", "summary.csv", "samples.png", "ladder.png"}
    trace = Trace.load(out / "trace.nc")
    assert trace.positions.shape == (8, 6, 2)
    assert trace.attributes["potential"] == "ring * bar"
    assert trace.attributes["seed"] == 3
    assert "acceptance" in printed
    assert "level 0" in progress, "plain lines where there is no terminal"
    assert [p.name for p in out.parent.iterdir()] == ["ring-bar"], "nothing else is left behind"
    status, printed, _ = run("diagnose", out, "--json")
    assert status == 0
    assert len(json.loads(printed)["rungs"]["acceptance"]) == 4
    assert set(json.loads(printed)["verdict"]) == {"answer", "reasons", "advice"}
    assert trace.snapshots["x"].shape == (4, 8, 2)


@pytest.mark.slow
def test_islands_walk_one_after_the_other(run, tmp_path):
    out, kept = tmp_path / "run", tmp_path / "walk"
    command = ("sample", "ring", *QUICK, "--islands", 2, "--checkpoint", kept, "--out")
    status, _, progress = run(*command, out)
    assert status == 0
    assert Trace.load(out / "trace.nc").attributes["islands"] == 2
    shares = [int(share) for share in re.findall(r"ring: (\d+)%", progress)]
    assert shares == sorted(shares)
    assert shares[-1] == 100
    assert sorted(file.name for file in kept.iterdir()) == ["0.safetensors", "1.safetensors"]
    status, _, error = run(*command[:-5], "--islands", 3, "--out", tmp_path / "three")
    assert (status, "8 chains cannot be shared by 3 islands" in error) == (2, True)


@pytest.mark.slow
def test_pictures_are_files_and_a_folder_of_diffusers_is_a_model(run, tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), num_class_embeds=3,
    )  # fmt: skip
    folder, out = tmp_path / "pipeline", tmp_path / "run"
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(num_train_timesteps=20)).save_pretrained(folder)
    few = ("--chains", 3, "--rungs", 3, "--steps", 1, "--quiet")
    model = ("--model", f"theirs={folder}")
    assert run("sample", "theirs[1] * theirs[2]", *model, "--out", out, *few) == (0, "", "")
    pictures = sorted((out / "pictures").iterdir())
    assert [p.name for p in pictures] == ["0000.png", "0001.png", "0002.png"]
    last = np.clip(Trace.load(out / "trace.nc").positions[:, -1, 0], -1, 1)
    for picture, due in zip(pictures, last, strict=True):
        np.testing.assert_allclose(imread(picture), (due + 1) / 2, atol=0.51 / 255)
    status, _, error = run("sample", "theirs + theirs[1]", *model, "--out", tmp_path / "no", *few)
    assert (status, len(error.strip().splitlines())) == (2, 1)
    assert "mixtures need differences of energies" in error
    status, _, error = run("sample", "other", "--model", f"other={tmp_path / 'none'}", "--out", tmp_path / "no")
    assert (status, len(error.strip().splitlines())) == (2, 1)
    assert "names no weight file and no folder" in error


@pytest.mark.slow
def test_a_teacher_is_a_model_a_file_or_a_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(MINE)
    np.savez("points.npz", x=np.random.default_rng(0).normal(size=(40, 2)))
    data = ("--data", "points.npz", "--quiet")
    assert run("train", "mine.toml", *data, "--teacher", "wide", "--out", "taught.safetensors")[0] == 0
    assert load("taught.safetensors").info["teacher"] == "wide"
    again = ("--teacher", "taught.safetensors", "--out", "again.safetensors", "--checkpoint", "other.safetensors")
    assert run("train", "mine.toml", *data, *again)[0] == 0
    (tmp_path / "wide").mkdir()  # a folder of that name does not hide the shipped model
    few = ("--chains", 3, "--rungs", 3, "--steps", 1, "--quiet")
    assert run("sample", "wide", "--out", "run", *few)[0] == 0
    status, _, error = run("sample", "mine", "--model", "mine", "--out", "no")
    assert (status, len(error.strip().splitlines())) == (2, 1)
    assert "names no weight file and no folder" in error
    status, _, error = run("train", "mine.toml", *data, "--teacher", "wider", "--out", "no.safetensors")
    assert (status, len(error.strip().splitlines())) == (2, 1)
    assert "there is no model 'wider'" in error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        (("mala", "--steps", 1), "MALA("),
        (("nuts", "--steps", 1), "NUTS("),
        (("uhmc", "--steps", 1, "--leapfrogs", 2), "leapfrogs=2"),
        (("ula", "--steps", 1), "ULA("),
        (("hmc", "--steps", 1, "--engine", "pyro"), "adapt_mass_matrix"),
        (("reverse",), "Still"),
    ],
)
def test_every_kernel_has_a_name(run, tmp_path, kernel, name):
    out = tmp_path / "x"
    few = ("--chains", 4, "--rungs", 3, "--quiet")
    assert run("sample", "0.5*left + 0.5*right", "--kernel", *kernel, "--out", out, *few) == (0, "", "")
    assert name in Trace.load(out / "trace.nc").attributes["kernel"]


@pytest.mark.parametrize("arguments", [["--help"], ["sample", "--help"], ["bench", "--help"], ["--version"]])
def test_what_only_tells_of_itself_is_quick(arguments):
    code = (
        "import sys; from bridges.terminal.commands import main\n"
        f"sys.argv = ['ppl-diffusion', *{arguments}]\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'jax', 'ppl_diffusion'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n"), "seconds of imports"


def test_the_version_is_printed(run):
    status, printed, _ = run("--version")
    assert (status, printed.strip()) == (0, ppl_diffusion.__version__)


def test_a_checkpoint_that_cannot_be_used_is_one_line(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(MINE)
    np.savez("points.npz", x=np.random.default_rng(0).normal(size=(40, 2)))
    assert run("train", "mine.toml", "--data", "points.npz", "--quiet")[0] == 0
    np.savez("points.npz", x=np.random.default_rng(1).normal(size=(40, 2)))
    again = ["train", "mine.toml", "--data", "points.npz", "--out", "again.safetensors"]
    for more in (
        [],
        ["--checkpoint", "mine.safetensors"],
        ["--checkpoint", "again.safetensors"],
        ["--checkpoint", "."],
    ):
        status, _, error = run(*again, *more)
        assert (status, len(error.strip().splitlines())) == (2, 1), error


def test_a_lack_of_memory_is_one_line(run, tmp_path):
    status, _, error = run("sample", "ring", "--chains", 10**13, "--rungs", 2, "--steps", 0, "--out", tmp_path / "x")
    assert (status, len(error.strip().splitlines())) == (2, 1)
    assert "not enough memory" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_pictures_have_fewer_chains_and_steps_unless_told_otherwise(run, tmp_path):
    for expression, chains, steps in (("ring", 256, 10), ("digits[3]", 16, 2)):
        out = tmp_path / expression
        assert run("sample", expression, "--rungs", 2, "--out", out, "--quiet")[0] == 0
        trace = Trace.load(out / "trace.nc")
        assert trace.positions.shape[0] == chains
        assert trace.attributes["steps"] == [steps, steps]


@pytest.mark.slow
def test_json_is_the_only_thing_on_standard_output(run, tmp_path):
    status, printed, progress = run(
        "sample", "ring / wide**0.5", "--out", tmp_path / "x", *QUICK, "--json", "--resample", 0.5
    )
    assert status == 0
    assert progress == ""
    content = json.loads(printed)
    assert content["gradient_calls"] == 4 * 4 + 3
    assert len(content["rungs"]["level"]) == 4


def test_models_are_listed(run):
    status, printed, _ = run("models")
    assert status == 0
    assert all(name in printed for name in (*NAMES, "digits"))
    assert {card["name"] for card in json.loads(run("models", "--json")[1])} == set(names())


REFUSED = {
    "unknown model": (["sample", "rings", "--out", "{tmp}/x"], "did you mean ring?"),
    "syntax": (["sample", "ring *", "--out", "{tmp}/x"], "position"),
    "python": (["sample", "__import__('os').system('true')", "--out", "{tmp}/x"], "only names"),
    "no checkpoint": (
        ["sample", "ring", "--out", "{tmp}/x", "--checkpoint", "{tmp}/rubbish.nc", "--quiet"],
        "not the checkpoint of a walk",
    ),
    "a checkpoint of reverse diffusion": (
        ["sample", "ring", "--out", "{tmp}/x", "--kernel", "reverse", "--checkpoint", "walk"],
        "leave --checkpoint out",
    ),
    "attribute": (["sample", "ring.network", "--out", "{tmp}/x"], "only names"),
    "number": (["sample", "1 + 2", "--out", "{tmp}/x"], "is a number"),
    "negative": (["sample", "ring * -1", "--out", "{tmp}/x"], "quotient"),
    "another space": (["sample", "ring * digits[3]", "--out", "{tmp}/x"], "same space"),
    "no such class": (["sample", "digits[12]", "--out", "{tmp}/x"], ".given(0) to .given(9)"),
    "a class of places": (["sample", "cubes[3]", "--out", "{tmp}/x"], "given(x=0.3, y=0.6)"),
    "a place of classes": (["sample", "digits[0.3, 0.6]", "--out", "{tmp}/x"], "one class"),
    "half a place": (["sample", "cubes[0.3]", "--out", "{tmp}/x"], "cubes[0.3, 0.6]"),
    "not conditional": (["sample", "ring[1]", "--out", "{tmp}/x"], "not conditional"),
    "no start": (["sample", "ring / bar**2", "--out", "{tmp}/x"], "init="),
    "output exists": (["sample", "ring", "--out", "{tmp}"], "exists and is kept"),
    "no output": (["sample", "ring"], "--out"),
    "no chains": (["sample", "ring", "--out", "{tmp}/x", "--chains", "0"], "chains"),
    "text for chains": (["sample", "ring", "--out", "{tmp}/x", "--chains", "many"], "valid int"),
    "too many rungs": (["sample", "ring", "--out", "{tmp}/x", "--rungs", "1000"], "2 to 100"),
    "unknown kernel": (["sample", "ring", "--out", "{tmp}/x", "--kernel", "gibbs"], "gibbs"),
    "negative step": (["sample", "ring", "--out", "{tmp}/x", "--step", "-1"], "positive"),
    "misspelt option": (["sample", "ring", "--out", "{tmp}/x", "--chain", "3"], "--chain"),
    "unknown command": (["draw", "ring"], "draw"),
    "no run": (["diagnose", "{tmp}/nothing"], "no trace"),
    "not a run": (["diagnose", "{tmp}/rubbish.nc"], "is not a trace"),
    "no configuration": (["train", "nothing"], "no configuration nothing"),
    "no images": (["train", "digits", "--checkpoint", "{tmp}/c.safetensors", "--out", "{tmp}/w.safetensors"], "--data"),
    "no folder for weights": (["train", "ring", "--out", "{tmp}/a/w.safetensors"], "there is no folder"),
    "damaged images": (
        ["train", "digits", "--data", "{tmp}/rubbish.nc", "--out", "{tmp}/w.safetensors"],
        "not an .npz file",
    ),
    "draws of reverse diffusion": (
        ["sample", "ring", "--out", "{tmp}/x", "--kernel", "reverse", "--draws", "3"],
        "leave --draws",
    ),
    "an engine of reverse diffusion": (
        ["sample", "ring", "--out", "{tmp}/x", "--kernel", "reverse", "--engine", "pyro"],
        "leave --engine out",
    ),
    "steps of reverse diffusion": (
        ["sample", "ring", "--out", "{tmp}/x", "--kernel", "reverse", "--steps", "3"],
        "leave --steps out",
    ),
    "leapfrogs of mala": (
        ["sample", "ring", "--out", "{tmp}/x", "--kernel", "mala", "--leapfrogs", "3"],
        "leave --leapfrogs out",
    ),
    "ula of pyro": (["sample", "ring", "--out", "{tmp}/x", "--kernel", "ula", "--engine", "pyro"], "Pyro has no ula"),
    "not a weight file to be": (["train", "ring", "--out", "{tmp}/w.txt"], "give --out {tmp}/w.safetensors"),
    "not a model": (["sample", "mine", "--model", "mine=3", "--out", "{tmp}/x"], "write --model mine=mine.safetensors"),
    "a name twice": (
        ["sample", "m", "--model", "m=a.safetensors", "--model", "m=b.safetensors", "--out", "{tmp}/x"],
        "names a model twice",
    ),
    "a label that is none, in brackets": (["sample", "digits[12]", "--out", "{tmp}/x"], "digits[0] to digits[9]"),
    "no such kernel": (
        ["sample", "ring", "--kernel", "foo", "--out", "{tmp}/x"],
        "'--kernel': 'foo' is not one of 'hmc', 'mala', 'nuts', 'uhmc', 'ula', 'reverse'; see ppl-diffusion sample",
    ),
    "nowhere to write": (["sample", "ring", "--out", "{tmp}/rubbish.nc/x"], "cannot be written"),
    "no device to sample on": (["sample", "ring", "--out", "{tmp}/a", "--device", "cuda:99"], "use --device cpu"),
    "no device": (["train", "ring", "--device", "cuda:99", "--checkpoint", "{tmp}/c"], "use --device cpu"),
    "no folder": (
        ["train", "ring", "--checkpoint", "{tmp}/a/c.safetensors", "--out", "{tmp}/w.safetensors"],
        "mkdir -p",
    ),
}


@pytest.mark.slow
def test_a_model_of_any_shape_leaves_a_whole_run(run, tmp_path):
    """Also one that is neither planar nor of pictures."""
    np.savez(tmp_path / "points.npz", x=np.random.default_rng(0).normal(size=(200, 5)))
    network = "kind = 'mlp', size = 5, width = 16, hidden = 16, blocks = 1"
    text = f"name='five'\ndata='npz'\nimages='x'\nlabels=''\nform='squared_norm'\nsteps=5\nnetwork={{{network}}}\n"
    (tmp_path / "five.toml").write_text(text)
    weights, out = tmp_path / "five.safetensors", tmp_path / "out"
    kept = ["--out", str(weights), "--checkpoint", str(tmp_path / "c.safetensors"), "--quiet"]
    assert run("train", str(tmp_path / "five.toml"), "--data", str(tmp_path / "points.npz"), *kept)[0] == 0
    short = ["--rungs", "4", "--steps", "1", "--chains", "8", "--quiet"]
    assert run("sample", "five", "--model", f"five={weights}", *short, "--out", str(out))[0] == 0
    assert {path.name for path in out.iterdir()} >= {"trace.nc", "diagnosis.txt", "samples.png"}
    rows = (out / "summary.csv").read_text().splitlines()
    assert rows[0].startswith(",mean,sd"), "of single draws too"
    assert len(rows) == 1 + 5


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_ends_with_status_2_and_one_line(run, tmp_path, case):
    arguments, words = REFUSED[case]
    (tmp_path / "rubbish.nc").write_bytes(b"rubbish")
    status, printed, error = run(*(a.replace("{tmp}", str(tmp_path)) for a in arguments))
    assert status == 2
    assert printed == ""
    assert len(error.strip().splitlines()) == 1
    assert error.startswith("ppl-diffusion: ")
    assert words.replace("{tmp}", str(tmp_path)) in error
    assert [p.name for p in tmp_path.iterdir()] == ["rubbish.nc"], "nothing is lost and nothing is left"


LISTENING = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # background processes are started with SIGINT ignored
from bridges.terminal.commands import main
main()
"""


SLOWLY = ["sample", "ring * bar", "--out", "run", "--steps", "200"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "signalled"),
    [pytest.param(SLOWLY, signal.SIGINT, marks=pytest.mark.long), (["train", "ring"], signal.SIGINT)],
)
def test_an_interruption_leaves_nothing_half_written(tmp_path, command, signalled):
    assert "interrupted" in interrupted(command, signalled, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_while_the_library_is_imported_is_one_line(run, monkeypatch):
    def interrupting():
        raise KeyboardInterrupt

    monkeypatch.setattr("ppl_diffusion.devices.memory.keep_freed_memory", interrupting)
    assert run("models") == (130, "", "ppl-diffusion: interrupted\n")


def interrupted(command, signalled, folder):
    """Run a command in ``folder``, send it a signal a second after its first line of progress; return its errors."""
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENING, *command],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    try:
        line = process.stderr.readline()  # the run has started
        assert "%" in line, line + process.stderr.read()
        time.sleep(1)
        process.send_signal(signalled)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, error
    return error


@pytest.mark.long
def test_an_interrupted_walk_goes_on_from_its_checkpoint(run, tmp_path, monkeypatch):
    command = [
        "sample",
        "ring",
        "--out",
        "run",
        "--chains",
        "8",
        "--rungs",
        "50",
        "--steps",
        "40",
        "--checkpoint",
        "walk",
    ]
    error = interrupted(command, signal.SIGTERM, tmp_path)
    assert "interrupted, the same command goes on from walk" in error
    assert [path.name for path in tmp_path.iterdir()] == ["walk"]
    monkeypatch.chdir(tmp_path)
    status, _, progress = run(*command)
    assert status == 0
    assert "going on from walk" in progress
    assert "ring: 2%" not in progress, "the first line of a walk that begins"
    assert Trace.load("run/trace.nc").stats.sizes["rung"] == 50
    status, _, error = run(*command[:-1], "run/trace.nc")
    assert (status, "run exists and is kept" in error) == (2, True)
    status, _, error = run(*command[:2], "--out", "other", *QUICK, "--checkpoint", "walk")
    assert (status, "walk is of another run" in error) == (2, True)


MINE = """
name = "mine"
data = "npz"
images = "x"
labels = ""
form = "squared_norm"
steps = 20
batch = 32

[network]
kind = "mlp"
size = 2
width = 16
hidden = 16
blocks = 1
"""


@pytest.mark.slow
def test_a_model_of_ones_own_is_trained_and_sampled(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(MINE)
    np.savez("points.npz", x=np.random.default_rng(0).normal(size=(200, 2)))
    status, printed, _ = run("train", "mine.toml", "--data", "points.npz")
    assert status == 0
    assert "load('mine.safetensors')" in printed
    expression = ("sample", "mine**0.5 * ring", "--model", "mine=mine.safetensors")
    assert run(*expression, "--out", "run", *QUICK, "--quiet") == (0, "", "")
    assert Trace.load(tmp_path / "run" / "trace.nc").attributes["potential"] == "mine**0.5 * ring"
    status, _, told = run("train", "mine.toml", "--data", "points.npz", "--out", "again.safetensors")
    assert status == 0
    assert "going on from mine.checkpoint.safetensors" in told


TABLE = {name: exact(name, backend="jax") for name in NAMES}


@pytest.mark.parametrize(
    ("text", "build"),
    [
        ("ring * bar", lambda t: t["ring"] * t["bar"]),
        ("0.5*left + 0.5*right", lambda t: 0.5 * t["left"] + 0.5 * t["right"]),
        ("ring / wide**0.5", lambda t: t["ring"] / t["wide"] ** 0.5),
        ("ring**1.3 / (bar * wide)**.1", lambda t: t["ring"] ** 1.3 / (t["bar"] * t["wide"]) ** 0.1),
        ("ring**-0.5 * wide", lambda t: t["wide"] / t["ring"] ** 0.5),
        ("guidance(ring, wide, 1.5)", lambda t: t["ring"] ** 1.5 / t["wide"] ** 0.5),
        ("guidance(ring, wide, scale=1.5)", lambda t: t["ring"] ** 1.5 / t["wide"] ** 0.5),
        ("mixture([left, right])", lambda t: 0.5 * t["left"] + 0.5 * t["right"]),
        ("conjunction([ring, bar], wide)", lambda t: t["ring"] * t["bar"] / t["wide"]),
        ("conjunction([ring, bar**2], base=wide)", lambda t: t["ring"] * t["bar"] ** 2 / t["wide"]),
    ],
)
def test_expressions_mean_what_python_would_mean(text, build):
    found, expected = parse(text, load=TABLE.__getitem__, known=list(TABLE)), build(TABLE)
    x = np.random.default_rng(0).standard_normal((20, 2)).astype(np.float32) * 0.4
    for level in (0, 60):
        np.testing.assert_allclose(found.energy(x, level=level), expected.energy(x, level=level), rtol=2e-4, atol=2e-3)


def test_a_place_stands_in_brackets():
    found = parse("conjunction([cubes[0.3, 0.4], cubes[0.7, 0.6]], cubes)", load=load, known=["cubes"])
    assert str(found) == "cubes**-1 * cubes[0.3, 0.4] * cubes[0.7, 0.6]"


def test_expressions_load_each_model_once():
    loaded = []

    def load(name):
        loaded.append(name)
        return GaussianMixture([[0.0, 0.0]], [1.0], schedule=SCHEDULE, backend="jax", name=name)

    parse("a * b + a / b**0.1 * b**0.1", load=load, known=["a", "b"])
    assert loaded == ["a", "b"]


@pytest.mark.parametrize(
    "text",
    [
        "ring if ring else bar",
        "lambda: ring",
        "[ring]",
        "ring @ bar",
        "ring ** ring",
        "open('x')",
        "ring\nbar",
        "",
        "ring * (",
        "9**9**9**9 * ring",
        "ring and bar",
        "guidance(ring)",
        "mixture()",
        "conjunction(ring)",
        "conjunction(ring, bar, wide)",
        "conjunction([], ring)",
        "mixture([ring, 2])",
        "mixture([ring, bar], scale=3)",
        "guidance(ring, bar, base=3)",
        "guidance(ring, bar, **wide)",
        "ring * " + "9" * 400,
        "ring" + " * ring" * 600,
        "1" + " + 1" * 2000,
        "digits[3][4]",
        "f'{ring}'",
        "ring(3)",
        "(" * 500 + "ring" + ")" * 500,
    ],
)
def test_what_is_outside_the_grammar_is_refused_in_one_line(text):
    with pytest.raises(ValueError) as caught:
        parse(text, load=TABLE.__getitem__, known=list(TABLE))
    assert "\n" not in str(caught.value).replace(repr(text), "")
