"""The page says what its table says, of the right tokens, and nothing in a text becomes markup."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import tiny_backbone

from mtp_utils.backbones import load_backbone
from mtp_utils.drawing import explorer
from mtp_utils.findings import said
from mtp_utils.heads.heads import Heads
from mtp_utils.heads.spec import HeadSpec
from mtp_utils.marginal.future import future_log_probs
from mtp_utils.text.tokens import characters_of

TEXTS = ["<script>document.title='bad'</script>", "</script><b>", " a", "\n", "&amp;", "\u00e9\U0001f600", '"']
IDS = [0, 3, 6, 4, 3, 5, 2, 6, 0, 3]


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    monkeypatch.setattr(said, "ASKED", {2: {"top_k": 5}, 3: {"top_k": 3}, 4: {"top_k": 2}})


class Words:
    """A tokenizer of seven tokens; any text is all of one of them."""

    eos_token_id, bos_token_id, unk_token_id = 0, None, None

    def __call__(self, text, **_):
        ids = [[2] * len(t) for t in ([text] if isinstance(text, str) else text)]
        return {"input_ids": ids[0] if isinstance(text, str) else ids}

    def convert_tokens_to_ids(self, token):
        return None

    def decode(self, ids):
        return "".join(TEXTS[i] for i in ids)

    def batch_decode(self, rows):
        return [self.decode(ids) for ids in rows]


class Bytes(Words):
    """Tokens of bytes: the snowman is cut into three of them."""

    texts = (b"a", b"\xe2", b"\x98", b"\x83", b" b", b"\n", b"c")

    def __call__(self, text, **_):
        ids = [
            [0] if t == "a" else [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 6, 1, 2, 3, 0]
            for t in ([text] if isinstance(text, str) else text)
        ]
        return {"input_ids": ids[0] if isinstance(text, str) else ids}

    def decode(self, ids):
        return b"".join(self.texts[i] for i in ids).decode("utf-8", "replace")


def backbone(tokenizer=Words):
    return SimpleNamespace(**vars(tiny_backbone("llama")) | {"tokenizer": tokenizer()})


def table_of(b, name="tiny/a"):
    return said.with_text(said.said_table(b, IDS, (Heads(b, HeadSpec(offsets=(2, 3))),)), IDS, b.tokenizer)


def page_of(b, names=("tiny/a", "tiny/b")):
    return explorer.page([explorer.text_of(table_of(b), corpus, name) for name in names for corpus in ("one", "two")])


def test_what_is_said_of_a_token_is_what_the_position_before_it_says():
    b = backbone()
    table = said.said_table(b, IDS, (Heads(b, HeadSpec("residual", offsets=(3,))),))
    given = {("ntp", 1): {"exact": True}, ("marginal", 2): said.ASKED[2], ("marginal", 4): said.ASKED[4]}
    for (predictor, k), options in given.items():
        f = future_log_probs(b.model, torch.tensor([IDS]), k, **options)
        part = table[(table.predictor == predictor) & (table.offset == k)]
        assert sorted(part["at"].unique()) == list(range(k, len(IDS)))
        for row in part.itertuples():
            assert np.isclose(row.probability, float(f.log_probs[0, row.at - k, row.candidate].exp()), atol=1e-6)
    best = table[(table.predictor == "heads") & (table["rank"] == 0)]  # an untrained head is the LM head
    with torch.no_grad():
        says = b.model(torch.tensor([IDS]), use_cache=False).logits[0].argmax(-1).tolist()
    assert dict(zip(best["at"], best["candidate"], strict=True)) == {t + 3: says[t] for t in range(len(IDS) - 3)}
    assert table[table.predictor == "marginal"]["captured_mass"].between(0, 1 + 1e-5).all()


def test_nothing_that_a_text_says_is_markup():
    page = page_of(backbone())
    assert (
        page.count("<script") == 2
        and page.count("</script>") == 2
        and "<b>" not in page.split('id="data">')[1].split("</script>")[0]
    )
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert data["texts"][0]["names"]["0"] == TEXTS[0]
    assert "http" not in page.replace("http-equiv", "")
    framed = explorer.frame(page).data
    assert framed.count("<") == 4 and framed.startswith('<div><iframe sandbox="allow-scripts" ')


def test_a_text_too_short_for_the_token_after_next_is_refused():
    b = backbone()
    with pytest.raises(ValueError, match="at least two are needed"):
        explorer.explore(b, "x")
    assert "iframe" in explorer.explore(b, "xxxx").data


def test_heads_of_another_model_or_twice_of_an_offset_are_refused_and_a_long_text_is_cut_and_says_so(monkeypatch):
    b, other = backbone(), backbone()
    with pytest.raises(ValueError, match="not on tiny/llama"):
        explorer.explore(b, "xxxx", (Heads(other, HeadSpec()),))
    with pytest.raises(ValueError, match="an offset has one head"):
        explorer.explore(b, "xxxx", (Heads(b, HeadSpec()), Heads(b, HeadSpec(offsets=(2,)))))
    monkeypatch.setattr(explorer, "LONGEST", 6)
    data = explorer.explore_page(b, "x" * 9, Heads(b, HeadSpec(offsets=(5,)))).split('id="data">')[1].split("</script>")[0]
    assert json.loads(data)["note"] == "The first 5 of 9 tokens." and json.loads(data)["offsets"] == [2, 3, 4, 5]


def test_a_text_that_fills_the_models_context_is_shown_and_a_vocabulary_smaller_than_what_is_asked_is_enumerated(monkeypatch):
    monkeypatch.setattr(said, "ASKED", {2: {"top_k": 64}, 3: {"top_k": 16}, 4: {"top_k": 6}})
    b = backbone()
    b.model.config.max_position_embeddings = 8
    table = said.said_table(b, IDS[:8])
    for k in (2, 3):
        right = future_log_probs(tiny_backbone("llama").model, torch.tensor([IDS[:8]]), k, exact=True).log_probs[0]
        part = table[(table.predictor == "marginal") & (table.offset == k)]
        assert sorted(part["at"].unique()) == list(range(k, 8)) and np.allclose(part["captured_mass"], 1)
        for row in part.itertuples():
            assert np.isclose(row.probability, float(right[row.at - k, row.candidate].exp()), atol=1e-5)
    data = json.loads(explorer.explore_page(b, "x" * 9).split('id="data">')[1].split("</script>")[0])
    assert data["note"] == "The first 7 of 9 tokens." and len(data["texts"][0]["ids"]) == 7


def test_a_character_cut_into_tokens_is_whole_in_each_of_them():
    found = characters_of([0, 1, 2, 3, 4, 1, 0], Bytes())
    cut = [("\u2603", part, 3) for part in range(3)]
    assert found == [("a", 0, 1), *cut, (" b", 0, 1), ("\ufffd", 0, 1), ("a", 0, 1)]
    text = json.loads(explorer.explore_page(backbone(Bytes), "x").split('id="data">')[1].split("</script>")[0])["texts"][0]
    assert text["ids"][1:4] == [1, 2, 3] and text["cut"]["2"] == ["\u2603", 1, 3] and "4" not in text["cut"]


def test_the_tokenizer_of_the_ladder_has_characters_cut_and_whole():
    tokenizer = load_backbone("ladder/w16", device="cpu").tokenizer
    text = "Stra\u00dfe \u2603 na\u00efve"
    found = characters_of(tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer)
    assert "".join(whole for whole, part, _ in found if part == 0) == text and any(parts > 1 for *_, parts in found)


def said_on(browser) -> dict:
    """(predictor, offset) -> rows of text of the tables that the page shows."""
    script = """return [...document.querySelectorAll('#said table')].map(t => [t.dataset.predictor, +t.dataset.offset,
        t.caption.textContent, [...t.tBodies[0].rows].map(r => [...r.cells].map(c => c.textContent))])"""
    return {(predictor, offset): (caption, rows) for predictor, offset, caption, rows in browser.execute_script(script)}


def expected_of(table, at: int, offset: int) -> dict:
    """What the page has to show of a token, from the table."""
    found = {}
    for (predictor, k), part in table[(table["at"] == at) & table.offset.isin([1, offset])].groupby(["predictor", "offset"]):
        p, mass = part["probability"].round(5), part["captured_mass"].round(5)
        rows = [[f"{x:.3f}"] for x in p]
        if predictor == "marginal":
            rows = [[f"{x:.3f}", f"{min(1, x + 1 - m):.3f}"] for x, m in zip(p, mass, strict=True)]
        found[predictor, k] = rows, bool(part["certified"].iloc[0])
    return found


def check(browser, table, at: int, offset: int) -> None:
    shown, expected = said_on(browser), expected_of(table, at, offset)
    assert shown.keys() == expected.keys()
    for name, (rows, certified) in expected.items():
        caption, cells = shown[name]
        assert all(
            abs(float(a) - float(b)) < 0.0011 for x, y in zip(cells, rows, strict=True) for a, b in zip(x[1:], y, strict=True)
        )
        if name[0] == "marginal":
            assert ("not certified" in caption) != certified


def test_in_a_browser_pointing_and_the_keyboard_show_the_numbers_of_the_table(browser, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    b = backbone()
    table, path = table_of(b), tmp_path / "explorer.html"
    path.write_text(page_of(b), encoding="utf-8")
    browser.get(path.as_uri())
    chosen = browser.find_elements(By.CSS_SELECTOR, "#text [aria-current]")
    assert len(chosen) == 1 and said_on(browser)  # something is looked at before anyone points
    checked = browser.execute_script("return [...document.querySelectorAll('input:checked')].map(i => i.value)")
    assert checked == ["one", "tiny/b", "2"]  # the largest backbone comes last
    tokens = browser.find_elements(By.CSS_SELECTOR, "#text [role=button]")
    assert len(tokens) == len(IDS) - 1 and browser.title != "bad"
    first = int(table["at"].min())
    assert tokens[8 - first].get_property("textContent") == TEXTS[0]  # shown as text
    line = [t.location["y"] for t in tokens]
    assert line[2 - first] == line[3 - first] != line[5 - first]  # token 4 is one that ends a line
    ActionChains(browser).move_to_element(tokens[5 - first]).perform()
    check(browser, table, 5, 2)
    browser.execute_script("arguments[0].focus()", tokens[3])
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT).perform()
    check(browser, table, 4 + first, 2)
    ActionChains(browser).send_keys(Keys.TAB).perform()
    check(browser, table, 5 + first, 2)
    assert browser.switch_to.active_element.get_attribute("aria-label").startswith("token 5")
    browser.find_element(By.CSS_SELECTOR, "input[name=offset][value='3']").click()
    tokens = browser.find_elements(By.CSS_SELECTOR, "#text [role=button]")
    ActionChains(browser).move_to_element(tokens[6 - first]).perform()
    check(browser, table, 6, 3)
    for at, button in enumerate(tokens, first):  # the colour: was the marginal's first candidate right?
        said = table[(table["at"] == at) & (table.predictor == "marginal") & (table.offset == 3) & (table["rank"] == 0)]
        wanted = "" if said.empty else "right" if int(said["candidate"].iloc[0]) == IDS[at] else "wrong"
        wanted += " certified" if wanted and said["certified"].iloc[0] else ""
        assert button.get_attribute("class") == wanted
    for kind, value in (("corpus", "two"), ("backbone", "tiny/a")):
        browser.find_element(By.CSS_SELECTOR, f"input[name={kind}][value='{value}']").click()
    assert len(browser.find_elements(By.CSS_SELECTOR, "#text [role=button]")) == len(tokens)
    colours = []
    for scheme in ("light", "dark"):
        features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
        colours.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert colours[0] != colours[1]
    assert browser.get_log("browser") == []


def test_in_a_browser_the_parts_of_a_cut_character_show_it_whole_side_by_side(browser, tmp_path):
    from selenium.webdriver.common.by import By

    path = tmp_path / "explorer.html"
    path.write_text(explorer.explore_page(backbone(Bytes), "x"), encoding="utf-8")
    browser.get(path.as_uri())
    tokens = browser.find_elements(By.CSS_SELECTOR, "#text [role=button]")
    parts = [t for t in tokens if t.get_property("textContent") == "\u2603"]
    assert len(parts) == 9 and "\ufffd" not in browser.find_element(By.ID, "text").text
    assert parts[0].get_attribute("aria-label").startswith("token 1, part 1 of 3 of \u2603")
    boxes = [p.rect for p in parts[:3]]
    whole = browser.execute_script("""const s = document.createElement('span'); s.textContent = '\u2603';
        document.getElementById('text').append(s); const w = s.getBoundingClientRect().width; s.remove(); return w""")
    assert all(abs(box["width"] - whole / 3) < 0.75 for box in boxes)
    assert all(abs(a["x"] + a["width"] - b["x"]) < 0.75 for a, b in zip(boxes, boxes[1:], strict=False))
    shift = [p.value_of_css_property("text-indent") for p in parts[:3]]
    assert [round(float(x.removesuffix("px")) / whole, 1) for x in shift] == [0, -0.3, -0.7]
    browser.execute_script("arguments[0].click()", parts[1])
    assert "part 2 of 3 of \u2603" in browser.find_element(By.CSS_SELECTOR, "#said .cut").text
    assert browser.get_log("browser") == []
