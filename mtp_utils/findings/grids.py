"""Arms that several notebooks share: 04 scores the profile's grid of heads and 06 drafts with it; 05 trains heads with their
backbone and 06 drafts with those."""

from dataclasses import replace

from ..heads.heads import Heads
from ..heads.spec import HeadSpec
from ..heads.together import Joint
from ..heads.training import Training
from . import arms, joint_gaps, layers


def grid_arms(run, where: arms.Bench) -> list[arms.Arm]:
    """Every kind of heads of the profile's grid, tuned on validation. `single` is the layer whose probe is best at offset 2."""
    profile, depth = run.profile, layers.depth_of(where.backbone)
    read = (1, 2, 3, 4) if where.backbone.name in profile.last_rungs else (2,)  # notebook 03's probes, where it has some
    probes = layers.probe_arms(run, where, depth, read, profile.head_tokens, profile.trial_tokens)
    single = layers.best_layer(probes, 2)
    specs = [HeadSpec(kind, single if f == "single" else f, offsets=profile.grid_offsets) for kind, f in profile.grid]
    return [_tuned(run, where, spec) for spec in specs]


def to_offset(run, where: arms.Bench, arm: arms.Arm, last: int) -> tuple[arms.Arm, ...]:
    """The arm, and a further one of its kind for the offsets up to `last` that it lacks."""
    missing = tuple(k for k in range(2, last + 1) if k not in arm.spec.offsets)
    return (arm, _tuned(run, where, replace(arm.spec, offsets=missing))) if missing else (arm,)


def best_on_last(run, base, test: dict) -> tuple[arms.Bench, HeadSpec, float]:
    """Of the three kinds of heads on the last layer the best at offset 2 on validation, the rate that suits it, and a bench with
    the deciding tokens: what joint training starts from."""
    profile = run.profile
    where = arms.bench(base, profile.head_tokens, layers.depth_of(base), test)
    tuned = [_tuned(run, where, HeadSpec(kind, offsets=profile.grid_offsets)) for kind in ("linear", "residual", "block")]
    best = min(tuned, key=lambda arm: arm.loss(2))
    spec, rate = replace(best.spec, offsets=(2,)), best.training.rates(best.spec.offsets)[best.spec.offsets.index(2)]
    return arms.bench(base, profile.deciding_tokens, Heads(base, spec).layers, test), spec, rate


def frozen_and_joint(run, base, test: dict) -> dict:
    """name -> (the backbone that verifies, an arm at offset 2) at notebook 05's smallest budget: `frozen heads` on the base
    model, `joint heads` on the copy trained with them, at the best on validation of three rates of the backbone."""
    (where, spec, rate), budget = best_on_last(run, base, test), run.profile.deciding_tokens // 4
    found = []
    for multiple in (1.0, 0.1, 0.01):
        try:
            found.append(joint_gaps.joint_arm(run, where, spec, Joint(rate, budget, backbone_rate=multiple)))
        except FloatingPointError:  # a rate at which it diverges is no candidate
            continue
    arm, trained = min(found, key=lambda pair: pair[0].loss(2))
    frozen = arms.settled_arm(run, where, spec, Training(rate, budget))
    return {"frozen heads": (base, frozen), "joint heads": (trained(), arm)}


def _tuned(run, where: arms.Bench, spec: HeadSpec) -> arms.Arm:
    return arms.tuned_arm(run, where, spec, Training(0.0, run.profile.head_tokens), run.profile.trial_tokens)
