"""A title says what its table says: its numbers are the table's, of the rows it names, and change with them."""

import inspect
import json
import re

import pandas as pd
import pytest
from toy_run import ROOT

from mtp_utils.drawing import speed_titles, titles
from mtp_utils.drawing.numbers import Title, count, number
from mtp_utils.drawing.style import new_axes, titled


def table(**columns) -> pd.DataFrame:
    """Rows of two corpora; a column is one value, or one for each row."""
    n = max(len(x) for x in columns.values() if isinstance(x, list))
    return pd.DataFrame({"corpus": [c for c in ("code", "prose") for _ in range(n)]} | {
        name: x * 2 if isinstance(x, list) else x for name, x in columns.items()
    })  # fmt: skip


PREDICTORS = ["marginal", "unigram", "skip_bigram", "skip_trigram"]
CONTROLLED = table(predictor=PREDICTORS, value=[0.651, 0.1, 0.22, 0.21], offset=2, metric="top1")
SIZES = table(n_params=[20_000, 300_000, 4_800_000], value=[5.4, 3.0, 1.903], seed=0, offset=2, metric="cross_entropy")
TOKENS = [262_144, 262_144, 1_048_576]
BUDGETS = table(name=["joint", "frozen", "frozen"], train_tokens=TOKENS, value=[1.17, 1.52, 0.97], metric="excess_ce")
TWINS = table(kind=["ntp backbone", "ntp backbone", "mtp twin"], layer=[0, 1, 1], value=[5.7, 4.98, 3.34], metric="cross_entropy")
SHARES = table(arm=["joint, 1x", "joint, 4x"], value=[0.1, 0.234])
KINDS = table(arm=["residual, layer mix", "block, last layer"], value=[1.5, 1.86], offset=2, metric="excess_ce")
MIX = pd.DataFrame({"backbone": ["a", "a", "b"], "layer": [1, 2, 1], "weight": [0.1, 0.9, 0.8], "offset": 2})
NONE = table(arm=["joint, 4x"], value=[float("nan")])
VERDICTS = pd.DataFrame({"verdict": ["reproduced", "reproduced", "inconclusive"]})
LINK = pd.DataFrame({"of": ["KL", "greedy accuracy"], "value": [0.63, -0.31], "ci_low": [0.45, -0.5], "ci_high": [0.78, 0.0]})


@pytest.mark.parametrize(
    ("title", "says"),
    [
        (titles.against_counting(CONTROLLED, "top1", "w256"), "and of the best counting model: code .65 against .22, prose .65"),
        (titles.against_counting(CONTROLLED.assign(metric="l"), "l", "w"), "code .65 against .10, prose .65 against .10 nats"),
        (titles.size(SIZES[SIZES.n_params == 300_000]), "costs at 300k parameters: code 3.00, prose 3.00 nats"),
        (titles.frozen_heads(KINDS, "block, last layer", "w256", 65_536), "best kind of heads above the marginal after 65,536"),
        (titles.frozen_heads(KINDS, "block, last layer", "w256", 65_536), "positions: code 1.86, prose 1.86 nats"),
        (titles.mix_weights(MIX), "leaves there: a .90, b .80"),
        (titles.size(SIZES), "What the token after next costs at 20k to 4.8M parameters: code 5.40 to 1.90, prose 5.40"),
        (titles.ladder(SIZES.assign(value=-SIZES["value"])), "code -5.40 to -1.90"),
        (titles.budgets(BUDGETS, "w64"), "Joint and frozen heads above the marginal after 262k positions: code 1.17 and 1.52"),
        (titles.by_operations(BUDGETS.assign(operations=[4.0, 1.0, 4.0] * 2), "w64"), "in as many operations: code 1.17 and .97"),
        (titles.lowest(TWINS, "by a probe"), "ntp backbone / mtp twin: code 4.98 / 3.34"),
        (titles.shares(SHARES, "joint, 4x", "w64"), "Joint, 4x, closes of the frozen heads' gap: code .23, prose .23"),
        (titles.shares(NONE, "joint, 4x", "w64"), "code -, prose -"),
        (speed_titles.scorecard(VERDICTS), "3 contrasts: 2 reproduced, 1 inconclusive"),
        (speed_titles.link(LINK), "small KL .63 [.45, .78], with greedy accuracy -.31 [-.50, .00]"),
    ],
)
def test_a_title_says_the_numbers_of_its_table(title, says):
    assert says in str(title) and len(str(title).split("\n")) == 2


def test_the_numbers_of_a_panel_stand_below_its_name():
    figure, axes = new_axes(2)
    for ax, name in zip(axes, ("code", "prose"), strict=True):
        ax.set_title(name)
    titled(figure, titles.size(SIZES))
    assert [ax.get_title() for ax in axes] == ["code\n5.40 to 1.90 nats", "prose\n5.40 to 1.90 nats"]
    assert "nats" not in figure.get_suptitle() and "20k to 4.8M parameters" in figure.get_suptitle()


def test_numbers_have_two_decimals_and_counts_their_unit():
    assert [number(x) for x in (0.654, -0.126, 0.999, 1.0, -2.5, 10.25, 0.0, float("nan"))] == [
        ".65", "-.13", "1.00", "1.00", "-2.50", "10.25", ".00", "-"]  # fmt: skip
    assert [count(n) for n in (19_712, 4_751_104, 1_048_576, 65_536)] == ["20k", "4.8M", "1.0M".replace(".0M", "M"), "66k"]


def test_a_long_title_is_broken_and_its_second_line_stays_one():
    figure, _ = new_axes(1, width=4)
    titled(figure, Title("a word " * 20, "ladder/w256"))
    lines = figure.get_suptitle().split("\n")
    assert max(map(len, lines)) <= 44 and len(lines) > 3 and lines[-1] == "ladder/w256"
    found = {"translation": "4.77 to 1.31", "code": "5.06 to 3.00", "prose": "5.44 to 3.93"}
    titled(figure, Title("The token after next costs", "ladder/w256", found, " nats"))  # there are no panels of these names
    *lines, below = figure.get_suptitle().split("\n")
    assert below == "ladder/w256"
    assert all(line.endswith((",", ":", "nats")) for line in lines) and max(map(len, lines)) - min(map(len, lines)) < 20
    said = "Tokens a pass by the best tree of 24 drafted tokens, best frozen heads / prompt lookup"
    for width in (x / 10 for x in range(30, 120, 2)):
        other, _ = new_axes(1, width=width)
        titled(other, Title(said, ""))
        assert other.get_suptitle().replace("\n", " ").strip() == said
    titled(figure, Title("The loss grows by: translation .03, prose .03 nats (joint, 4x); .96 (joint, 1x)", ""))
    lines = figure.get_suptitle().split("\n")
    assert len(lines) > 1 and all(line.count("(") == line.count(")") for line in lines)


def test_every_figure_of_the_notebooks_has_a_title_that_is_read_from_its_table():
    both = [(module, *one) for module in (titles, speed_titles) for one in vars(module).items()]
    known = {name for module, name, f in both if inspect.isfunction(f) and f.__module__ == module.__name__} - {"_sizes"}
    used, drawn = set(), 0
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        source = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        calls = len(re.findall(r"run\.save_figure\(", source))
        made = re.findall(r"\b(?:speed_)?titles\.(\w+)\(", source)
        assert calls == len(re.findall(r"^ *figure = \w*plots\.", source, re.MULTILINE)) == len(made), path.stem
        assert not re.search(r"title = f?\"", source)
        used, drawn = used | set(made), drawn + calls
    assert used == known and drawn >= 25
