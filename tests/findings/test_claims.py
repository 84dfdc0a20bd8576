"""What decides a claim is written once: the words that notebooks print and the thresholds that verdicts use are the same."""

import dataclasses
import hashlib
import json
import re

import pandas as pd
import pytest
from toy_run import ROOT

from mtp_utils.base import artifacts
from mtp_utils.base.profiles import PROFILES, with_own
from mtp_utils.findings import adjusted, arms, claims, counting, head_claims, joint_heads
from mtp_utils.findings.changes import CHANGES


def test_every_claim_has_a_contrast_and_its_words_say_all_of_it():
    assert list(claims.CONTRASTS) == list(artifacts.CLAIMS)
    for claim, contrast in claims.CONTRASTS.items():
        text = claims.decided(claim)
        assert contrast.quantity in text and contrast.needs in text and f"above {contrast.threshold:g} " in text
        assert f"fixed on {contrast.fixed}" in text and contrast.corpora in text and contrast.metric in text
        changed = CHANGES.get(claim, ())
        assert all(f"Changed on {date}, after results had been seen" in text and what in text for date, what in changed)
        dates = [contrast.fixed, *(date for date, _ in changed)]
        assert all(re.fullmatch(r"2026-\d\d-\d\d", date) for date in dates) and dates == sorted(dates)


HELD = {  # sha256 of what decides a claim -> how many dated changes stand beside it
    "C1": ("9abe52b86b68bfdd", 4),
    "C2 (size)": ("09b26a03ac02ba8e", 0),
    "C2 (data)": ("32f3d5f5826957b5", 2),
    "C3a": ("fca16f7a98d50db7", 8),
    "C3b": ("38ba25257e800f50", 8),
    "C4a": ("349c0b1f63734771", 9),
    "C4b": ("eaaf19ff966a1f6b", 9),
    "C4c": ("cecd8e1388380c0f", 9),
}


@pytest.mark.parametrize("claim", HELD)
def test_a_contrast_does_not_change_without_a_dated_line(claim):
    written = json.dumps(dataclasses.asdict(claims.CONTRASTS[claim]), sort_keys=True)
    found = hashlib.sha256(written.encode()).hexdigest()[:16], len(CHANGES.get(claim, ()))
    assert found == HELD[claim], "say in changes.py what changed, when and why, then write the new digest here"


def test_the_numbers_that_verdicts_hang_on_do_not_change_without_a_dated_line():
    rules = claims.ALPHA, claims.OFFSET, claims.LABELS, claims.DOUBLING, arms.GAIN, arms.STEP, adjusted.POSITIONS
    assert rules == (0.05, 2, "data", 0.10, 0.03, 4, 4)
    assert (arms.TRIALS, arms.FIRST, joint_heads.FACTOR) == ((1e-3, 3e-3, 1e-2), (1, -1), 3)
    assert counting.PREDICTORS == ("unigram", "skip_bigram", "skip_trigram")
    assert counting.CONTROLS == (*counting.PREDICTORS, "cache_ngram")
    fields = "n_documents positions_per_document head_tokens most_tokens text_tokens joint_tokens".split()
    fields += ["head_seeds", "joint_trials", "joint_seeds"]
    gemma = with_own(PROFILES["pretrained"], {"gemma3-270m": "gemma3-270m"}, None)
    of = {name: tuple(getattr(p, field) for field in fields) for name, p in (PROFILES | {"gemma": gemma}).items()}
    first, seeds = (200, 1, 65_536, 2_097_152, 524_288, 524_288), (0, 1, 2)
    assert of["default"] == (*first, (0,), (5, 1, 1, 2), (0,)) and of["overnight"] == (*first, seeds, (5, 5, 5, 5), seeds)
    assert of["pretrained"] == (200, 1, 65_536, 262_144, 262_144, 65_536, seeds, (2, 1, 1, 1), (0,))
    assert of["gemma"] == (200, 1, 16_384, 65_536, 65_536, 16_384, seeds, (2, 1, 1, 1), (0,))


def test_one_corpus_against_the_claim_is_said_whatever_the_others_say():
    rows = {"effect": [0.3, 0.2, -0.2], "ci_low": [0.2, 0.1, -0.3], "ci_high": [0.4, 0.3, -0.1], "p": [1e-6, 1e-3, 1e-3]}
    effects = pd.DataFrame(rows)
    assert claims.decide(effects, 0.0) == "contradicted in some corpora" and claims.decide(effects[:2], 0.0) == "reproduced"
    assert claims.decide(effects[2:], 0.0) == "not reproduced"
    open_ = effects.assign(ci_high=[0.4, 0.3, 0.1], p=[1e-6, 1e-3, 0.5])
    assert claims.decide(open_, 0.0) == "partly" and claims.decide(open_[2:], 0.0) == "inconclusive"


@pytest.mark.parametrize(("threshold", "verdict"), [(0.0, "reproduced"), (0.5, "not reproduced")])
def test_a_verdict_asks_the_contrast_for_its_threshold(monkeypatch, threshold, verdict):
    monkeypatch.setitem(claims.CONTRASTS, "C3a", dataclasses.replace(claims.CONTRASTS["C3a"], threshold=threshold))
    rows = {"corpus": ["code", "prose"], "effect": [0.3, 0.2], "ci_low": [0.2, 0.1], "ci_high": [0.4, 0.3], "p": [1e-9, 1e-6]}
    effects = pd.DataFrame(rows | {"n_documents": 200, "seeds_agree": True})
    assert head_claims.c3a(effects, "b", "block", (0,)).verdict == verdict


def test_the_notebook_that_judges_a_claim_prints_what_decides_it_and_no_other_does():
    printed = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = ["".join(c["source"]) for c in json.loads(path.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
        for claim in re.findall(r'display\(Markdown\(claims\.decided\("([^"]+)"\)\)\)', "\n".join(cells)):
            printed.setdefault(claim, []).append(path.stem[:2])
    where = {"01": ("C1",), "02": ("C2 (size)", "C2 (data)"), "04": ("C3a", "C3b"), "05": ("C4a", "C4b", "C4c")}
    assert printed == {claim: [number] for number, judged in where.items() for claim in judged}
