"""What storing a frozen backbone's states buys: `python benchmarks/heads.py [--quick]`.

Ten heads on the last rung's shape (random weights), each trained on the same tokens: once from stored states (whose making
counts), once with the backbone run again at every step, as one would write it without them. Also the share of a step that
is the head's own, which bounds what storing can buy. Prints; writes heads.csv and the README's table without --quick.
"""

import argparse
import time

import torch
from marginal import random_model
from tables import publish

from mtp_utils.backbones.load import Backbone
from mtp_utils.heads.features import FrozenFeatures
from mtp_utils.heads.heads import Heads
from mtp_utils.heads.spec import HeadSpec
from mtp_utils.heads.training import Training, step_losses, trained_heads
from mtp_utils.text.blocks import CONTEXT


class Recomputed(FrozenFeatures):
    """Without the store: the backbone runs again for every batch that is asked for."""

    def batch(self, rows, layers):
        with torch.no_grad():
            hidden = self.backbone.model.base_model(self.tokens[rows].to(self.device), output_hidden_states=True).hidden_states
        return torch.stack([hidden[layer] for layer in layers], 2)


def seconds(run) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few tokens, to see that it runs; writes nothing")
    given = parser.parse_args()
    blocks, n_heads, epochs = (8, 2, 1) if given.quick else (64, 10, 2)
    backbone = Backbone("random/rung", random_model("rung").requires_grad_(False), None, 0, 0, None, "random", {})
    layers = tuple(range(backbone.model.config.num_hidden_layers + 1))
    tokens = torch.randint(1024, (blocks, CONTEXT), generator=torch.Generator().manual_seed(0))
    held_out, rows = FrozenFeatures(backbone, tokens[:1], layers), []
    held_out.states  # noqa: B018 (made here, so that neither side pays for it)
    for offsets in ((2,), (2, 3, 4)):
        spec, how = HeadSpec("residual", offsets=offsets), Training(1e-3, epochs * tokens.numel(), epochs=epochs, checks=1)

        def train(features, spec=spec, how=how):
            for _ in range(n_heads):
                trained_heads(features, held_out, spec, how)

        stored = FrozenFeatures(backbone, tokens, layers)
        from_store = seconds(lambda stored=stored: train(stored))
        again = seconds(lambda: train(Recomputed(backbone, tokens, layers)))
        heads = Heads(backbone, spec)
        own = seconds(lambda heads=heads, stored=stored: step_losses(heads, stored, slice(0, 4), "data", torch.Tensor.backward))
        run = seconds(lambda: Recomputed(backbone, tokens, layers).batch(slice(0, 4), layers[-1:]))
        case = f"{n_heads} heads, offsets {offsets}, {epochs} epochs"
        rows.append((case, "backbone again at every step / stored states", again / from_store, ">= 5"))
        rows.append((case, "backbone pass / the head's own step", run / own, ""))
    for row in rows:
        print("{}: {} = {:.3g} {}".format(*row))
    if not given.quick:
        publish("heads", rows)


if __name__ == "__main__":
    main()
