// Which parts of a text to mark: the best passage, and the words that lexical search matched.

const WORD = /[\p{L}\p{N}\p{M}]+/gu;
const UNSPACED = /[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]/u;

/**
 * Finds words in texts.
 *
 * @param {string[] | undefined} words In lower case and NFKC; of scripts without spaces, letters and their pairs.
 * @returns {(text: string) => [number, number][]} From and to, in UTF-16 units, in order, without overlaps.
 */
export function wordFinder(words) {
  const wanted = new Set(words);
  return (text) => {
    const found = [];
    if (!wanted.size) return found;
    for (const { 0: word, index: at } of text.matchAll(WORD)) {
      if (wanted.has(word.normalize("NFKC").toLowerCase())) {
        found.push([at, at + word.length]);
      } else if (UNSPACED.test(word)) {
        for (let n = 0; n < word.length; n++) {
          const pair = wanted.has(word.slice(n, n + 2));
          if (!pair && !(UNSPACED.test(word[n]) && wanted.has(word[n]))) continue;
          const end = at + n + (pair ? Math.min(2, word.length - n) : 1);
          const last = found.at(-1);
          if (last && last[1] > at + n) last[1] = Math.max(last[1], end); // pairs overlap
          else found.push([at + n, end]);
        }
      }
    }
    return found;
  };
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
  const inside = (start) => found.filter(([from]) => from >= start && from < start + length).length;
  let best = 0;
  for (const [from] of found) {
    const start = Math.max(0, from - 60);
    if (inside(start) > inside(best)) best = start;
  }
  if (best > 0) best = Math.max(flat.lastIndexOf(" ", best) + 1, best - 40);
  let end = best + length;
  if (/[\udc00-\udfff]/.test(flat[best])) best += 1; // not half a character
  if (/[\udc00-\udfff]/.test(flat[end] ?? "")) end -= 1;
  return `${best > 0 ? "… " : ""}${flat.slice(best, end)}${end < flat.length ? " …" : ""}`;
}
