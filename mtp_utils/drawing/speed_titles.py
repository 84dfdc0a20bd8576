"""The title of each figure of notebooks 06 and 07, as titles.py has those of the others."""

import pandas as pd

from .numbers import Title, beside, number, present

HEADS = ("heads that decide C3", "best frozen heads")  # from those that have seen most


def acceptance(summary: pd.DataFrame, backbone: str) -> Title:
    """06: drafts accepted at offset 2 by drafter."""
    rows = summary[(summary.offset == 2) & (summary.metric == "a")]
    names = present(rows["drafter"], "marginal", HEADS, "prompt lookup")
    said = f"Accepted two tokens ahead, {' / '.join(names)}"
    return Title(said, f"{backbone}, greedy; of the passes in which it drafts", beside(rows, "drafter", names))


def tokens_by_nodes(table: pd.DataFrame, backbone: str) -> Title:
    """06: what the largest tree of each drafter would bring."""
    rows = table[table.nodes == table["nodes"].max()]
    names = present(rows["drafter"], HEADS, "prompt lookup")
    said = f"Tokens a pass by the best tree of {rows['nodes'].iloc[0]} drafted tokens, {' / '.join(names)}"
    return Title(said, f"{backbone}, greedy", beside(rows, "drafter", names))


def speeds(summary: pd.DataFrame, backbone: str) -> Title:
    """06: speeds of prompt lookup and of heads as ratios to plain greedy decoding."""
    rows = summary[(summary.metric == "greedy_ratio") & (summary.backbone == backbone)]
    ways = present(rows["way"], "prompt lookup", ("C3's heads, chain", "heads, chain"))
    said = f"Times as fast as plain greedy decoding, {' / '.join(ways)}"
    return Title(said, f"{backbone}, one prompt at a time", beside(rows, "way", ways))


def link(summary: pd.DataFrame) -> Title:
    """06: rank correlations of acceptance with what is known of heads beforehand."""
    known = {row.of: f"{number(row.value)} [{number(row.ci_low)}, {number(row.ci_high)}]" for row in summary.itertuples()}
    said = f"Rank correlation of acceptance with a small KL {known['KL']}, with greedy accuracy {known['greedy accuracy']}"
    return Title(said, "over kinds of heads")


def scorecard(verdicts: pd.DataFrame) -> Title:
    """07: how many verdicts of each kind."""
    found = ", ".join(f"{n} {verdict}" for verdict, n in verdicts["verdict"].value_counts(sort=False).items())
    below = "each with its 95 % interval, in its own unit; the line is what it has to exceed"
    return Title(f"{len(verdicts)} contrasts: {found}", below)
