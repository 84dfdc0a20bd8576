"""docs/ says what is so: what its pages link is there, and the numbers they quote stand in the tables that they name."""

import csv
import re

import pytest
from toy_run import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))
QUOTING = [page.read_text("utf-8") for page in PAGES if page.stem != "log"]  # a log's numbers are those of their day
NAMED = [row for text in QUOTING for row in re.findall(r'^\[([\w-]+)\]: (\S+ "[^"]+")$', text, re.M)]
ROWS = dict(NAMED)
QUOTED = [pair for text in QUOTING for pair in re.findall(r"\[([^\[\]]+)\]\[([\w-]+)\]", text)]
TIMED = 0.1  # what a table of seconds may have moved since it was quoted


def value_of(where: str) -> float:
    """The number that `PATH "key=value; ...; column=NAME"` names: that column (`value`) of the one row with these values."""
    path, keys = re.fullmatch(r'(\S+) "(.+)"', where).groups()
    wanted = dict(part.split("=", 1) for part in keys.split("; "))
    column = wanted.pop("column", "value")
    with open(ROOT / "docs" / path, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if all(row[k] == v for k, v in wanted.items())]
    assert len(rows) == 1, f"{where} names {len(rows)} rows"
    return float(rows[0][column])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_links_are_there(page):
    text = page.read_text("utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)", text, re.M)
    files = [link.split("#")[0] for link in links if not re.match(r"https?:|#", link)]
    assert files
    assert [file for file in files if not (page.parent / file).exists()] == []


@pytest.mark.parametrize("said, key", QUOTED, ids=[key for _, key in QUOTED])
def test_a_quoted_number_is_the_tables(said, key):
    found = value_of(ROWS[key])
    half = 0.5 * 10.0 ** -len(said.partition(".")[2])
    assert abs(float(said) - found) <= max(half, TIMED * found * ("06_speed" in ROWS[key])) + 1e-9, f"{said}: now {found:.4f}"


def test_every_named_row_is_quoted_and_pitfalls_have_a_figure_or_table_each():
    parts = (ROOT / "docs/pitfalls.md").read_text("utf-8").split("\n## ")[1:]
    assert {key for _, key in QUOTED} == set(ROWS) and len(NAMED) == len(ROWS)
    assert [part.split("\n")[0] for part in parts if not re.search(r"\]\(\.\./(figures|benchmarks)/", part)] == []
