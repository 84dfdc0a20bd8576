"""The model in the page says what the package says of the same text; and the page asks for nothing, and shows text as text."""

import base64
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mtp_utils.backbones import load_backbone
from mtp_utils.drawing import explorer
from mtp_utils.findings import said
from mtp_utils.marginal.certificates import LEAST
from mtp_utils.marginal.future import future_log_probs
from mtp_utils.text.tokens import characters_of, encode, front_of, texts_of

SHOWN = "def f(self):\n    return self.x"
LONG = "The function returns the mean of the values along the given axis, 3.14 or None. "
TEXTS = [
    "",
    "a",
    "Stra\u00dfe, \u00c4pfel \u00fcber \u00d6l",
    "\U0001f600 smile \U0001f469\u200d\U0001f4bb!",
    "<script>document.title = 'bad'</script>",
    "def f(x):\n    if x:\n\t\treturn  x[0]\n",
    "1234567890 3.14 1e-5 \u0661\u0662 \u00bd",
    "one\r\ntwo\rthree\n\n",
    "e\u0301 a\u0308 n\u0303 \u0e01\u0e33",
    "it's we're I'd you'll 'S 'RE",
    "   leading and trailing   ",
    "\u00a0no\u2003break\u0085next\ufeffmark\u200bzero\u180e\u2028line\x1c\x0b",
    "\u4f60\u597d, \u4e16\u754c",
    "<|endoftext|> is plain here, <|endof",
    "\x00\x07\x7f \ufffd \U00010348",
    "__init__ a_b-c::d->e !== ??? ...",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "&amp; \"q\" 'q' \\n `x` %s {0}",
    LONG * 20,
    "Returns the mean of the values along the given axis.",
]
ROOM = 302  # tokens, the front among them, that the worker of the parity test takes
# In place of the page's messages: everything that is said of each text.
EVERYTHING = """
self.onmessage = ({ data }) => {
  const answer = answering(JSON.parse(data.model), data.limit);
  self.postMessage(data.texts.map(([text, k]) => {
    const { ids, cut, left } = answer.read(text), found = [...ids, null].map((_, t) => answer.marginal(t, k));
    const rows = found.map(({ sums }) => String.fromCharCode(...new Uint8Array(Float32Array.from(sums).buffer)));
    const said = found.map(({ sums, ...rest }) => rest);
    return { ids, cut, left, names: answer.namesOf(ids), sums: btoa(rows.join("")), said };
  }));
};"""
ASK = """
const [extra, texts, limit, done] = arguments, source = content => new Blob([content, extra], { type: "text/javascript" });
const worker = new Worker(URL.createObjectURL(source(document.getElementById("worker").textContent)));
worker.onmessage = ({ data }) => { worker.terminate(); done(data); };
worker.onerror = e => done("failed: " + e.message);
worker.postMessage({ model: document.getElementById("model").textContent, texts, limit });"""


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(f"ladder/{explorer.RUNG}", device="cpu")


@pytest.fixture(scope="module", autouse=True)
def asked():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(said, "ASKED", {2: {"top_k": 64}})
        yield


@pytest.fixture(scope="module")
def address(backbone, tmp_path_factory):
    ids = [*front_of(backbone.tokenizer), *encode(backbone.tokenizer, [SHOWN])[0]]
    table = said.with_text(said.said_table(backbone, ids), ids, backbone.tokenizer)
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    path.write_text(explorer.page([explorer.text_of(table, "code", backbone.name)], model=explorer.model_of()), "utf-8")
    return path.as_uri()


def answers(browser, address, asked) -> list[dict]:
    browser.get(address)
    browser.set_script_timeout(120)
    found = browser.execute_async_script(ASK, EVERYTHING, asked, ROOM)
    assert not isinstance(found, str), found
    return found


def test_tokens_marginal_bounds_and_certificates_in_the_page_are_the_packages(browser, address, backbone):
    asked = [[text, 64 if text == TEXTS[-1] else 5] for text in TEXTS]  # the last: answers with more candidates are kept
    front, lengths = list(front_of(backbone.tokenizer)), []
    for (text, k), found in zip(asked, answers(browser, address, asked), strict=True):
        whole = [*front, *encode(backbone.tokenizer, [text])[0]]
        ids = whole[:ROOM]
        assert [*front, *found["ids"]] == ids and found["left"] == len(whole) - len(ids), text
        cut = {i: list(c) for i, c in enumerate(characters_of(ids[1:], backbone.tokenizer)) if c[2] > 1}
        assert {int(i): c for i, c in found["cut"].items()} == cut, text
        assert not text or [found["names"][str(i)] for i in ids[1:]] == texts_of(ids[1:], backbone.tokenizer), text
        f = future_log_probs(backbone.model, torch.tensor([ids]), 2, top_k=k, with_entropy=True)
        sums = np.frombuffer(base64.b64decode(found["sums"]), np.float32).reshape(len(ids), -1)
        assert np.abs(np.log(sums) - f.log_probs[0].numpy()).max() < 1e-3, text
        mass, conditional, certified = (np.array([s[n] for s in found["said"]]) for n in ("mass", "conditional", "certified"))
        assert np.abs(mass - f.captured_mass[0].numpy()).max() < 1e-5
        assert np.abs(conditional - f.conditional_entropy[0].numpy()).max() < 1e-3
        entropy = np.array([s["entropy"][0] for s in found["said"]]) - mass * np.log(mass)
        assert np.abs(entropy - f.entropy[0].numpy()).max() < 1e-3
        first, second = np.sort(sums.astype(np.float64))[:, :-3:-1].T
        clear = np.abs(first - second - (1 - mass) - LEAST[torch.float32]) > 1e-5  # elsewhere rounding may decide
        assert (certified == f.certified[0].numpy())[clear].all() and clear.mean() > 0.9
        lengths.append(len(found["ids"]))
    assert len(lengths) == 20 and min(lengths) == 0 and max(lengths) > 300


def test_the_intervals_of_entropy_and_information_hold_the_exact_values_and_close_on_them(browser, address, backbone):
    text = "Returns the"
    few, some, every = answers(browser, address, [[text, 1], [text, 64], [text, 1024]])
    ids = [*front_of(backbone.tokenizer), *few["ids"]]
    f = future_log_probs(backbone.model, torch.tensor([ids]), 2, exact=True, with_entropy=True)
    for name, exact in (("entropy", f.entropy[0].numpy()), ("information", f.mutual_information[0].numpy())):
        for found in (few, some, every):
            low, high = np.array([s[name] for s in found["said"]]).T
            assert (low < exact + 1e-3).all() and (exact < high + 1e-3).all()
        assert np.abs(high - exact).max() < 1e-3 and np.abs(low - exact).max() < 1e-3
    log_probs = np.log(np.frombuffer(base64.b64decode(every["sums"]), np.float32).reshape(len(ids), -1))
    assert np.abs(log_probs - f.log_probs[0].numpy()).max() < 1e-3


def typed(browser, text: str) -> dict:
    """What the page holds of the text, once it has answered; typed at once, for a driver types no emoji."""
    script = "const o = document.getElementById('own'); own.text = null; o.value = arguments[0];"
    script += "o.dispatchEvent(new Event('input'))"
    browser.execute_script(script, text)
    for _ in range(200):
        time.sleep(0.1)
        if browser.execute_script("return own.text !== null"):
            return browser.execute_script("return own.text")
    raise AssertionError(browser.execute_script("return document.getElementById('status').textContent"))


def classes_on(browser) -> list[str]:
    return browser.execute_script("return [...document.querySelectorAll('#text [role=button]')].map(b => b.className)")


def test_what_is_typed_is_coloured_and_told_as_the_package_says_it_and_is_never_markup(browser, address, backbone):
    browser.get(address)
    stored = classes_on(browser)
    text = "<script>document.title = 'bad'</script><b>return self.x"
    found = typed(browser, text)
    ids = [*front_of(backbone.tokenizer), *encode(backbone.tokenizer, [text])[0]]
    table = said.said_table(backbone, ids)
    table = table[table.predictor.isin(["ntp", "marginal"]) & (table.offset <= 2)]
    page = {(s["at"] + 1, s["offset"]): s for s in found["said"]}
    for (at, k), part in table.groupby(["at", "offset"]):
        s = page.pop((at, k))
        expected = dict(zip(part["candidate"], part["probability"], strict=True))
        assert dict(zip(s["ids"], s["p"], strict=True)) == pytest.approx(expected, abs=1e-4)
        if k == 2:
            assert s["mass"] == pytest.approx(part["captured_mass"].iloc[0], abs=1e-4)
            assert s["certified"] == bool(part["certified"].iloc[0])
            colour = ("right" if s["ids"][0] == ids[at] else "wrong") + (" certified" if s["certified"] else "")
            assert classes_on(browser)[at - 1] == colour
    assert set(page) == {(len(ids), 1), (len(ids), 2), (len(ids) + 1, 2)}  # what would come next
    shown = browser.execute_script("return document.getElementById('text').textContent")
    assert shown == text + " [+1] [+2]" and browser.title != "bad"
    assert browser.execute_script("return document.querySelectorAll('#text b, #text script, #said script').length") == 0
    browser.execute_script("document.querySelector('#text').children[9].click(); document.querySelector('.more button').click()")
    for _ in range(100):
        line = browser.execute_script("return document.querySelector('#said .more').textContent")
        if "exact" in line:
            break
        time.sleep(0.1)
    f = future_log_probs(backbone.model, torch.tensor([ids]), 2, exact=True, with_entropy=True)
    entropy, information = map(float, re.findall(r"\d\.\d{3}", line))
    assert abs(entropy - float(f.entropy[0, 8])) < 2e-3 and abs(information - float(f.mutual_information[0, 8])) < 2e-3
    assert typed(browser, "")["ids"] == [-1, -2]
    browser.execute_script("document.querySelector('input[name=corpus]').click()")
    assert classes_on(browser) == stored
    resources = browser.execute_script("return performance.getEntriesByType('resource').map(r => r.name)")
    assert all(name.startswith("blob:") for name in resources) and browser.get_log("browser") == []


NO_WORKER = {
    "missing": "delete window.Worker",
    "refused": "window.Worker = function () { throw new Error('none here') }",
    "failing": "window.Worker = function () { this.postMessage = () => this.onerror({ message: 'blocked' }) }",
}


@pytest.mark.parametrize("gone", NO_WORKER.values(), ids=NO_WORKER)
def test_where_no_worker_starts_the_stored_texts_remain(browser, address, gone):
    script = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": gone})
    try:
        browser.get(address)
        stored = classes_on(browser)
        browser.execute_script("(document.querySelector('input[value=\"your own text\"]') || document.body).click()")
        assert len(stored) > 5 and classes_on(browser) == stored
        left = "return document.querySelectorAll('#typed textarea, input[value=\"your own text\"]').length"
        assert browser.execute_script(left) == 0
        assert browser.get_log("browser") == []
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


def test_the_page_with_a_model_is_small_names_it_and_can_ask_for_nothing(address):
    page = Path(address.removeprefix("file://")).read_text("utf-8")
    assert len(page) < 1.5e6 and f'"name":"ladder/{explorer.RUNG}"' in page
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; worker-src blob:"
    assert "http:" not in page and "https:" not in page and "innerHTML" not in page


def test_the_worker_takes_the_packages_margin_and_what_stands_before_a_text(backbone):
    source = Path(explorer.__file__).with_name("explorer_marginal.js").read_text("utf-8")
    assert float(re.search(r"MARGIN = ([\de.-]+);", source)[1]) == LEAST[torch.float32]
    assert explorer.model_of()["front"] == list(front_of(backbone.tokenizer))
