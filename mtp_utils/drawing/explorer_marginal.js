// The marginal at offset 2, by the package's own rule, and the worker that answers with it, one position after the other.
"use strict";

// By how much more than 1 - M the first must lead, for rounding: that of mtp_utils/marginal/certificates.py in float32.
const MARGIN = 1e-5;
const TOP = 5;  // candidates shown

const best = (p, k) => Array.from(p.keys()).sort((a, b) => p[b] - p[a]).slice(0, k);
const entropyOf = p => p.reduce((sum, value) => value > 0 ? sum - value * Math.log(value) : sum, 0);

// p: what the model says behind position t. For a set A of tokens v between (the k best) with captured mass M = sum p(v | x):
//   S(w) = sum over A of p(v | x) p(w | x, v),   S(w) <= m2(w) <= S(w) + 1 - M,
// certified where S(first) - S(second) > 1 - M + MARGIN: then no token left out can change the arg-max.
function marginalOf(model, p, t, k) {
  const size = model.vocabulary, between = best(p, k), sums = new Float64Array(size);
  let mass = 0, conditional = 0;
  for (let first = 0; first < between.length; first += 64) {
    const some = between.slice(first, first + 64), after = model.forward(some, some.map(() => t + 1), false);
    some.forEach((v, row) => {
      const said = after.subarray(row * size, (row + 1) * size);
      mass += p[v];
      conditional += p[v] * entropyOf(said);  // sum over A of p(v | x) H(p(. | x, v))
      for (let w = 0; w < size; w++) sums[w] += p[v] * said[w];
    });
  }
  const [a, b] = best(sums, 2);
  const certified = sums[a] - sums[b] > Math.max(1 - mass, 0) + MARGIN;
  const intervals = intervalsOf(sums, mass, conditional);
  return { sums, mass: Math.min(1, mass), certified, conditional, candidates: between.length, ...intervals };
}

// H(m2) and I(x1; x2 | x) lie within these, by concavity: with h(M) = -M log M - (1 - M) log(1 - M) and |V| tokens,
//   M H(S / M) <= H(m2) <= M H(S / M) + h(M) + (1 - M) log |V|,   M I_A <= I <= M I_A + h(M) + (1 - M) log |V|,
// where M H(S / M) = M log M - sum S log S, and M I_A is that less the conditional entropy of A; neither is above log |V|.
function intervalsOf(sums, mass, conditional) {
  const left = Math.max(0, 1 - mass), most = Math.log(sums.length);
  const entropy = mass * Math.log(mass) + entropyOf(sums);
  const room = left ? -mass * Math.log(mass) - left * Math.log(left) + left * most : 0;
  const within = low => [Math.max(0, low), Math.min(Math.max(0, low) + room, most)];
  return { entropy: within(entropy), information: within(entropy - conditional) };
}

// What the page shows of a distribution: its first candidates, with their probabilities.
function firstOf(p, set) {
  const ids = best(p, TOP);
  return { ids, p: ids.map(id => p[id]), mass: null, certified: null, ...set };
}

// A text and what the model says of it: next[t] (vocabulary,) is p(. | tokens up to t), after[t] the marginal from there.
// Tokens are counted without `front`, which stands before every text.
function answering({ config, tokenizer, weights, front }, limit) {
  const words = tokenizerOf(tokenizer), model = modelOf(config, weightsOf(weights), limit);
  let ids = [], next = [], after = [];

  // Positions that two texts share from their beginning keep their keys, values and answers.
  function read(text) {
    const all = [...front, ...words.encode(text)], given = all.slice(0, limit);
    let same = 0;
    while (same < given.length && given[same] === ids[same]) same++;
    const fresh = given.slice(same), p = model.forward(fresh, fresh.map((_, i) => same + i), true);
    next = next.slice(0, same).concat(fresh.map((_, i) => p.subarray(i * model.vocabulary, (i + 1) * model.vocabulary)));
    after = after.slice(0, same);
    ids = given;
    const own = ids.slice(front.length);
    return { ids: own, cut: words.cut(own), left: all.length - given.length };
  }

  function marginal(t, k) {
    const wanted = Math.min(k, model.vocabulary);
    if (!after[t] || after[t].candidates < wanted) after[t] = marginalOf(model, next[t], t, wanted);
    return after[t];
  }

  // Of one token, there or to come: what the position before it says, and the marginal from the one before that.
  function said(token, k) {
    const at = token + front.length, found = [];
    if (at <= next.length) found.push(firstOf(next[at - 1], { at: token, offset: 1, predictor: "ntp" }));
    if (at < 2) return found;
    const { sums, ...rest } = marginal(at - 2, k), exact = rest.candidates === model.vocabulary;
    return [...found, firstOf(sums, { at: token, offset: 2, predictor: "marginal", ...rest, exact })];
  }
  const namesOf = some => Object.fromEntries(some.map(id => [id, words.decode([id])]));
  return { read, said, marginal, namesOf, next: t => next[t] };
}

// Messages in: { model, limit } once; { run, text, k }; { run, exact: token }. Out: { run, done, of } now and then, and the
// answer. A newer text ends the one before: between two tokens the worker looks whether there is one.
function listen(scope) {
  let answer = null, latest = 0;

  async function whole({ run, text, k }) {
    const began = performance.now(), read = answer.read(text), of = read.ids.length + (read.left ? 0 : 2), said = [];
    for (let token = 0, looked = began; token < of; token++) {
      said.push(...answer.said(token, k));
      if (performance.now() - looked < 50) continue;
      scope.postMessage({ run, done: token, of });
      await new Promise(go => setTimeout(go));
      if (run !== latest) return;
      looked = performance.now();
    }
    const names = answer.namesOf([...read.ids, ...said.flatMap(s => s.ids)]);
    scope.postMessage({ run, ...read, names, said, seconds: (performance.now() - began) / 1000 });
  }

  scope.onmessage = ({ data }) => {
    if (data.model) { answer = answering(JSON.parse(data.model), data.limit); return; }
    latest = data.run;
    if (data.exact === undefined) { whole(data); return; }
    const said = answer.said(data.exact, Infinity);
    scope.postMessage({ run: data.run, exact: data.exact, said, names: answer.namesOf(said.flatMap(s => s.ids)) });
  };
}

if (typeof WorkerGlobalScope !== "undefined") listen(self);
