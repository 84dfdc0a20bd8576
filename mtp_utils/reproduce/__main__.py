"""Does what the command line says: `python -m mtp_utils.reproduce smoke --only 01 02`."""

import contextlib
import json
import os
import shlex
import sys
import time

from ..backbones import index
from ..base import paths, ranks
from ..base.locks import Stop, exclusive
from ..base.profiles import OWN, PROFILES, with_own
from .running import run_all
from .words import COMMANDS, FAILED, INTERRUPTED, UNKNOWN_WORD, parse

LAST_WORDS = 15.0  # seconds that a failed process of several waits before it ends


def main(argv: list[str] | None = None) -> int:
    """Do what the command line says and return the exit code; errors are one line on stderr."""
    args = parse(sys.argv[1:] if argv is None else argv)
    if ranks.count() > 1:
        ranks.meet(cpu=True)
        if not ranks.first():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (one of them speaks, for as long as the process lives)
    try:
        if args.word in ("test", "setup", "lab"):
            raise Stop(f"{args.word} is a word of reproduce.sh: ./reproduce.sh {args.word}", UNKNOWN_WORD)
        if args.word in COMMANDS:
            from . import book, publish

            with exclusive(paths.build("default")) if args.word == "publish" else contextlib.nullcontext():
                return getattr(book if args.word == "book" else publish, args.word)()
        chosen = [p for p in paths.all_notebooks() if not args.only or p.name[:2] in args.only]
        if args.list:
            print("\n".join([p.stem for p in chosen] + [f"--backbone {name}: {index.told(name)}" for name in index.models()]))
            return 0
        profile = PROFILES[args.word]
        given = profile.needs_hub or profile.people or args.backbone or args.text
        if given or args.dry_run:
            from . import plan  # and with it torch, which a runner of notebooks does without
        if given:
            texts = {"hub": profile.needs_hub and not args.text, "people": profile.people and not args.text}
            own = {"backbones": args.backbone, "text": args.text, **texts}
            os.environ[OWN], profile = json.dumps(own), with_own(profile, args.backbone, args.text)
            os.environ[OWN] = json.dumps(own | {"fronts": plan.look_over(profile, args.dry_run)})
        if args.dry_run:
            plan.plan(chosen, profile)
            return 0
        run_all(chosen, profile, args.force)
    except Stop as stop:
        print(f"reproduce.sh: {stop}", file=sys.stderr)
        return stop.code
    except OSError as error:
        print(f"reproduce.sh: {error.strerror or error}: {error.filename or paths.build(args.word)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        given = {"--only": args.only, "--backbone": list(args.backbone.values()), "--text": args.text and [args.text]}
        again = " ".join([args.word, *(shlex.quote(w) for flag, words in given.items() if words for w in (flag, *words))])
        print(f"\nreproduce.sh: interrupted; `./reproduce.sh {again}` goes on where it stopped", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    ended = main()
    if ranks.count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        if ended == FAILED:  # torchrun ends the others with this one: the one that fell first may not have said why yet
            time.sleep(LAST_WORDS)
        os._exit(ended)  # at once: threads of the process group that are still there would abort the interpreter's own end
    sys.exit(ended)
