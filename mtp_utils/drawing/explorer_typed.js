// A text of the reader's: typed into the page, read by the model in a worker of its own. What is typed is text, never markup.
"use strict";

function typed() {
  const content = id => document.getElementById(id).textContent, K = 64, LIMIT = 512;  // tokens between; tokens of a text
  const { name, n_params, tokens } = JSON.parse(content("about"));
  if (!(window.Worker && window.Blob && window.Float64Array && window.TextDecoder)) return;  // the stored texts remain
  const form = make("form", null, document.body, { id: "typed" });
  document.getElementById("text").before(form);
  make("label", "Or type a text of your own; " + name + " reads it, in this page:", form, { htmlFor: "own" });
  const box = make("textarea", null, form, { id: "own", rows: 3, maxLength: 8000, spellcheck: false });
  box.value = "Returns the mean of the values along the given axis, or None if the array is empty.";
  make("p", name + " is a small model, of " + n_params.toLocaleString("en") + " parameters beside its embeddings, trained by " +
    "us on " + Math.round(tokens / 1e6) + " million tokens of Python source, docstrings, and sentences of a small grammar " +
    "with their German translations: of other text it knows little. It runs here, in JavaScript; what you type is sent " +
    "nowhere.", form);
  const status = make("p", "", form, { id: "status" });
  status.setAttribute("role", "status");
  const radio = choice(document.querySelector("#switches fieldset[name=corpus]"), "corpus", OWN);
  let worker = null, run = 0, waiting = null;

  function start() {
    const source = URL.createObjectURL(new Blob([content("worker")], { type: "text/javascript" }));
    worker = new Worker(source);
    worker.onerror = event => fail(event.message);
    worker.onmessage = ({ data: answer }) => {
      if (answer.run !== run) return;  // of an earlier text
      if (answer.done !== undefined) status.textContent = answer.done + " of " + answer.of + " tokens \u2026";
      else if (answer.exact !== undefined) exact(answer);
      else whole(answer);
    };
    worker.postMessage({ model: content("model"), limit: LIMIT });
  }

  function fail(reason) {
    form.replaceChildren();
    make("p", "This browser does not run the model (" + (reason || "no worker") + "); the stored texts remain.", form);
    radio.parentNode.remove();
    if (state.corpus === OWN) document.querySelector("#switches input[name=corpus]").click();
  }

  function ask() {
    clearTimeout(waiting);
    try { if (!worker) start(); } catch (error) { fail(error.message); return; }
    status.textContent = "reading \u2026";
    worker.postMessage({ run: ++run, text: box.value, k: K });
  }

  // Behind the text stand two tokens that are not there yet: what would come next, and then.
  function whole({ ids, names, cut, said, left, seconds }) {
    const ahead = left ? [] : [-1, -2], start = left ? undefined : ids.length;
    const all = { ...names, "-1": " [+1]", "-2": " [+2]" };
    own.text = { ids: [...ids, ...ahead], names: all, cut, said, offset: 2, start, more };
    status.textContent = (left ? "The first " + ids.length + " of " + (ids.length + left) : ids.length) + " tokens, the " + K +
      " likeliest between summed out for each, in " + seconds.toFixed(2) + " s." +
      (left ? "" : " [+1] and [+2] stand for the two that would come next.");
    state.at = null;
    if (state.corpus === OWN) draw();
  }

  function exact({ exact: at, said, names }) {
    const t = own.text;
    Object.assign(t.names, names);
    t.said = [...t.said.filter(s => s.at !== at), ...said];
    if (shown() !== t) return;
    state.at = at;
    draw();
    document.getElementById("text").children[at].focus();
  }

  // Below the candidates: H(m2), how much of it the token between tells, and the button that leaves no token out.
  function more(at, said, box) {
    const s = said.find(s => s.predictor === "marginal");
    if (!s) return;
    const nats = ([low, high]) => s.exact ? low.toFixed(3) : "between " + low.toFixed(3) + " and " + high.toFixed(3);
    const summed = s.exact ? "All " + s.candidates.toLocaleString("en") + " tokens between are summed: exact. "
      : "The " + s.candidates + " tokens between that are summed hold " + s.mass.toFixed(3) + ". ";
    const told = "I(x\u2081; x\u2082 | x), what the token between tells of this one, " + nats(s.information) + " nats. ";
    const line = make("p", "H(m\u2082) " + nats(s.entropy) + " nats; " + told + summed, box, { className: "more" });
    if (s.exact) return;
    const button = make("button", "Sum all", line, { type: "button" });
    button.addEventListener("click", () => { button.disabled = true; worker.postMessage({ run, exact: at }); });
  }

  own.begin = ask;
  form.addEventListener("submit", event => event.preventDefault());
  box.addEventListener("input", () => {
    state.corpus = OWN;
    radio.checked = true;
    clearTimeout(waiting);
    waiting = setTimeout(ask, 250);
  });
}
typed();
