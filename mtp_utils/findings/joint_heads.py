"""C4: heads trained together with their backbone against heads on the frozen one: rates, budgets, controls, scores."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import pandas as pd

from ..backbones.load import Backbone, load_backbone
from ..base import ranks
from ..base.keys import fingerprint
from ..base.records import Arrays
from ..heads import joint
from ..heads.operations import as_many_tokens, operations
from ..heads.spec import HeadSpec
from ..heads.together import Joint, require_one_device, trained_backbone
from ..heads.training import Training, heads_from
from ..text.blocks import CONTEXT
from . import arms, frozen_heads, gaps, head_claims

MULTIPLE = 0.1  # of the heads' rate, where the search for the backbone's begins
FACTOR = 3.0  # between neighbouring rates, before it is halved (on a logarithmic scale)
EQUAL = "frozen, as many operations"


@dataclass(frozen=True)
class Trained:
    """Heads (kind: `frozen` or `joint`), on what, and what gives the backbone that they read: the base model, or a trained copy,
    made when it is asked for. Without heads (arm.spec is None): a backbone trained for the next token alone."""

    kind: str
    arm: arms.Arm
    bench: arms.Bench
    backbone: Callable[[], Backbone]

    @property
    def tokens(self) -> int:
        """That the heads were trained on."""
        return self.arm.training.tokens

    @property
    def rates(self) -> tuple[float, ...]:
        """The heads' rate and, if trained together, the backbone's as a multiple of it."""
        how = self.arm.training
        heads = how.rates((2,))
        return (*heads, how.backbone_rate) if self.kind == "joint" else heads

    @property
    def loss(self) -> float:
        """On validation, nats a token: at offset 2, or of the next token where there are no heads."""
        return self.arm.loss(2) if self.arm.spec else float(self.arm.arrays.values["ntp_validation"][-1])

    @property
    def operations(self) -> float:
        """Multiply-adds of its training."""
        return operations(self.bench.backbone, self.arm.spec, self.arm.training, CONTEXT, self.bench.train.tokens.numel())


@dataclass(frozen=True)
class Study:
    """Frozen and joint heads of one kind at offset 2 on one base model, on the same text, in batches of several blocks and in
    epochs; bench: what they are made and scored on; rate: where the search for the heads' begins."""

    run: object
    test: dict
    bench: arms.Bench
    spec: HeadSpec
    rate: float

    @classmethod
    def of(cls, run, base: Backbone, test: dict) -> "Study":
        """Of the profile's kinds of heads on the last layer the best at offset 2 on validation (frozen_heads.from_best)."""
        bench, offsets = arms.bench_of(run, base, test), run.profile.grid_offsets
        kinds = [HeadSpec(kind, unembedding=own, offsets=offsets) for kind, read, own in run.profile.grid if read == "last"]
        best = frozen_heads.from_best(run, bench, arms.able_arms(run, bench, kinds))[0]
        spec = replace(best.spec, offsets=(2,))
        return cls(run, test, frozen_heads.deciding_bench(run, base, test, spec), spec, best.rate(2))

    @property
    def base(self) -> Backbone:
        return self.bench.backbone

    @property
    def budgets(self) -> dict[str, int]:
        """Positions by the name of the budget: 1x, 2x, ... up to the profile's joint_tokens."""
        n = len(self.run.profile.joint_trials) - 1
        return {f"{2**i}x": self.run.profile.joint_tokens // 2 ** (n - 1 - i) for i in range(n)}

    def frozen(self, tokens: int, trials: int, like: Trained | None = None, bench: arms.Bench | None = None) -> Trained:
        """Heads on the frozen base model (or on that of another bench), the best on validation of so many trials of their rate;
        like: at whose rate the search begins."""
        bench = bench or self.bench

        def train(rate: float) -> Trained:
            arm = arms.trained_arm(self.run, bench, self.spec, self._how(Training, rate, tokens))
            return Trained("frozen", arm, bench, lambda: bench.backbone)

        return settled(train, like.rates[:1] if like else (self.rate,), trials)

    def joint(self, tokens: int, trials: int, like: Trained | None = None, **how) -> Trained:
        """Heads and a copy of the base model trained together, the best on validation of so many trials of both rates; how: of
        heads.Joint."""

        def train(rate: float, multiple: float) -> Trained:
            return joint_arm(self.run, self.bench, self.spec, self._how(Joint, rate, tokens, backbone_rate=multiple, **how))

        return settled(train, like.rates if like else (self.rate, MULTIPLE), trials)

    def next_token_alone(self, tokens: int, trials: int, like: Trained) -> Trained:
        """The base model fine-tuned on the next token alone, the best of so many rates; like: whose backbone's comes first."""

        def train(rate: float) -> Trained:
            return joint_arm(self.run, self.bench, None, self._how(Joint, rate, tokens, backbone_rate=1.0))

        return settled(train, (_round(like.rates[0] * like.rates[1]),), trials)

    def _how(self, kind: type, rate: float, tokens: int, **how):
        return kind(rate, tokens, blocks=arms.STEP, epochs=-(-tokens // self.bench.train.tokens.numel()), **how)

    def over(self, tokens: int) -> "Study":
        """The same on less text: so many tokens of it, in the more epochs."""
        return replace(self, bench=self.bench.on(tokens))

    def seeded(self, found: Trained) -> list[Trained]:
        """The same with every seed of the profile."""
        each = [replace(found.arm.training, seed=seed) for seed in self.run.profile.joint_seeds]
        if found.kind == "joint":
            return [joint_arm(self.run, found.bench, found.arm.spec, how) for how in each]
        return [replace(found, arm=arms.trained_arm(self.run, found.bench, found.arm.spec, how)) for how in each]

    def by_budget(self) -> dict[str, Trained]:
        """`frozen, 1x`, `joint, 1x` and so on, each from the rates of the budget before, in as many trials as the profile says;
        EQUAL, frozen heads in as many operations as the longest joint run."""
        found, frozen, joint, trials = {}, None, None, self.run.profile.joint_trials
        for (budget, tokens), n in zip(self.budgets.items(), trials[:-1], strict=True):
            frozen, joint = self.frozen(tokens, n, frozen), self.joint(tokens, n, joint)
            found |= {f"frozen, {budget}": frozen, f"joint, {budget}": joint}
        return found | {EQUAL: self.frozen(self.for_as_many_operations(joint), trials[-1], frozen)}

    def for_as_many_operations(self, of: Trained) -> int:
        """Positions on which frozen heads take as many operations: above one epoch whole ones, so that all text is read."""
        text, how = self.bench.train.tokens.numel(), self._how(Training, self.rate, 1)
        n = as_many_tokens(self.base, self.spec, how, CONTEXT, text, of.operations)
        return n if n <= text else round(n / text) * text

    def new_heads_on(self, backbone: Backbone, tokens: int, trials: int) -> Trained:
        """New heads on a trained backbone, frozen, from the text that follows the one it was trained on."""
        skip = self.run.profile.text_tokens
        fresh = arms.bench_of(self.run, backbone, self.test, tokens=tokens, layers=self.bench.train.layers, skip=skip)
        return self.frozen(tokens, trials, bench=fresh)

    def behind_counting(self, *of: Trained) -> list[str]:
        """The corpora in which some of these are not ahead of counting on validation."""
        found = []
        for one in of:
            bench = frozen_heads.deciding_bench(self.run, one.backbone(), self.test, self.spec)
            table = frozen_heads.on_validation(self.run, frozen_heads.Decided(bench, [one.arm]))
            found += head_claims.behind_counting(table)
        return list(dict.fromkeys(found))

    def measured(self, ways: dict[str, list[Trained]], everywhere: tuple[str, ...] = (), ntp: tuple[str, ...] = ()) -> list:
        """Three frames, column `arm`: gaps.scored of every way, labels and marginal being the base model's; gaps.everywhere of
        those ways named; and of those the next-token losses by document on the backbone they read."""
        found = [], [], []
        for way, each in ways.items():
            for one in each:
                bench = self.reads(one)
                found[0].append(gaps.scored(self.run, bench, [one.arm], self.base).assign(arm=way))
                found[1].extend([gaps.everywhere(self.run, bench, [one.arm]).assign(arm=way)] if way in everywhere else [])
                if way in ntp and one is each[0]:
                    found[2].append(gaps.next_token(self.run, bench, "05_ntp").assign(arm=way))
        return [pd.concat(frames, ignore_index=True) if frames else pd.DataFrame() for frames in found]

    def reads(self, one: Trained) -> arms.Bench:
        """The states that heads read of the test text, and the last layer's."""
        if (backbone := one.backbone()) is self.base:
            return self.bench  # whose states are made once
        layers, last = heads_from(one.arm.arrays, backbone, one.arm.spec).layers, arms.depth_of(self.base)[-1]
        return arms.bench_of(self.run, backbone, self.test, tokens=1, layers=tuple(sorted({*layers, last})))


def settled(train: Callable[..., Trained], rates: tuple[float, ...], trials: int) -> Trained:
    """The best on validation of so many trainings: at these rates, then at neighbours of the best so far, one rate at a time a
    FACTOR lower, then higher; where none of them is better the factor shrinks to its root. More trials than it takes refine."""
    tried, best, factor = {}, rates, FACTOR
    while len(tried) < trials:
        steps = [(i, by) for by in (1 / factor, factor) for i in range(len(rates))]
        near = [tuple(_round(r * by) if i == j else r for j, r in enumerate(best)) for i, by in steps]
        wanted = next((x for x in (best, *near) if x not in tried), None)
        if wanted is None:
            factor **= 0.5
            continue
        try:
            tried[wanted] = train(*wanted)
        except FloatingPointError as error:  # a rate at which it diverges is no candidate
            print(f"rates {wanted}: {error}")
            tried[wanted] = None
        able = [x for x, one in tried.items() if one]
        best = min(able, key=lambda x: tried[x].loss) if able else near[0]
    if tried.get(best) is None:
        raise FloatingPointError(f"none of the rates {', '.join(map(str, tried))} can be trained with")
    return tried[best]


def _round(rate: float) -> float:
    return float(f"{rate:.3g}")


def base_of(run) -> Backbone | None:
    """The backbone to be trained together with heads: the profile's, else the largest that can be; None if none can."""
    for name in [run.profile.joint] if run.profile.joint else reversed(run.profile.backbones):
        with run.left_out(f"joint training of {name}"):
            backbone = load_backbone(name)
            require_one_device(backbone)
            arms.try_heads(backbone)
            return backbone
    return None


def joint_arm(run, bench: arms.Bench, spec: HeadSpec | None, how: Joint) -> Trained:
    """Heads trained together with a copy of the bench's backbone, from stored arrays if they exist; without a spec the copy
    trained for the next token alone. In bfloat16 where that is fast."""
    how = replace(how, bf16=arms.fast_in_bf16(bench.backbone))
    what = [fingerprint(spec), fingerprint(how), bench.train.fingerprint, bench.validation.fingerprint]
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:10]
    name = f"{spec.kind}-{spec.features}-{spec.unembedding}" if spec else "ntp"
    given = {"features": bench.train, "validation": bench.validation, "spec": spec, "how": how}
    stem = f"05_joint_{bench.backbone.name.replace('/', '-')}_{name}-{how.labels}-{how.tokens}-seed{how.seed}-{digest}"

    def arrays() -> Arrays:
        return run.measure_arrays(stem, joint.joint_training, **given)

    def backbone() -> Backbone:
        return trained_backbone(bench.backbone, arrays(), how, f"{bench.backbone.name}+{name}-{digest}")

    found = arrays()
    if ranks.first():
        joint.checkpoint_path(**given).unlink(missing_ok=True)
    light = {n: x for n, x in found.values.items() if not n.startswith("model.")}
    return Trained("joint", arms.Arm(spec, how, replace(found, values=light), f"{name}-{digest}"), bench, backbone)


def frozen_and_joint(run, base: Backbone, test: dict) -> dict[str, Trained]:
    """`frozen heads` and `joint heads` at notebook 05's smallest budget: what notebook 06 drafts with."""
    study = Study.of(run, base, test)
    tokens, trials = study.budgets["1x"], run.profile.joint_trials[0]
    return {"frozen heads": study.frozen(tokens, trials), "joint heads": study.joint(tokens, trials)}
