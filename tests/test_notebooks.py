"""How the notebooks are committed: stripped, parametrised, and without what belongs elsewhere."""

import ast
import json
import os
import re
import subprocess
import sys

import pytest
from toy_run import ROOT, cell, write_notebook

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FORBIDDEN = {r"^\s*[%!]": "a magic or shell line", r"\bchdir\b": "chdir", r"[\"']cuda": "a device string"}
FORBIDDEN |= {r"pip install": "an installation", r"^class ": "a class"}
MOST_LINES = 20  # of a code cell: what needs more is a function of findings/, with a docstring


def problems(notebook: dict, stem: str) -> list[str]:
    """What is wrong with a notebook, in words."""
    cells, meta = notebook["cells"], notebook["metadata"]
    code = [c for c in cells if c["cell_type"] == "code"]
    sources = ["".join(c["source"]) for c in code]
    found = [] if re.fullmatch(r"\d\d_[a-z0-9_]+", stem) else ["its name is not NN_name"]
    if cells[0]["cell_type"] != "markdown" or not "".join(cells[0]["source"]).startswith("# "):
        found.append("it does not begin with a title")
    if any(c["outputs"] or c["execution_count"] for c in code):
        found.append("it has outputs")
    if meta.get("kernelspec", {}).get("name") != "python3":
        found.append("its kernel is not python3")
    if "widgets" in meta or "papermill" in meta:
        found.append("it has metadata of a run")
    if sources[-1].strip() != "run.finish()" or cells[-1] is not code[-1]:
        found.append("its last cell is not run.finish()")
    if any(len(source.splitlines()) > MOST_LINES for source in sources):
        found.append(f"it has a cell of more than {MOST_LINES} lines")
    for pattern, what in FORBIDDEN.items():
        if any(re.search(pattern, source, re.MULTILINE) for source in sources):
            found.append(f"it has {what}")
    tagged = [s for c, s in zip(code, sources, strict=True) if "parameters" in c["metadata"].get("tags", ())]
    return found + (parameter_problems(tagged[0]) if len(tagged) == 1 else [f"{len(tagged)} cells of parameters"])


def parameter_problems(source: str) -> list[str]:
    """Papermill reads `name = literal`, one per line, and needs the profile."""
    found = [] if re.search(r"^profile = None\b", source, re.MULTILINE) else ["no `profile = None`"]
    lines = [line for line in source.splitlines() if line.strip() and not line.startswith("#")]
    for line in lines:
        try:
            (statement,) = ast.parse(line).body
            ast.literal_eval(statement.value)
            assert isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
        except (AssertionError, AttributeError, SyntaxError, ValueError):
            found.append(f"no literal on a line of its own: {line}")
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_as_the_runner_and_the_reader_need_it(path):
    assert problems(json.loads(path.read_text("utf-8")), path.stem) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_figures_a_notebook_shows_are_published(path):
    manifest = ROOT / "figures" / "manifest.json"
    if not manifest.is_file():
        pytest.skip("nothing is published yet")
    text = "".join("".join(c["source"]) for c in json.loads(path.read_text("utf-8"))["cells"])
    shown = set(re.findall(r"\.\./figures/([\w-]+)\.png", text))
    published = json.loads(manifest.read_text("utf-8"))["figures"]
    assert shown <= set(published)
    assert shown or not any(entry["notebook"] == path.stem for entry in published.values())


def opened(source: str, *flags: str) -> subprocess.CompletedProcess:
    """The code run where a notebook opened by hand looks for modules, with this interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, *flags, "-c", source]
    return subprocess.run(command, cwd=ROOT / "notebooks", env=environment, capture_output=True, text=True)


def test_every_notebook_says_which_interpreter_is_wanted_where_it_is_opened_with_a_bare_one():
    imports = {p.stem: "".join(json.loads(p.read_text("utf-8"))["cells"][2]["source"]) for p in NOTEBOOKS}
    assert {source.splitlines()[0].split("  #")[0] for source in imports.values()} == {"import mtp_utils"}
    done = opened(imports["00_start_here"], "-S")  # it sees the standard library alone
    *_, said = done.stderr.splitlines()
    assert done.returncode and said.startswith(f"ImportError: {sys.executable} has no accelerate, pandas,")
    assert f"{ROOT}/.venv/bin/python" in said and "./reproduce.sh lab" in said


def test_a_notebook_uses_the_package_beside_it_whether_it_is_installed_or_not():
    done = opened("import mtp_utils\nfrom mtp_utils.base import paths\nprint(mtp_utils.__file__, paths.ROOT)")
    assert done.stdout.split() == [str(ROOT / "mtp_utils" / "__init__.py"), str(ROOT)]


def test_the_notebooks_have_numbers_of_their_own():
    numbers = [path.name[:2] for path in NOTEBOOKS]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: n["cells"][1]["outputs"].append({}), "it has outputs"),
        (lambda n: n["cells"][1].update(execution_count=1), "it has outputs"),
        (lambda n: n["metadata"]["kernelspec"].update(name="mine"), "its kernel is not python3"),
        (lambda n: n["metadata"].update(widgets={}), "it has metadata of a run"),
        (lambda n: n["cells"].append(cell("1 + 1")), "its last cell is not run.finish()"),
        (lambda n: n["cells"].insert(2, cell("!pip install x")), "it has an installation"),
        (lambda n: n["cells"].insert(2, cell("%cd x")), "it has a magic or shell line"),
        (lambda n: n["cells"].insert(2, cell("class A:\n    pass")), "it has a class"),
        (lambda n: n["cells"].insert(2, cell("x = 1\n" * 21)), "it has a cell of more than 20 lines"),
        (lambda n: n["cells"].pop(0), "it does not begin with a title"),
        (lambda n: n["cells"].pop(1), "0 cells of parameters"),
        (lambda n: n["cells"][1].update(source="profile = None; n = 2"), "no literal on a line of its own"),
        (lambda n: n["cells"][1].update(source="profile = None\nn = 2 * m"), "no literal on a line of its own"),
        (lambda n: n["cells"][1].update(source="n = 2"), "no `profile = None`"),
    ],
)
def test_each_rule_finds_the_notebook_that_breaks_it(change, message, tmp_path):
    notebook = json.loads(write_notebook(tmp_path, "01_toy").read_text())
    assert problems(notebook, "01_toy") == []
    change(notebook)
    assert any(message in problem for problem in problems(notebook, "01_toy"))
