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
from ..findings.claims import CONTRASTS

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
*Ladder*: our five models, w16 to w256 by width, each a *rung*. *Texts*: translation (German, by a grammar), code (Python), prose
(its docstrings), catalogues (German interface texts, by people). *Marginal*: the model's own prediction of the token after next,
the one between summed out. *Top-1*: the share that its likeliest token is right; *nats*: log-loss, less is better. *Skip-bigram*,
*skip-trigram*: counting what comes two behind the current token, or behind the last two. **Reproduced**: in every corpus and
seed, the interval beyond what it has to exceed; **partly**: in some corpora; **not reproduced**: on the other side in all;
**contradicted**: so in some; **inconclusive**: none of these, or heads that are not ahead of counting.
"""


def published(root: Path) -> dict[str, Path]:
    """Name -> its folder, of the runs that are published below a folder of figures."""
    return {name: root / folder for name, (folder, _) in RUNS.items() if (root / folder / "manifest.json").is_file()}


def findings(root: Path) -> str:
    """The words of the README's table, and the table: a row a claim, what decides it, and a column for each published run with
    verdict and effect."""
    folders = published(root)
    cells = {name: _cells((folder / "scorecard.md").read_text("utf-8")) for name, folder in folders.items()}
    lines = ["| " + " | ".join(["claim", "what decides it", *cells]) + " |", "|---" * (2 + len(cells)) + "|"]
    for claim, words in artifacts.CLAIMS.items():
        found = [column.get(claim, "not yet tested") for column in cells.values()]
        lines.append("| " + " | ".join([f"**{claim}** {words}", CONTRASTS[claim].quantity, *found]) + " |")
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
