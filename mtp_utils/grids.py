"""The profile's grid of heads on one backbone: notebook 04 scores them, notebook 06 drafts with them."""

from dataclasses import replace

from . import arms, layers
from .heads import HeadSpec
from .training import Training


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


def _tuned(run, where: arms.Bench, spec: HeadSpec) -> arms.Arm:
    return arms.tuned_arm(run, where, spec, Training(0.0, run.profile.head_tokens), run.profile.trial_tokens)
