"""The book: what a page shows of an executed notebook, where it leads, what of it is published, and how it is to read."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
from matplotlib.figure import Figure
from toy_run import ROOT, cell

from mtp_utils.base import artifacts, paths
from mtp_utils.base.locks import Stop
from mtp_utils.base.profiles import PROFILES
from mtp_utils.base.run import Run
from mtp_utils.drawing.formulas import formula
from mtp_utils.reproduce import book, outputs, publish
from mtp_utils.reproduce.__main__ import main

ALT = 'A black line that "rises" from <zero> to two as the offset grows from one to three.'
WIDE = pd.DataFrame({f"a column that is wide, number {i}": [i / 7, i / 3] for i in range(12)})
TITLE = "# 01 · A toy & its <sum>\n\nThe marginal $m_2(w) = \\sum_v p(v \\mid x)$, `code`.\n\n$$k \\ge 1$$\n\n"
TITLE += "![a line](../figures/01_line.png)\n![no such](../figures/01_other.png)\n\n"
TITLE += "See [the next](07_page.ipynb#07-·-Next), [it](../README.md)."
FIGURE = 'figure = plots.by_offset(table, "top1", "title")\nrun.save_figure(figure, "01_line", table, alt="...")\nfigure'
STDERR = "[transformers] Token indices sequence length is longer than the specified maximum (11278 > 2048)"
VERDICT = SimpleNamespace(claim="C1", contrast="marginal - unigram", effect=0.0374, ci_low=0.0194, ci_high=0.0554,
                          seeds=(0, 1, 2), n=300, verdict="reproduced", text="It does.")  # fmt: skip


def stream(text: str, name: str = "stdout") -> dict:
    return {"output_type": "stream", "name": name, "text": text}


def data(**kinds) -> dict:
    return {"output_type": "display_data", "metadata": {}, "data": {name.replace("_", "/"): x for name, x in kinds.items()}}


def cells(seconds: float) -> list[dict]:
    """What a notebook looks like that took that long: with all that libraries and clocks say."""
    bar = data(text_plain="Loading weights:   0%|          | 0/76 [00:00<?, ?it/s]")
    bar["data"]["application/vnd.jupyter.widget-view+json"] = {"model_id": str(seconds)}
    shown = [bar, stream(STDERR, "stderr"), data(text_html=WIDE.to_html(), text_plain=str(WIDE))]
    shown += [stream(f"{paths.ROOT}/notebooks/x: as many as 3 < 4 & more\nthe states; made in: {seconds} s\n")]
    shown += [stream("50%|#####     |\r100%|##########|\r\x1b[1mdone\x1b[0m\n")]
    said = data(text_markdown="# Louder\n\n| a | b |\n|---|---|\n| 1 | 2 |", text_plain="<IPython.core.display.Markdown>")
    frame = data(text_html='<iframe srcdoc="x"></iframe>', text_plain="<IPython.core.display.HTML object>")
    made = [
        (cell(TITLE, "markdown"), []),
        (cell("profile = None", tags=("parameters",)), []),
        (cell('# Parameters\nprofile = "default"\n', tags=("injected-parameters",)), []),
        (cell("## Measured", "markdown"), []),
        (cell("# a comment\ntable = 1 + len('x')  # and more"), shown),
        (cell("#### Too deep", "markdown"), []),
        (cell(FIGURE), [data(text_plain="<Figure size 640x480 with 1 Axes>")]),
        (cell("display(Markdown(said))\nrun.save_page(content)"), [said, frame]),
        (cell("run.finish()"), [stream(f"01_toy: 1 figures, 0 verdicts, {seconds} s\n")]),
    ]
    for one, out in made:
        one["metadata"]["execution"] = {"iopub.execute_input": str(seconds)}
        if one["cell_type"] == "code":
            one["outputs"] = out
    return [one for one, _ in made]


def write(path: Path, content: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": content, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))


def executed(seconds: float = 1.5, profile: str = "default") -> None:
    """The run of two notebooks: both have come to their end."""
    figure = Figure()
    figure.subplots().plot([0, 2])
    for stem, content in (("01_toy", cells(seconds)), ("07_page", [cell("# 07 · Next", "markdown")])):
        write(paths.notebooks(profile) / f"{stem}.ipynb", content)
        run = Run(stem, PROFILES[profile])
        if stem == "01_toy":
            run.save_figure(figure, "01_line", WIDE, ALT)
            run.verdict(VERDICT)
        run.save_page("<!doctype html><title>page</title>")
        run.finish()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of three notebooks, of which the default run has executed two."""
    for name, value in (("ROOT", tmp_path), ("FIGURES", tmp_path / "figures"), ("NOTEBOOKS", tmp_path / "notebooks")):
        monkeypatch.setattr(paths, name, value)
    monkeypatch.setenv("MTP_BUILD", str(tmp_path / "build"))
    for stem in ("01_toy", "07_page"):
        write(tmp_path / "notebooks" / f"{stem}.ipynb", [cell("x = 1")])
    (tmp_path / "README.md").write_text(f"# Title\n\n{publish.BEGIN}\nold\n{publish.END}\n")
    executed()
    return tmp_path


def rendered(name: str = "01_toy") -> str:
    assert book.book() == 0
    return (paths.build("default") / "book" / f"{name}.html").read_text("utf-8")


def test_a_page_shows_what_a_reader_came_for_and_nothing_else(repository):
    page = rendered()
    for kept in ("as many as 3 &lt; 4 &amp; more", "done", "a column that is wide, number 11", "Louder", "explorer.html"):
        assert kept in page
    libraries, clocks = ("Loading", "it/s", "Token indices", "50%", "\x1b"), ("made in", "verdicts,", " s\n")
    for left in (*libraries, *clocks, "iframe", "&lt;IPython", "&lt;Figure", "number 1  \\"):
        assert left not in page, left
    assert str(repository) not in page and "Parameters" not in page and page.count("<table") == 2
    assert "<script" not in page and "data:" not in page and not re.search(r"(src|href)=\"(https?:)?//", page)
    assert page.count("<details>") == 5 and "open" not in page.split("<details", 1)[1].split(">")[0]


def test_a_notebook_that_took_longer_is_the_same_page(repository):
    first = rendered(), rendered("index")
    executed(seconds=222.7)
    assert (rendered(), rendered("index")) == first


def test_a_figure_is_linked_with_its_words_its_table_and_the_function_that_draws_it(repository):
    page = rendered()
    folder = paths.build("default") / "book"
    (figure,) = re.findall(r"<figure.*?</figure>", page, re.DOTALL)
    (alt,) = set(re.findall(r'alt="([^"]*)"', page))
    assert alt.replace("&quot;", '"').replace("&lt;", "<").replace("&gt;", ">") == ALT
    assert 'href="../figures/01_line.csv"' in figure and 'width="614" height="461"' in figure
    href, line = re.search(r'href="([^"]*/plots.py)#L(\d+)"><code>plots.by_offset', figure).groups()
    assert (folder / href).read_text("utf-8").splitlines()[int(line) - 1].startswith("def by_offset(")
    assert page.count("<img") == 2 and "01_other" not in page  # in the title and where it is drawn


def test_every_figure_of_the_notebooks_is_found_with_the_function_that_draws_it():
    place = SimpleNamespace(to=str, figures=Path("figures"))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        sources = ["".join(c["source"]) for c in json.loads(path.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
        found = {stem: by for source in sources for stem, by in outputs.figures_of(source).items()}
        assert len(found) == sum(source.count("run.save_figure(") for source in sources)
        assert all(outputs._figure(stem, by, place)["drawn"] for stem, by in found.items()), path.name


def test_every_formula_of_the_notebooks_is_drawn_and_what_cannot_be_is_shown_as_it_is_written():
    found = set()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for c in json.loads(path.read_text("utf-8"))["cells"]:
            text = "".join(c["source"]) if c["cell_type"] == "markdown" else ""
            found |= {tex.strip("$") for tex in re.findall(r"\$\$.*?\$\$|\$[^$\n]+\$", text, re.DOTALL)}
    assert len(found) > 40 and all(formula(tex).startswith("<svg") for tex in found)
    assert 'aria-label="a &lt; b"' in formula("a < b") and formula(r"\nosuch{<}") == r"<code>\nosuch{&lt;}</code>"


def test_the_front_page_is_the_scorecard_and_says_which_notebooks_are_missing(repository):
    write(repository / "notebooks" / "03_left.ipynb", [cell("x = 1")])
    page = rendered("index")
    assert "0.037 [0.019, 0.055]" in page and 'href="01_toy.html"' in page and "03_left: not run to its end" in page
    assert not (paths.build("default") / "book" / "03_left.html").exists() and 'href="07_page.html#07-' in rendered()


def test_pages_of_notebooks_that_changed_are_left_out_and_without_any_there_is_no_book(repository, capsys):
    assert main(["book"]) == 0 and "default: 3 pages" in capsys.readouterr().out
    write(repository / "notebooks" / "01_toy.ipynb", [cell("x = 2")])
    rendered("index")
    assert not (paths.build("default") / "book" / "01_toy.html").exists()
    write(repository / "notebooks" / "07_page.ipynb", [cell("x = 2")])
    assert main(["book"]) == 1 and "no notebook has been run to its end" in capsys.readouterr().err


def test_publish_puts_the_book_into_docs_and_check_holds_it_against_the_manifest(repository, capsys):
    assert publish.publish() == 0 and publish.check() == 0
    manifest = json.loads((paths.FIGURES / "manifest.json").read_text())
    pages = {p.relative_to(repository / "docs").as_posix(): p for p in (repository / "docs").rglob("*.html")}
    assert set(pages) == {"index.html"} | {f"ladder/{name}" for name in manifest["book"]} and len(pages) == 4
    assert 'src="../../figures/01_line.svg"' in pages["ladder/01_toy.html"].read_text("utf-8")
    front = pages["index.html"].read_text("utf-8")
    assert "reproduced" in front and 'href="ladder/index.html"' in front
    for name, path in pages.items():
        kept = path.read_bytes()
        path.write_bytes(kept.replace(b"</h1>", b"!</h1>"))
        assert publish.check() == 1 and f"docs/{name}" in capsys.readouterr().out
        path.unlink()
        assert publish.check() == 1 and "is missing" in capsys.readouterr().out
        path.write_bytes(kept)
    (repository / "docs" / "ladder" / "05_old.html").write_text("old")
    assert publish.check() == 1 and "05_old.html" in capsys.readouterr().out
    assert publish.publish() == 0 and publish.check() == 0


def test_a_book_too_large_for_a_repository_is_not_published(repository, monkeypatch):
    monkeypatch.setattr(book, "MOST", 1000)
    with pytest.raises(Stop, match="at most 1,000 are published"):
        publish.publish()
    assert not (repository / "docs").exists() and not paths.FIGURES.exists()


LOOK = """
for (const d of document.querySelectorAll('details')) d.open = true;
const rgb = s => (s.match(/[\\d.]+/g) || []).map(Number);
const light = s => { const [r, g, b] = rgb(s).map(x => (x /= 255) <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b };
const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; const v = rgb(c);
    if (v.length < 4 || v[3] === 1) return c } return 'rgb(255, 255, 255)' };
const says = e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
const texts = [...document.body.querySelectorAll('*')].filter(says);
const faint = texts.map(e => { const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    return [(a + .05) / (b + .05), e.outerHTML.slice(0, 90)] }).filter(([ratio]) => ratio < 4.5);
return { faint, texts: texts.length, scripts: document.scripts.length,
    links: [...document.links].map(a => a.href),
    images: [...document.images].map(i => [i.src, i.alt, i.naturalWidth]),
    headings: [...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map(h => +h.tagName[1]),
    ids: [...document.querySelectorAll('[id]')].map(e => e.id),
    width: document.scrollingElement.scrollWidth }
"""


def looked_at(browser, scheme: str, width: int) -> dict:
    """What there is on the open page, with every piece of code unfolded."""
    features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    return browser.execute_script(LOOK)


def assert_readable(browser, pages: list[Path]) -> None:
    """No console error; links and images resolve; alt text; headings in order; contrast; no sideways scroll on a phone."""
    ids = {}
    for path in pages:
        browser.get(path.as_uri())
        for scheme, width in (("light", 1200), ("dark", 360)):
            seen = looked_at(browser, scheme, width)
            assert seen["width"] <= width, f"{path}: {seen['width']} px wide on a screen of {width}"
            assert seen["texts"] > 5 and seen["faint"] == [], path
        assert all(len(alt) >= 40 and pixels > 0 for _, alt, pixels in seen["images"]), seen["images"]
        levels = seen["headings"]
        assert levels.count(1) == 1 and levels[0] == 1 and seen["scripts"] == 0, path
        assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False)), levels
        assert len(seen["ids"]) == len(set(seen["ids"]))
        ids[path.resolve()] = seen
    for path, seen in ids.items():
        for link in map(urlsplit, seen["links"]):
            target = Path(unquote(link.path))
            assert link.scheme in ("file", "https") and (link.scheme == "https" or target.is_file()), f"{path}: {link.geturl()}"
            if link.fragment and target.resolve() in ids:
                assert unquote(link.fragment) in ids[target.resolve()]["ids"], f"{path}: {link.geturl()}"
    assert browser.get_log("browser") == []


def test_in_a_browser_every_page_is_complete_and_readable_wide_narrow_light_and_dark(repository, browser):
    browser.get_log("browser")
    publish.publish()
    book.book()
    pages = [*sorted((paths.build("default") / "book").glob("*.html")), *sorted((repository / "docs").rglob("*.html"))]
    assert len(pages) == 7 and "<nav" not in (repository / "docs" / "index.html").read_text("utf-8")  # nothing beside it
    assert_readable(browser, pages)
    browser.get((repository / "docs" / "ladder" / "01_toy.html").as_uri())
    wide = looked_at(browser, "light", 1200)
    assert wide["headings"] == [1, 2, 3, 4] and len(wide["images"]) == 2  # Louder, in an output, stands below Too deep


def test_in_a_browser_every_published_page_is_complete_and_readable(browser):
    pages = sorted((ROOT / "docs").rglob("*.html"))
    if not pages:
        pytest.skip("no page is published in docs/ yet")
    browser.get_log("browser")
    assert_readable(browser, pages)
    links = re.findall(r"\]\((docs/[^)]*)\)", (ROOT / "README.md").read_text("utf-8"))
    assert len(links) >= 10 and [link for link in links if not (ROOT / link).is_file()] == []


def test_the_published_pages_are_those_of_their_manifests():
    assert book.altered() == []
    sizes = [sum(p.stat().st_size for p in folder.rglob("*.html")) for folder in (ROOT / "docs").glob("*/")]
    assert all(size <= book.MOST for size in sizes) and artifacts.EXPLORER == "explorer.html"
