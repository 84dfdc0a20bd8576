// Byte-level BPE, as GPT-2's: text -> pieces -> bytes -> merges -> ids, and back.
"use strict";

// GPT-2's pieces. \p{White_Space} and not \s: JavaScript's has U+FEFF besides, and lacks U+0085.
const PIECE = new RegExp(["'s|'t|'re|'ve|'m|'ll|'d", " ?\\p{L}+", " ?\\p{N}+", " ?[^\\p{White_Space}\\p{L}\\p{N}]+",
  "\\p{White_Space}+(?!\\P{White_Space})", "\\p{White_Space}+"].join("|"), "gu");
const LONGEST_CUT = 8;  // tokens that one cut of characters runs over, at most

// The character that stands for each byte in the vocabulary: itself where it is visible, else the next one from U+0100 on.
function byteCharacters() {
  const found = [], visible = b => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  for (let b = 0, next = 256; b < 256; b++) found.push(String.fromCharCode(visible(b) ? b : next++));
  return found;
}

// vocabulary: token -> id; merges: [left, right], the earliest first. `special` are ids that are no text.
function tokenizerOf({ vocabulary, merges, special }) {
  const characters = byteCharacters(), known = new Map();
  const byteOf = new Map(characters.map((c, b) => [c, b])), ids = new Map(Object.entries(vocabulary));
  const rank = new Map(merges.map(([left, right], i) => [left + " " + right, i]));  // no token holds a space: it is \u0120 there
  const utf8 = text => Array.from(new TextEncoder().encode(text)), bytes = [];
  for (const [token, id] of ids) bytes[id] = special.includes(id) ? utf8(token) : Array.from(token, c => byteOf.get(c));

  // Of all neighbours the pair that was learnt first is merged, everywhere, until no pair is known.
  function merged(piece) {
    if (known.has(piece)) return known.get(piece);
    let parts = utf8(piece).map(b => characters[b]);
    for (;;) {
      let best = Infinity;
      for (let i = 0; i + 1 < parts.length; i++) best = Math.min(best, rank.get(parts[i] + " " + parts[i + 1]) ?? Infinity);
      if (best === Infinity) break;
      const [left, right] = merges[best], next = [];
      for (let i = 0; i < parts.length; i++) {
        if (parts[i] === left && parts[i + 1] === right) { next.push(left + right); i++; } else next.push(parts[i]);
      }
      parts = next;
    }
    known.set(piece, parts.map(part => ids.get(part)));
    return known.get(piece);
  }

  const encode = text => (text.match(PIECE) || []).flatMap(merged);  // a control token spelt out is plain characters
  const reader = new TextDecoder("utf-8", { ignoreBOM: true });
  const decode = some => reader.decode(Uint8Array.from(some.flatMap(id => bytes[id])));

  // token -> [the characters that it is a part of, which part, of how many], for tokens that are no text alone.
  function cut(some) {
    const found = {};
    for (let at = 0; at < some.length; at++) {
      if (!decode([some[at]]).includes("\ufffd")) continue;
      for (let n = 2; n <= Math.min(LONGEST_CUT, some.length - at); n++) {
        const whole = decode(some.slice(at, at + n));
        if (whole.includes("\ufffd")) continue;
        for (let part = 0; part < n; part++) found[at + part] = [whole, part, n];
        at += n - 1;
        break;
      }
    }
    return found;
  }
  return { encode, decode, cut };
}
