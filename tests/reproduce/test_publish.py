"""What a run draws, what `publish` copies and what `check` finds."""

import json
from types import SimpleNamespace

import matplotlib
import pandas as pd
import pytest
from matplotlib.figure import Figure
from toy_run import ROOT, write_notebook

from mtp_utils.base import artifacts, paths
from mtp_utils.base.files import write_json
from mtp_utils.base.locks import Stop
from mtp_utils.base.profiles import PROFILES
from mtp_utils.base.records import read_table, write_table
from mtp_utils.base.run import EXPLORATORY, Run
from mtp_utils.reproduce import overview, publish

ALT = "A black line that rises from zero to two as the offset grows from one to three."
TABLE = pd.DataFrame({"corpus": ["prose"] * 3, "offset": [1, 2, 3], "accuracy": [0.5, 0.25, 0.125]})
README = f"# Title\n\n{publish.BEGIN}\nold\n{publish.END}\nrest\n"


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch):
    """An empty repository with one notebook, where runs and figures go."""
    (tmp_path / "notebooks").mkdir()
    write_notebook(tmp_path / "notebooks", "01_toy")
    (tmp_path / "README.md").write_text(README)
    monkeypatch.setenv("MTP_BUILD", str(tmp_path / "build"))
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path / "notebooks")
    return tmp_path


def draw() -> Figure:
    figure = Figure()
    figure.subplots().plot(TABLE["offset"], TABLE["accuracy"], label="marginal")
    figure.axes[0].legend()
    return figure


def verdict(claim: str = "C1", text: str = "It does.") -> SimpleNamespace:
    return SimpleNamespace(claim=claim, contrast="marginal - unigram", effect=0.0374, ci_low=0.0194, ci_high=0.0554,
                           seeds=(0, 1, 2), n=300, verdict="reproduced", text=text)  # fmt: skip


def whole_run(table: pd.DataFrame = TABLE, profile: str = "default", stems: tuple = ("01_line",)) -> Run:
    run = Run("01_toy", PROFILES[profile], {"device": "cpu"})
    for stem in stems:
        run.save_figure(draw(), stem, table, ALT)
    run.verdict(verdict())
    run.finish()
    return run


def test_a_figure_is_the_same_bytes_every_time_and_its_table_lies_beside_it():
    whole_run(stems=("01_line", "01_again"))
    folder = paths.figures("default")
    for kind in ("png", "svg", "csv"):
        assert (folder / f"01_line.{kind}").read_bytes() == (folder / f"01_again.{kind}").read_bytes()
    pd.testing.assert_frame_equal(read_table(folder / "01_line.csv"), TABLE, check_exact=True)


def test_the_manifest_describes_every_file_and_where_it_comes_from():
    whole_run()
    folder = paths.figures("default")
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = manifest["figures"]["01_line"]
    assert set(entry["outputs"]) == {"png", "svg", "csv", "json"}
    assert publish._altered(folder) == []
    assert (entry["alt"], entry["provenance"]["device"]) == (ALT, "cpu")
    assert entry["source_sha256"] == artifacts.source_sha256("01_toy") != "unknown"


def test_a_figure_that_is_no_longer_drawn_leaves_the_manifest():
    whole_run(stems=("01_line", "01_old"))
    whole_run()
    assert list(json.loads((paths.figures("default") / "manifest.json").read_text())["figures"]) == ["01_line"]
    assert not list(paths.figures("default").glob("01_old.*"))


@pytest.mark.parametrize(("stem", "alt"), [("02_line", ALT), ("line", ALT), ("01_line", "A line.")])
def test_a_figure_of_another_number_or_without_a_description_is_refused(stem, alt):
    run = Run("01_toy", PROFILES["smoke"])
    with pytest.raises(ValueError, match="01_<name>|at least 40"):
        run.save_figure(draw(), stem, TABLE, alt)


def test_the_scorecard_shows_verdicts_and_says_which_claims_are_not_yet_tested():
    whole_run()
    lines = (paths.figures("default") / "scorecard.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith("| **C1**"))
    assert row.endswith("| marginal - unigram | 0.037 [0.019, 0.055] | 0 1 2 | 300 | reproduced |")
    assert sum(line.endswith("not yet tested |") for line in lines) == len(artifacts.CLAIMS) - 1


def test_the_smoke_profile_gives_no_verdict():
    run = Run("01_toy", PROFILES["smoke"])
    assert run.verdict(verdict()) == "smoke profile: no verdicts"
    run.finish()
    assert "reproduced" not in (paths.figures("smoke") / "scorecard.md").read_text()


def test_a_verdict_on_an_unknown_claim_is_refused():
    with pytest.raises(ValueError, match="unknown claim 'C9'"):
        Run("01_toy", PROFILES["default"]).verdict(verdict("C9"))


def test_what_no_verdict_needs_is_left_out_of_the_default_run_and_overnight_adds_it_there():
    run = Run("01_toy", PROFILES["default"], {"device": "cpu"})
    run.save_figure(draw(), "01_line", TABLE, ALT)
    assert not run.explores("another arm")
    assert run._skipped == ["another arm: no verdict needs it: ./reproduce.sh overnight adds it"]
    run.verdict(verdict())
    run.finish()
    with pytest.raises(Stop, match="lacks what no verdict needs, run ./reproduce.sh overnight first: 01_toy"):
        publish.publish()
    run = Run("01_toy", PROFILES["overnight"], {"device": "cpu"})
    assert run.explores("another arm")
    for stem in ("01_line", "01_arm"):
        run.save_figure(draw(), stem, TABLE, ALT)
    run.verdict(verdict())
    run.finish()
    assert publish.publish() == 0 and (paths.FIGURES / "01_arm.csv").is_file()


@pytest.mark.parametrize(
    ("contrast", "cell"),
    [
        ("b, worst corpus (prose: cache ngram); decided on all", "**partly**: 0.1 [0.0, 0.2] (prose: cache ngram), 9 documents"),
        ("the less certain of the two, worst kind (code: excess)", "**partly**: 0.1 [0.0, 0.2] (code: excess), 9 documents"),
        ("one number of all", "**partly**: 0.1 [0.0, 0.2], 9 documents"),
    ],
)
def test_a_cell_of_the_findings_says_of_what_its_effect_is(contrast, cell):
    lines = f"| **C1** words | {contrast} | 0.1 [0.0, 0.2] | 0 | 9 | partly |\n| **C3a** words | | | | | not yet tested |"
    assert overview._cells(f"| claim |\n{lines}") == {"C1": cell, "C3a": "not yet tested"}


def test_publish_copies_the_run_and_renews_the_findings(repository):
    (repository / "figures").mkdir()
    (repository / "figures" / "01_stale.png").write_bytes(b"")
    whole_run()
    assert publish.publish() == 0
    names = sorted(p.name for p in paths.FIGURES.iterdir())
    assert names == [*(f"01_line.{k}" for k in ("csv", "json", "png", "svg")), "manifest.json", "scorecard.md"]
    readme = (repository / "README.md").read_text()
    assert readme.startswith("# Title\n\n") and readme.endswith(f"{publish.END}\nrest\n")
    assert "| **reproduced**: 0.037 [0.019, 0.055], 300 documents |" in readme and "old" not in readme
    assert publish.check() == 0


def test_the_page_is_published_with_the_figures_and_checked_like_them():
    run = whole_run()
    run.save_page("<p>page</p>")
    run.finish()
    assert publish.publish() == 0 and publish.check() == 0
    page = paths.FIGURES / artifacts.EXPLORER
    assert page.read_text() == "<p>page</p>"
    page.write_text("<p>another</p>")
    assert publish.check() == 1


def test_of_a_table_of_seconds_only_the_text_is_compared_and_of_passes_not_their_exact_number():
    tables = {
        "06_speed": [pd.DataFrame({"way": ["a"], "value": [v], "n_documents": [8]}) for v in (1.0, 2.0)],
        "06_acceptance": [pd.DataFrame({"value": [0.5], "n_positions": [n]}) for n in (100, 101)],
        "01_line": [pd.DataFrame({"value": [0.5], "n_positions": [n]}) for n in (100, 101)],
    }
    for stem, (published, here) in tables.items():
        write_table(paths.FIGURES / f"{stem}.csv", published)
        write_table(paths.figures("default") / f"{stem}.csv", here)
    folders = paths.FIGURES, paths.figures("default")
    assert [bool(publish._compare_stem(stem, *folders)) for stem in tables] == [False, False, True]
    write_table(paths.figures("default") / "06_speed.csv", tables["06_speed"][0].assign(way="b"))
    assert publish._compare_stem("06_speed", *folders)


def test_the_findings_of_the_readme_are_those_of_the_published_tables():
    verdicts = read_table(ROOT / "figures" / "07_scorecard.csv")
    assert (ROOT / "figures" / "scorecard.md").read_text("utf-8") == artifacts.scorecard(verdicts, "default")
    assert set(verdicts["claim"]) == set(artifacts.CLAIMS)
    readme = (ROOT / "README.md").read_text("utf-8")
    assert publish._with_findings(readme, overview.findings(ROOT / "figures")) == readme
    assert overview.outdated(ROOT / "figures") == []


def size_table(backbone: str, sizes: tuple[int, ...]) -> pd.DataFrame:
    rows = [
        (backbone, n, seed, corpus, offset, metric, 0.5, 0.4, 0.6, 200)
        for n in sizes
        for seed in (0, 1)
        for corpus in ("translation", "prose")
        for offset in (1, 2)
        for metric in ("top1", "cross_entropy", "bits_per_character")
    ]
    columns = ["backbone", "n_params_total", "seed", "corpus", "offset", "metric", "value", "ci_low", "ci_high", "n_documents"]
    return pd.DataFrame(rows, columns=columns)


def test_a_pretrained_models_run_is_published_beside_the_ladders_from_notebook_02_on(repository, monkeypatch, capsys):
    for name in ("02_sizes", "04_heads"):
        write_notebook(repository / "notebooks", name)
    whole_run()
    for profile, sizes in (("default", (10_000, 40_000)), ("pretrained", (100_000_000,))):
        run = Run("02_sizes", PROFILES[profile], {"device": "cpu"})
        run.save_figure(draw(), "02_size", size_table(profile, sizes), ALT)
        run.verdict(verdict("C2 (data)"))
        run.finish()
    whole_run(profile="pretrained")
    with pytest.raises(Stop, match="not complete.*04_heads"):
        publish._ready("default")
    half = Run("04_heads", PROFILES["pretrained"], {"device": "cpu"})
    half.save_figure(draw(), "04_heads", TABLE, ALT)
    artifacts.write_manifest("pretrained")  # of a notebook that was stopped
    assert publish.publish() == 0
    folder = paths.FIGURES / "smollm2-135m"
    assert set(json.loads((folder / "manifest.json").read_text())["figures"]) == {"01_line", "02_size"}
    assert not list(folder.glob("04_*")) and not (paths.FIGURES / "manifest.json").exists()
    assert "ladder: the default run is not complete" in capsys.readouterr().out
    half = Run("04_heads", PROFILES["default"], {"device": "cpu"})
    half.finish()
    assert publish.publish() == 0 and publish.check() == 0
    (row,) = (line for line in (repository / "README.md").read_text().splitlines() if line.startswith("| **C2 (data)**"))
    assert row.count("**reproduced**: 0.037 [0.019, 0.055], 300 documents") == 2
    drawn = read_table(paths.FIGURES / "overview.csv")
    assert set(drawn["model"]) == {"ladder", "SmolLM2-135M"} and set(drawn["metric"]) == {"top1", "bits_per_character"}
    assert len(drawn) == 3 * 2 * 2 * 2  # sizes, corpora, offsets, metrics; no extra seed
    again = Run("02_sizes", PROFILES["default"], {"device": "cpu"})
    again.save_figure(draw(), "02_size", size_table("default", (10_000, 40_000)).assign(value=0.45), ALT)
    again.finish()
    overview_before = (paths.FIGURES / "overview.csv").read_bytes()
    publish._copy("default", publish._ready("default"), paths.FIGURES)
    assert (paths.FIGURES / "overview.csv").read_bytes() == overview_before and publish.check() == 1
    assert "overview.csv" in capsys.readouterr().out


def test_publish_refuses_a_run_that_is_not_whole(repository):
    with pytest.raises(Stop, match="not complete.*01_toy"):
        publish.publish()
    whole_run()
    write_notebook(repository / "notebooks", "01_toy", "changed = True")
    with pytest.raises(Stop, match="not complete.*01_toy"):
        publish.publish()
    assert not paths.FIGURES.exists()


def test_publish_refuses_a_readme_without_its_markers(repository):
    whole_run()
    (repository / "README.md").write_text("# Title\n")
    with pytest.raises(Stop, match="once each"):
        publish.publish()
    assert not paths.FIGURES.exists()


@pytest.mark.parametrize("name", ["01_line.png", "01_line.csv", "01_line.json", "scorecard.md", "README.md"])
def test_check_finds_a_changed_file(repository, name, capsys):
    whole_run()
    publish.publish()
    path = (repository if name == "README.md" else paths.FIGURES) / name
    path.write_bytes(path.read_bytes().replace(b"0.", b"1.").replace(b"IDAT", b"IDAU").replace(b"marginal", b"marg"))
    assert publish.check() == 1
    assert name in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, 0),
        ({"accuracy": [0.5, 0.25, 0.126]}, 0),
        ({"accuracy": [0.5, 0.25, 0.2]}, 1),
        ({"accuracy": [0.5, 0.25, None]}, 1),
        ({"offset": [1, 2, 4]}, 1),
        ({"corpus": ["prose", "prose", "code"]}, 1),
        ({"more": 1}, 1),
    ],
    ids=str,
)
def test_check_compares_the_default_run_within_tolerances(change, code, capsys):
    whole_run()
    publish.publish()
    record = json.loads((paths.figures("default") / "01_line.json").read_text())
    write_table(paths.figures("default") / "01_line.csv", TABLE.assign(**change), record)
    assert publish.check() == code
    assert ("01_line.csv" in capsys.readouterr().out) == bool(code)


@pytest.mark.parametrize(("rows", "change", "code"), [([0, 2], {}, 0), ([0, 2], {"accuracy": 0.9}, 1), ([2, 0], {}, 1)])
def test_of_a_run_that_left_something_out_the_rows_that_it_has_are_compared(rows, change, code, capsys):
    whole_run()
    publish.publish()
    record = json.loads((paths.figures("default") / "01_line.json").read_text())
    write_table(paths.figures("default") / "01_line.csv", TABLE.iloc[rows].assign(**change).reset_index(drop=True), record)
    assert publish.check() == 1  # a whole run has all rows
    entry = paths.notebooks("default") / "01_toy.finished.json"
    write_json(entry, json.loads(entry.read_text()) | {"skipped": [f"another arm: {EXPLORATORY}"]})
    assert publish.check() == code
    assert "rows that both have" in capsys.readouterr().out


def test_a_row_drawn_at_another_temperature_is_another_row():
    whole = pd.DataFrame({"drafter": ["heads"] * 2, "temperature": [0.0, 1.0], "a": [0.3, 0.4]})
    assert publish.compare(*publish._in_both(whole, whole[:1])) == []
    assert publish.compare(*publish._in_both(whole, whole[1:].assign(a=0.3).reset_index(drop=True)))[0][0] == "a"


def test_of_the_scorecard_the_numbers_are_compared_and_not_the_sentences_that_hold_them():
    said = dict.fromkeys(("contrast", "text"), ["0.501 nats"])
    table = pd.DataFrame({"claim": ["C1"], "effect": [0.501], "verdict": ["partly"], **said})
    folders = paths.FIGURES, paths.figures("default")
    for change, differs in (({"effect": [0.502], "text": ["0.502"]}, False), ({"verdict": ["reproduced"]}, True)):
        for folder, found in zip(folders, (table, table.assign(**change)), strict=True):
            write_table(folder / f"{publish.JUDGED}.csv", found)
        assert bool(publish._compare_stem(publish.JUDGED, *folders)) == differs


def test_which_of_two_nearly_tied_tokens_is_the_likelier_is_no_difference_and_its_probability_is():
    table = pd.DataFrame({"offset": [4], "after": ["Jun"], "token": ["x"], "prob": [0.0585], "right": [False]})
    folders = paths.FIGURES, paths.figures("default")
    for change, differs in (({"token": ["i"], "prob": [0.0556], "right": [True]}, False), ({"prob": [0.09]}, True)):
        for folder, found in zip(folders, (table, table.assign(**change)), strict=True):
            write_table(folder / f"{publish.TIED}.csv", found)
        assert bool(publish._compare_stem(publish.TIED, *folders)) == differs


@pytest.mark.parametrize(
    ("metric", "n", "differs"),
    [("top1", publish.FEWEST - 1, False), ("top1", publish.FEWEST, True), ("cross_entropy", publish.FEWEST - 1, True)],
)
def test_a_share_of_few_positions_is_not_compared_as_one_of_them_moves_it(metric, n, differs):
    folders = paths.FIGURES, paths.figures("default")
    for folder, value in zip(folders, (0.5, 0.6), strict=True):
        write_table(folder / "01_line.csv", pd.DataFrame({"metric": metric, "value": [0.5, value], "n_positions": [100, n]}))
    assert bool(publish._compare_stem("01_line", *folders)) == differs


def test_check_without_anything_published_says_so():
    with pytest.raises(Stop, match="nothing is published yet"):
        publish.check()


def test_drawing_leaves_the_settings_of_matplotlib_alone():
    before = dict(matplotlib.rcParams)
    whole_run()
    assert dict(matplotlib.rcParams) == before
