"""The title of each figure: what it shows, with its numbers, read from the table that is drawn. One function a figure.

Numbers are those of the largest backbone in the table; corpora come in the table's order.
"""

import pandas as pd

from .numbers import Title, across, beside, count, each, ends, number, single, span, value

CONTROLS = ("unigram", "skip_bigram", "skip_trigram", "cache_ngram")


def offsets(table: pd.DataFrame, backbone: str) -> Title:
    """00: how many of the tokens the arg-max had right, at the first offset and at the last."""
    right = table.groupby("offset")["right"].agg(["sum", "size"])
    parts = " and ".join(f"{int(hits)} of {n} at offset {k}" for k, (hits, n) in right.iloc[[0, -1]].iterrows())
    return Title(f"On one German sentence the arg-max is right for {parts}", f"{backbone}, the marginal by offset")


def ladder(summary: pd.DataFrame) -> Title:
    """00: next-token loss of the smallest and the largest backbone."""
    rows = summary[summary.seed == summary["seed"].min()]
    said = f"What the next token costs at {_sizes(rows)} parameters"
    return Title(said, "held-out loss, all tokens", across(rows, "n_params"), " nats")


def against_counting(summary: pd.DataFrame, metric: str, backbone: str) -> Title:
    """01: the marginal two tokens ahead beside the best of the counting controls."""
    rows = summary[(summary.offset == 2) & (summary.metric == metric)]
    best, called, unit = (max, "top-1 accuracy", "") if metric == "top1" else (min, "cross-entropy", " nats")

    def of(part: pd.DataFrame) -> str:
        counting = best(value(part, predictor=name) for name in CONTROLS)
        return f"{number(value(part, predictor='marginal'))} against {number(counting)}"

    said = f"Two tokens ahead: {called} of the marginal, and of the best counting model"
    return Title(said, f"{backbone}, the documents' own tokens", each(rows, of), unit)


def label_sources(summary: pd.DataFrame, backbone: str) -> Title:
    """01: accuracy two tokens ahead by whose tokens are asked."""
    rows = summary[(summary.offset == 2) & (summary.metric == "top1")]
    names = list(dict.fromkeys(rows["label_source"]))
    said = f"Right two tokens ahead on {' / '.join(names)} tokens"
    return Title(said, f"{backbone}, the marginal", beside(rows, "label_source", names))


def truncation(summary: pd.DataFrame, backbone: str, against: str) -> Title:
    """01: what 64 candidates (or as many as there are) hold and certify."""
    k = summary["k"][summary["k"] <= 64].max()
    rows = summary[summary.k == k]
    said, held = f"{k} candidates hold of the mass / certify of the arg-maxes", ("captured_mass", "certified")
    return Title(said, f"{backbone}, offset 2, against {against}", beside(rows, "metric", held))


def estimators(summary: pd.DataFrame, backbone: str, against: str) -> Title:
    """01: the largest bias of the cross-entropy over corpora, truncated, sampled and both."""
    rows, found = summary[summary.metric == "cross_entropy_bias"], {}
    for name in ("top_k=64, S/M", "samples=64", "top_k=64 samples=64"):
        biases = rows[rows.estimator == name]["value"]
        found |= {f"{name}:": number(biases.abs().max())} if len(biases) else {}
    return Title("The cross-entropy is off by at most", f"{backbone}, offset 2, against {against}", found, " nats")


def size(summary: pd.DataFrame) -> Title:
    """02: cross-entropy at offset 2 of the smallest and the largest backbone."""
    rows = summary[(summary.offset == 2) & (summary.metric == "cross_entropy")]
    rows = rows[rows.seed == rows["seed"].min()]
    said = f"What the token after next costs at {_sizes(rows)} parameters"
    return Title(said, "the marginal, and the next token beside it", across(rows, "n_params"), " nats")


def offset_two_against_one(summary: pd.DataFrame) -> Title:
    """02: accuracy of the largest backbone one and two tokens ahead."""
    rows = summary[(summary.metric == "top1") & (summary.n_params == summary.n_params.max())]
    said = "Right one and two tokens ahead"
    return Title(said, "largest backbone; the others beside it", beside(rows, "offset", (1, 2), " and "))


def token_class(summary: pd.DataFrame) -> Title:
    """02: accuracy two tokens ahead inside a word and at its start, largest backbone."""
    rows = summary[(summary.metric == "top1") & (summary.backbone == summary["backbone"].iloc[-1])]
    said, classes = "Right two tokens ahead inside a word, and at a word's start", ("inside a word", "word start")
    return Title(said, f"{rows['backbone'].iloc[0]}, the marginal", beside(rows, "class", classes, " and "))


def context(summary: pd.DataFrame) -> Title:
    """02: cross-entropy two tokens ahead with the shortest and the longest contexts, largest backbone."""
    rows = summary[(summary.metric == "cross_entropy") & (summary.backbone == summary["backbone"].iloc[-1])]
    bins = list(dict.fromkeys(rows["context"]))
    found = beside(rows, "context", (bins[0], bins[-1]), " and ")
    said = f"What the token after next costs with {bins[0]} tokens of context, and with {bins[-1]}"
    return Title(said, f"{rows['backbone'].iloc[0]}, the marginal", found, " nats")


def dose_response(summary: pd.DataFrame) -> Title:
    """02: what the truth and the largest backbone say, from where the token after next is given to where it is free."""
    rows = summary[summary.metric == "cross_entropy"]
    last = [name for name in dict.fromkeys(rows["backbone"]) if name != "grammar"][-1]
    true, ours = (ends(rows[rows.backbone == name], "dose") for name in ("grammar", last))
    doses = f"{rows['dose'].min():.2f} to {rows['dose'].max():.1f}"
    said = f"From {doses} nats of true entropy the true m2 costs {true}, {last}'s {ours}"
    return Title(said, "generated translations, both sides, offset 2")


def four_bits(table: pd.DataFrame, backbone: str) -> Title:
    """02: what rounding to four bits adds to the marginal's cross-entropy."""
    found = single(table[(table.offset == 2) & (table.metric == "cross_entropy")])
    return Title("Rounding to four bits adds two tokens ahead", f"{backbone}, weights as in a Q4_1 file", found, " nats")


def criteria(table: pd.DataFrame, backbone: str) -> Title:
    """02: AUROC of a low entropy of the marginal."""
    found = single(table[table.criterion == "low H(m2)"], "effect")
    return Title("A low H(m2) tells right from wrong with an AUROC of", f"{backbone}, offset 2, the documents' own tokens", found)


def layers(summary: pd.DataFrame, backbone: str) -> Title:
    """03: the layers with the lowest cross-entropy one and two tokens ahead."""
    rows = summary[(summary.readout == "probe") & (summary.metric == "cross_entropy")]

    def of(part: pd.DataFrame) -> str:
        best = [part[part.offset == k].sort_values("value")["layer"].iloc[0] for k in (1, 2)]
        return f"{best[0]} and {best[1]}"

    said = "Layer with the lowest loss one and two tokens ahead"
    return Title(said, f"{backbone}: by a probe (solid), by the lens (dotted); across: counting, offset 2", each(rows, of))


def lowest(summary: pd.DataFrame, what: str) -> Title:
    """03: offset 2 read from each kind of backbone, or in each kind of way, the lowest of its layers."""
    rows = summary[summary.metric == "cross_entropy"]
    kinds = list(dict.fromkeys(rows["kind"]))
    found = each(rows, lambda part: " / ".join(number(part[part.kind == kind]["value"].min()) for kind in kinds))
    return Title(f"Two tokens ahead, lowest of all layers, {' / '.join(kinds)}", what, found, " nats")


def similarity(table: pd.DataFrame) -> Title:
    """03: how alike the embeddings and the last layer are."""
    rows = table[(table.layer == 0) & (table.other == table.groupby("backbone")["other"].transform("max"))]
    said, below = "How alike embeddings and last layer are", f"linear CKA of the layers, {table['corpus'].iloc[0]}"
    return Title(said, below, single(rows, "cka", "backbone"))


def mix_weights(table: pd.DataFrame) -> Title:
    """03: the weight that the mix leaves on the last layer at offset 2."""
    rows = table[(table.offset == 2) & (table.layer == table.groupby("backbone")["layer"].transform("max"))]
    said = "Two tokens ahead a mix started at the last layer leaves there"
    return Title(said, "residual heads on the frozen backbone", single(rows, "weight", "backbone"))


def frozen_heads(summary: pd.DataFrame, kind: str, backbone: str, tokens: int) -> Title:
    """04: how far one kind of heads stays above the marginal at offset 2."""
    rows = summary[(summary.offset == 2) & (summary.metric == "excess_ce") & (summary.arm == kind)]
    said = f"The best kind of heads above the marginal after {tokens:,} positions"
    return Title(said, f"{backbone}, frozen, on data: {kind}, best on validation", single(rows), " nats")


def by_tokens(summary: pd.DataFrame, what: str) -> Title:
    """04: the gap at the least and at the most tokens."""
    rows = summary[summary.metric == "excess_ce"]
    tokens = span(rows["train_tokens"].min(), rows["train_tokens"].max(), count)
    return Title(f"The gap to the marginal after {tokens} positions", what, across(rows, "train_tokens"), " nats")


def pace(helped: pd.DataFrame, what: str, positions: int) -> Title:
    """04: the loss at the end of the worst and of the best way, by what is changed."""
    found = each(helped, lambda part: span(part["loss"].max(), part["loss"].min()), "panel")
    return Title(f"Heads' loss two tokens ahead after {count(positions)} positions, worst and best way", what, found, " nats")


def labels(summary: pd.DataFrame, backbone: str) -> Title:
    """04: the gap by what the heads were trained on."""
    rows = summary[summary.metric == "excess_ce"]
    arms = list(dict.fromkeys(rows["arm"]))
    said = f"The gap to the marginal of heads trained on {' / '.join(arm.removeprefix('trained on ') for arm in arms)}"
    return Title(said, f"{backbone}, offset 2", beside(rows, "arm", arms), " nats")


def by_size(summary: pd.DataFrame) -> Title:
    """04: the gap of the smallest and of the largest backbone's heads."""
    rows = summary[(summary["metric"] == "gap") & (summary["name"] == "frozen")]
    said = f"The heads' gap to the marginal at {_sizes(rows)} parameters"
    return Title(said, "offset 2: marginal, best frozen head, gap", across(rows, "n_params"), " nats")


def budgets(summary: pd.DataFrame, backbone: str) -> Title:
    """05: the gap of joint and frozen heads at joint training's largest budget."""
    rows = summary[summary.metric == "excess_ce"]
    most = rows[rows["name"] == "joint"]["train_tokens"].max()
    found = beside(rows[rows.train_tokens == most], "name", ("joint", "frozen"), " and ")
    said = f"Joint and frozen heads above the marginal after {count(most)} positions"
    return Title(said, f"{backbone}, offset 2", found, " nats")


def by_operations(summary: pd.DataFrame, backbone: str) -> Title:
    """05: joint heads and the frozen ones that took as many operations."""
    last = summary[summary.operations == summary.groupby("name")["operations"].transform("max")]
    found = beside(last, "name", ("joint", "frozen"), " and ")
    said = "What joint and frozen heads reach in as many operations"
    return Title(said, f"{backbone}, offset 2, all eligible positions", found, " nats")


def shares(table: pd.DataFrame, way: str, backbone: str) -> Title:
    """05: what one way of joint training closes of the frozen heads' gap."""
    said = f"{way[:1].upper() + way[1:]}, closes of the frozen heads' gap"
    return Title(said, f"{backbone}, offset 2, where the marginal is known, which is 1", single(table[table.arm == way]))


def cost(table: pd.DataFrame, ways: tuple[str, ...], backbone: str) -> Title:
    """05: what each of a few ways of joint training changes in the next token's loss."""
    said = f"Change in the next token's loss by {' / '.join(ways)}"
    return Title(said, f"{backbone}: offset 2 against it", beside(table, "arm", ways, column="ntp"), " nats")


def _sizes(rows: pd.DataFrame) -> str:
    return span(rows["n_params"].min(), rows["n_params"].max(), count)
