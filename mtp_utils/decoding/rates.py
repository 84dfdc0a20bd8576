"""What of the drafts was accepted, and what that is worth. Reads `Decoded.passes`."""

import pandas as pd


def acceptance(passes: pd.DataFrame) -> pd.DataFrame:
    """By offset k: a, passes in which drafts 2..k were all accepted / passes that drafted k (vLLM's per position); conditional,
    the same of passes in which those before k were accepted (EAGLE's n-alpha); stand_alone, the share of first candidates that
    were what was decoded, whatever came before; drafted, passes. Cut passes are left out."""
    whole = passes[~passes["cut"]].sort_values("offset")
    before = whole.groupby(["row", "number"])["accepted"].shift(fill_value=True)
    whole = whole.assign(reached=whole["accepted"].astype(float).where(before))[whole["drafted"]]
    names = {"a": ("accepted", "mean"), "conditional": ("reached", "mean"), "stand_alone": ("agrees", "mean")}
    return whole.groupby("offset").agg(**names, drafted=("accepted", "size")).reset_index()


def mean_acceptance_length(passes: pd.DataFrame) -> float:
    """Tokens a pass: 1, the base model's own, and the drafts accepted. Where every pass drafts every offset: 1 + sum a_k."""
    whole = passes[~passes["cut"]]
    return 1 + float(whole.groupby(["row", "number"])["accepted"].sum().mean())


def speed_up(tokens_a_pass: float, verify: float, draft: float, plain: float) -> float:
    """(1 + sum a_k) / ((verifying pass + draft) / plain pass): how much faster than one token a pass, all in seconds a pass."""
    return tokens_a_pass / ((verify + draft) / plain)
