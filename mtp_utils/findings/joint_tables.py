"""C4: what was measured of heads and backbones trained together, as the tables that are drawn and judged."""

import pandas as pd

from ..backbones.load import Backbone
from . import gaps, head_claims, layer_readings, metrics, stored
from .arms import bench_of
from .joint_heads import Study, Trained


def on_data(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Of every way (column `arm`) its scores on the data's own labels."""
    data = scores[scores.label_source == "data"]
    return {way: part for way, part in data.groupby("arm", sort=False)}


def budget_table(ways: dict[str, list[Trained]], scores: pd.DataFrame) -> pd.DataFrame:
    """The gap to the marginal by corpus, `name` (frozen, joint) and train_tokens, with intervals; scores: of Study.scores."""
    kinds, tokens = ({way: getattr(each[0], name) for way, each in ways.items()} for name in ("kind", "tokens"))
    most = max(n for way, n in tokens.items() if kinds[way] == "joint")
    order = sorted(ways, key=lambda way: (tokens[way] > most, kinds[way] == "joint"))  # the longest frozen ones last
    data = on_data(scores)
    parts = [data[way].assign(name=kinds[way], train_tokens=tokens[way]) for way in order]
    keys = ["corpus", "name", "train_tokens"]
    return metrics.summarise(pd.concat(parts, ignore_index=True), keys, ["excess_ce", "kl_to_marginal"])


def share_table(ways: dict[str, list[Trained]], scores: pd.DataFrame, plain: list[str]) -> pd.DataFrame:
    """Share of the frozen heads' gap at offset 2 that each way closes, but for the `plain` frozen ones: those with as many
    tokens are what it is held against (head_claims.shares_closed): corpus, arm, value with its interval; nan where that gap is
    not above 0."""
    data = on_data(scores)
    against = {ways[way][0].tokens: data[way] for way in plain}
    others = [way for way in ways if way not in plain]
    found = [head_claims.shares_closed(data[way], against[ways[way][0].tokens]).assign(arm=way) for way in others]
    return pd.concat(found, ignore_index=True).assign(offset=2, metric="share")


def gap_table(scores: pd.DataFrame, base: Backbone) -> pd.DataFrame:
    """The long table of gaps of every way, under the base model's name: trained copies of it are told apart by their `arm`."""
    parts = [gaps.gap_summary(part).assign(arm=way) for way, part in scores.groupby("arm", sort=False)]
    return pd.concat(parts, ignore_index=True).assign(backbone=base.name, n_params=base.n_params)


def cost_table(scores: pd.DataFrame, losses: pd.DataFrame, before: str) -> pd.DataFrame:
    """By corpus and way: cross-entropy at offset 2, and what the next token's loss lies above that of the way called `before`,
    nats a token, each with its interval: offset2, offset2_low, offset2_high, ntp, ntp_low, ntp_high, p."""
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


def layer_table(study: Study, trained: Backbone) -> pd.DataFrame:
    """Cross-entropy at offset 2 read by a probe from each layer, before and after joint training (`kind`), with intervals. The
    trained backbone's probes learn from text that it was not trained on."""
    run, base, frames = study.run, study.base, []
    read = (1, 2, 3, 4) if base.name in run.profile.last_rungs else (2,)  # notebook 03's probes, where it has some
    after = run.profile.deciding_tokens
    for kind, backbone, offsets, skip in (("before", base, read, 0), ("after joint training", trained, (1, 2), after)):
        bench = bench_of(run, backbone, study.test, skip=skip)
        probes = layer_readings.probe_arms(run, bench, offsets)
        frames.append(layer_readings.scored_by_layer(run, bench, probes, "probe", base).assign(kind=kind))
    found = pd.concat(frames, ignore_index=True)
    return metrics.summarise(found[found.offset == 2], ["corpus", "kind", "layer"], ["cross_entropy"])
