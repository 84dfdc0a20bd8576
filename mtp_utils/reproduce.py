"""Runs the notebooks in order, headless, and says how far it is: `python -m mtp_utils.reproduce smoke --only 01 02`.

Only the standard library is imported before there is something to run: reproduce.sh asks `parse` whether the words it
was given exist before it installs anything.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shlex
import sys
import time
import uuid
from pathlib import Path

from . import paths, ranks
from .execute import Stop, exclusive, finished, run_notebook
from .profiles import OWN, PROFILES, Profile, own_of, with_own

COMMANDS = ("check", "publish", "test", "setup")  # the last two are reproduce.sh's own
FAILED, UNKNOWN_WORD, INTERRUPTED = 1, 2, 130
LAST_WORDS = 15.0  # seconds that a failed process of several waits before it ends


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(UNKNOWN_WORD)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line as `.word`, `.only`, `.force`, `.list`; exits with 2 and one line on a word that is unknown."""
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
    numbers = [p.name[:2] for p in all_notebooks()]
    args.only = [n.zfill(2) for n in args.only or ()]
    if unknown := [n for n in args.only if n not in numbers]:
        parser.error(f"no notebook {' '.join(unknown)}; there are {' '.join(numbers) or 'none yet'}")
    return args


def all_notebooks() -> list[Path]:
    """The notebooks NN_name.ipynb, in order."""
    return sorted(paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def main(argv: list[str] | None = None) -> int:
    """Do what the command line says and return the exit code; errors are one line on stderr."""
    args = parse(sys.argv[1:] if argv is None else argv)
    if ranks.count() > 1:
        ranks.meet(cpu=True)
        if not ranks.first():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (one of them speaks, for as long as the process lives)
    try:
        if args.word in ("test", "setup"):
            raise Stop(f"{args.word} is a word of reproduce.sh: ./reproduce.sh {args.word}", UNKNOWN_WORD)
        if args.word in COMMANDS:
            from . import publish

            with exclusive(paths.build("default")) if args.word == "publish" else contextlib.nullcontext():
                return getattr(publish, args.word)()
        chosen = [p for p in all_notebooks() if not args.only or p.name[:2] in args.only]
        if args.list:
            print("\n".join(p.stem for p in chosen))
            return 0
        profile = PROFILES[args.word]
        if profile.needs_hub or args.backbone or args.text:
            own = {"backbones": args.backbone, "text": args.text, "hub": profile.needs_hub and not args.text}
            os.environ[OWN], profile = json.dumps(own), with_own(profile, **own)
            look_over(profile, args.dry_run)
        if args.dry_run:
            plan(chosen, profile)
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


def run_all(notebooks: list[Path], profile: Profile, force: bool = False) -> None:
    """Run the notebooks one after another and print a table of what they made; the first failure ends the run."""
    if not notebooks:
        raise Stop(f"no notebooks in {paths.NOTEBOOKS}")
    with exclusive(paths.build(profile.name)) if ranks.first() else contextlib.nullcontext():
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
            (paths.build(profile.name) / ".unfinished").unlink()
    if not ranks.first():  # the others hold no entries
        return
    print(f"\n{'notebook':30} {'seconds':>8} {'figures':>8}  verdicts")
    for stem, entry in entries.items():
        verdicts = ", ".join(entry["verdicts"]) or "-"
        print(f"{stem:30} {entry['seconds']:8.1f} {len(entry['figures']):8}  {verdicts}")
    for stem, entry in entries.items():
        for line in entry.get("skipped", ()):
            print(f"{stem[:2]} left out {line}")
    print(f"\nfigures: {paths.figures(profile.name)}")


def _port_of(i: int) -> None:
    """Where the kernels of the i-th notebook meet: each notebook's on a port of its own, away from the runners' store."""
    if ranks.count() > 1:
        base = int(os.environ.setdefault("MTP_PORT", os.environ["MASTER_PORT"]))
        os.environ |= {"MASTER_PORT": str(base + i), "TORCHELASTIC_USE_AGENT_STORE": "False"}


def look_over(profile: Profile, dry: bool = False) -> None:
    """Find the backbones and cut the text once, before any long work; Stop where they cannot be measured together. Dry: what is
    on the hub is looked for there and not fetched."""
    from . import blocks, hub
    from .backbones import look_at
    from .rows import position_limit

    kinds, needed = {}, blocks.CONTEXT + profile.horizon
    try:
        for name in profile.backbones:
            if dry and _on_hub(name):
                size, missing = _to_fetch(name)
                print(f"{name}: {size / 1e9:.2f} GB, {missing / 1e9:.2f} GB of them to be fetched", flush=True)
                continue
            config, tokenizer, size = look_at(name)
            most = position_limit(config)
            print(f"{name}: {type(config).__name__}, {size / 1e9:.2f} GB of weights", flush=True)
            if most < needed:
                raise ValueError(f"{name} reads {most} tokens; {needed} are needed")
            kinds.setdefault(tokenizer.backend_tokenizer.to_str(), (name, tokenizer))
        if len(kinds) > 1:
            raise ValueError(f"{' and '.join(name for name, _ in kinds.values())} have different tokenizers; run each by itself")
        for corpus in profile.corpora if own_of()["hub"] else ():
            source = hub.SOURCES[corpus]
            print(f"{corpus}: {source.repo}, about {source.megabytes} MB, licence: {source.licence}", flush=True)
            if dry:
                hub.to_fetch(source.repo, "dataset", list(source.files.values()))
        if not kinds or (dry and own_of()["hub"]):
            return
        text = blocks.evaluation_text(profile, next(iter(kinds.values()))[1])
        print(", ".join(f"{corpus}: {len(part.documents)} documents" for corpus, part in text.items()), flush=True)
    except ValueError as error:
        raise Stop(str(error), UNKNOWN_WORD) from error


def _on_hub(name: str) -> bool:
    return not name.startswith("ladder/") and not Path(own_of()["backbones"].get(name, name)).exists()


def _to_fetch(name: str) -> tuple[int, int]:
    """Bytes of a model of the hub, and bytes of them that are not here yet."""
    from . import hub

    repo, _, revision = name.partition("@")
    return hub.to_fetch(repo, "model", hub.MODEL_FILES, revision or None)


def estimates(profile: Profile) -> dict[str, float]:
    """About what a run takes, from the sizes of the backbones' files: bytes of the largest one's `weights` and of `training`
    (32-bit weights, gradients and two moments), and the `operations` of the backbones, without heads, drafts and trials."""
    import torch

    from . import blocks, measures
    from .backbones import look_at

    parameters, work = {}, 0.0
    for name in profile.backbones:
        if _on_hub(name):  # taken to be stored in 16 bits
            parameters[name], vocabulary = _to_fetch(name)[0] / 2, measures.LARGEST_EXACT + 1
        else:
            config, _, size = look_at(name)
            parameters[name], vocabulary = size / (config.dtype or torch.float32).itemsize, config.get_text_config().vocab_size
        beyond = sum(measures.BEYOND.values())  # about as many for offset 2 above LARGEST_EXACT as for each later offset
        last = name in profile.last_rungs
        paths_of_one = (vocabulary if vocabulary <= measures.LARGEST_EXACT else beyond) + last * beyond * (profile.horizon - 2)
        windows = profile.n_documents * len(profile.corpora)
        tokens = windows * (blocks.CONTEXT + profile.positions_per_document * paths_of_one)
        work += 2 * parameters[name] * (tokens + last * 4 * profile.deciding_tokens)
    joint = parameters[profile.joint or profile.backbones[-1]]
    work += 6 * joint * 8 * profile.deciding_tokens  # in all the arms of notebook 05
    item = 2 if profile.needs_hub and torch.cuda.is_available() else 4
    return {"weights": item * max(parameters.values()), "training": 16 * joint, "operations": work}


def _rate() -> float:
    """Operations a second of a matrix product here, in the type that backbones are measured in."""
    import torch

    from .runtime import choose_device, choose_dtype

    device = choose_device()[0]
    n = 1024 if device.type == "cpu" else 8192
    x = torch.ones(n, n, device=device, dtype=choose_dtype(device)[0])
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        (x @ x)[0, 0].item()
        seconds.append(time.perf_counter() - started)
    return 2 * n**3 / min(seconds)


def plan(notebooks: list[Path], profile: Profile) -> None:
    """Say what the run would do, what it has to do it with, and about what it takes."""
    import shutil

    from .runtime import environment

    here = environment()
    folder = paths.build(profile.name)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{profile.name}: {', '.join(p.stem for p in notebooks)}")
    print(f"{len(profile.backbones)} backbones, {', '.join(profile.corpora)}: {profile.n_documents} documents each, offsets 1 to "
          f"{profile.horizon}, heads on {profile.head_tokens:,} to {4 * profile.deciding_tokens:,} tokens")  # fmt: skip
    print(f"on {here['device']} ({here['device_reason']}), {here['threads']} threads, memory {_memory()}; into {folder}, where "
          f"{shutil.disk_usage(folder).free / 1e9:.0f} GB are free")  # fmt: skip
    about, rate = estimates(profile), _rate()
    weights, training, work = (about[name] / 1e9 for name in ("weights", "training", "operations"))
    print(f"weights of the largest: about {weights:.2g} GB; joint training: {training:.2g} GB, and what is computed with them")
    print(f"all of it: {work / 1e3:,.0f} TFLOP in the backbones alone, at least {work * 1e9 / rate / 60:,.0f} minutes at the "
          f"{rate / 1e12:.2g} TFLOP/s of a matrix product here; heads and small passes take several times that")  # fmt: skip


def _memory() -> str:
    """Of the device that the run would use."""
    import torch

    if torch.cuda.is_available():
        return " of ".join(f"{x / 1e9:.0f}" for x in torch.cuda.mem_get_info()) + " GB free"
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"


def _prepare(notebooks: list[Path], profile: Profile, force: bool) -> None:
    """Clear what killed runs left half written and, if asked, the tables of the chosen notebooks."""
    for path in paths.build(profile.name).glob("*/.*.tmp"):
        path.unlink(missing_ok=True)
    for path in notebooks if force else ():
        for table in paths.tables(profile.name).glob(f"{path.name[:2]}_*"):
            table.unlink()
    paths.notebooks(profile.name).mkdir(parents=True, exist_ok=True)


def _given() -> str:
    """What tells whether the user's text and backbones are still the same: size and time of their files."""
    own = own_of()
    found = [Path(own["text"])] if own["text"] else []
    for name, source in own["backbones"].items():
        found += sorted(Path(source).glob("*")) if name.startswith("own/") else []
    return "" if not found else repr([(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in found])


def _run_id(profile: Profile, force: bool) -> str:
    """Name of this run: that of the one broken off, if the code is still the same, so that it goes on from there."""
    marker = paths.build(profile.name) / ".unfinished"
    sources = [*sorted(paths.PACKAGE.glob("*.py")), paths.ROOT / "constraints.txt"]
    code = hashlib.sha256(b"".join(p.read_bytes() for p in sources if p.is_file()) + _given().encode()).hexdigest()
    found = marker.read_text().split() if marker.is_file() and not force else []
    if len(found) == 2 and found[1] == code:
        return found[0]
    run_id = uuid.uuid4().hex
    marker.write_text(f"{run_id} {code}")
    return run_id


if __name__ == "__main__":
    ended = main()
    if ranks.count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        if ended == FAILED:  # torchrun ends the others with this one: the one that fell first may not have said why yet
            time.sleep(LAST_WORDS)
        os._exit(ended)  # at once: threads of the process group that are still there would abort the interpreter's own end
    sys.exit(ended)
