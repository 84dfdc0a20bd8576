"""Documents' means: adjusted for which of their positions were scored, and their error with packages as the unit."""

import numpy as np
import pandas as pd

from . import metrics

KEYS = ["corpus", "document", "position"]
FEWEST_PACKAGES = 5  # of which errors by package are said


def by_document(means: pd.Series, here: pd.DataFrame, everywhere: pd.DataFrame) -> pd.Series:
    """Documents' means over their scored positions, adjusted. here, everywhere: a row for each scored, and for each eligible
    position of one corpus: KEYS, and a column a variate; a document of which nothing more is known is not moved. As they are
    where a variate is no number (a token that the backbone rules out), or documents are few (metrics.adjusted)."""
    scored, eligible = (x.drop(columns=["corpus", "position"]).groupby("document").mean() for x in (here, everywhere))
    eligible = eligible.fillna(scored)
    if not np.isfinite(scored.to_numpy()).all() or not np.isfinite(eligible.to_numpy()).all():
        return means
    return metrics.adjusted(means, scored, eligible)


def at_scored(means: pd.Series, scored: pd.DataFrame, everywhere: pd.DataFrame) -> pd.Series:
    """`by_document`, the scored positions (KEYS of the rows of `scored`) being among those of which everything is known."""
    here = everywhere.merge(scored[KEYS].drop_duplicates(), on=KEYS, validate="one_to_one")
    return by_document(means, here, everywhere)


def error_by_package(means: pd.Series) -> float:
    """Standard error of a mean over documents (index: their names, `package/file`) if packages, not documents, are what is drawn
    from a population: the jackknife over packages (Efron and Stein 1981), which few packages of unequal size do not make too
    small; to be read with as many degrees of freedom as packages but one. nan where there are fewer than FEWEST_PACKAGES."""
    of = means.groupby(means.index.astype(str).str.split("/").str[0])
    if (n := of.ngroups) < FEWEST_PACKAGES:
        return np.nan
    without = (means.sum() - of.sum()) / (len(means) - of.size())
    return float(np.sqrt((n - 1) / n * ((without - means.mean()) ** 2).sum()))
