"""Puts finished runs' figures into figures/, their book into docs/ and their findings into the README, and checks what was put
there."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from ..base import artifacts, paths
from ..base.files import read_json, sha256, write_atomic, write_json
from ..base.locks import Stop
from ..base.records import read_table
from ..base.run import EXPLORATORY
from . import book, overview

BEGIN, END = "<!-- findings:begin -->", "<!-- findings:end -->"
FIRST = ("00", "01", "02")  # notebooks without which nothing of a pretrained model is published
# Text and whole numbers are compared as they are. Other numbers differ between processors and thread counts: in the
# last digits of a log-prob, and where two tokens are nearly tied, by single positions of an accuracy.
RTOL, ATOL = 0.02, 0.01
# Training carries such differences on. [measured] Between a processor without AVX-512 and bfloat16 and one that trains in
# bfloat16, the largest difference in the tables of notebooks 03 to 05 was 0.067, at the end of an interval.
TRAINED, RTOL_TRAINED, ATOL_TRAINED = ("03", "04", "05", "06", "07"), 0.05, 0.07
TIED = "00_offsets"  # which of two tokens that are nearly tied is the likelier: its probability is compared
SHARES, FEWEST = ("top1", "top5"), 20  # of fewer positions a single one that is nearly tied moves a share by more than is allowed
COUNTED = "06"  # how many passes there were depends on what was decoded
TIMED = "06_speed"  # ratios of seconds: only its text is compared
JUDGED = "07_scorecard"  # its sentences have the numbers in them, which are compared as numbers
SETTINGS = ("temperature",)  # columns of fractions that say what was asked, not what was measured
NOT_COMPARED = {TIED: ["token", "right"], JUDGED: ["contrast", "text"]}


def publish() -> int:
    """Copy figures, manifest.json and scorecard.md of the default run, and below it those of the pretrained models' runs, where
    they are complete, with their executed notebooks as pages in docs/; draw the figure over all of them and renew the README's
    table.

    A pretrained model's run takes hours: what of it is finished is published, from notebook 02 on, and the others are left out.
    """
    readme, refused, done = paths.ROOT / "README.md", [], []
    _with_findings(readme.read_text("utf-8"), "")
    for name, (folder, profile) in overview.RUNS.items():
        try:
            done.append((name, folder, profile, _ready(profile), book.for_docs(name)))
        except Stop as stop:
            refused.append(f"{name}: {stop}")
    if not done:
        raise Stop(refused[0])
    for name, folder, profile, manifest, pages in done:
        book.put(book.docs(name), pages)
        manifest["book"] = {file: sha256(page) for file, page in pages.items()}
        print(f"{name}: {_copy(profile, manifest, paths.FIGURES / folder)} files to {paths.FIGURES / folder}")
        print(f"{name}: {len(pages)} pages to {book.docs(name)}")
    print("\n".join(f"{line}; left as it is published" for line in refused))
    overview.draw(paths.FIGURES)
    book.put(paths.ROOT / "docs", book.front())
    write_atomic(readme, _with_findings(readme.read_text("utf-8"), overview.findings(paths.FIGURES)).encode())
    print(f"the findings are in {readme}")
    return 0


def _copy(profile: str, manifest: dict, target: Path) -> int:
    """The files of a run that its manifest names, and the manifest; others of that kind are removed there. Their number."""
    source, names = paths.figures(profile), list(_expected_files(manifest))
    for name in names:
        write_atomic(target / name, (source / name).read_bytes())
    write_json(target / "manifest.json", manifest)
    kept = {*names, "manifest.json", *(f"{overview.STEM}.{kind}" for kind in artifacts.KINDS)}
    for path in target.iterdir():
        if path.name not in kept and path.suffix.lstrip(".") in artifacts.KINDS:
            path.unlink()
    return len(names) + 1


def check() -> int:
    """Print what differs between figures/, docs/, their manifests, the README and the runs here; 1 if anything does."""
    folders = overview.published(paths.FIGURES)
    if not folders:
        raise Stop("nothing is published yet: figures/manifest.json is missing; ./reproduce.sh publish makes it")
    problems, counts = [], []
    for name, folder in folders.items():
        here = paths.figures(overview.RUNS[name][1])
        found = _altered(folder)
        figures = _manifest(folder)["figures"]
        stems, part = [stem for stem in figures if (here / f"{stem}.csv").is_file()], bool(_left_out(overview.RUNS[name][1]))
        for stem in stems:
            found += [(f"{stem}.csv", column, what) for column, what in _compare_stem(stem, folder, here, part=part)]
        problems += [((folder / file).relative_to(paths.FIGURES).as_posix(), *rest) for file, *rest in found]
        rows = " (the rows that both have: this run left out what no verdict needs)" if part else ""
        counts.append(f"{name}: {len(figures)} figures, {len(stems)} tables compared with {here}{rows}")
    readme = (paths.ROOT / "README.md").read_text("utf-8")
    if not any(name.endswith("scorecard.md") for name, *_ in problems):
        if _with_findings(readme, overview.findings(paths.FIGURES)) != readme:
            problems.append(("README.md", "findings", "is not the table of the published scorecards"))
        problems += overview.outdated(paths.FIGURES)
    problems += book.altered()
    for name, column, what in problems:
        print(f"{name:40} {column:24} {what}")
    print("\n".join(counts))
    print(
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


def _in_both(published: pd.DataFrame, here: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows that two tables both have, by all columns but the measured ones: text, whole numbers (a mean over more trainings
    counts more positions, and is another row), and SETTINGS. As they are where their columns differ."""
    if list(published.columns) != list(here.columns):
        return [published, here]
    by = [c for c in published if c in SETTINGS or not pd.api.types.is_float_dtype(published[c])]
    tables, keys = (published, here), [pd.MultiIndex.from_frame(table[by].astype(str)) for table in (published, here)]
    both = keys[0].intersection(keys[1])
    return [table[key.isin(both)].reset_index(drop=True) for table, key in zip(tables, keys, strict=True)]


def _compare_stem(stem: str, *folders: Path, part: bool = False) -> list[tuple[str, str]]:
    """part: the second folder's run left out what no verdict needs, so that rows which it lacks are no difference."""
    tables = [read_table(folder / f"{stem}.csv") for folder in folders]
    if any(table is None for table in tables):
        return [("file", "is not the one its JSON describes")]
    if stem.startswith(COUNTED):
        tables = [table.astype({c: float for c in table if c.startswith("n_")}) for table in tables]
    elif all({"metric", "n_positions"} <= set(table) for table in tables):
        few = [table["metric"].isin(SHARES) & (table["n_positions"] < FEWEST) for table in tables]
        tables = [table[~left].reset_index(drop=True) for table, left in zip(tables, few, strict=True)]
    if stem == TIMED:
        tables = [table.select_dtypes(exclude="number") for table in tables]
    tables = [table.drop(columns=NOT_COMPARED.get(stem, [])) for table in tables]
    tables = _in_both(*tables) if part else tables
    return compare(*tables, *((RTOL_TRAINED, ATOL_TRAINED) if stem.startswith(TRAINED) else (RTOL, ATOL)))


def _left_out(profile: str) -> list[str]:
    """The notebooks of a run that left out what no verdict needs."""
    entries = {p.stem: read_json(paths.notebooks(profile) / f"{p.stem}.finished.json") for p in paths.all_notebooks()}
    return [name for name, entry in entries.items() if any(EXPLORATORY in line for line in entry.get("skipped", ()))]


def _ready(profile: str) -> dict:
    """The manifest of a run that may be published, without the figures of unfinished notebooks; Stop where there is none."""
    source, missing = paths.figures(profile), artifacts.unfinished(profile)
    asked = [name for name in missing if profile == "default" or name[:2] in FIRST]
    if asked or not (source / "manifest.json").is_file():
        raise Stop(f"the {profile} run is not complete, run ./reproduce.sh first: {', '.join(asked) or 'no notebooks'}")
    if profile == "default" and (part := _left_out(profile)):
        raise Stop(f"the {profile} run lacks what no verdict needs, run ./reproduce.sh overnight first: {', '.join(part)}")
    if altered := _altered(source):
        raise Stop(f"{altered[0][0]} of the {profile} run {altered[0][2]}; run ./reproduce.sh again")
    manifest = _manifest(source)
    figures = {stem: figure for stem, figure in manifest["figures"].items() if figure["notebook"] not in missing}
    if any(name.startswith(book.PAGE) for name in missing):
        manifest.pop("explorer_sha256", None)
    return manifest | {"figures": figures}


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


def _with_findings(readme: str, table: str) -> str:
    """The README with the table between its two markers; Stop if they are not there once each."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise Stop(f"README.md needs {BEGIN} and {END}, once each, to hold the findings")
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{table}\n{END}{after}"
