"""C4: heads trained together with their backbone against heads on the frozen one: ways of training, budgets, controls, scores."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import pandas as pd
import torch

from ..backbones.load import Backbone, load_backbone
from ..base import ranks
from ..base.keys import fingerprint
from ..base.records import Arrays
from ..base.runtime import choose_dtype
from ..heads import joint
from ..heads.spec import HeadSpec
from ..heads.together import Joint, require_one_device, trained_backbone
from ..heads.training import Training, heads_from
from . import arms, gaps, head_measures, stored

MULTIPLES = (1.0, 0.1, 0.01)  # of the heads' rate, tried for the backbone's


@dataclass(frozen=True)
class Trained:
    """Heads (kind: `frozen` or `joint`, after how they were trained) and what gives the backbone that they read: the base
    model, or a trained copy, which is read when it is asked for, so that many of them are not held at once. Without heads: a
    backbone trained for the next token alone."""

    kind: str
    arm: arms.Arm
    backbone: Callable[[], Backbone]

    @property
    def tokens(self) -> int:
        """That the heads were trained on."""
        return self.arm.training.tokens


@dataclass(frozen=True)
class RateSearch:
    """What multiples of the heads' rate for the backbone came to: multiple -> Trained, and the best of them on validation."""

    tried: dict[float, Trained]
    best: float

    @property
    def losses(self) -> pd.DataFrame:
        """The offset-2 loss on validation of each."""
        found = pd.Series({m: one.arm.loss(2) for m, one in sorted(self.tried.items())}, name="offset-2 loss on validation")
        return found.rename_axis("backbone rate / heads' rate").to_frame()


@dataclass(frozen=True)
class Study:
    """Frozen and joint heads of one kind at offset 2 on one base model, all on the same text in the same order.

    spec, rate: of the heads, the kind that is best on validation on the frozen base model's last layer, and the rate that suits
    it there; bench: with the deciding tokens.
    """

    run: object
    test: dict
    bench: arms.Bench
    spec: HeadSpec
    rate: float

    @classmethod
    def of(cls, run, base: Backbone, test: dict) -> "Study":
        """Of the three kinds of heads on the last layer the best at offset 2 on validation."""
        bench = arms.bench_of(run, base, test)
        kinds = [HeadSpec(kind, offsets=run.profile.grid_offsets) for kind in ("linear", "residual", "block")]
        best = arms.best_at(2, arms.able_arms(run, bench, kinds))
        spec = replace(best.spec, offsets=(2,))
        longer = arms.bench_of(run, base, test, tokens=run.profile.deciding_tokens, layers=arms.layers_of(base, spec))
        return cls(run, test, longer, spec, best.rate(2))

    @property
    def base(self) -> Backbone:
        return self.bench.backbone

    def on_mix(self) -> "Study":
        """The same kind of heads on a mix of all layers."""
        depth = arms.depth_of(self.base)
        mixed = arms.bench_of(self.run, self.base, self.test, tokens=self.run.profile.deciding_tokens, layers=depth)
        return replace(self, bench=mixed, spec=replace(self.spec, features="mix"))

    def with_tokens(self, tokens: int) -> arms.Bench:
        """A bench of the same layers with another number of tokens."""
        return arms.bench_of(self.run, self.base, self.test, tokens=tokens, layers=self.bench.train.layers)

    def frozen(self, tokens: int, seeds: tuple[int, ...] = (0,), bench: arms.Bench | None = None) -> list[Trained]:
        """Heads on the frozen base model (or on that of another bench), their rate settled at this budget, one for each seed."""
        bench = bench or self.bench
        how = arms.settled_arm(self.run, bench, self.spec, Training(self.rate, tokens)).training
        found = [arms.trained_arm(self.run, bench, self.spec, replace(how, seed=seed)) for seed in seeds]
        return [Trained("frozen", arm, lambda: bench.backbone) for arm in found]

    def joint(self, tokens: int, seeds: tuple[int, ...] = (0,), bench: arms.Bench | None = None, **how) -> list[Trained]:
        """Heads and a copy of the base model trained together, one for each seed; how: of heads.Joint."""
        bench = bench or self.bench
        return [joint_arm(self.run, bench, self.spec, Joint(self.rate, tokens, seed=seed, **how)) for seed in seeds]

    def backbone_rates(self, tokens: int, multiples: tuple[float, ...] = MULTIPLES, extend: bool = True, **how) -> RateSearch:
        """The backbone's rate as a multiple of the heads', chosen on validation; a best one at an edge extends the grid."""
        tried, wanted = {}, list(multiples)
        while wanted:
            for m in wanted:
                try:
                    (tried[m],) = self.joint(tokens, backbone_rate=m, **how)
                except FloatingPointError as error:  # a rate at which it diverges is no candidate
                    print(f"backbone rate x {m:g}: {error}")
            best, low, high = min(tried, key=lambda m: tried[m].arm.loss(2)), min(tried), max(tried)
            edges = [m for at, m in ((low, low / 10), (high, high * 10)) if best == at and 1e-3 <= m <= 10]
            wanted = edges if extend else []
        return RateSearch(tried, best)

    def next_token_alone(self, tokens: int, **how) -> Backbone:
        """The base model fine-tuned on the next token alone, for as many steps."""
        return joint_arm(self.run, self.bench, None, Joint(self.rate, tokens, **how)).backbone()

    def new_heads_on(self, backbone: Backbone, tokens: int) -> list[Trained]:
        """New heads on a trained backbone, frozen, from the text that follows the deciding tokens, which it has not seen."""
        after = self.run.profile.deciding_tokens
        fresh = arms.bench_of(self.run, backbone, self.test, tokens=tokens, layers=self.bench.train.layers, skip=after)
        return self.frozen(tokens, bench=fresh)

    def scores(self, ways: dict[str, list[Trained]]) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(scores as gaps.scored, next-token losses by document) of every way, column `arm`; labels and marginal are the base
        model's, losses are means over a way's seeds."""
        found = [scores_of(self.run, one, self.base, self.test, way) for way, each in ways.items() for one in each]
        scores, losses = (pd.concat(frames, ignore_index=True) for frames in zip(*found, strict=True))
        losses = losses.groupby(["arm", "corpus", "document", "position"], sort=False)["cross_entropy"].mean().reset_index()
        return scores, losses


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
    how = replace(how, bf16=choose_dtype(bench.backbone.model.device, training=True)[0] == torch.bfloat16)
    what = [fingerprint(spec), fingerprint(how), bench.train.fingerprint, bench.validation.fingerprint]
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:10]
    name = f"{spec.kind}-{spec.features}" if spec else "ntp"
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
    return Trained("joint", arms.Arm(spec, how, replace(found, values=light), f"{name}-{digest}"), backbone)


def frozen_and_joint(run, base: Backbone, test: dict) -> dict[str, Trained]:
    """`frozen heads` and `joint heads` at notebook 05's smallest budget, the latter at the best on validation of three rates of
    the backbone: what notebook 06 drafts with."""
    study, budget = Study.of(run, base, test), run.profile.deciding_tokens // 4
    search = study.backbone_rates(budget, extend=False)
    frozen = arms.settled_arm(run, study.bench, study.spec, Training(study.rate, budget))
    return {"frozen heads": Trained("frozen", frozen, lambda: base), "joint heads": search.tried[search.best]}


def scores_of(run, trained: Trained, base: Backbone, test: dict, name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(scores as gaps.scored, next-token losses) of one way's heads on the backbone they read, with the column `arm`; the
    labels and the marginal are the base model's."""
    backbone, arm = trained.backbone(), trained.arm
    layers = tuple(sorted({*heads_from(arm.arrays, backbone, arm.spec).layers, arms.depth_of(backbone)[-1]}))
    bench = arms.bench_of(run, backbone, test, tokens=1, layers=layers)
    ntp = [
        run.measure(f"05_ntp_{stored.stem_of(backbone, part)}", head_measures.states_ntp_table, features=states, blocks=part)
        for part, states in bench.test.values()
    ]
    return gaps.scored(run, bench, [arm], base).assign(arm=name), pd.concat(ntp, ignore_index=True).assign(arm=name)
