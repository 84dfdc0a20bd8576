"""The command line: which words there are, before anything is installed. The standard library is enough for it."""

import argparse
import os
import sys
from pathlib import Path

from ..base import paths
from ..base.files import gguf_name, gguf_of
from ..base.profiles import PROFILES
from ..base.refusals import require

COMMANDS = ("book", "check", "publish", "test", "setup", "lab")  # the last three are reproduce.sh's own
FAILED, UNKNOWN_WORD, INTERRUPTED = 1, 2, 130  # exit codes
FLAGS = {  # as a message names them -> what argparse makes of them
    "--only NN ...": {"nargs": "+", "metavar": "NN", "help": "run these notebooks alone, by their numbers"},
    "--backbone NAME ...": {"nargs": "+", "metavar": "NAME", "default": [], "help": "these models, not the ladder, small first"},
    "--text FILE": {"metavar": "FILE", "help": "this text in place of the corpora"},
    "--dry-run": {"action": "store_true", "help": "look for everything the run needs, say so, and stop"},
    "--force": {"action": "store_true", "help": "measure again what these notebooks had measured"},
    "--list": {"action": "store_true", "help": "say which notebooks there are, and run nothing"},
}
ALL_FLAGS = " and ".join(", ".join(FLAGS).rsplit(", ", 1))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(UNKNOWN_WORD)


def _source_of(where: Path, given: str) -> str:
    """The folder or GGUF file that --backbone names, of a folder of the hub's cache the commit in it; or a name of the hub."""
    require(given.strip(), "one of the names is empty")
    path = where / Path(given).expanduser()
    if path.is_file():
        return str(path.parent.resolve() / path.name)  # in the hub's cache a link, to a file whose name is its hash
    folder = path.resolve()
    if not folder.is_dir():
        return given
    commits = sorted((folder / "snapshots").glob("*"))
    main = folder / "refs" / "main"
    named = [c for c in commits if main.is_file() and c.name == main.read_text().strip()]
    folder = (named or commits or [folder])[-1]
    return str(gguf_of(folder) or folder)


def _names_of(sources: list[str]) -> list[str]:
    """What each is called: a folder or GGUF file by its name, with its parent's where two share it; one of the hub's cache as on
    the hub."""
    names, called = [], [gguf_name(Path(source)) for source in sources]
    for source, name in zip(sources, called, strict=True):
        path = Path(source)
        if not path.exists():
            names.append(source)
        elif path.is_dir() and path.parent.name == "snapshots" and path.parents[1].name.startswith("models--"):
            names.append("own/" + path.parents[1].name.removeprefix("models--").replace("--", "/"))
        else:
            names.append(f"own/{path.parent.name}/{name}" if called.count(name) > 1 else f"own/{name}")
    return [f"{name}-{i}" if names.count(name) > 1 else name for i, name in enumerate(names, 1)]


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line as `.word`, `.only`, `.backbone`, `.text`, `.force`, `.dry_run`, `.list`; exits with 2 and one line on a
    word that is unknown."""
    parser = _Parser("reproduce.sh", description="Run the notebooks and draw every figure.", allow_abbrev=False)
    parser.add_argument("word", nargs="?", default="default", help=f"{', '.join((*PROFILES, *COMMANDS))}")
    for flag, options in FLAGS.items():
        parser.add_argument(flag.split()[0], **options)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(f"unknown {' '.join(unknown)}; there are {ALL_FLAGS}")
    if args.word not in (*PROFILES, *COMMANDS):
        parser.error(f"unknown word {args.word!r}; there are {', '.join((*PROFILES, *COMMANDS))}")
    if args.word in COMMANDS and args != parser.parse_args([args.word]):
        parser.error(f"{args.word} takes no flags; {ALL_FLAGS} go with {', '.join(PROFILES)}")
    where = Path(os.environ.get("MTP_FROM") or ".")  # reproduce.sh was called from there
    text = args.text and where / Path(args.text).expanduser()
    if text and not text.is_file():
        parser.error(f"--text {args.text} is no file")
    args.text = text and str(text.resolve())
    try:
        sources = [_source_of(where, given) for given in args.backbone]
    except ValueError as error:
        parser.error(f"--backbone: {error}")
    if twice := next((x for x in sources if sources.count(x) > 1), None):
        parser.error(f"--backbone: two are called {twice}; each is given once")
    args.backbone = dict(zip(_names_of(sources), sources, strict=True))
    numbers = [p.name[:2] for p in paths.all_notebooks()]
    args.only = [n.zfill(2) for n in args.only or ()]
    if unknown := [n for n in args.only if n not in numbers]:
        parser.error(f"no notebook {' '.join(unknown)}; there are {' '.join(numbers) or 'none yet'}")
    return args
