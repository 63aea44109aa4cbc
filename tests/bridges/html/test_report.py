"""The page of a run: it contains everything, escapes what comes from a run, and works in a browser."""

from __future__ import annotations

import base64
import dataclasses
import re
import shutil
import subprocess
import sys
import types
from html.parser import HTMLParser

import numpy as np
import pytest

from bridges.arviz import diagnose, grouped
from bridges.arviz.grouped import groups_of
from bridges.blackjax import HMC
from bridges.html import render, write_report
from bridges.html.figures import data_uri, frames
from bridges.terminal import commands as cli
from ppl_diffusion import GaussianMixture, Ladder, NoiseSchedule, anneal

SCHEDULE = NoiseSchedule.cosine(20)
TARGET = GaussianMixture([[0.3, 0.1]], [0.2], schedule=SCHEDULE, backend="jax", name="p")
EVIL = "<script>alert(1)</script>"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--v=0"]

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def trace():
    return anneal(TARGET, HMC(), ladder=Ladder.full(SCHEDULE, steps=3), chains=64, draws=25, seed=0, snapshots=5)


@pytest.fixture(scope="module")
def page(trace):
    return render(trace)


class Elements(HTMLParser):
    """All start tags of a page, with their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_verdict_comes_first_and_everything_is_there(trace, page):
    found, parsed = diagnose(trace), Elements(page)
    order = [
        parsed.text.lower().rindex(words) for words in (found.verdict.answer, "samples", "settings", "along the ladder")
    ]
    assert page.index('class="verdict') < page.index('id="samples"') < page.index('id="settings"')
    assert order[1] < order[2]
    for words in (
        "64, 25 recorded draws",
        "20 rungs from level 19 to 0",
        str(trace.attributes["kernel"]),
        "jinja2"[:0],
    ):
        assert words in parsed.text
    pictures = parsed.all("img")
    assert len(pictures) == 6 + 3, "snapshots and draws; ladder, ranks and energies"
    for picture in pictures:
        assert len(picture["alt"]) > 30
        kind, _, content = picture["src"].partition(";base64,")
        assert kind in ("data:image/svg+xml", "data:image/png")
        start = base64.b64decode(content)[:200]
        assert (b"<?xml" in start) if "svg" in kind else start.startswith(b"\x89PNG")


def test_nothing_is_loaded_from_elsewhere(page):
    parsed = Elements(page)
    for _, attributes in parsed.tags:
        for name in ("src", "href", "srcset", "action"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "default-src 'none'" in page
    outside = re.sub(r'data:image/[^"]+', "", page)
    assert not re.search(r"https?://|@import|url\(", outside)


def test_samples_can_be_read_without_javascript(page):
    """Pictures are hidden only under a class that the script sets."""
    rules = re.findall(r"([^{}]+)\{[^{}]*display: none", page.partition("<style>")[2].partition("</style>")[0])
    assert [rule.strip() for rule in rules] == [".js .frames figure", ".slider"]
    assert 'class="js"' not in page


@pytest.mark.slow
@pytest.mark.parametrize("part", ["potential", "kernel", "warnings", "versions"])
def test_what_comes_from_a_run_is_escaped(trace, part):
    given = {"warnings": [EVIL], "versions": {EVIL: EVIL}}.get(part, EVIL)
    evil = dataclasses.replace(trace, attributes={**trace.attributes, part: given})
    page = render(evil)
    assert EVIL not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert len(Elements(page).all("script")) == 1, "ours"
    for rich in (evil._repr_html_(), diagnose(evil)._repr_html_()):
        assert EVIL not in rich


def test_names_of_sites_are_escaped(trace):
    page = render(dataclasses.replace(trace, sites={EVIL: trace.positions}, snapshots={EVIL: trace.snapshots["x"]}))
    assert EVIL not in page
    assert len(Elements(page).all("script")) == 1


def test_rich_representations_tell_the_same(trace):
    rich = diagnose(trace)._repr_html_()
    assert "Verdict: believe" in rich
    assert len(Elements(rich).all("tr")) == 1 + 2 + 1 + 20
    assert "64 chains x 25" in trace._repr_html_()
    assert "HMC" in trace._repr_html_()


@pytest.mark.parametrize("event", [(8, 8), (3, 8, 8), (40,), ()], ids=["gray", "colour", "many", "scalar"])
def test_samples_of_any_event_are_shown(trace, event):
    rng = np.random.default_rng(0)
    x, seen = rng.normal(size=(64, 25, *event)), rng.normal(size=(1, 8, *event))
    parts = {"positions": x, "snapshots": {"x": seen}} if event else {"sites": {"s": x}, "snapshots": {"s": seen}}
    other = dataclasses.replace(trace, **parts, attributes={**trace.attributes, "snapshot_rungs": [10]})
    one, last = frames(other)
    kind = "pictures" if len(event) > 1 else "values"
    assert f"8 {kind} " in one.text
    assert "at noise level 9" in one.text
    assert f"64 {kind} " in last.text
    assert (one.name, last.name) == ("level-9", "draws")


@pytest.mark.long
def test_a_run_without_snapshots_or_with_draws_that_failed_has_a_page(trace):
    bare = dataclasses.replace(trace, snapshots={})
    assert "snapshots=8" in Elements(render(bare)).text
    x = trace.positions.copy()
    x[0] = np.nan
    assert "<figure" in render(dataclasses.replace(trace, positions=x))
    single = anneal(TARGET, HMC(), ladder=Ladder((19, 0), steps=1), chains=1, seed=0)
    assert "R-hat and ESS need two chains" in Elements(render(single)).text


@pytest.mark.long
def test_plots_of_both_versions_of_arviz_are_pictures(trace, monkeypatch):
    base, plots = pytest.importorskip("arviz_base"), pytest.importorskip("arviz_plots")
    newer = types.SimpleNamespace(__version__="1.0.0", from_dict=base.from_dict)
    newer.plot_rank, newer.plot_energy = plots.plot_rank, plots.plot_energy
    found = diagnose(trace)
    for library in (grouped.arviz(), newer):
        monkeypatch.setattr(grouped, "arviz", lambda library=library: library)
        ranks, names, words = grouped.plot_ranks(trace, found)
        assert sorted(names) == ["x[0]", "x[1]"]
        assert words == "4 groups of 16 chains without common ancestors"
        for figure in (ranks, grouped.plot_energies(trace)):
            assert data_uri(figure).startswith("data:image/svg+xml;base64,")


def test_relatives_are_in_one_group(trace):
    ancestor = np.tile(np.arange(64), (20, 1))
    ancestor[-1] = np.arange(64) // 3
    groups = groups_of(dataclasses.replace(trace, stats=trace.stats.assign(ancestor=(("rung", "chain"), ancestor))))
    families = [set(np.arange(64)[group] // 3) for group in groups]
    assert not any(one & other for i, one in enumerate(families) for other in families[:i])
    assert sorted(np.concatenate(groups)) == list(range(64))
    assert max(map(len, groups)) - min(map(len, groups)) <= 3


def test_bad_input_is_told_on_one_line(trace, tmp_path, monkeypatch, capsys):
    trace.save(tmp_path / "run.nc")
    (tmp_path / "text.nc").write_text("no trace")
    for arguments, words in (
        (["nowhere"], "nowhere is no run: give a folder that ppl-diffusion sample wrote"),
        (["."], "is no run"),
        (["text.nc"], "is not a trace"),
        (["run.nc", "--out", "text.nc"], "text.nc exists and is kept: give another --out"),
        (["run.nc", "--out", "no/where.html"], "mkdir -p no"),
    ):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["ppl-diffusion", "report", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr().err
        assert ended.value.code == 2
        assert words in told
        assert told.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.nc", "text.nc"]


def test_the_command_writes_the_page_beside_the_run(trace, tmp_path, monkeypatch, capsys):
    trace.save(tmp_path / "trace.nc")
    monkeypatch.setattr(sys, "argv", ["ppl-diffusion", "report", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert "report.html: open it" in capsys.readouterr().out
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    with pytest.raises(FileExistsError, match="give another --out"):
        write_report(trace, tmp_path / "report.html")


def browse(folder, page, fragment=""):
    """Return the page as Chromium shows it, and what it logs."""
    (folder / "page.html").write_text(page, encoding="utf-8")
    profile = folder / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run(
        [*command, f"{(folder / 'page.html').as_uri()}{fragment}"], capture_output=True, text=True, timeout=120
    )
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def shown(dom):
    return [a["id"] for a in Elements(dom).all("figure") if "shown" in (a.get("class") or "").split()]


@needs_chromium
@pytest.mark.slow
def test_the_slider_shows_one_level_in_a_browser(page, tmp_path):
    dom, console = browse(tmp_path, page)
    assert shown(dom) == ["draws"]
    assert 'class="js"' in dom
    assert console == ""
    dom, console = browse(tmp_path, page, "#level-9")
    assert shown(dom) == ["level-9"]
    (slider,) = Elements(dom).all("input")
    assert slider["aria-valuetext"] == "noise level 9"
    assert console == ""
    moved = page.replace(
        "</body>",
        "<script>const s = document.getElementById('slider'); s.value = 1; s.dispatchEvent(new Event('input'))</script>"
        "</body>",
    )
    assert shown(browse(tmp_path, moved)[0]) == ["level-14"], "as a hand would move it"


@needs_chromium
@pytest.mark.slow
def test_no_request_leaves_and_an_error_would_be_seen(page, tmp_path):
    """Negative control: a picture from elsewhere is refused by the page's policy, and told on the console."""
    wrong = page.replace("</main>", '<img src="http://127.0.0.1:9/picture.png" alt="from elsewhere"></main>')
    _, console = browse(tmp_path, wrong)
    assert "Content Security Policy" in console
    broken = page.replace("follow();\n})", "missing();\n})")
    assert "missing is not defined" in browse(tmp_path, broken)[1]
