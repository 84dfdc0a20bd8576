"""One run of the notebooks, one after another, in one process or several; broken off, the next one goes on from there."""

import contextlib
import glob
import hashlib
import os
import uuid
from pathlib import Path

from ..base import paths, ranks
from ..base.files import read_json
from ..base.locks import Stop, exclusive
from ..base.profiles import Profile, own_of
from .execute import finished, run_notebook


def run_all(notebooks: list[Path], profile: Profile, force: bool = False) -> None:
    """Run the notebooks one after another and print a table of what they made; the first failure ends the run."""
    if not notebooks:
        raise Stop(f"no notebooks in {paths.NOTEBOOKS}")
    with exclusive(paths.build(profile.folder)) if ranks.first() else contextlib.nullcontext():
        given = _given()
        if ranks.first():
            _prepare(notebooks, profile, force)
        run_id, entries = ranks.first_says(_run_id(profile, force) if ranks.first() else ""), {}
        for i, path in enumerate(notebooks, 1):
            if ranks.first() and _given() != given:
                raise Stop("a text or backbone was changed while the run was on: start it again")
            print(f"[{i}/{len(notebooks)}] {path.stem}", end="", flush=True)
            entry = ranks.first_says(finished(path, profile, run_id))
            print(" (finished before the interruption)" if entry else "", flush=True)
            _port_of(i)
            entries[path.stem] = entry or run_notebook(path, profile, run_id)
            ranks.gather(None)  # all have come to the end of it
        if ranks.first():
            (paths.build(profile.folder) / ".unfinished").unlink()
    if not ranks.first():  # the others hold no entries
        return
    print(f"\n{'notebook':30} {'seconds':>8} {'figures':>8}  verdicts")
    for stem, entry in entries.items():
        verdicts = ", ".join(entry["verdicts"]) or "-"
        print(f"{stem:30} {entry['seconds']:8.1f} {len(entry['figures']):8}  {verdicts}")
    for stem, entry in entries.items():
        for line in entry.get("skipped", ()):
            print(f"{stem[:2]} left out {line}")
    print(f"\nfigures: {paths.figures(profile.folder)}")


def _port_of(i: int) -> None:
    """Where the kernels of the i-th notebook meet: each notebook's on a port of its own, away from the runners' store."""
    if ranks.count() > 1:
        base = int(os.environ.setdefault("MTP_PORT", os.environ["MASTER_PORT"]))
        os.environ |= {"MASTER_PORT": str(base + i), "TORCHELASTIC_USE_AGENT_STORE": "False"}


def _prepare(notebooks: list[Path], profile: Profile, force: bool) -> None:
    """Clear what killed runs left half written and, if asked, the tables that the chosen notebooks read, whichever made them."""
    for path in paths.build(profile.folder).glob("*/.*.tmp"):
        path.unlink(missing_ok=True)
    for path in notebooks if force else ():
        entry = read_json(paths.notebooks(profile.folder) / f"{path.stem}.finished.json")
        names = {f"{stem}.*" for stem in map(glob.escape, entry.get("tables", ()))}
        for table in (t for name in (*names, f"{path.name[:2]}_*") for t in paths.tables(profile.folder).glob(name)):
            table.unlink(missing_ok=True)
    paths.notebooks(profile.folder).mkdir(parents=True, exist_ok=True)


def _given() -> str:
    """What tells whether the user's text and backbones are still the same: size and time of their files."""
    own = own_of()
    found = [Path(own["text"])] if own["text"] else []
    for name, source in own["backbones"].items():
        if name.startswith("own/"):
            found += sorted(Path(source).glob("*")) or [Path(source)]  # or a file itself
    return "" if not found else repr([(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in found])


def _run_id(profile: Profile, force: bool) -> str:
    """Name of this run: that of the one broken off, if the code is still the same, so that it goes on from there."""
    marker = paths.build(profile.folder) / ".unfinished"
    sources = [*sorted(paths.PACKAGE.rglob("*.py")), paths.ROOT / "constraints.txt"]
    code = hashlib.sha256(b"".join(p.read_bytes() for p in sources if p.is_file()) + _given().encode()).hexdigest()
    found = marker.read_text().split() if marker.is_file() and not force else []
    if len(found) == 2 and found[1] == code:
        return found[0]
    run_id = uuid.uuid4().hex
    marker.write_text(f"{run_id} {code}")
    return run_id
