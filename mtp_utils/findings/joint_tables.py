"""C4: what was measured of heads and backbones trained together, as the tables that are drawn and judged."""

import numpy as np
import pandas as pd

from ..backbones.load import Backbone
from . import adjusted, gaps, head_claims, metrics, stored
from .joint_heads import Study, Trained


def on_data(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Of every way (column `arm`) its scores on the data's own labels."""
    data = scores[scores.label_source == "data"]
    return {way: part for way, part in data.groupby("arm", sort=False)}


def training_table(ways: dict[str, list[Trained]]) -> pd.DataFrame:
    """What each way was and cost: positions, epochs over the text, settled rates (the backbone's as a multiple of the heads'),
    cross-entropy on validation at offset 2 and, where the backbone was trained, at the next token before and after; 10^12
    operations and seconds of one run (those of a stopped one together)."""
    rows = []
    for way, (one, *_) in ways.items():
        found, heads = one.arm.arrays.values, one.arm.spec is not None
        ntp = found.get("ntp_validation", np.full(1, np.nan))
        row = {"positions": one.tokens, "epochs": one.arm.training.epochs, "rate": one.rates[0]}
        row |= {"backbone x": one.rates[1] if one.kind == "joint" else 0.0}
        row |= {"offset 2": one.loss if heads else np.nan, "ntp before": ntp[0]}
        row |= {"ntp after": ntp[found["kept"][0] if heads and one.kind == "joint" else -1]}
        rows.append({"way": way, **row, "10^12 operations": one.operations / 1e12, "seconds": one.arm.arrays.seconds})
    return pd.DataFrame(rows).set_index("way")


GAPS = ("excess_ce", "kl_to_marginal")


def budget_table(ways: dict[str, list[Trained]], scores: pd.DataFrame, of: tuple[str, ...] = GAPS) -> pd.DataFrame:
    """Those columns of the scores by corpus, `name` (frozen, joint), train_tokens and operations, with intervals; scores: of
    Study.measured, where the marginal is known or everywhere."""
    data, first = on_data(scores), {way: one for way, (one, *_) in ways.items()}
    parts = [data[way].assign(name=x.kind, train_tokens=x.tokens, operations=x.operations) for way, x in first.items()]
    keys = ["corpus", "name", "train_tokens", "operations"]
    return metrics.summarise(pd.concat(parts, ignore_index=True), keys, list(of))


def slopes(by_budget: pd.DataFrame, budgets: list[int]) -> pd.DataFrame:
    """By corpus and name what each doubling of the budget took off the excess over the marginal, nats."""
    rows = by_budget[(by_budget.metric == "excess_ce") & by_budget.train_tokens.isin(budgets)]
    table = rows.pivot_table(index=["corpus", "name"], columns="train_tokens", values="value", sort=False).sort_index(axis=1)
    return -table.diff(axis=1).iloc[:, 1:]


def share_table(ways: dict[str, list[Trained]], scores: pd.DataFrame, plain: list[str]) -> pd.DataFrame:
    """Share of the frozen heads' gap at offset 2 that each way closes, but for the `plain` frozen ones: those with as many
    tokens are what it is held against (head_claims.shares_closed): corpus, arm, value with its interval; nan where that gap is
    not above 0."""
    data = on_data(scores)
    against = {ways[way][0].tokens: data[way] for way in plain}
    others = [way for way in ways if way not in plain]
    found = [head_claims.shares_closed(data[way], against[ways[way][0].tokens]).assign(arm=way) for way in others]
    return pd.concat(found, ignore_index=True).assign(offset=2, metric="share")


def drawn_shares(run, shares: pd.DataFrame, unknown: tuple[str, ...]) -> pd.DataFrame:
    """Of a share_table the corpora that the backbone knows; those left out, and those without a share, are said."""
    for corpus, part in shares.groupby("corpus", sort=False):
        if corpus in unknown:
            run.skip(f"shares of the gap closed on {corpus}", "the backbone does not know it: its marginal is no mark there")
        elif part["value"].isna().all():
            reason = "the frozen heads' gap to the base model's marginal is not above 0 there"
            run.skip(f"shares of the gap closed on {corpus}", reason)
    return shares[~shares.corpus.isin(unknown)].reset_index(drop=True)


def excess(study: Study, ways: dict[str, list[Trained]], seed: int) -> pd.DataFrame:
    """adjusted.excess of every way over the base model's marginal, column `arm`."""
    found = [
        adjusted.excess(study.run, study.reads(one), [one.arm], seed, study.base).assign(arm=way)
        for way, each in ways.items()
        for one in each
    ]
    return pd.concat(found, ignore_index=True)


def contrasts(everywhere: pd.DataFrame, excess: pd.DataFrame, joint: str, tokens: str, operations: str) -> dict:
    """claim -> what it is judged by, by corpus: the way `joint` against frozen heads that saw as many tokens, and against those
    that took as many operations, everywhere (of Study.measured); and against the base model's marginal (of `excess`)."""
    heads = {way: part for way, part in everywhere.groupby("arm", sort=False)}
    found = {c: head_claims.ahead_effects(heads[joint], heads[way]) for c, way in (("C4a", tokens), ("C4b", operations))}
    return found | {"C4c": head_claims.c3a_effects(on_data(excess)[joint])}


def ahead_by_budget(everywhere: pd.DataFrame, budgets: dict[str, int]) -> pd.DataFrame:
    """C4a's difference at every budget (head_claims.ahead_effects, at all eligible positions): corpus, positions seen, effect
    with its interval. everywhere: of Study.measured."""
    heads = {way: part for way, part in everywhere.groupby("arm", sort=False)}
    pairs = {n: (heads[f"joint, {budget}"], heads[f"frozen, {budget}"]) for budget, n in budgets.items()}
    return pd.concat([head_claims.ahead_effects(*pair).assign(positions=n) for n, pair in pairs.items()], ignore_index=True)


def counting_shares(counted: pd.DataFrame, frozen: pd.DataFrame) -> pd.DataFrame:
    """Share of the frozen heads' gap at offset 2 that counting closes, by corpus and control (`name`). counted: of gaps.counted;
    frozen: scores of one way, which counting is held against."""
    means, rows = frozen[frozen.label_source == "data"].groupby("corpus")["excess_ce"].mean(), []
    for (corpus, name), part in counted.groupby(["corpus", "name"], sort=False):
        rows.append({"corpus": corpus, "name": name, "metric": "share", "value": 1 - part["excess_ce"].mean() / means[corpus]})
    return pd.DataFrame(rows)


def gap_table(scores: pd.DataFrame, base: Backbone) -> pd.DataFrame:
    """The long table of gaps of every way, under the base model's name: trained copies of it are told apart by their `arm`."""
    parts = [gaps.gap_summary(part).assign(arm=way) for way, part in scores.groupby("arm", sort=False)]
    return pd.concat(parts, ignore_index=True).assign(backbone=base.name, n_params=base.n_params)


def cost_table(scores: pd.DataFrame, losses: pd.DataFrame, before: str) -> pd.DataFrame:
    """By corpus and way that has next-token losses: cross-entropy at offset 2, and what the next token's lies above that of the
    way called `before`, nats a token, each with its interval: offset2, offset2_low, offset2_high, ntp, ntp_low, ntp_high, p."""
    base, rows = losses[losses.arm == before], []
    for (way, corpus), part in losses.groupby(["arm", "corpus"], sort=False):
        rows.append({"corpus": corpus, "arm": way} | metrics.paired(part, base[base.corpus == corpus], "cross_entropy"))
    cost = pd.DataFrame(rows).rename(columns={"effect": "ntp", "ci_low": "ntp_low", "ci_high": "ntp_high"})
    data = scores[scores.label_source == "data"]
    ahead = metrics.summarise(data.assign(cross_entropy=-data["log_prob"]), ["corpus", "arm"], ["cross_entropy"])
    ahead = ahead.rename(columns={"value": "offset2", "ci_low": "offset2_low", "ci_high": "offset2_high"})
    columns = ["corpus", "arm", "offset2", "offset2_low", "offset2_high"]
    return cost.merge(ahead[columns], on=["corpus", "arm"], validate="one_to_one")


def own_marginal_table(run, trained: Backbone, base: Backbone, test: dict) -> pd.DataFrame:
    """By corpus the cross-entropy at offset 2 of the trained backbone's own marginal minus the base model's, nats a token."""
    rows = []
    for corpus, part in test.items():
        tables = [stored.marginal_scores(run, backbone, part, (2,)) for backbone in (base, trained)]
        before, after = (table[table.label_source == "data"] for table in tables)
        rows.append({"corpus": corpus} | metrics.paired(before, after, "log_prob"))
    return pd.DataFrame(rows)
