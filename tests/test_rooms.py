"""The architecture: nine rooms in an order, no circle, no module that holds two things, and a README that lists what is there."""

import ast
import importlib
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from toy_run import ROOT

import mtp_utils
from mtp_utils import ROOMS

PACKAGE = ROOT / "mtp_utils"
MODULES = {".".join(("mtp_utils", *p.relative_to(PACKAGE).with_suffix("").parts)): p for p in sorted(PACKAGE.rglob("*.py"))}
MOST_LINES = 250  # a module that outgrows them holds two things


def imports(name: str, source: str):
    """(line, module or room of this package) of every import in a module, those inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            above = name.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base) for a in node.names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)


def out_of_order(sources: dict[str, str]) -> list[str]:
    """The imports, by file and line, of a room that does not stand below, of a room as a whole, and one that closes a circle."""
    wrong, below = [], {name: {} for name in sources}
    for name, source in sources.items():
        for line, target in ((line, t) for line, t in imports(name, source) if t.startswith("mtp_utils.")):
            here, there, where = name.split(".")[1], target.split(".")[1], f"{name.replace('.', '/')}.py:{line}"
            below[name][target] = where
            if ROOMS.index(there) > ROOMS.index(here):
                wrong.append(f"{where}: {here} imports {target}, which does not stand below it")
            elif target not in sources:
                wrong.append(f"{where}: imports {target}, a room as a whole; name the module")
    try:
        TopologicalSorter(below).prepare()
    except CycleError as error:
        first, second, *_ = error.args[1]
        wrong.append(f"{below[second][first]}: {second} imports {first}, which imports it, itself or through others")
    return wrong


def test_a_room_imports_only_what_stands_below_it_and_no_two_modules_import_each_other():
    assert out_of_order({name: path.read_text("utf-8") for name, path in MODULES.items()}) == []


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("base.paths", "from ..text.blocks import CONTEXT", "base/paths.py:1: base imports mtp_utils.text.blocks"),
        ("heads.spec", "def f():\n    import mtp_utils.findings.arms", "heads/spec.py:2: heads imports mtp_utils.findings.arms"),
        ("marginal.rows", "import mtp_utils.drawing.plots", "marginal/rows.py:1: marginal imports mtp_utils.drawing.plots"),
        ("text.grammar.lexicon", "from .translation import pairs", "which imports it, itself or through others"),
        ("findings.scoring", "from .gaps import scored", "which imports it, itself or through others"),
        ("decoding.rates", "from ..marginal import future_log_probs", "decoding/rates.py:1: imports mtp_utils.marginal, a room"),
    ],
)
def test_the_line_that_breaks_the_order_is_named(name, line, message):
    sources = {name: path.read_text("utf-8") for name, path in MODULES.items()}
    sources[f"mtp_utils.{name}"] = f"{line}\n{sources[f'mtp_utils.{name}']}"
    assert any(message in wrong for wrong in out_of_order(sources))


def test_no_module_holds_two_things():
    assert {name: n for name, path in MODULES.items() if (n := len(path.read_text("utf-8").splitlines())) > MOST_LINES} == {}


def test_the_package_shows_its_rooms_and_nothing_else():
    assert {p.name for p in PACKAGE.iterdir()} - {"__pycache__"} == {"__init__.py", *ROOMS}
    tests = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir()} - {"__pycache__"}
    assert tests == set(ROOMS)


def test_the_readme_lists_the_rooms_in_their_order_a_line_each():
    part = (ROOT / "README.md").read_text("utf-8").split("\nmtp_utils/ ")[1].split("\nfigures/ ")[0]
    assert tuple(re.findall(r"^  (\w+)/ +\S", part, re.MULTILINE)) == ROOMS and part.count("\n") == len(ROOMS)


@pytest.mark.parametrize("room", [*ROOMS, "text.grammar"])
def test_a_room_says_what_it_is_for_and_hands_on_names_that_are_there(room):
    here = importlib.import_module(f"mtp_utils.{room}")
    statements = ast.parse(Path(here.__file__).read_text("utf-8")).body
    assert [type(x) for x in statements] == [ast.Expr, ast.ImportFrom, ast.Assign] and len(here.__doc__.splitlines()) <= 8
    modules = {p.stem for p in Path(here.__file__).parent.iterdir()}
    assert here.__all__ and not modules & set(here.__all__)  # a module of the same name would take its place
    assert all(getattr(here, name).__doc__ for name in here.__all__ if callable(getattr(here, name)))
    with pytest.raises(AttributeError, match=f"{here.__all__[0]}"):
        here.no_such_name  # noqa: B018


LIGHT = [*ROOMS, "base.artifacts", "base.run", "base.runtime", "drawing.explorer", "drawing.plots", "drawing.head_plots"]
LIGHT += ["drawing.speed_plots", "drawing.titles", "findings.claims", "findings.marginal_claims", "findings.head_claims"]
LIGHT += ["findings.metrics", "findings.speed_tables", "reproduce.__main__", "reproduce.publish", "reproduce.running"]


def test_reading_tables_drawing_and_the_runner_do_without_torch():
    code = f"import sys, importlib\nfor m in {LIGHT}: importlib.import_module('mtp_utils.' + m)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_every_name_that_readme_and_notebooks_import_is_a_rooms_own_or_a_module_of_it():
    text = (ROOT / "README.md").read_text("utf-8") + (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text += path.read_text("utf-8").replace("\\n", "\n").replace('    "', "").replace('",', "")
    found = re.findall(r"^from (mtp_utils\.[\w.]+) import ([\w, ]+)$", text, re.MULTILINE)
    assert len(found) > 40
    for module, names in found:
        here = importlib.import_module(module)
        for name in names.split(", "):
            public = name in getattr(here, "__all__", dir(here))
            assert public or f"{module}.{name}" in MODULES, f"{module} has no {name}"
    assert mtp_utils.__version__
