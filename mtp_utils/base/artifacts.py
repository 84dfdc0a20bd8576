"""What a run leaves besides its tables: figures with their manifest, verdicts with their scorecard.

The claims' words stand here, and what would change each verdict; what decides them: findings/claims.py.
"""

import io
import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from . import files, paths, records

CLAIMS = {
    "C1": "a model trained for the next token alone can predict the token after next",
    "C2 (size)": "the ability grows with the size of the model",
    "C2 (data)": "the ability depends on the data",
    "C3a": "heads on a frozen backbone fall short of the marginal",
    "C3b": "they fall short because the hidden layers specialise for the next token",
    "C4a": "joint training helps: its heads are ahead of frozen ones that saw as many tokens",
    "C4b": "joint training helps: its heads are ahead of frozen ones that took as many operations",
    "C4c": "after joint training a gap to the marginal remains",
}
CHANGES = {  # what would change a verdict
    "C1": "a counting control that is stronger still, or more documents: notebook 01 says which effects these would have shown.",
    "C2 (size)": "a ladder trained to the end at every size; ours holds the tokens fixed, and small rungs are nearer their best.",
    "C2 (data)": "more documents, translations by people where a grammar's were judged, or kinds of text that differ in nothing "
    "but their determinism.",
    "C3a": "heads with far more training (notebook 04 draws the gap against it), or of a kind that is not in the grid.",
    "C3b": "longer training of the heads (they have to be ahead of counting), further pre-training runs of both, or heads "
    "deep enough to undo what layers specialise in.",
    "C4a": "longer training of both, or a larger backbone (notebook 05 draws both against the budget).",
    "C4b": "a larger backbone, or many more heads: what a backward pass through the backbone costs beside theirs differs there.",
    "C4c": "longer joint training, or a larger backbone (notebook 05 says what the last doubling closed).",
}
VERDICT_COLUMNS = ("claim", "contrast", "effect", "ci_low", "ci_high", "seeds", "n", "verdict", "text")
UNTESTED = "not tested"  # the verdict on a claim that could not be judged; `text` says why
EXPLORER = "explorer.html"
KINDS = ("png", "svg", "csv", "json")


def picture(figure, kind: str) -> bytes:
    """The figure as a file of that kind (png, svg), the same bytes every time: no date, no random ids."""
    import matplotlib

    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "mtp"}):
        figure.savefig(buffer, format=kind, dpi=200, metadata=metadata)
    return buffer.getvalue()


def source_sha256(notebook: str) -> str:
    """sha256 of a notebook's cells (kinds and sources, not outputs), or "unknown" if there is no such file."""
    path = paths.NOTEBOOKS / f"{notebook}.ipynb"
    if not path.is_file():
        return "unknown"
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return files.sha256(json.dumps([[c["cell_type"], "".join(c["source"])] for c in cells]).encode())


def write_manifest(profile: str) -> None:
    """Write figures/manifest.json from the scorecard and the figures' own JSON files: hashes, alt, origin."""
    folder = paths.figures(profile)
    figures = {}
    for path in sorted(folder.glob("[0-9][0-9]_*.json")):
        record = json.loads(path.read_text("utf-8"))
        outputs = record["outputs"] | {"csv": record["sha256"], "json": files.sha256(path.read_bytes())}
        kept = {name: record[name] for name in ("notebook", "source_sha256", "alt", "provenance")}
        figures[path.stem] = kept | {"outputs": outputs}
    digest = files.sha256((folder / "scorecard.md").read_bytes())
    content = {"profile": profile, "scorecard_sha256": digest, "figures": figures}
    if (page := folder / EXPLORER).is_file():
        content["explorer_sha256"] = files.sha256(page.read_bytes())
    files.write_json(folder / "manifest.json", content)


def remove_figures(folder: Path, number: str, keep: Iterable[str] = ()) -> None:
    """Remove the files of a notebook's figures, but for the stems in `keep`."""
    for path in folder.glob(f"{number}_*"):
        if path.stem not in keep and path.suffix.lstrip(".") in KINDS:
            path.unlink()


def write_scorecard(profile: str) -> None:
    """Write figures/scorecard.md: a row for every contrast judged, and for every claim not yet tested."""
    text = scorecard(verdicts_of(profile), profile)
    files.write_atomic(paths.figures(profile) / "scorecard.md", text.encode())


def verdicts_of(profile: str) -> pd.DataFrame:
    """The verdicts of all notebooks of a profile so far, VERDICT_COLUMNS; one claim may have several, or none."""
    found = [records.read_table(p) for p in sorted(paths.tables(profile).glob("[0-9][0-9]_verdicts.csv"))]
    found = [f for f in found if f is not None]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=VERDICT_COLUMNS)


def scorecard(verdicts: pd.DataFrame, profile: str) -> str:
    """The scorecard as Markdown: the table that the README shows, then each verdict by corpus and what would change it."""
    lines = ["| claim | contrast | effect [95 % interval] | seeds | n | verdict |", "|---|---|---|---|---|---|"]
    notes = []
    for claim, words in CLAIMS.items():
        rows = verdicts[verdicts["claim"] == claim].to_dict("records")
        lines += [_row(f"**{claim}** {words}", row) for row in rows]
        if not rows:
            untested = "smoke profile: no verdicts" if profile.startswith("smoke") else "not yet tested"
            lines.append(f"| **{claim}** {words} | | | | | {untested} |")
        judged = [row for row in rows if row["verdict"] != UNTESTED]
        notes += [f"- **{claim}**, {row['verdict']}. {row['text']} What would change it: {CHANGES[claim]}" for row in judged]
    parts = [f"# Scorecard\n\nProfile {profile}; the paper's claims, in our words.", "\n".join(lines), "\n".join(notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def unfinished(profile: str) -> list[str]:
    """Notebooks that have not been run to their end under a profile, or have changed since."""
    missing = []
    for path in paths.all_notebooks():
        entry = paths.notebooks(profile) / f"{path.stem}.finished.json"
        if not entry.is_file() or json.loads(entry.read_text("utf-8"))["source_sha256"] != source_sha256(path.stem):
            missing.append(path.stem)
    return missing


def _row(claim: str, row: dict) -> str:
    if row["verdict"] == UNTESTED:
        return f"| {claim} | | | | | {UNTESTED}: {row['text']} |"
    effect = f"{row['effect']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
    return f"| {claim} | {row['contrast']} | {effect} | {row['seeds']} | {row['n']} | {row['verdict']} |"
