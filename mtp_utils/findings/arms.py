"""Heads tuned and trained alike on one backbone, from stored arrays where they exist.

An arm is one kind of heads trained in one way on one backbone; every arm sees the same text in the same order and gets the
same trials of a learning rate, and more where its best is at an edge.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..backbones.anatomy import require_layers
from ..backbones.checkpoints import WARMUP
from ..base.runtime import choose_dtype
from ..heads import training
from ..heads.features import FrozenFeatures
from ..heads.heads import Heads
from ..heads.spec import HeadSpec, spread
from ..heads.training import Training
from ..text import corpora
from ..text.blocks import CONTEXT, training_blocks
from . import head_measures
from .arm import Arm, kind_of

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
TRIALS = (1e-3, 3e-3, 1e-2)  # where every sweep begins; it goes on while the best is at an edge
GAIN = 0.03  # nats a doubling of the training budget, below which heads count as trained out
FIRST = (1, -1)  # where rates are looked for at the first of several budgets: higher, then lower
STEP = 4  # blocks of a step of heads that are trained out
VALIDATION_SHARE = 21  # one validation block for so many training blocks, at least one and at most eight of each corpus


@dataclass(frozen=True)
class Bench:
    """What arms of one backbone are made and scored on: its states on training, validation and test text.

    test: corpus -> (evaluation blocks, the states of their tokens).
    """

    train: FrozenFeatures
    validation: FrozenFeatures
    test: dict

    @property
    def backbone(self):
        return self.train.backbone

    @property
    def blocks(self) -> dict:
        """corpus -> evaluation blocks."""
        return {corpus: blocks for corpus, (blocks, _) in self.test.items()}

    def on(self, tokens: int, horizon: int = 4) -> "Bench":
        """The same with another amount of training text, or labels drawn up to another offset."""
        text, layers = _heads_text(self.backbone, tokens), self.train.layers
        texts = text, self.validation.tokens
        train, validation = (FrozenFeatures(self.backbone, t, layers, horizon, self.train.bf16) for t in texts)
        return Bench(train, validation, self.test)


def bench_of(run, backbone, test: dict, *, tokens: int | None = None, layers=None, horizon: int = 4, skip: int = 0) -> Bench:
    """States of `layers` (those of `depth_of`, if None) on `tokens` tokens of the heads split (the profile's head_tokens, if
    None; without its first `skip`), on a few validation blocks, and on `test` (corpus -> evaluation blocks). Each is computed
    when first asked for, and only if something is not stored yet."""
    layers = depth_of(backbone) if layers is None else layers
    text = _heads_text(backbone, skip + (tokens or run.profile.head_tokens))[-(-skip // CONTEXT) :]
    n_corpora = len(corpora.names())
    n = min(max(n_corpora, len(text) // VALIDATION_SHARE), 8 * n_corpora)
    texts = text, _blocks_of("validation", backbone, n)
    bf16 = run.profile.bf16_states and fast_in_bf16(backbone)
    found = [FrozenFeatures(backbone, t, layers, horizon, bf16) for t in texts]

    def of(part) -> FrozenFeatures:
        return FrozenFeatures(backbone, part.tokens, layers, bf16=bf16, lengths=part.mask.sum(1))

    return Bench(*found, {corpus: (part, of(part)) for corpus, part in test.items()})


def fast_in_bf16(backbone) -> bool:
    """Whether training in bfloat16 autocast is fast where the backbone is."""
    return choose_dtype(backbone.model.device, training=True)[0] == torch.bfloat16


def depth_of(backbone) -> tuple[int, ...]:
    """The numbers of a backbone's hidden_states that are read: 0 the embeddings, the last one after the final norm; of a deep
    one some, evenly spread."""
    return spread(backbone.model.config.get_text_config().num_hidden_layers)


def try_states(backbone) -> None:
    """CannotDo where a backbone's layers hold no states that FrozenFeatures could keep."""
    require_layers(backbone.model)


def try_heads(backbone) -> None:
    """CannotDo where heads on a backbone would be wrong: on its last layer, or on the others."""
    try_states(backbone)
    for features in ("last", "mix"):
        Heads(backbone, HeadSpec("residual", features))


def able_arms(run, bench: Bench, specs: list[HeadSpec]) -> list[Arm]:
    """The kinds of heads of those specs that the backbone can have, tuned; the others are skipped."""
    found = []
    for spec in specs:
        with run.left_out(f"{kind_of(spec)} heads of {bench.backbone.name}"):
            found.append(tuned_arm(run, bench, spec))
    return found


def layers_of(backbone, spec: HeadSpec) -> tuple[int, ...]:
    """The layers that heads of a spec read."""
    return Heads(backbone, spec).layers


def _heads_text(backbone, tokens: int) -> torch.Tensor:
    return _blocks_of("heads", backbone, -(-tokens // CONTEXT))


def _blocks_of(split: str, backbone, n: int) -> torch.Tensor:
    return torch.from_numpy(training_blocks(split, backbone.tokenizer, n, 0).astype(np.int64))


def trained_arm(run, bench: Bench, spec: HeadSpec, how: Training) -> Arm:
    """One arm, from the stored arrays if they exist; trained in bfloat16 autocast where that is fast."""
    how = replace(how, rate=how.rates(spec.offsets), bf16=fast_in_bf16(bench.backbone))
    name = name_of(bench, spec, how)
    arrays = run.measure_arrays(
        f"03_heads_{bench.backbone.name.replace('/', '-')}_{name}",
        training.trained_heads,
        features=bench.train,
        validation=bench.validation,
        spec=spec,
        training=how,
    )
    return Arm(spec, how, arrays, name)


def name_of(bench: Bench, spec: HeadSpec, how: Training) -> str:
    """The name in tables of heads of a spec trained so on a bench: another for whatever differs."""
    rates, own = how.rates(spec.offsets), spec.unembedding
    if own == "corrected":
        own += f"{spec.rank}{'' if spec.unigram else 'lm'}"
    name = "-".join([spec.kind, str(spec.features), f"{spec.layers}x", own, "".join(map(str, spec.offsets))])
    written = "_".join(f"{rate:g}" for rate in (rates if len(set(rates)) > 1 else rates[:1]))
    name += f"-{how.blocks}x{how.epochs}" if how.blocks * how.epochs > 1 else ""
    name += f"-warm{how.warmup:g}" if how.warmup != WARMUP else ""
    return f"{name}-{how.labels}-{how.tokens}-{written}-seed{how.seed}-{how.checks}-{bench.train.fingerprint[:8]}"


def tuned_arm(run, bench: Bench, spec: HeadSpec, labels: str = "data") -> Arm:
    """The arm trained on the profile's head_tokens, each offset's head at the rate that was best for it on validation after
    trial_tokens. Every head gets the same trials, and further ones while some head's best is at an edge."""
    how, losses, wanted = Training(0.0, run.profile.head_tokens, labels), {}, list(TRIALS)
    while wanted:
        rate = wanted.pop(0)
        try:
            trial = trained_arm(run, bench, spec, replace(how, rate=rate, tokens=run.profile.trial_tokens, checks=1))
            losses[rate] = trial.arrays.values["validation"][-1]
        except FloatingPointError:  # a rate at which it diverges is no candidate
            losses[rate] = np.full(len(spec.offsets), np.inf)
        if not wanted:
            tried = sorted(losses)
            best = [tried[i] for i in np.argmin([losses[rate] for rate in tried], axis=0)]
            near = {RATES.index(rate) + step for rate in best for step in (-1, 1)}
            wanted = [RATES[i] for i in sorted(near) if 0 <= i < len(RATES) and RATES[i] not in losses]
    return trained_arm(run, bench, spec, replace(how, rate=tuple(best)))


def best_at(offset: int, arms: list[Arm]) -> Arm:
    """Of several arms the one with the lowest cross-entropy at that offset on validation."""
    return min((arm for arm in arms if offset in arm.spec.offsets), key=lambda arm: arm.loss(offset))


def settled_arm(run, bench: Bench, spec: HeadSpec, how: Training, steps: tuple[int, ...] = (-1,)) -> Arm:
    """The arm at its rates, or at ones a step lower for as long as those are better on validation with all its tokens: what
    is best for few of them tends to be too high for many. steps: the directions in which it looks, one after the other."""
    best = trained_arm(run, bench, spec, how)
    for step in steps:
        while True:
            at = [min(max(0, RATES.index(rate) + step), len(RATES) - 1) for rate in best.training.rates(spec.offsets)]
            try:
                other = trained_arm(run, bench, spec, replace(how, rate=tuple(RATES[i] for i in at)))
            except FloatingPointError:  # a rate at which it diverges is no candidate
                break
            if _mean_loss(other) >= _mean_loss(best):
                break
            best = other
    return best


def trained_out(run, bench: Bench, spec: HeadSpec, how: Training, most: int, gain: float = GAIN) -> list[Arm]:
    """The arm at doubling budgets from how.tokens on, until the last doubling brings less than `gain` nats on validation (they
    then count as trained out) or the next would be above `most` tokens; in epochs over the text. Rates are settled at the first
    budget (higher too: its steps may be of more blocks than those of the trials) and at the last, and carried on between."""
    found = [settled_arm(run, bench, spec, replace(how, epochs=_epochs(bench, how.tokens)), FIRST)]
    while not is_trained_out(found, gain) and 2 * found[-1].training.tokens <= most:
        last = found[-1].training
        tokens = 2 * last.tokens
        found.append(trained_arm(run, bench, spec, replace(last, tokens=tokens, epochs=_epochs(bench, tokens))))
        if is_trained_out(found, gain) or 2 * tokens > most:
            found[-1] = settled_arm(run, bench, spec, found[-1].training)
    return found


def is_trained_out(by_budget: list[Arm], gain: float = GAIN) -> bool:
    """Whether the last doubling of a budget brought less than `gain`."""
    return len(by_budget) > 1 and last_gain(by_budget) < gain


def last_gain(by_budget: list[Arm]) -> float:
    """What the last doubling of the budget brought on validation, nats."""
    return _mean_loss(by_budget[-2]) - _mean_loss(by_budget[-1])


def _epochs(bench: Bench, tokens: int) -> int:
    return -(-tokens // bench.train.tokens.numel())


def _mean_loss(arm: Arm) -> float:
    return float(np.mean([arm.loss(k) for k in arm.spec.offsets]))


def make_states(run, bench: Bench) -> float:
    """Makes the training states of a bench, or reads them where they are stored (they are if they take features.BOUND bytes or
    less: for the next notebook, and for a run that is resumed). The seconds that making them took."""
    made, name = bench.train, bench.backbone.name.replace("/", "-")
    stem = f"03_states_{name}_{made.tokens.numel()}_{''.join(map(str, made.layers))}_{made.fingerprint[:8]}"
    found = run.measure_arrays(stem, head_measures.states_made, features=made, layers=made.layers)
    if "states" in found.values:
        made.states = found.values["states"]
    return found.seconds


def untrained_arm(run, bench: Bench, spec: HeadSpec) -> Arm:
    """Heads as they start. `linear` on one layer with the shared unembedding is the logit lens of that layer."""
    name = f"{spec.kind}-{spec.features}-start-{''.join(map(str, spec.offsets))}"
    arrays = run.measure_arrays(
        f"03_heads_{bench.backbone.name.replace('/', '-')}_{name}",
        head_measures.initial_heads,
        backbone=bench.backbone,
        spec=spec,
    )
    return Arm(spec, Training(0.0, 0), arrays, name)
