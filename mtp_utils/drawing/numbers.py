"""Numbers of a table as words, for titles."""

from typing import NamedTuple

import pandas as pd


class Title(NamedTuple):
    """A figure's title: what it shows (`said`), what was measured (`below`), and the numbers `of` each panel by its name,
    without the `unit` that all of them have."""

    said: str
    below: str
    of: dict[str, str] = {}
    unit: str = ""

    def __str__(self) -> str:
        """All of it in two lines, for a figure that has no panel of these names."""
        numbers = ", ".join(f"{name} {found}" for name, found in self.of.items())
        return f"{self.said}{': ' if numbers else ''}{numbers}{self.unit if numbers else ''}\n{self.below}"


def number(x: float) -> str:
    """Two decimals without a leading zero; a dash where there is none."""
    return "-" if x != x else f"{x:.2f}".replace("0.", ".", 1) if abs(x) < 1 else f"{x:.2f}"


def count(n: float) -> str:
    """20k, 4.8M."""
    return f"{n / 1e6:.1f}M".replace(".0M", "M") if n >= 1e6 else f"{n / 1e3:.0f}k"


def each(table: pd.DataFrame, of, column: str = "corpus") -> dict[str, str]:
    """{translation: <of its rows>, code: <...>, ...}"""
    return {name: of(part) for name, part in table.groupby(column, sort=False)}


def value(rows: pd.DataFrame, column: str = "value", **where) -> float:
    """The one number of the rows with these values; nan where there is none."""
    for name, wanted in where.items():
        rows = rows[rows[name] == wanted]
    return float(rows[column].iloc[0]) if len(rows) else float("nan")


def single(table: pd.DataFrame, column: str = "value", by: str = "corpus") -> dict[str, str]:
    """{translation: <the number of its one row>, code: <...>, ...}"""
    return each(table, lambda part: number(value(part, column)), by)


def present(found, *wanted) -> list[str]:
    """Those of the names that were found; of several in a tuple the first that was."""
    each = ((names,) if isinstance(names, str) else names for names in wanted)
    return [name for names in each for name in [n for n in names if n in set(found)][:1]]


def beside(table: pd.DataFrame, name: str, values, sep: str = " / ", column: str = "value") -> dict[str, str]:
    """{translation: <number where `name` is the first of the values> / <the second>, code: <...>, ...}"""
    return each(table, lambda part: sep.join(number(value(part, column, **{name: wanted})) for wanted in values))


def ends(rows: pd.DataFrame, by: str, column: str = "value") -> str:
    """`<value at the least of a column> to <value at the largest>`; the one value where there is but one."""
    values = rows.sort_values(by)[column]
    return span(values.iloc[0], values.iloc[-1]) if len(values) > 1 else number(values.iloc[0])


def across(table: pd.DataFrame, by: str) -> dict[str, str]:
    """{translation: <value at the least of a column> to <value at the largest>, code: <...>, ...}"""
    return each(table, lambda part: ends(part, by))


def span(first: float, last: float, form=number) -> str:
    """`<first> to <last>`, or what both are."""
    return form(first) if first == last else f"{form(first)} to {form(last)}"
