"""Where the benchmarks leave their numbers: <name>.csv, and the table between <name>'s markers in README.md."""

from pathlib import Path

import pandas as pd
from marginal import processor

HERE = Path(__file__).parent


def publish(name: str, rows: list[tuple]) -> None:
    """rows: (case, quantity, value, target)."""
    frame = pd.DataFrame(rows, columns=["case", "quantity", "value", "target"])
    frame.to_csv(HERE / f"{name}.csv", index=False, lineterminator="\n")
    lines = [f"{processor()}.", "", "| case | quantity | value | target |", "|---|---|---|---|"]
    lines += ["| {} | {} | {:.3g} | {} |".format(*row) for row in rows]
    path, begin, end = HERE / "README.md", f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, rest = path.read_text("utf-8").split(begin)
    path.write_text(before + begin + "\n".join(lines) + "\n" + end + rest.split(end)[1], "utf-8")
