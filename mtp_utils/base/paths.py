"""Absolute paths of what is read and written, so that nothing depends on the current directory."""

import os
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
# A package installed without its repository (no pyproject.toml beside it) works in the current directory.
ROOT = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else Path.cwd()
LADDER = PACKAGE / "backbones" / "ladder"
FROZEN = PACKAGE / "text" / "corpora.json"  # the list of evaluation texts, with their sha256
FIGURES = ROOT / "figures"
NOTEBOOKS = Path(os.environ.get("MTP_NOTEBOOKS") or ROOT / "notebooks").resolve()


def build(profile: str) -> Path:
    """Folder of one profile's results: `$MTP_BUILD/<profile>`, by default `build/<profile>` in the repository."""
    return _build_root() / profile


def tables(profile: str) -> Path:
    """Folder of the measured tables, `<stem>.csv` with `<stem>.json`."""
    return build(profile) / "tables"


def figures(profile: str) -> Path:
    """Folder of the figures drawn, with manifest.json and scorecard.md."""
    return build(profile) / "figures"


def notebooks(profile: str) -> Path:
    """Folder of the executed notebooks."""
    return build(profile) / "notebooks"


def all_notebooks() -> list[Path]:
    """The notebooks NN_name.ipynb, in order."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def cache() -> Path:
    """Folder of what all profiles share and anything can make again: token blocks, states, unfinished joint training."""
    return _build_root() / "cache"


def models() -> Path:
    """Folder of what came in wheels and of models that were converted, which all clones share: `$MTP_CACHE`, by default
    `mtp_companion` in the user's folder of caches. Raises ValueError where nobody's home is known."""
    if given := os.environ.get("MTP_CACHE"):
        return Path(given).expanduser().resolve()
    try:
        home = Path.home()
    except RuntimeError as error:
        raise ValueError("there is no home folder to keep models in: set MTP_CACHE to a folder for them") from error
    places = {"darwin": home / "Library" / "Caches", "win32": Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")}
    default = places.get(sys.platform, Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache"))
    return (default / "mtp_companion").resolve()


def _build_root() -> Path:
    return Path(os.environ.get("MTP_BUILD") or ROOT / "build").resolve()
