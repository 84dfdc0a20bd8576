"""What of a cell's outputs a reader came for: tables, figures, sentences; not what libraries and clocks had to say."""

import ast
import os
import re
import sys
from pathlib import Path

from ..base import artifacts, paths

FIGURE = "<Figure size"  # how a figure stands in an output: its files lie beside
CLOCK = re.compile(r"[,;][^,;\n]*\b\d[\d.]* s$", re.MULTILINE)  # the last part of a line, if it says how many seconds


def wanted(cell: dict) -> bool:
    """False for what papermill put in, and for empty cells."""
    return bool("".join(cell["source"]).strip()) and "injected-parameters" not in cell["metadata"].get("tags", ())


def shown(cell: dict, place) -> dict:
    """The cell with its source as text and, of a code cell, `shown`: what the page has of its outputs, in order."""
    source = "".join(cell["source"]).rstrip()
    plain = {"cell_type": cell["cell_type"], "source": source, "metadata": {}}
    if cell["cell_type"] != "code":
        return plain
    figures = [_figure(stem, by, place) for stem, by in figures_of(source).items() if stem in place.records]
    parts = []
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "".join(data.get("text/plain", "")).startswith(FIGURE):
            parts += figures[:1]  # those a cell shows come in the order in which it saved them
            figures = figures[1:]
        elif part := _part(output.get("name"), output.get("text", ""), data):
            parts.append(part)
    parts += figures
    if "run.save_page(" in source and place.explorer:
        parts.append({"kind": "page", "href": place.to(place.figures / artifacts.EXPLORER)})
    return plain | {"execution_count": None, "outputs": [], "shown": parts}


def _part(stream: str | None, text: list | str, data: dict) -> dict | None:
    """One output as the page has it, or None: stderr, bars, frames, and the plain text of what has a table."""
    if stream == "stdout":
        said = cleaned("".join(text))
        return {"kind": "text", "text": said} if said else None
    if "<table" in (table := "".join(data.get("text/html", ""))):
        kept = re.sub(r"<(style|script)\b.*?</\1>", "", table, flags=re.DOTALL)
        return {"kind": "table", "html": cleaned(re.sub(r' (border|valign|style)="[^"]*"', "", kept))}
    if "text/markdown" in data:
        return {"kind": "words", "text": cleaned("".join(data["text/markdown"]))}
    other = {"text/html", "application/vnd.jupyter.widget-view+json"} & set(data)
    if "text/plain" in data and not other:
        return {"kind": "text", "text": cleaned("".join(data["text/plain"]))}
    return None


def cleaned(text: str) -> str:
    """Text without what a terminal overwrites, colours, folders of this machine, and seconds at the end of a line."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", re.sub(r"[^\n]*\r(?!\n)", "", text))
    return CLOCK.sub("", _roots().sub("", text)).strip("\n")


def _roots() -> re.Pattern:
    """Folders of this machine in front of a path, the innermost first."""
    homes = {os.path.expanduser("~"), sys.prefix, str(paths.ROOT), str(paths.build("").resolve())}
    longest = sorted((home for home in homes if len(Path(home).parts) > 1), key=lambda home: (-len(home), home))
    return re.compile(r"(?<![\w.])(?:" + "|".join(map(re.escape, longest)) + r")(?:/|(?!\w))")


def figures_of(source: str) -> dict[str, tuple[str, str] | None]:
    """Stem of each figure that a cell saves -> module and name of the function that draws it, where the cell says so."""
    try:
        nodes = sorted(ast.walk(ast.parse(source)), key=lambda node: getattr(node, "lineno", 0))
    except SyntaxError:  # a magic
        return {}
    drawn, found = {}, {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and isinstance(node.targets[0], ast.Name):
            called = node.value.func
            if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
                drawn[node.targets[0].id] = called.value.id, called.attr
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "save_figure" and len(node.args) > 1:
            figure, stem = node.args[:2]
            if isinstance(stem, ast.Constant):
                found[stem.value] = drawn.get(getattr(figure, "id", ""))
    return found


def _figure(stem: str, by: tuple[str, str] | None, place) -> dict:
    drawn = None
    if by and (line := _line_of(path := paths.PACKAGE / "drawing" / f"{by[0]}.py", by[1])):
        drawn = {"name": ".".join(by), "href": f"{place.to(path)}#L{line}"}
    return {"kind": "figure", "stem": stem, "base": place.to(place.figures / stem), "drawn": drawn}


def _line_of(path: Path, name: str) -> int | None:
    """The line on which a module defines a function, or None."""
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return next((i for i, line in enumerate(lines, 1) if line.startswith(f"def {name}(")), None)
