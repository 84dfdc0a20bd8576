"""What stands over all published runs: the README's table of findings, a column a model, and its first figure."""

import json
import re
from pathlib import Path

import pandas as pd

from ..base import artifacts
from ..base.files import sha256, write_atomic
from ..base.profiles import PROFILES, with_own
from ..base.records import read_table, write_table
from ..drawing.overview_plot import overview

GEMMA = with_own(PROFILES["pretrained"], {"gemma3-270m": "gemma3-270m"}, None).name
RUNS = {  # name of the models -> (folder below figures/, profile of the run that is published there)
    "ladder": ("", "default"),
    "SmolLM2-135M": ("smollm2-135m", "pretrained"),
    "Gemma 3 270M": ("gemma3-270m", GEMMA),
}
STEM = "overview"
ALT = (
    "Panels by kind of text, top-1 accuracy above and bits per character below, against parameters on a logarithmic axis: the "
    "next token in grey and the marginal's token after next in black, for the five sizes of the ladder as lines and for each "
    "pretrained model as a marker of its own, with 95 percent intervals."
)

WORDS = """\
**Words.** *Offset* k: k tokens ahead, 1 the next token, 2 the one after it. *Marginal*: a model's own prediction at offset 2,
the token between summed out. *Heads*: small networks on a backbone's hidden states that predict offsets from 2 on in one pass;
*frozen* where the backbone stays as it was, *joint* where it is trained along. *Twin*: of the same shape and text, pre-trained
for several tokens at once (MTP) or for offset 2 alone, where the others are for the next token (NTP). *Position*: a token whose
future is predicted. *Counting*: unigram; skip-bigram and skip-trigram (what came two behind the current token, or behind the
last two); cache n-gram model (up to three tokens, and the document's own words). *Ladder*: our five models, w16 to w256 by
width. *Texts*: translation (German, by a grammar), code (Python), prose (its docstrings), catalogues (German interface texts,
by people). *Top-1*: the share of positions whose likeliest token is right; *nats*: log-loss, less is better.

**Verdicts.** *Reproduced*: the effect is above 0 in every corpus (p below .05, adjusted over corpora) and in every seed.
*Partly*: in some corpora, or not in every seed, or some cannot be tested, as the model loses to counting at the next token
there. *Not reproduced*: the whole interval at or below 0 in all. *Contradicted*: clearly so in some. *Inconclusive*: none of
these, or heads that are not ahead of unigram, skip-bigram and skip-trigram on validation, whatever their effect. C2 (data) is
judged on translations even where the model does not know them, and says so.
"""


def published(root: Path) -> dict[str, Path]:
    """Name -> its folder, of the runs that are published below a folder of figures."""
    return {name: root / folder for name, (folder, _) in RUNS.items() if (root / folder / "manifest.json").is_file()}


def findings(root: Path) -> str:
    """The words of the README's table, and the table: a row a claim, a column for each published run with verdict and effect."""
    folders = published(root)
    cells = {name: _cells((folder / "scorecard.md").read_text("utf-8")) for name, folder in folders.items()}
    lines = ["| " + " | ".join(["claim", *cells]) + " |", "|---" * (1 + len(cells)) + "|"]
    for claim, words in artifacts.CLAIMS.items():
        found = [column.get(claim, "not yet tested") for column in cells.values()]
        lines.append("| " + " | ".join([f"**{claim}** {words}", *found]) + " |")
    return "\n".join([WORDS, *lines])


def _cells(scorecard: str) -> dict[str, str]:
    """Claim -> verdict and effect with its interval and what it is of, of a scorecard's table."""
    found = {}
    for line in scorecard.splitlines():
        if line.startswith("| **"):
            claim, contrast, effect, _, n, verdict = (part.strip() for part in line.strip("|").split("|"))
            of = re.search(r"worst (?:corpus|kind) (\([^)]*\))", contrast)  # that alone, where a verdict has several
            words = f"**{verdict}**: {effect}{f' {of[1]}' if of else ''}, {n} documents"
            found[claim.split("**")[1]] = words if effect else verdict
    return found


def table(root: Path) -> pd.DataFrame:
    """What every published run says of the next token and of the one after it: model, backbone, n_params_total, corpus, offset,
    metric (top1, bits_per_character), value with its interval."""
    frames = []
    for name, folder in published(root).items():
        rows = read_table(folder / "02_size.csv")
        if rows is not None:
            rows = rows[(rows.seed == 0) & rows.metric.isin(["top1", "bits_per_character"])]
            kept = ["backbone", "n_params_total", "corpus", "offset", "metric", "value", "ci_low", "ci_high", "n_documents"]
            frames.append(rows.assign(model=name)[["model", *kept]])
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def draw(root: Path) -> None:
    """Draw the figure over all runs into the folder of figures, from the tables that are published there, if there are any."""
    rows = table(root)
    if rows.empty:
        return
    figure = overview(rows)
    for kind in ("png", "svg"):
        write_atomic(root / f"{STEM}.{kind}", artifacts.picture(figure, kind))
    write_table(root / f"{STEM}.csv", rows, {"alt": ALT, "tables": _digests(root)})


def outdated(root: Path) -> list[tuple[str, str, str]]:
    """`(file, "table", what is wrong)` where the first figure is not that of the published tables."""
    record = root / f"{STEM}.json"
    drawn = json.loads(record.read_text("utf-8"))["tables"] if read_table(root / f"{STEM}.csv") is not None else {}
    wrong = drawn != _digests(root)
    return [(f"{STEM}.csv", "table", "is not that of the published runs: ./reproduce.sh publish draws it")] if wrong else []


def _digests(root: Path) -> dict[str, str]:
    tables = [folder / "02_size.csv" for folder in published(root).values()]
    return {path.relative_to(root).as_posix(): sha256(path.read_bytes()) for path in tables if path.is_file()}
