"""Where the benchmarks leave their numbers: <name>.csv, and the table between <name>'s markers in README.md."""

import platform
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent


def processor():
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.machine())


def publish(name: str, rows: list[tuple]) -> None:
    """rows: (case, quantity, value, target)."""
    frame = pd.DataFrame(rows, columns=["case", "quantity", "value", "target"])
    frame.to_csv(HERE / f"{name}.csv", index=False, lineterminator="\n")
    lines = [f"{processor()}.", "", "| case | quantity | value | target |", "|---|---|---|---|"]
    splice(name, lines + ["| {} | {} | {:.3g} | {} |".format(*row) for row in rows])


def splice(name: str, lines: list[str]) -> None:
    """Put the lines between the markers of that name in the README."""
    readme, begin, end = HERE / "README.md", f"<!-- {name} -->\n", f"<!-- /{name} -->"
    head, rest = readme.read_text(encoding="utf-8").split(begin, 1)
    tail = rest.split(end, 1)[1]
    readme.write_text(head + begin + "\n".join(lines) + "\n" + end + tail, encoding="utf-8")
