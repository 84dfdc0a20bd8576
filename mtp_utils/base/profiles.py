"""The sizes a run can have: frozen dataclasses, so a misspelt field or name raises instead of being ignored."""

import hashlib
import json
import os
import re
from dataclasses import dataclass, replace

LADDER = tuple(f"ladder/w{width}" for width in (16, 32, 64, 128, 256))
SEEDS = tuple(f"ladder/w{width}-seed{seed}" for width in (16, 32, 64) for seed in (1, 2))
TWINNED, TWINS = "ladder/w128", ("ladder/w128-mtp", "ladder/w128-offset2")  # one shape and tokens: NTP, MTP loss, offset 2
SECOND_RUNS = tuple(f"{name}-seed1" for name in (TWINNED, *TWINS))
CORPORA = ("translation", "code", "prose")
HUB_CORPORA = (*CORPORA, "instructions")
PEOPLE_CORPORA = ("translation", "catalogues", "code", "prose")  # with translations by people, which wheels hold
TEXT = "text"  # the corpus that is the user's own file
UNLIMITED = 10**6  # seconds of a cell whose backbone is not the ladder's
OWN = "MTP_OWN"  # environment: own_of as JSON, from the runner to the kernels

# Kinds of heads: trunk, features, whose unembedding. A head that starts as the LM head (shared, copied) is sure of the wrong
# token; one with an unembedding of its own, or with the LM head corrected, starts as the unigram: all are there, so that one sees
# what the start is worth.
EVERY_KIND = tuple((kind, read, "shared") for kind in ("linear", "residual", "block") for read in ("last", "mix", "concat"))
EVERY_KIND += (("residual", "last", "own"), ("block", "last", "corrected"), ("block", "last", "copied"))
EVERY_KIND += tuple(("block", read, "own") for read in ("last", "mix", "concat"))
FEW_KINDS = tuple(kind for kind in EVERY_KIND if "last" in kind or "own" in kind)
REAL_KINDS = tuple((kind, "last", "shared") for kind in ("linear", "residual", "block"))  # 49k rows of one's own cost most
REAL_KINDS += (("block", "mix", "shared"), ("block", "last", "corrected"), ("block", "last", "own"))


@dataclass(frozen=True)
class Profile:
    """How much one run measures.

    `n_documents` counts documents per corpus and `positions_per_document` the scored positions of each; `horizon` is the largest
    offset; `twins` were pre-trained otherwise than `twinned`, on the same tokens, and `second_runs` are all three from another
    seed, where there are such; `joint` is the backbone that is trained together with heads (if None the largest that can be), and
    on `joint_smaller` that is asked again. `head_tokens` are the positions heads and probes are trained on, `trial_tokens`
    those of one trial of a learning rate; heads that decide C3 are trained on `most_tokens` positions at most, in epochs over
    `text_tokens`, with the seeds `head_seeds`; joint training, and the frozen heads beside it, on `joint_tokens` at most and on
    halves of that, the least budget first with so many trials of rates each as `joint_trials` says (the last number is of frozen
    heads in as many operations), and the seeds `joint_seeds`.
    `bf16_states`: the states that heads read are made under bfloat16 autocast where that is fast. `grid` are the kinds of heads
    (trunk, features, unembedding) and `grid_offsets` their offsets, the best kind has all; `probe_offsets` are those that layers
    are read at by trained probes; decoding writes `new_tokens` after each prompt, of `decoded_documents` a corpus, and the clock
    is held to `timed_prompts` of a corpus; `timeout_s` limits one notebook cell, in seconds; `control_split` is what the
    counting controls count; `people`: translations by people are among the texts, fetched as data; `exploratory`: arms that no
    verdict needs are measured too, and without them of other ways of joint training `lora` alone; `adds_to`: the profile whose
    results these are put beside.
    """

    name: str
    backbones: tuple[str, ...]
    corpora: tuple[str, ...] = CORPORA
    extra_seeds: tuple[str, ...] = ()
    twinned: str | None = None
    twins: tuple[str, ...] = ()
    second_runs: tuple[str, ...] = ()
    joint: str | None = None
    joint_smaller: str | None = None
    n_documents: int = 200
    positions_per_document: int = 1
    horizon: int = 4
    head_tokens: int = 65_536
    joint_tokens: int = 524_288
    joint_trials: tuple[int, ...] = (5, 1, 1, 2)
    joint_seeds: tuple[int, ...] = (0, 1, 2)
    most_tokens: int = 2_097_152
    text_tokens: int = 524_288
    bf16_states: bool = False
    head_seeds: tuple[int, ...] = (0, 1, 2)
    trial_tokens: int = 16_384
    grid: tuple[tuple[str, str, str], ...] = FEW_KINDS
    grid_offsets: tuple[int, ...] = (2,)
    probe_offsets: tuple[int, ...] = (1, 2)
    new_tokens: int = 16
    decoded_documents: int = 200
    timed_prompts: int = 6
    timeout_s: int = 3600
    control_split: str = "pretrain"
    needs_hub: bool = False
    people: bool = False
    exploratory: bool = True
    lora: bool = False
    adds_to: str = ""

    @property
    def base(self) -> str:
        """Its name without the user's own backbones and text."""
        return self.name.split("+")[0]

    @property
    def folder(self) -> str:
        """Name of the folder of its results: that of the profile to which it adds."""
        return (self.adds_to or self.base) + self.name.removeprefix(self.base)

    @property
    def last_rungs(self) -> tuple[str, ...]:
        """The three largest backbones: measured on all label sources, and layer by layer."""
        return self.backbones[-3:]

    @property
    def timed_tokens(self) -> int:
        """Tokens written after each prompt where the clock is held to it: twice as many, for what a prompt costs weighs less."""
        return 2 * self.new_tokens

    def decoded(self, most: int | None = None) -> int:
        """Documents of a corpus whose continuations are decoded, `most` at the most."""
        return min(self.n_documents, self.decoded_documents, most or self.n_documents)

    @property
    def judges(self) -> bool:
        """Whether there is enough of it for a verdict; the smoke profile has too few documents."""
        return not self.name.startswith("smoke")


# Pythia's last checkpoints and, of a newer family, the models before any instruction, each by size; backbones of a run share a
# tokenizer. Qwen3 has no revisions with names: the first run writes the commits down and later ones hold to them.
PYTHIA = tuple(f"EleutherAI/pythia-{s}@step143000" for s in ("70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b"))
QWEN3 = tuple(f"Qwen/Qwen3-{s}-Base" for s in ("0.6B", "1.7B", "4B", "8B"))
FEW = {"head_tokens": 4096, "joint_tokens": 4096, "head_seeds": (0,), "trial_tokens": 2048}
FEW |= {"most_tokens": 4096, "text_tokens": 4096, "joint_trials": (2, 1, 1, 1), "joint_seeds": (0,)}
FEW |= {"new_tokens": 6, "timed_prompts": 1}  # six: three drafts and what follows them fit in
FEW |= {"n_documents": 6, "timeout_s": 300, "control_split": "heads", "joint_smaller": LADDER[0]}
FULL = {"corpora": HUB_CORPORA, "grid": REAL_KINDS, "grid_offsets": (2, 3, 4), "timeout_s": UNLIMITED, "needs_hub": True}
FULL |= {"head_tokens": 262_144, "bf16_states": True}
WHOLE = {"backbones": LADDER, "extra_seeds": SEEDS, "twinned": TWINNED, "twins": TWINS, "second_runs": SECOND_RUNS}
WHOLE |= {"joint_smaller": LADDER[2], "decoded_documents": 100}
REAL = {"backbones": ("smollm2-135m",), "corpora": PEOPLE_CORPORA, "people": True, "timeout_s": UNLIMITED, "grid": REAL_KINDS}
REAL |= {"trial_tokens": 8192, "most_tokens": 262_144, "text_tokens": 262_144, "bf16_states": True}
REAL |= {"joint_tokens": 65_536, "joint_trials": (2, 1, 1, 1), "joint_seeds": (0,), "decoded_documents": 50}
# Of 262,144 tokens a position of a head costs seven times what it does of 49,152 (230 a second on two cores): a quarter of the
# positions, the grid at offset 2 alone, where the verdicts are, and no kind with an unembedding of its own (168 million weights).
FEWER = {"head_tokens": 16_384, "trial_tokens": 4096, "most_tokens": 65_536, "text_tokens": 65_536, "joint_tokens": 16_384}
FEWER |= {"grid": tuple(kind for kind in REAL_KINDS if "own" not in kind), "grid_offsets": (2,), "decoded_documents": 25}
BY_MODEL = {"gemma3-270m": FEWER}  # what the pretrained profiles measure of a model, where that is less
# The default profile holds what the verdicts need: 200 documents per corpus, one position of each (C1: four, on the last rung):
# the document is the unit of the intervals, and a position costs an exact sum on every rung. Its grid of heads is at offset 2,
# where the verdicts are, and varies the trunk and the unembedding on the last layer and the features of the best trunk. Heads
# that decide see up to two million positions in four epochs over half a million tokens: steps were what was missing, not text,
# and 4.2 million would take the notebook past its share of the 45 minutes. Joint training sees half a million, each once, in as
# many operations as frozen heads take on four times as many. Whatever is trained has one seed here and three overnight, where
# rates are also tried at every budget as often as at the least (they settle where the least had put them); overnight also has
# what no verdict needs. (More seeds would take the run past an hour on a processor without AVX-512.)
# The real model's heads: a position costs a 49k-way softmax (about 1,500 positions a second on two cores), so the deciding kind
# sees 262,144 of them with each of three seeds, and states are made in bfloat16 autocast (the next token's loss moves by .0002).
# Joint training of it takes half a billion multiply-adds a position, and every trained copy a pass over all test text: three
# budgets up to 65,536 positions with one seed, exploratory. Decoding reads each prompt once for every drafter, 53 thousand tokens
# of 200 documents: 50 of a corpus are decoded. What no verdict needs is left to `pretrained-overnight`, but for LoRA, which
# a user would take on such a model.
PROFILES = {
    p.name: p
    for p in (
        Profile("smoke", backbones=LADDER[:2], **FEW),
        Profile("default", **WHOLE, exploratory=False, head_seeds=(0,), joint_seeds=(0,)),
        Profile("overnight", **WHOLE, adds_to="default", probe_offsets=(1, 2, 3, 4), joint_trials=(5, 5, 5, 5)),
        Profile("pretrained", **REAL, exploratory=False, lora=True),
        Profile("pretrained-overnight", **REAL, adds_to="pretrained"),
        Profile("hub", backbones=PYTHIA[:6], joint=PYTHIA[2], **FULL),
        Profile("hub-large", backbones=PYTHIA[5:], joint=PYTHIA[5], **FULL),
        Profile("hub-qwen3", backbones=QWEN3, joint=QWEN3[0], **FULL),
    )
}


def get_profile(value: str | None = None) -> Profile:
    """The profile called `value`, else the one `MTP_PROFILE` names, else smoke; with the user's backbones and text where the
    runner was given any. An unknown name raises ValueError."""
    name = value or os.environ.get("MTP_PROFILE") or "smoke"
    base, _, own = name.partition("+")
    if base not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; there are {', '.join(PROFILES)}")
    given = own_of()
    found = with_own(PROFILES[base], given["backbones"], given["text"])
    lacks = (found.needs_hub and not given["hub"]) or (found.people and not given["people"])
    if lacks and not given["text"]:
        raise ValueError(f"profile {name!r} reads texts that are fetched: start it by reproduce.sh {base}")
    if own and found.name != name:
        raise ValueError(f"profile {name!r} is a run with --backbone or --text, and they are not given: start reproduce.sh")
    return found


def own_of() -> dict:
    """What --backbone and --text gave: backbones (name -> directory or hub name), text (absolute path or None); and whether the
    corpora are those of the hub, or have translations by people among them. fronts (tokenizers' digest -> ids): what the look
    before work put before every document."""
    return {"backbones": {}, "text": None, "hub": False, "people": False, "fronts": {}} | json.loads(os.environ.get(OWN) or "{}")


def with_own(profile: Profile, backbones: dict[str, str], text: str | None) -> Profile:
    """The profile with these backbones, small to large, in place of the ladder and its twins, and with this text in place of the
    corpora; its results have a folder of their own."""
    if not backbones and not text:
        return profile
    slug = re.sub(r"[^A-Za-z0-9]+", "-", os.path.basename([text, *backbones][-1])).strip("-")[:24]
    name = f"{profile.name}+{slug}-{hashlib.sha256(json.dumps([backbones, text]).encode()).hexdigest()[:6]}"
    found = replace(profile, name=name, corpora=(TEXT,) if text else profile.corpora)
    if backbones:
        none = dict.fromkeys(("extra_seeds", "twins", "second_runs"), ()) | dict.fromkeys(("twinned", "joint", "joint_smaller"))
        fewer = BY_MODEL.get([*backbones][-1], {}) if profile.people else {}
        found = replace(found, backbones=tuple(backbones), timeout_s=UNLIMITED, **none, **fewer)  # who knows how large they are
    return found
