"""One page of the book: an executed notebook, or words alone, by nbconvert and the template beside this module (page.html).

Whatever depends on when, where or how fast a notebook ran is left out, so a page is the same bytes every time.
"""

import html
import os
import posixpath
import re
from dataclasses import dataclass, field
from pathlib import Path

from nbconvert.exporters.templateexporter import TemplateExporter
from nbconvert.filters.highlight import Highlight2HTML
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from ..base import paths
from ..drawing.formulas import formula
from . import outputs


@dataclass(frozen=True)
class Place:
    """Where a page lies, what it is part of, and what there is to link: `figures` is the folder that holds the figures when the
    page is read, `records` are their JSON files by stem, each with the `size` of its picture in CSS pixels."""

    folder: Path
    figures: Path
    profile: str = ""
    titles: dict[str, str] = field(default_factory=dict)  # notebooks that have a page here -> their titles
    records: dict[str, dict] = field(default_factory=dict)
    explorer: bool = False  # whether the explorer's page lies beside the figures
    above: tuple[tuple[str, Path], ...] = ()  # (label, page) of what stands over this book

    def to(self, path: Path) -> str:
        """The path as it is seen from this page."""
        return Path(os.path.relpath(path, self.folder)).as_posix()

    def linked(self, url: str) -> str:
        """A link as it stands in a notebook, as this page has it: notebooks are pages, figures this run's."""
        if re.match(r"[a-z]+:|#", url):
            return url
        path, mark, part = url.partition("#")
        if path.removesuffix(".ipynb") in self.titles:
            return path.removesuffix(".ipynb") + ".html" + mark + part
        if path.startswith("../figures/"):
            return self.to(self.figures / path.removeprefix("../figures/")) + mark + part
        return self.to(paths.ROOT / posixpath.normpath(f"notebooks/{path}")) + mark + part

    def picture(self, stem: str) -> str:
        """A figure as an image with its alt text, linked and not embedded."""
        record = self.records[stem]
        width, height = record["size"]
        source = self.to(self.figures / f"{stem}.svg")
        return f'<img src="{source}" alt="{html.escape(record["alt"])}" width="{width}" height="{height}">'


class Renderer(IPythonRenderer):
    """Markdown as a page has it: formulas drawn, links as they are seen from there, headings that leave out no level."""

    def __init__(self, place: Place):
        super().__init__(escape=True)
        self.place, self.level, self.inside, self.names = place, 0, False, {}

    def heading(self, text: str, level: int, **_) -> str:
        """One `h1` a page; what an output says stands below the heading that it stands under."""
        level += self.above if self.inside else 0
        self.level = min(max(level, 2 if self.level else 1), self.level + 1)
        name = re.sub(r"<[^>]*>", "", text).replace(" ", "-")  # as Jupyter calls it, so that links of notebooks hold
        self.names[name] = self.names.get(name, 0) + 1
        again = f"-{self.names[name]}" if self.names[name] > 1 else ""
        return f'<h{self.level} id="{html.escape(html.unescape(name))}{again}">{text}</h{self.level}>\n'

    def inline_math(self, body: str) -> str:
        return formula(body)

    def block_math(self, body: str) -> str:
        return f'<div class="display">{formula(body)}</div>\n'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return super().link(text, self.place.linked(url), title)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        """A figure that is drawn further down, as a link to that; nothing where this run has not drawn it."""
        stem = Path(url).stem
        if stem not in self.place.records:
            return ""
        to = f"#{stem}" if stem[:2].isdigit() else self.place.to(self.place.figures / f"{stem}.svg")
        return f'<a class="shown" href="{to}">{self.place.picture(stem)}</a>'

    def words(self, text: str, inside: bool = False) -> str:
        """A markdown cell, or what an output says in markdown."""
        self.inside, self.above = inside, self.level
        return scrolling(MarkdownWithMath(renderer=self).render(text))


def scrolling(text: str) -> str:
    """HTML whose tables scroll in a box of their own, by keyboard too."""
    box = '<div class="scroll table" tabindex="0" role="group" aria-label="table">'
    return re.sub(r"<table\b.*?</table>", lambda found: f"{box}{found[0]}</div>", text, flags=re.DOTALL)


def page(notebook: dict, place: Place, stem: str = "index") -> bytes:
    """The page of a notebook in the format of nbformat 4 (outputs and all), in UTF-8; `stem` is its name in the book."""
    import nbformat

    cells = [outputs.shown(cell, place) for cell in notebook["cells"] if outputs.wanted(cell)]
    filters = {
        "words": Renderer(place).words,
        "scrolling": scrolling,
        "picture": place.picture,
        "coloured": Highlight2HTML(pygments_lexer="ipython3"),
    }
    exporter = TemplateExporter(template_file=str(Path(__file__).with_name("page.html")), filters=filters)
    given = {"metadata": {}, "nbformat": 4, "nbformat_minor": 4, "cells": cells}  # 5 wants an id of every cell
    text, _ = exporter.from_notebook_node(nbformat.from_dict(given), _frame(notebook, place, stem))
    return text.encode()


def title_of(notebook: dict) -> str:
    """The first heading of a notebook."""
    found = re.search(r"^# (.+)$", "\n".join("".join(cell["source"]) for cell in notebook["cells"]), re.MULTILINE)
    return found[1] if found else "untitled"


def _frame(notebook: dict, place: Place, stem: str) -> dict:
    """What stands around the cells: title, links to all pages of the book and to the two neighbours, and where it comes from."""
    links = [{"href": place.to(path), "label": label, "here": False} for label, path in place.above]
    labels = {"index": "scorecard"} | {name: name.replace("_", " ") for name in place.titles} if place.titles else {}
    links += [{"href": f"{name}.html", "label": label, "here": name == stem} for name, label in labels.items()]
    at, order = list(labels).index(stem) if labels else 0, list(labels)
    beside = [(i, arrow) for i, arrow in ((at - 1, "\u2190 {}"), (at + 1, "{} \u2192")) if 0 <= i < len(order)]
    titles = {"index": "Scorecard"} | place.titles
    frame = {
        "title": title_of(notebook),
        "links": links,
        "neighbours": [{"href": f"{order[i]}.html", "label": arrow.format(titles[order[i]])} for i, arrow in beside],
        "profile": place.profile,
    }
    if stem in place.titles:
        source = paths.NOTEBOOKS / f"{stem}.ipynb"
        frame |= {"source": place.to(source), "source_name": f"notebooks/{source.name}"}
    return frame
