"""The book: the executed notebooks of a run as static pages, the scorecard in front; below build/, and published in docs/."""

import json
import struct
from pathlib import Path

from ..base import artifacts, paths
from ..base.files import read_json, sha256, write_atomic
from ..base.locks import Stop
from . import overview, pages

MOST = 3_000_000  # bytes of a published book, without the figures that it links
PAGE = "07"  # the notebook that makes the explorer's page
DPI = 200  # of the figures' PNG files, against 96 CSS pixels an inch
BESIDE = {  # pages in docs/ that are written by hand -> what they are
    "findings.md": "the findings, model by model: the numbers behind the table below, and what they do not show",
    "log.md": "a log of what was tried and did not work, or did not matter",
    "pitfalls.md": "pitfalls for readers of numbers about multi-token prediction",
}
FRONT = """# How well does a next-token model predict the tokens after next?

The executed notebooks of every published run, with their tables, figures, sentences and verdicts: a book for each. Code is folded
behind a line that says how much there is.

{books}

![overview](../figures/overview.png)

## What was found

{findings}
"""


def book() -> int:
    """Render what is finished of every run here to `build/<profile>/book/`."""
    found = {folder.parent.name for folder in paths.build("").glob("*/notebooks")}
    done = [profile for profile in sorted(found) if finished(profile)]
    if not done:
        raise Stop("no notebook has been run to its end yet: ./reproduce.sh first")
    for profile in done:
        folder = paths.build(profile) / "book"
        rendered = render(profile, profile, folder, paths.figures(profile))
        put(folder, rendered)
        print(f"{profile}: {len(rendered)} pages, {sum(map(len, rendered.values())) / 1e6:.2f} MB: {folder / 'index.html'}")
    return 0


def finished(profile: str) -> list[str]:
    """The notebooks that were executed to their end under a profile, as they are now."""
    missing, folder = artifacts.unfinished(profile), paths.notebooks(profile)
    return [p.stem for p in paths.all_notebooks() if p.stem not in missing and (folder / p.name).is_file()]


def render(name: str, profile: str, folder: Path, figures: Path, above: tuple = ()) -> dict[str, bytes]:
    """The pages of a run by file name: its scorecard (index.html), and each finished notebook. They are made for `folder`, to
    be read beside the figures in `figures`."""
    executed = {stem: json.loads((paths.notebooks(profile) / f"{stem}.ipynb").read_text("utf-8")) for stem in finished(profile)}
    titles = {stem: pages.title_of(notebook) for stem, notebook in executed.items()}
    drawn = [stem for notebook in executed for stem in _entry(profile, notebook)["figures"]]
    records = {stem: _record(paths.figures(profile), stem) for stem in drawn}
    explorer = any(stem.startswith(PAGE) for stem in titles) and (paths.figures(profile) / artifacts.EXPLORER).is_file()
    place = pages.Place(folder, figures, profile, titles, records, explorer, above)
    found = {"index.html": pages.page(_words(_index(name, place)), place)}
    return found | {f"{stem}.html": pages.page(notebook, place, stem) for stem, notebook in executed.items()}


def put(folder: Path, rendered: dict[str, bytes]) -> None:
    """Write the pages, and remove those of an earlier rendering that are none any more."""
    for name, data in rendered.items():
        write_atomic(folder / name, data)
    for path in folder.glob("*.html"):
        if path.name not in rendered:
            path.unlink()


def docs(name: str) -> Path:
    """Folder of a published run's book."""
    return paths.ROOT / "docs" / (overview.RUNS[name][0] or name)


def for_docs(name: str) -> dict[str, bytes]:
    """The pages of a run as docs/ has them; Stop where they are too much for a repository."""
    folder, profile = overview.RUNS[name]
    above = (("all models", paths.ROOT / "docs" / "index.html"),)
    rendered = render(name, profile, docs(name), paths.FIGURES / folder, above)
    if (size := sum(map(len, rendered.values()))) > MOST:
        raise Stop(f"the book of {name} has {size:,} bytes, at most {MOST:,} are published: what does a notebook print?")
    return rendered


def front() -> dict[str, bytes]:
    """docs/index.html: all published books, and the findings over all of them."""
    root, here = paths.FIGURES, paths.ROOT / "docs"
    names = [name for name in overview.published(root) if "book" in read_json(root / overview.RUNS[name][0] / "manifest.json")]
    lines = [f"- [{name}](../docs/{docs(name).name}/index.html)" for name in names]
    lines += [f"- [{words}](../docs/{file})" for file, words in BESIDE.items() if (here / file).is_file()]
    drawn = {overview.STEM: _record(root, overview.STEM)} if (root / f"{overview.STEM}.png").is_file() else {}
    text = FRONT.format(books="\n".join(lines), findings=overview.findings(root))
    return {"index.html": pages.page(_words(text), pages.Place(here, root, records=drawn))} if names else {}


def altered() -> list[tuple[str, str, str]]:
    """`(file, "sha256", what is wrong)` for every page in docs/ that is not the one its run's manifest names."""
    problems, expected = [], {}
    for name, folder in overview.published(paths.FIGURES).items():
        digests = read_json(folder / "manifest.json").get("book", {})
        expected |= {docs(name) / file: digest for file, digest in digests.items()}
    expected |= {paths.ROOT / "docs" / file: sha256(data) for file, data in front().items()}
    for path, digest in expected.items():
        name = path.relative_to(paths.ROOT).as_posix()
        if not path.is_file():
            problems.append((name, "file", "is missing"))
        elif sha256(path.read_bytes()) != digest:
            problems.append((name, "sha256", "is not the one that was published"))
    stray = [path for path in sorted((paths.ROOT / "docs").rglob("*.html")) if path not in expected]
    return problems + [(path.relative_to(paths.ROOT).as_posix(), "file", "is not in a manifest") for path in stray]


def _index(name: str, place: pages.Place) -> str:
    """The scorecard with the list of notebooks behind it, as Markdown whose links are those of a notebook."""
    lines = [f"- [{title}]({stem}.ipynb)" for stem, title in place.titles.items()]
    missing = [path.stem for path in paths.all_notebooks() if path.stem not in place.titles]
    lines += [f"- {stem}: not run to its end on {name}" for stem in missing]
    if place.explorer:
        lines.append("- [what was said of each token of a text](../figures/explorer.html), a page to look at")
    card = (paths.figures(place.profile) / "scorecard.md").read_text("utf-8").replace("# Scorecard", f"# Scorecard: {name}", 1)
    return "\n".join([card, "## Notebooks", *lines])


def _words(text: str) -> dict:
    """Markdown as a notebook of one cell."""
    return {"cells": [{"cell_type": "markdown", "metadata": {}, "source": text}]}


def _record(folder: Path, stem: str) -> dict:
    """The JSON beside a figure, with the size of its picture in CSS pixels, read from the PNG's header."""
    width, height = struct.unpack(">II", (folder / f"{stem}.png").read_bytes()[16:24])
    return read_json(folder / f"{stem}.json") | {"size": (round(width * 96 / DPI), round(height * 96 / DPI))}


def _entry(profile: str, stem: str) -> dict:
    return read_json(paths.notebooks(profile) / f"{stem}.finished.json")
