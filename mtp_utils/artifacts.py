"""What a run leaves besides its tables: figures with their manifest, verdicts with their scorecard."""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from . import paths, records

CLAIMS = {
    "C1": "a model trained for the next token alone can predict the token after next",
    "C2 (size)": "the ability grows with the size of the model",
    "C2 (data)": "the ability depends on the data",
    "C3a": "heads on a frozen backbone fall short of the marginal",
    "C3b": "they fall short because the hidden layers specialise for the next token",
    "C4": "joint training helps, and a gap to the marginal remains",
}
VERDICT_COLUMNS = ("claim", "contrast", "effect", "ci_low", "ci_high", "seeds", "n", "verdict", "text")
KINDS = ("png", "svg", "csv", "json")


def source_sha256(notebook: str) -> str:
    """sha256 of a notebook's cells (kinds and sources, not outputs), or "unknown" if there is no such file."""
    path = paths.NOTEBOOKS / f"{notebook}.ipynb"
    if not path.is_file():
        return "unknown"
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return records.sha256(json.dumps([[c["cell_type"], "".join(c["source"])] for c in cells]).encode())


def write_manifest(profile: str) -> None:
    """Write figures/manifest.json from the scorecard and the figures' own JSON files: hashes, alt, origin."""
    folder = paths.figures(profile)
    figures = {}
    for path in sorted(folder.glob("[0-9][0-9]_*.json")):
        record = json.loads(path.read_text("utf-8"))
        outputs = record["outputs"] | {"csv": record["sha256"], "json": records.sha256(path.read_bytes())}
        kept = {name: record[name] for name in ("notebook", "source_sha256", "alt", "provenance")}
        figures[path.stem] = kept | {"outputs": outputs}
    scorecard = records.sha256((folder / "scorecard.md").read_bytes())
    content = {"profile": profile, "scorecard_sha256": scorecard, "figures": figures}
    records.write_json(folder / "manifest.json", content)


def remove_figures(folder: Path, number: str, keep: Iterable[str] = ()) -> None:
    """Remove the files of a notebook's figures, but for the stems in `keep`."""
    for path in folder.glob(f"{number}_*"):
        if path.stem not in keep and path.suffix.lstrip(".") in KINDS:
            path.unlink()


def write_scorecard(profile: str) -> None:
    """Write figures/scorecard.md: a row for every contrast judged, and for every claim not yet tested."""
    found = [records.read_table(p) for p in sorted(paths.tables(profile).glob("[0-9][0-9]_verdicts.csv"))]
    verdicts = pd.concat([f for f in found if f is not None] or [pd.DataFrame(columns=VERDICT_COLUMNS)])
    lines = ["| claim | contrast | effect [95 % interval] | seeds | n | verdict |", "|---|---|---|---|---|---|"]
    for claim, words in CLAIMS.items():
        rows = verdicts[verdicts["claim"] == claim]
        lines += [_row(f"**{claim}** {words}", row) for row in rows.to_dict("records")]
        if rows.empty:
            untested = "smoke profile: no verdicts" if profile.startswith("smoke") else "not yet tested"
            lines.append(f"| **{claim}** {words} | | | | | {untested} |")
    text = f"# Scorecard\n\nProfile {profile}; the claims in our words.\n\n" + "\n".join(lines) + "\n"
    records.write_atomic(paths.figures(profile) / "scorecard.md", text.encode())


def _row(claim: str, row: dict) -> str:
    effect = f"{row['effect']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
    return f"| {claim} | {row['contrast']} | {effect} | {row['seeds']} | {row['n']} | {row['verdict']} |"
