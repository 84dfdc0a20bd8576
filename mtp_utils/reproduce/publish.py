"""Puts the default run's figures into figures/ and the README, and checks what was put there."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from ..base import artifacts, paths
from ..base.files import sha256, write_atomic
from ..base.locks import Stop
from ..base.records import read_table

PROFILE = "default"
BEGIN, END = "<!-- findings:begin -->", "<!-- findings:end -->"
# Text and whole numbers are compared as they are. Other numbers differ between processors and thread counts: in the
# last digits of a log-prob, and where two tokens are nearly tied, by single positions of an accuracy.
RTOL, ATOL = 0.02, 0.01
# Training carries such differences on. [measured] Between a processor without AVX-512 and bfloat16 and one that trains in
# bfloat16, the largest difference in the tables of notebooks 03 to 05 was 0.067, at the end of an interval.
TRAINED, RTOL_TRAINED, ATOL_TRAINED = ("03", "04", "05", "06", "07"), 0.05, 0.07
COUNTED = "06"  # how many passes there were depends on what was decoded
TIMED = "06_speed"  # ratios of seconds: only its text is compared


def publish() -> int:
    """Copy the figures, manifest.json and scorecard.md of a complete default run, and renew the README's table."""
    source, readme = paths.figures(PROFILE), paths.ROOT / "README.md"
    _refuse_incomplete(source)
    text = _with_findings(readme.read_text("utf-8"), (source / "scorecard.md").read_text("utf-8"))
    files = [source / name for name in (*_expected_files(_manifest(source)), "manifest.json")]
    for path in files:
        write_atomic(paths.FIGURES / path.name, path.read_bytes())
    names = {path.name for path in files}
    for path in paths.FIGURES.iterdir():
        if path.name not in names and path.suffix.lstrip(".") in artifacts.KINDS:
            path.unlink()
    write_atomic(readme, text.encode())
    print(f"published {len(files)} files to {paths.FIGURES} and the findings to {readme}")
    return 0


def check() -> int:
    """Print what differs between figures/, its manifest, the README and the default run; 1 if anything does."""
    if not (paths.FIGURES / "manifest.json").is_file():
        raise Stop("nothing is published yet: figures/manifest.json is missing; ./reproduce.sh publish makes it")
    problems = _altered(paths.FIGURES)
    readme, scorecard = (paths.ROOT / "README.md").read_text("utf-8"), paths.FIGURES / "scorecard.md"
    if scorecard.is_file() and _with_findings(readme, scorecard.read_text("utf-8")) != readme:
        problems.append(("README.md", "findings", "is not the table of figures/scorecard.md"))
    figures = _manifest(paths.FIGURES)["figures"]
    stems = [stem for stem in figures if (paths.figures(PROFILE) / f"{stem}.csv").is_file()]
    for stem in stems:
        problems += [(f"{stem}.csv", column, what) for column, what in _compare_stem(stem)]
    for name, column, what in problems:
        print(f"{name:40} {column:24} {what}")
    print(
        f"figures/: {len(figures)} figures; compared with {paths.figures(PROFILE)}: {len(stems)} tables, "
        f"numbers within {ATOL} + {RTOL} x the published value ({ATOL_TRAINED} + {RTOL_TRAINED} x where heads were trained); "
        f"differences: {len(problems)}"
    )
    return 1 if problems else 0


def compare(published: pd.DataFrame, here: pd.DataFrame, rtol: float = RTOL, atol: float = ATOL) -> list[tuple[str, str]]:
    """`(column, what differs)` between two tables, row by row in their order; empty if they agree."""
    if list(published.columns) != list(here.columns):
        return [("columns", f"{', '.join(published.columns)} | here {', '.join(here.columns)}")]
    if len(published) != len(here):
        return [("rows", f"{len(published)} | here {len(here)}")]
    found = []
    for column in published:
        a, b = published[column], here[column]
        if pd.api.types.is_float_dtype(a) and pd.api.types.is_float_dtype(b):
            same = np.isclose(b, a, rtol=rtol, atol=atol, equal_nan=True)
        else:
            same = ((a == b) | (a.isna() & b.isna())).to_numpy()
        if not same.all():
            row = int(np.argmin(same))
            found.append((column, f"{(~same).sum()} of {len(same)} rows, first {a[row]} | here {b[row]} (row {row})"))
    return found


def _compare_stem(stem: str) -> list[tuple[str, str]]:
    tables = [read_table(folder / f"{stem}.csv") for folder in (paths.FIGURES, paths.figures(PROFILE))]
    if any(table is None for table in tables):
        return [("file", "is not the one its JSON describes")]
    if stem.startswith(COUNTED):
        tables = [table.astype({c: float for c in table if c.startswith("n_")}) for table in tables]
    if stem == TIMED:
        tables = [table.select_dtypes(exclude="number") for table in tables]
    return compare(*tables, *((RTOL_TRAINED, ATOL_TRAINED) if stem.startswith(TRAINED) else (RTOL, ATOL)))


def _refuse_incomplete(source: Path) -> None:
    missing = artifacts.unfinished(PROFILE)
    if missing or not (source / "manifest.json").is_file():
        raise Stop(f"the default run is not complete, run ./reproduce.sh first: {', '.join(missing) or 'no notebooks'}")
    if altered := _altered(source):
        raise Stop(f"{altered[0][0]} of the default run {altered[0][2]}; run ./reproduce.sh again")


def _altered(folder: Path) -> list[tuple[str, str, str]]:
    """`(file, "sha256", what is wrong)` for every file that is not the one the folder's manifest describes."""
    problems, expected = [], _expected_files(_manifest(folder))
    for name, digest in expected.items():
        path = folder / name
        if not path.is_file():
            problems.append((name, "file", "is missing"))
        elif sha256(path.read_bytes()) != digest:
            problems.append((name, "sha256", "is not the one of the manifest"))
    for path in sorted(folder.glob("[0-9][0-9]_*")):
        if path.name not in expected:
            problems.append((path.name, "file", "is not in the manifest"))
    return problems


def _expected_files(manifest: dict) -> dict[str, str]:
    figures = manifest["figures"].items()
    files = {f"{stem}.{kind}": digest for stem, f in figures for kind, digest in f["outputs"].items()}
    page = {artifacts.EXPLORER: manifest["explorer_sha256"]} if "explorer_sha256" in manifest else {}
    return files | {"scorecard.md": manifest["scorecard_sha256"]} | page


def _manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text("utf-8"))


def _with_findings(readme: str, scorecard: str) -> str:
    """The README with the scorecard's table between its two markers; Stop if they are not there once each."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise Stop(f"README.md needs {BEGIN} and {END}, once each, to hold the findings")
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    table = "\n".join(line for line in scorecard.splitlines() if line.startswith("|"))
    return f"{before}{BEGIN}\n{table}\n{END}{after}"
