"""The site is correct: its code runs, its figures are those of the result files, and its diagrams are those of the
code."""

from __future__ import annotations

import doctest
import html
import importlib
import pkgutil
import re
import shlex
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from typer.main import get_command

import bridges
import ppl_diffusion
from benchmarks.harness import RESULTS
from benchmarks.report import PAGES, ROOMS, render
from bridges.terminal import commands as cli

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
ALL_PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
WITH_CODE = [page for page in ALL_PAGES[1:] if "```python" in page.read_text(encoding="utf-8")]  # README: test_readme
DIAGRAMS = [DOCS / "images" / "classes.dot", DOCS / "images" / "sampling.dot"]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def run(text: str, name: str) -> dict:
    """Run all blocks of Python of a page, in one namespace; warnings are errors."""
    names: dict = {}
    for block in re.finditer(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        code = "\n" * text[: block.start(1)].count("\n") + block.group(1)  # errors tell the line of the page
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            exec(compile(code, name, "exec"), names)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=named)
def test_python_of_a_page_runs_as_written(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(page.read_text(encoding="utf-8"), named(page))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\nx = 1\n```\ntext\n```python\nx.missing\n```\n", AttributeError),
        ("```python\nimport warnings\nwarnings.warn('told')\n```\n", UserWarning),
        ("```python\nassert 1 == 2\n```\n", AssertionError),
    ],
)
def test_a_page_with_a_broken_block_fails(text, error):
    with pytest.raises(error):
        run(text, "page")


def test_every_page_is_in_the_navigation_and_nothing_else_is():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def listed(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in listed(part)]

    assert sorted(listed(settings["nav"])) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", ALL_PAGES, ids=named)
def test_what_a_page_points_to_exists(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        assert (page.parent / path).stat().st_size > 5_000, path
    for path in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#:]+?)(?:#[^)]*)?\)", text):
        assert (page.parent / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_figures_of_a_page_are_those_of_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert render(text) == text, "python -m benchmarks.report"


def test_every_table_of_results_is_on_a_page_and_a_stale_one_is_rendered_anew():
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    marks = [name for text in texts for name in re.findall(r"<!-- (\w+) -->", text)]
    made = {name for room in ROOMS for name in vars(room) if (RESULTS / f"{name}.json").is_file()}
    assert set(marks) - {"end"} == made
    assert marks.count("end") == len(made) == len(marks) / 2
    stale = next(text for text in texts if "<!-- mixing -->" in text).replace("| NUTS | 1.", "| NUTS | 2.")
    assert render(stale) in texts
    assert render(stale) != stale


@pytest.mark.parametrize("page", ALL_PAGES, ids=named)
def test_commands_of_a_page_exist(page):
    command = get_command(cli.app)
    for line in re.findall(r"^ppl-diffusion (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
        name, *arguments = shlex.split(line, comments=True)
        command.commands[name].make_context(name, arguments)


def modules(package: ModuleType) -> list[str]:
    return [package.__name__, *(m.name for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}."))]


MODULES = [*modules(ppl_diffusion), *modules(bridges)]


def classes() -> dict[str, type]:
    """All classes by name; of those of one name, which are kernels of different libraries, BlackJAX's."""
    found: dict[str, type] = {}
    for name in MODULES:
        for key, value in vars(importlib.import_module(name)).items():
            if isinstance(value, type) and value.__module__.split(".")[0] in ("ppl_diffusion", "bridges"):
                found.setdefault(key, value)
    return found


def generalisations(diagram: str) -> list[tuple[str, str]]:
    """Pairs (class, more general class) of the edges with a triangle."""
    solid = diagram.partition("edge [arrowhead=empty")[2].partition("edge [")[0]
    return re.findall(r"(\w+) -> (\w+)", solid)


def wrong_generalisations(diagram: str) -> list[tuple[str, str]]:
    known = classes()
    pairs = generalisations(diagram)
    protocols = {"Kernel": "bind"}
    return [
        (one, general)
        for one, general in pairs
        if not (hasattr(known[one], protocols[general]) if general in protocols else general in bases(known[one]))
    ]


def bases(kind: type) -> list[str]:
    return [base.__name__ for base in kind.__mro__[1:]]


@pytest.mark.parametrize("path", DIAGRAMS, ids=named)
def test_class_diagrams_are_those_of_the_code(path):
    diagram = path.read_text(encoding="utf-8")
    boxes = re.findall(r'^ +(\w+) \[label="\{?\1\|', diagram, flags=re.MULTILINE)
    assert len(boxes) > 10
    assert set(boxes) <= set(classes())
    assert {one for pair in generalisations(diagram) for one in pair} <= set(boxes)
    assert len(generalisations(diagram)) > 5
    assert not wrong_generalisations(diagram)


def test_a_wrong_class_diagram_is_noticed():
    diagram = DIAGRAMS[0].read_text(encoding="utf-8").replace("Product -> Composite", "Product -> Leaf")
    assert wrong_generalisations(diagram) == [("Product", "Leaf")]


@pytest.mark.parametrize("path", [*DIAGRAMS, DOCS / "images" / "flow.dot"], ids=named)
def test_pictures_of_diagrams_are_those_of_their_sources(path):
    """Every word of a label is in the picture; ``dot -Tsvg`` draws it again."""
    drawn = path.with_suffix(".svg").read_text(encoding="utf-8")
    shown = html.unescape(" ".join(re.findall(r"<text[^>]*>(.*?)</text>", drawn)))
    source = re.sub(r"//.*", "", path.read_text(encoding="utf-8"))
    for label in re.findall(r'label="(.*?)"', source):
        for word in re.split(r"\\l|\\n|[{}| ]", label):
            assert word in shown, word


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_run(name):
    tried = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert not tried.failed


def test_there_are_examples_in_docstrings_and_a_wrong_one_fails():
    finder = doctest.DocTestFinder()
    examples = [e for name in MODULES for t in finder.find(importlib.import_module(name)) for e in t.examples]
    assert len(examples) >= 20
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    assert doctest.DocTestRunner(verbose=False).run(wrong, out=lambda _: None).failed == 1
