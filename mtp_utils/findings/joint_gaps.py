"""What joint training brings: arms trained together with their backbone, scored where the frozen ones are, against the base
model's marginal; what it costs at the next token."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import torch

from ..backbones.anatomy import unembed
from ..backbones.load import Backbone
from ..base import ranks
from ..base.keys import fingerprint
from ..base.records import Arrays
from ..base.runtime import choose_dtype
from ..heads import joint
from ..heads.features import BLOCKS, FrozenFeatures
from ..heads.spec import HeadSpec
from ..heads.together import Joint
from ..heads.training import heads_from
from . import arms, gaps, scoring
from .stored import stem_of


def joint_arm(run, where: arms.Bench, spec: HeadSpec | None, how: Joint) -> tuple[arms.Arm, Callable[[], Backbone]]:
    """An arm trained together with a copy of where's backbone, and what reads that copy, from stored arrays if they exist: so
    many of them are not held at once. Without a spec: the copy trained for the next token alone. In bfloat16 where that is
    fast."""
    how = replace(how, bf16=choose_dtype(where.backbone.model.device, training=True)[0] == torch.bfloat16)
    what = [fingerprint(spec), fingerprint(how), where.train.fingerprint, where.validation.fingerprint]
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:10]
    name = f"{spec.kind}-{spec.features}" if spec else "ntp"
    given = {"features": where.train, "validation": where.validation, "spec": spec, "how": how}
    stem = f"05_joint_{where.backbone.name.replace('/', '-')}_{name}-{how.labels}-{how.tokens}-seed{how.seed}-{digest}"

    def stored() -> Arrays:
        return run.measure_arrays(stem, joint.joint_training, **given)

    def backbone() -> Backbone:
        return joint.trained_backbone(where.backbone, stored(), how, f"{where.backbone.name}+{name}-{digest}")

    arrays = stored()
    if ranks.first():
        joint.checkpoint_path(**given).unlink(missing_ok=True)
    light = {n: x for n, x in arrays.values.items() if not n.startswith("model.")}
    return arms.Arm(spec, how, replace(arrays, values=light), f"{name}-{digest}"), backbone


def scores_of(run, arm: arms.Arm, backbone: Backbone, base: Backbone, test: dict, name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(scores as gaps.scored, next-token losses as measures.ntp_table) of an arm on its backbone, with the column `arm`;
    the labels and the marginal are the base model's."""
    last = backbone.model.config.get_text_config().num_hidden_layers
    layers = tuple(sorted({*heads_from(arm.arrays, backbone, arm.spec).layers, last}))
    where = arms.bench(backbone, 1, layers, test)
    ntp = [
        run.measure(
            f"05_ntp_{stem_of(backbone, part)}",
            ntp_table,
            features=states,
            blocks=part,
        )
        for part, states in where.test.values()
    ]
    return gaps.scored(run, where, [arm], base).assign(arm=name), pd.concat(ntp, ignore_index=True).assign(arm=name)


@torch.no_grad()
def ntp_table(features: FrozenFeatures, blocks) -> pd.DataFrame:
    """Held-out next-token cross-entropy of each document's window, nats a token, from the last layer's states."""
    model, rows = features.backbone.model, []
    last = model.config.get_text_config().num_hidden_layers
    for start in range(0, len(blocks.tokens), BLOCKS):
        part = slice(start, start + BLOCKS)
        logits = unembed(model, features.batch(part, (last,))[:, :, 0]).cpu()
        means, _ = scoring.next_token_losses(logits, blocks.tokens[part], blocks.mask[part])
        names = blocks.documents[part]
        rows += [(features.backbone.name, blocks.corpus, n, 0, float(m)) for n, m in zip(names, means, strict=True)]
    return pd.DataFrame(rows, columns=["backbone", "corpus", "document", "position", "cross_entropy"])
