// GPT-NeoX, forward only, many rows at once: each row is a token at a position, behind the prefix that the cache holds.
"use strict";

// The tensors of a safetensors file in base64: 8 bytes that say how long its header is, the header (JSON), numbers of 16 bits.
function weightsOf(base64) {
  const file = Uint8Array.from(atob(base64), c => c.charCodeAt(0)), view = new DataView(file.buffer);
  const start = 8 + Number(view.getBigUint64(0, true)), found = {};
  const { __metadata__, ...header } = JSON.parse(new TextDecoder().decode(file.subarray(8, start)));
  for (const [name, { dtype, data_offsets: [first, end] }] of Object.entries(header)) {
    if (dtype !== "F16") throw new Error(name + " is " + dtype + ", not F16");
    const numbers = new Float64Array((end - first) / 2);
    for (let i = 0; i < numbers.length; i++) numbers[i] = fromHalf(view.getUint16(start + first + 2 * i, true));
    found[name.replace("gpt_neox.", "")] = numbers;
  }
  return found;
}

// (-1)^sign 2^(exponent - 15) (1 + fraction / 1024); the smallest ones have no 1.
function fromHalf(bits) {
  const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = (bits & 1023) / 1024;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
}

// y = x W' + b over rows; x (rows, inner), W (outer, inner). Four outputs at once: each number of x is read once for four.
function linear(x, weight, bias, rows, inner, outer, y) {
  for (let n = 0; n < outer; n += 4) {
    const w0 = n * inner, w1 = w0 + inner, w2 = w1 + inner, w3 = w2 + inner;
    for (let r = 0; r < rows; r++) {
      let s0 = 0, s1 = 0, s2 = 0, s3 = 0;
      for (let k = 0, at = r * inner; k < inner; k++, at++) {
        const value = x[at];
        s0 += value * weight[w0 + k]; s1 += value * weight[w1 + k]; s2 += value * weight[w2 + k]; s3 += value * weight[w3 + k];
      }
      const to = r * outer + n;
      y[to] = s0; y[to + 1] = s1; y[to + 2] = s2; y[to + 3] = s3;
    }
  }
  for (let i = 0; bias && i < rows * outer; i++) y[i] += bias[i % outer];
}

// y = (x - mean) / sqrt(variance + eps) * weight + bias, of each row.
function layerNorm(x, weight, bias, rows, width, eps, y) {
  for (let r = 0, at = 0; r < rows; r++, at += width) {
    let mean = 0, square = 0;
    for (let i = 0; i < width; i++) mean += x[at + i] / width;
    for (let i = 0; i < width; i++) square += (x[at + i] - mean) ** 2 / width;
    const scale = 1 / Math.sqrt(square + eps);
    for (let i = 0; i < width; i++) y[at + i] = (x[at + i] - mean) * scale * weight[i] + bias[i];
  }
}

// GELU(x) = x Phi(x) = x erfc(-x / sqrt 2) / 2; erfc by Chebyshev's fit of Numerical Recipes, right to 1.2e-7 of itself.
const ERFC = [0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807,
  -0.18628806, 0.09678418, 0.37409196, 1.00002368, -1.26551223];
function geluOf(x) {
  const z = Math.abs(x) * Math.SQRT1_2, t = 1 / (1 + 0.5 * z);
  const tail = t * Math.exp(-z * z + ERFC.reduce((sum, c) => sum * t + c, 0));
  return x * (x > 0 ? 1 - tail / 2 : tail / 2);
}

// In place; read off a line between two points of a table, 1e-7 away at most: half of all time was GELU's without it.
const REACH = 8, STEPS = 1024, GELU = Float64Array.from({ length: 2 * REACH * STEPS + 1 }, (_, i) => geluOf(i / STEPS - REACH));
function gelu(x) {
  const table = GELU;
  for (let i = 0; i < x.length; i++) {
    const value = x[i];
    if (value >= REACH) continue;
    const at = Math.max(0, (value + REACH) * STEPS), below = at | 0;
    x[i] = table[below] + (at - below) * (table[below + 1] - table[below]);
  }
}

// e^(x - log sum e^x), of `size` numbers from `at` on, in place.
function softmax(x, at, size) {
  let most = -Infinity, sum = 0;
  for (let i = at; i < at + size; i++) if (x[i] > most) most = x[i];
  for (let i = at; i < at + size; i++) sum += x[i] = Math.exp(x[i] - most);
  for (let i = at; i < at + size; i++) x[i] /= sum;
}

// config, weights -> { vocabulary, forward }. forward(tokens, positions, keep) -> p (rows, vocabulary): row r attends to
// positions 0 .. positions[r] - 1 of the cache and to itself; keep: its own keys and values become those of its position.
function modelOf(config, weights, limit) {
  const { hidden_size: width, num_attention_heads: heads, num_hidden_layers: depth, layer_norm_eps: eps } = config;
  const { intermediate_size: inner, vocab_size: vocabulary, rope_parameters: rotary } = config, size = width / heads;
  if (config.hidden_act !== "gelu" || !config.use_parallel_residual) throw new Error("not GELU and the parallel residual");
  const rotated = Math.floor(size * (rotary.partial_rotary_factor ?? 1)), half = rotated / 2;
  const room = () => new Float64Array(limit * width);
  const cache = Array.from({ length: depth }, () => ({ keys: room(), values: room() }));
  const scores = new Float64Array(limit + 1);
  const layers = cache.map((_, layer) => name => weights["layers." + layer + "." + name]);

  // Rotary positions: numbers i and i + half of q and k are turned by position * theta^(-2 i / rotated).
  const turned = f => Float64Array.from({ length: (limit + 1) * half }, (_, j) =>
    f(Math.floor(j / half) * rotary.rope_theta ** (-2 * (j % half) / rotated)));
  const cosines = turned(Math.cos), sines = turned(Math.sin);
  function rotate(x, at, position) {
    for (let i = 0, j = position * half; i < half; i++, j++) {
      const a = x[at + i], b = x[at + half + i];
      x[at + i] = a * cosines[j] - b * sines[j];
      x[at + half + i] = b * cosines[j] + a * sines[j];
    }
  }

  // softmax(q k' / sqrt size) v over the prefix and the row itself; qkv (rows, heads, 3, size) -> y (rows, width).
  function attention(qkv, positions, { keys, values }, keep, y) {
    const row = 3 * width;
    for (let r = 0; r < positions.length; r++) {
      for (let h = 0; h < heads; h++) {
        const q = r * row + h * 3 * size;
        rotate(qkv, q, positions[r]);
        rotate(qkv, q + size, positions[r]);
        const at = positions[r] * width + h * size;
        if (!keep) continue;
        keys.set(qkv.subarray(q + size, q + 2 * size), at);
        values.set(qkv.subarray(q + 2 * size, q + 3 * size), at);
      }
    }
    for (let r = 0; r < positions.length; r++) {
      const n = positions[r];
      for (let h = 0; h < heads; h++) {
        const q = r * row + h * 3 * size, to = r * width + h * size;
        for (let t = 0; t <= n; t++) {
          const from = t < n ? keys : qkv, at = t < n ? t * width + h * size : q + size;
          let dot = 0;
          for (let i = 0; i < size; i++) dot += qkv[q + i] * from[at + i];
          scores[t] = dot / Math.sqrt(size);
        }
        softmax(scores, 0, n + 1);
        y.fill(0, to, to + size);
        for (let t = 0; t <= n; t++) {
          const from = t < n ? values : qkv, at = t < n ? t * width + h * size : q + 2 * size;
          for (let i = 0; i < size; i++) y[to + i] += scores[t] * from[at + i];
        }
      }
    }
  }

  function forward(tokens, positions, keep) {
    const rows = tokens.length, fresh = n => new Float64Array(rows * n);
    const [x, normed, qkv, mixed, wide, added] = [width, width, 3 * width, width, inner, width].map(fresh), p = fresh(vocabulary);
    const embedded = token => weights["embed_in.weight"].subarray(token * width, (token + 1) * width);
    tokens.forEach((token, r) => x.set(embedded(token), r * width));
    const add = y => { for (let i = 0; i < x.length; i++) x[i] += y[i]; };
    layers.forEach((of, layer) => {  // x + attention(LN1 x) + MLP(LN2 x): the parallel residual
      layerNorm(x, of("input_layernorm.weight"), of("input_layernorm.bias"), rows, width, eps, normed);
      linear(normed, of("attention.query_key_value.weight"), of("attention.query_key_value.bias"), rows, width, 3 * width, qkv);
      attention(qkv, positions, cache[layer], keep, mixed);
      layerNorm(x, of("post_attention_layernorm.weight"), of("post_attention_layernorm.bias"), rows, width, eps, normed);
      linear(normed, of("mlp.dense_h_to_4h.weight"), of("mlp.dense_h_to_4h.bias"), rows, width, inner, wide);
      gelu(wide);
      linear(mixed, of("attention.dense.weight"), of("attention.dense.bias"), rows, width, width, added);
      add(added);
      linear(wide, of("mlp.dense_4h_to_h.weight"), of("mlp.dense_4h_to_h.bias"), rows, inner, width, added);
      add(added);
    });
    layerNorm(x, weights["final_layer_norm.weight"], weights["final_layer_norm.bias"], rows, width, eps, normed);
    linear(normed, weights["embed_out.weight"], null, rows, width, vocabulary, p);
    for (let r = 0; r < rows; r++) softmax(p, r * vocabulary, vocabulary);
    return p;
  }
  return { vocabulary, forward };
}
