// Which parts of a text to mark: the best passage, and the words of the query.

const WORD = /[\p{L}\p{N}\p{M}]+/gu;
const UNSPACED = /[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]/u;

const folded = (word) => word.normalize("NFKC").toLowerCase();

/**
 * Finds the words of a query in texts, also with other endings.
 *
 * @param {string} query
 * @returns {(text: string) => [number, number][]} From and to, in UTF-16 units, in order, without overlaps.
 */
export function wordFinder(query) {
  const stems = new Set();
  const pairs = new Set(); // of scripts without spaces
  for (const [word] of query.matchAll(WORD)) {
    const plain = folded(word);
    if (UNSPACED.test(plain)) for (const pair of pairsOf(plain)) pairs.add(pair);
    else stems.add(stem(plain));
  }
  return (text) => {
    const found = [];
    if (!stems.size && !pairs.size) return found;
    for (const match of text.matchAll(WORD)) {
      const at = match.index;
      const plain = folded(match[0]);
      if (pairs.size && UNSPACED.test(plain)) {
        for (let n = 0; n + 1 < match[0].length; n++) {
          if (pairs.has(match[0].slice(n, n + 2))) add(found, at + n, at + n + 2);
        }
      } else if (stems.has(stem(plain))) add(found, at, at + match[0].length);
    }
    return found;
  };
}

function add(found, from, to) {
  const last = found.at(-1);
  if (last && from <= last[1] && from > last[0]) last[1] = Math.max(last[1], to);
  else found.push([from, to]);
}

function pairsOf(run) {
  return run.length < 2 ? [] : Array.from({ length: run.length - 1 }, (_, n) => run.slice(n, n + 2));
}

/** A word without the commonest English endings; for marking only, the index has a real stemmer. */
function stem(word) {
  if (word.length < 4) return word;
  const cut = word.replace(/(?:'s|ing|edly|ed|ies|es|ly|s)$/, "");
  return (cut.length < 3 ? word : cut).replace(/(.)\1$/, "$1").replace(/[iye]$/, "");
}

/** Where characters start in UTF-16: the service counts characters, JavaScript counts units. */
export function unitsOf(text, ...characters) {
  const places = characters.map(() => text.length);
  let character = 0;
  let unit = 0;
  for (const each of text) {
    characters.forEach((wanted, n) => wanted === character && (places[n] = unit));
    character += 1;
    unit += each.length;
  }
  return places;
}

/** A text as nodes, with words marked. */
export function marked(text, find) {
  const nodes = [];
  let at = 0;
  for (const [from, to] of find(text)) {
    nodes.push(text.slice(at, from), Object.assign(document.createElement("mark"), { textContent: text.slice(from, to) }));
    at = to;
  }
  nodes.push(text.slice(at));
  return nodes;
}

/** The part of a passage to show in a list: about `length` units that hold most of the words. */
export function excerpt(text, find, length = 420) {
  const flat = text.replace(/\s+/g, " ").trim();
  if (flat.length <= length) return flat;
  const found = find(flat);
  let best = 0;
  let most = found.filter(([from]) => from < length).length;
  for (const [from] of found) {
    const start = Math.max(0, from - 60);
    const inside = found.filter(([each]) => each >= start && each < start + length).length;
    if (inside > most) [best, most] = [start, inside];
  }
  if (best > 0) best = Math.max(flat.lastIndexOf(" ", best) + 1, best - 40);
  let end = Math.min(flat.length, best + length);
  if (/[\ud800-\udbff]/.test(flat[end - 1] ?? "")) end -= 1; // not half a character
  if (/[\udc00-\udfff]/.test(flat[best])) best += 1;
  return `${best > 0 ? "… " : ""}${flat.slice(best, end)}${end < flat.length ? " …" : ""}`;
}
