"""One notebook's run: measure, draw, judge, finish. Torch stays out, so that redrawing needs no model."""

import contextlib
import dataclasses
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from typing import NoReturn

import pandas as pd

from . import artifacts, files, paths, ranks, records
from .profiles import PROFILES, Profile
from .refusals import CannotDo

EXPLORATORY = "no verdict needs it"  # what is left out for that is called so, in the reason
SHORTEST_ALT = 40  # characters; less than that describes no figure


@dataclasses.dataclass
class Run:
    """The run of one notebook under one profile; `runtime.start` makes it, `finish` in the last cell ends it.

    Everything is written under `build/<profile>/`; the figures and the entry that says the run was whole count only
    once `finish` was called.
    """

    notebook: str
    profile: Profile
    provenance: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not re.fullmatch(r"\d\d_\w+", self.notebook):
            raise ValueError(f"a notebook is called NN_name, not {self.notebook!r}")
        self.number = self.notebook[:2]
        self.sentinel = paths.notebooks(self.profile.folder) / f"{self.notebook}.finished.json"
        self._started = time.monotonic()
        self._figures, self._tables, self._verdicts, self._skipped = [], [], [], []

    def measure(self, stem: str, function: Callable[..., pd.DataFrame], **arguments) -> pd.DataFrame:
        """`function(**arguments)` as a stored table; see `records.measured`."""
        frame = records.measured(stem, function, profile=self.profile, provenance=self.provenance, **arguments)
        self._tables.append(stem)
        return frame

    def measure_arrays(self, stem: str, function: Callable[..., dict], **arguments) -> records.Arrays:
        """`function(**arguments)` as stored arrays; see `records.measured_arrays`."""
        arrays = records.measured_arrays(stem, function, profile=self.profile, provenance=self.provenance, **arguments)
        self._tables.append(stem)
        return arrays

    def save_figure(self, fig, stem: str, table: pd.DataFrame, alt: str) -> None:
        """Write `<stem>.png .svg .csv .json`: the figure, the table it draws, and where both come from.

        Raises:
            ValueError: a stem that does not begin with the notebook's number, or an alt text too short to be one.
        """
        if not re.fullmatch(rf"{self.number}_[\w-]+", stem):
            raise ValueError(f"a figure of {self.notebook} is called {self.number}_<name>, not {stem!r}")
        alt = " ".join(alt.split())
        if len(alt) < SHORTEST_ALT:
            raise ValueError(f"alt text of {stem}: {len(alt)} characters, at least {SHORTEST_ALT} are needed")
        self._figures.append(stem)
        if not ranks.first():
            return
        folder = paths.figures(self.profile.folder)
        outputs = {}
        for kind in ("png", "svg"):
            data = artifacts.picture(fig, kind)
            files.write_atomic(folder / f"{stem}.{kind}", data)
            outputs[kind] = files.sha256(data)
        record = {"stem": stem, **self._origin(), "alt": alt, "outputs": outputs, "tables": list(self._tables)}
        records.write_table(folder / f"{stem}.csv", table, record | {"provenance": self._stamp()})

    def save_page(self, content: str) -> None:
        """Write the explorer's page beside the figures."""
        if ranks.first():
            files.write_atomic(paths.figures(self.profile.folder) / artifacts.EXPLORER, content.encode())

    def skip(self, what: str, reason: str) -> None:
        """Say that a part is left out, and why: here, and in the table at the end of the run."""
        self._skipped.append(f"{what}: {reason}")
        print(f"skipped: {what}: {reason}")

    def explores(self, what: str) -> bool:
        """Whether the profile measures what no verdict needs; where it does not, `what` is skipped."""
        if not self.profile.exploratory:
            (more,) = (name for name, p in PROFILES.items() if p.adds_to == self.profile.base)
            self.skip(what, f"{EXPLORATORY}: ./reproduce.sh {more} adds it")
        return self.profile.exploratory

    @contextlib.contextmanager
    def left_out(self, what: str) -> Iterator[None]:
        """Inside, a CannotDo ends what is inside and no more: it is skipped, with the refusal as the reason."""
        try:
            yield
        except CannotDo as refusal:
            self.skip(what, str(refusal))

    def able(self, what: str, backbones: dict, ask: Callable, *given) -> dict:
        """Those of the backbones for which `ask(backbone, *given)` raises no CannotDo; of the others `what` is skipped.

        Asked once, before anything is measured: cells behind it work on those that it returns. None of them: `run.end`.
        """
        found = {}
        for name, backbone in backbones.items():
            with self.left_out(f"{what} of {name}"):
                ask(backbone, *given)
                found[name] = backbone
        return found

    def end(self, reason: str, untested: tuple[str, ...] = ()) -> NoReturn:
        """Finish here: nothing further down can be done, and those claims stay untested, for this reason.

        A SystemExit of 0 is what papermill takes for a notebook's proper end, and what stops "run all" in JupyterLab.
        """
        for claim in untested:
            self.untested(claim, reason)
        self.skip("the rest of the notebook", reason)
        self.finish()
        print(f"{self.notebook} ends here; the SystemExit is its proper end")
        warnings.filterwarnings("ignore", "To exit: use")  # a notebook has no shell to leave
        raise SystemExit(0)

    def untested(self, claim: str, reason: str) -> None:
        """Skip a claim's verdict; the scorecard shows the reason in its place."""
        self.skip(f"verdict {claim}", reason)
        if self.profile.judges:
            nothing = dict.fromkeys(artifacts.VERDICT_COLUMNS, "") | dict.fromkeys(("effect", "ci_low", "ci_high"), math.nan)
            self._verdicts.append(nothing | {"claim": claim, "n": 0, "verdict": artifacts.UNTESTED, "text": reason})

    def verdict(self, verdict) -> str:
        """Keep a claim's verdict for the scorecard, and return the sentence that says it.

        `verdict` is a dataclass with `claim` (one of `artifacts.CLAIMS`), `contrast`, `effect`, `ci_low`, `ci_high`,
        `seeds`, `n`, `verdict` and `text`. The smoke profile is too small to judge anything and says so.
        """
        if verdict.claim not in artifacts.CLAIMS:
            raise ValueError(f"unknown claim {verdict.claim!r}; there are {', '.join(artifacts.CLAIMS)}")
        if not self.profile.judges:
            return "smoke profile: no verdicts"
        row = {name: getattr(verdict, name) for name in artifacts.VERDICT_COLUMNS}
        self._verdicts.append(row | {"seeds": _seeds(row["seeds"])})
        return f"{verdict.claim}: {verdict.verdict}. {verdict.text}"

    def finish(self) -> None:
        """Write the verdicts, the manifest, the scorecard, and the entry without which the run does not count."""
        if not ranks.first():
            return
        profile = self.profile.folder
        self._store_verdicts()
        artifacts.remove_figures(paths.figures(profile), self.number, keep=self._figures)
        artifacts.write_scorecard(profile)
        artifacts.write_manifest(profile)
        entry = {"figures": self._figures, "tables": self._tables, "verdicts": [v["verdict"] for v in self._verdicts]}
        entry["skipped"] = self._skipped
        entry |= {"run": os.environ.get("MTP_RUN", ""), "seconds": self._seconds()}
        files.write_json(self.sentinel, self._origin() | entry)
        print(f"{self.notebook}: {len(self._figures)} figures, {len(self._verdicts)} verdicts, {self._seconds()} s")

    def _store_verdicts(self) -> None:
        path = paths.tables(self.profile.folder) / f"{self.number}_verdicts.csv"
        if self._verdicts:
            records.write_table(path, pd.DataFrame(self._verdicts), self._origin() | {"provenance": self._stamp()})
        else:
            path.unlink(missing_ok=True)

    def _origin(self) -> dict:
        return {"notebook": self.notebook, "source_sha256": artifacts.source_sha256(self.notebook)}

    def _stamp(self) -> dict:
        return self.provenance | {"seconds": self._seconds()}

    def _seconds(self) -> float:
        return round(time.monotonic() - self._started, 1)


def _seeds(seeds) -> str:
    return " ".join(map(str, seeds)) if isinstance(seeds, (list, tuple)) else str(seeds)
