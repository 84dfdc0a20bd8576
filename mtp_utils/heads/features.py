"""Hidden states of a frozen backbone on training text: computed once, read by every head, layer, seed and epoch.

With them what the backbone itself says after a path of its own tokens: labels drawn from it, and soft labels.
"""

import hashlib
import tempfile
from functools import cached_property

import numpy as np
import torch

from ..backbones.anatomy import finish_of, require_layers, require_states
from ..backbones.load import Backbone
from ..backbones.wrapped import decoder
from ..base import paths, ranks
from ..base.runtime import progress, seed_for
from ..marginal.expansion import children
from ..marginal.future import engine_to_use, one_token
from ..marginal.packed import Packed
from ..marginal.rows import Rows, undisturbed
from ..marginal.sampling import uniforms

BOUND = 2**30  # bytes of states held in memory; beyond it they lie in a file, memory-mapped, that goes with the process
BLOCKS = 8  # a forward pass


class FrozenFeatures:
    """The hidden states of `backbone` at `layers` on token blocks, float16 (float32 where a value does not fit).

    tokens: (blocks, T) int64. layers: of hidden_states, 0 = embeddings, the last is after the final norm. bf16: under bfloat16
    autocast. lengths: (blocks,) of text that is padded on the right, whose padding is spared and has no states to be read.
    Nothing is computed before it is asked for; the fingerprint is known before. CannotDo where the model has no such states.
    """

    def __init__(
        self,
        backbone: Backbone,
        tokens: torch.Tensor,
        layers: tuple[int, ...],
        horizon: int = 4,
        bf16: bool = False,
        lengths: torch.Tensor | None = None,
    ):
        self.backbone, self.tokens, self.layers, self.horizon = backbone, tokens, tuple(layers), horizon
        self.device, self.bf16 = backbone.model.device, bf16
        self.lengths = torch.full((len(tokens),), tokens.shape[1]) if lengths is None else lengths

    @property
    def fingerprint(self) -> str:
        """Of the weights, the text and the arithmetic; which layers are held changes no number."""
        how = b" bf16" if self.bf16 else b""
        return hashlib.sha256(self.backbone.fingerprint.encode() + self.tokens.numpy().tobytes() + how).hexdigest()

    def batch(self, rows, layers: tuple[int, ...]) -> torch.Tensor:
        """(blocks, T, len(layers), d) of some blocks (a slice or their numbers), float32 (float64 for a float64 model)."""
        where = [self.layers.index(layer) for layer in layers]
        dtype = torch.promote_types(self.backbone.model.dtype, torch.float32)
        return torch.from_numpy(np.stack([self.states[i, rows] for i in where], 2)).to(self.device, dtype)

    @cached_property
    def states(self) -> np.ndarray:
        """(layers, blocks, T, d)."""
        with torch.autocast(self.device.type, enabled=False):  # whoever asks first may be training in it
            return _as_small_as_fits(self._compute)

    @cached_property
    def paths(self) -> "Paths":
        """One continuation of `horizon` tokens drawn from the backbone after every position; see `sampled_paths`."""
        with torch.autocast(self.device.type, enabled=False):
            return sampled_paths(self.backbone, self.tokens, self.horizon)

    def _compute(self, dtype) -> np.ndarray:
        model = self.backbone.model
        require_layers(model)
        found = state_array((len(self.layers), *self.tokens.shape, model.config.get_text_config().hidden_size), dtype)

        def states(part: torch.Tensor) -> list[np.ndarray]:
            ids = self.tokens[part, : self.lengths[part].max()].to(self.device)
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                hidden = decoder(model)(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
            return [_fitting(hidden[layer], dtype) for layer in self.layers]

        for part, values in _shared(by_length(self.lengths), states, f"features {self.backbone.name}"):
            for i, x in enumerate(values):
                found[i, part, : x.shape[1]] = x
        return found


class Paths:
    """tokens (blocks, T, horizon) int64: x_1.. drawn one after another from the backbone; states (blocks, T, horizon, d)
    float16 or float32: the state that x_{j+1} was drawn from, at index j: softmax of its logits is p(x_{j+1} | x, x_1 .. x_j)."""

    def __init__(self, tokens: torch.Tensor, states: np.ndarray):
        self.tokens, self.states = tokens, states


def sampled_paths(backbone: Backbone, tokens: torch.Tensor, horizon: int, stream: str = "train/paths") -> Paths:
    """After every position one continuation at temperature 1, with the states it was drawn from.

    A soft label for offset k is softmax(logits of states[..., k - 1, :]): with the path drawn from the backbone its
    expectation is the marginal m_k, so the gradient of the cross-entropy to it is that of CE(m_k, head), unbiased
    (one path a position, no truncation).
    """
    return _as_small_as_fits(lambda dtype: _sampled_paths(backbone, tokens, horizon, stream, dtype))


def _sampled_paths(backbone: Backbone, tokens: torch.Tensor, horizon: int, stream: str, dtype) -> Paths:
    model = backbone.model
    require_states(model)
    drawn = torch.empty(*tokens.shape, horizon, dtype=torch.int64)
    states = state_array((*tokens.shape, horizon, model.config.get_text_config().hidden_size), dtype)

    def paths_of(part: slice) -> tuple[torch.Tensor, np.ndarray]:
        ids = tokens[part].to(model.device)
        seeds = torch.tensor([[seed_for(f"{stream}/{r}/{t}") for t in range(ids.shape[1])] for r in range(part.start, part.stop)])
        found = torch.empty(*ids.shape, horizon, dtype=torch.int64), np.empty((*ids.shape, horizon, states.shape[-1]), dtype)
        _draw(model, ids, horizon, seeds, *found)
        return found

    parts = [slice(a, min(a + BLOCKS, len(tokens))) for a in range(0, len(tokens), BLOCKS)]
    for part, values in _shared(parts, paths_of, f"paths {backbone.name}"):
        drawn[part], states[part] = values
    return Paths(drawn, states)


def by_length(lengths: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Numbers of rows, BLOCKS at a time, those of one length beside each other: little is read of what stands behind a text."""
    return lengths.argsort(stable=True).split(BLOCKS)


def _shared(parts, compute, description: str):
    """Yield (part, compute(part)); every process computes some of them and has them all."""
    for start in progress(range(0, len(parts), ranks.count()), description):
        here, values = parts[start : start + ranks.count()], None
        if ranks.number() < len(here):
            try:
                values = compute(here[ranks.number()])
            except OverflowError as error:  # the others are waiting: say it to them too
                values = error
        found = ranks.gather(values)[: len(here)]
        if error := next((x for x in found if isinstance(x, OverflowError)), None):
            raise error
        yield from zip(here, found, strict=True)


def _draw(model, ids: torch.Tensor, horizon: int, seeds: torch.Tensor, drawn: torch.Tensor, states: np.ndarray) -> None:
    """Fill `drawn` and `states` for some blocks: as marginal.future_tokens, keeping what enters the LM head."""
    rows, seen, before = Rows(model, ids, horizon, name="horizon"), [], finish_of(model).before

    def keep(module, inputs):
        seen.append(inputs[0] if before == 1 else inputs[0] / before)

    hook = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        with undisturbed(model):
            prefix = decoder(model)(input_ids=ids, use_cache=False).last_hidden_state
            for engine, roots, where in rows.batches(model, engine_to_use(model, rows)):
                streams, slow = rows.seeds(seeds, where), not isinstance(engine, Packed)
                for level in roots.split(max(1, engine.capacity // horizon)):
                    here = level.root.tolist()
                    row, column = where[here].T.cpu()
                    u = uniforms([streams[i] for i in here], 1, horizon, level.root.device)[:, 0].T
                    for depth in range(horizon):
                        parts, token = [], one_token(u[depth])

                        def choose(start, stop, p, parts=parts, token=token, depth=depth, slow=slow):
                            if depth:  # what this p was made from went into the LM head last
                                parts.append(seen[-1][:, -1] if slow else seen[-1][0])
                                seen.clear()
                            return token(start, stop, p)

                        level = children(engine, level, choose)
                        last = torch.cat(parts) if depth else prefix[row, column]
                        drawn[row, column, depth] = level.token.cpu()
                        states[row.numpy(), column.numpy(), depth] = _fitting(last, states.dtype)
    finally:
        hook.remove()


def _as_small_as_fits(compute):
    """compute(float16), or compute(float32) where a value does not fit."""
    try:
        return compute(np.float16)
    except OverflowError:
        return compute(np.float32)


def _fitting(x: torch.Tensor, dtype) -> np.ndarray:
    values = x.float().cpu().numpy()
    if not np.abs(values).max() <= np.finfo(dtype).max:  # nan too
        raise OverflowError(f"a hidden state is no number, or beyond {np.finfo(dtype).max:g}")
    return values


def state_array(shape: tuple[int, ...], dtype) -> np.ndarray:
    """An array of zeros, in memory up to BOUND bytes, else in an unnamed file below the cache."""
    if int(np.prod(shape)) * np.dtype(dtype).itemsize <= BOUND:
        return np.zeros(shape, dtype)
    paths.cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=paths.cache()) as file:  # the map outlives the name
        return np.memmap(file, dtype, "w+", shape=shape)
