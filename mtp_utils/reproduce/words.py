"""The command line: which words there are, before anything is installed. The standard library is enough for it."""

import argparse
import os
import sys
from pathlib import Path

from ..base import paths
from ..base.profiles import PROFILES

COMMANDS = ("check", "publish", "test", "setup", "lab")  # the last three are reproduce.sh's own
FAILED, UNKNOWN_WORD, INTERRUPTED = 1, 2, 130  # exit codes


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(UNKNOWN_WORD)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line as `.word`, `.only`, `.backbone`, `.text`, `.force`, `.dry_run`, `.list`; exits with 2 and one line on a
    word that is unknown."""
    parser = _Parser("reproduce.sh", description="Run the notebooks and draw every figure.", allow_abbrev=False)
    parser.add_argument("word", nargs="?", default="default", help=f"{', '.join((*PROFILES, *COMMANDS))}")
    parser.add_argument("--only", nargs="+", metavar="NN", help="run these notebooks alone, by their numbers")
    own = "these models, small to large, instead of the ladder"
    parser.add_argument("--backbone", nargs="+", default=[], metavar="NAME", help=own)
    parser.add_argument("--text", metavar="FILE", help="this text in place of the corpora")
    parser.add_argument("--force", action="store_true", help="measure again what these notebooks had measured")
    parser.add_argument("--dry-run", action="store_true", help="look for everything the run needs, say so, and stop")
    parser.add_argument("--list", action="store_true", help="say which notebooks there are, and run nothing")
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        known = "--only NN ..., --backbone NAME ..., --text FILE, --dry-run, --force and --list"
        parser.error(f"unknown {' '.join(unknown)}; there are {known}")
    if args.word not in (*PROFILES, *COMMANDS):
        parser.error(f"unknown word {args.word!r}; there are {', '.join((*PROFILES, *COMMANDS))}")
    if args.word in COMMANDS and (args.only or args.force or args.list or args.dry_run or args.backbone or args.text):
        flags = "--only, --backbone, --text, --dry-run, --force and --list"
        parser.error(f"{args.word} takes no flags; {flags} go with {', '.join(PROFILES)}")
    where = Path(os.environ.get("MTP_FROM") or ".")  # reproduce.sh was called from there
    if args.text and not (where / args.text).is_file():
        parser.error(f"--text {args.text} is no file")
    args.text = args.text and str((where / args.text).resolve())
    named = {}
    for given in args.backbone:
        folder = (where / Path(given).expanduser()).resolve()
        name = f"own/{folder.name}" if folder.is_dir() else given
        if name in named:
            parser.error(f"--backbone: two are called {name}; rename one directory")
        named[name] = str(folder) if folder.is_dir() else given
    args.backbone = named
    numbers = [p.name[:2] for p in paths.all_notebooks()]
    args.only = [n.zfill(2) for n in args.only or ()]
    if unknown := [n for n in args.only if n not in numbers]:
        parser.error(f"no notebook {' '.join(unknown)}; there are {' '.join(numbers) or 'none yet'}")
    return args
