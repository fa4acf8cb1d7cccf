// The list of hits, or two lists side by side with what moved between them.

import { count, fill, make } from "./dom.js";
import { spelled } from "./filters.js";
import { excerpt, marked } from "./marks.js";

const MOST_FIELDS = 6; // of metadata, in a row of the list

/**
 * Shows the lists.
 *
 * @param {HTMLElement} parent
 * @param {object[][]} lists One list of hits, or two.
 * @param {{ find: Function, link: (id: string) => string, onLike: (hit: object) => void, advice: string }} options
 *   `find` finds the words to mark; `advice` is shown where nothing was found.
 */
export function showLists(parent, lists, options) {
  if (!lists.flat().length) {
    fill(parent, make("p", { class: "quiet" }, options.advice));
    return;
  }
  if (lists.length === 1) {
    fill(parent, make("ol", { class: "hits" }, ...lists[0].map((hit) => row(hit, undefined, options))));
    return;
  }
  const [a, b] = lists;
  const moves = moved(a, b);
  const column = (letter, hits, move) =>
    make(
      "section",
      { "aria-label": `Instruction ${letter}`, class: "column" },
      make("h2", {}, letter),
      make("ol", { class: "hits" }, ...hits.map((hit) => row(hit, move(hit.id), options))),
    );
  const pair = make(
    "div",
    { class: "pair" },
    column("A", a, (id) => (moves.get(id).kind === "gone" ? moves.get(id) : null)),
    column("B", b, (id) => moves.get(id)),
  );
  for (const event of ["mouseover", "focusin"]) pair.addEventListener(event, ({ target }) => showTwins(pair, target));
  fill(parent, make("p", { class: "summary" }, summary(moves)), pair);
}

/** Makes the same document stand out in both lists. */
function showTwins(pair, target) {
  const id = target.closest("li.hit")?.dataset.id;
  for (const item of pair.querySelectorAll("li.hit")) item.classList.toggle("twin", item.dataset.id === id);
}

/** What became of each document from list a to list b: {kind, by}. */
export function moved(a, b) {
  const before = new Map(a.map((hit) => [hit.id, hit.rank]));
  const after = new Set(b.map((hit) => hit.id));
  const moves = new Map(a.filter((hit) => !after.has(hit.id)).map((hit) => [hit.id, { kind: "gone" }]));
  for (const hit of b) {
    const by = before.has(hit.id) ? before.get(hit.id) - hit.rank : null;
    moves.set(hit.id, by === null ? { kind: "new" } : { kind: by > 0 ? "up" : by < 0 ? "down" : "same", by: Math.abs(by) });
  }
  return moves;
}

function summary(moves) {
  const parts = ["up", "down", "new", "gone"]
    .map((kind) => [[...moves.values()].filter((move) => move.kind === kind).length, kind])
    .filter(([number]) => number)
    .map(([number, kind]) => `${number} ${kind}`);
  return `From A to B: ${parts.join(", ") || "nothing moved"}.`;
}

const SIGNS = { up: "▲", down: "▼", same: "=", new: "new", gone: "gone" };

function moveMark({ kind, by }) {
  const words = { up: `up ${by}`, down: `down ${by}`, same: "same rank", new: "new in B", gone: "gone in B" }[kind];
  return make(
    "span",
    { class: `move ${kind}`, title: words },
    make("span", { "aria-hidden": "true" }, by ? `${SIGNS[kind]}${by}` : SIGNS[kind]),
    make("span", { class: "unseen" }, words),
  );
}

function row(hit, move, { find, link, onLike }) {
  const title = hit.title || hit.id;
  return make(
    "li",
    { class: "hit", "data-id": hit.id },
    make("span", { class: "rank", "aria-hidden": "true" }, String(hit.rank)),
    make(
      "article",
      {},
      make(
        move === undefined ? "h2" : "h3", // below the headings A and B
        { dir: "auto" },
        make("a", { href: link(hit.id), class: "open", "data-focus": `open ${hit.id}` }, ...marked(title, find)),
      ),
      make("p", { class: "text", dir: "auto" }, ...marked(excerpt(hit.text, find), find)),
      make(
        "div",
        { class: "foot" },
        fields(hit.metadata),
        why(hit),
        make("button", { type: "button", class: "like", "data-focus": `like ${hit.id}`, onclick: () => onLike(hit),
          "aria-label": `More like this: ${title}` }, "More like this"),
      ),
    ),
    make("span", { class: "side" }, move && moveMark(move), make("span", { class: "score", title: "Score" }, decimals(hit.score))),
  );
}

function fields(metadata) {
  const entries = Object.entries(metadata ?? {}).filter(([, value]) => value !== null && value !== "");
  if (!entries.length) return null;
  const shown = entries.slice(0, MOST_FIELDS).map(([key, value]) =>
    make("span", {}, make("b", { dir: "auto" }, key), " ", make("span", { dir: "auto" }, clipped(spelled(value), 60))));
  const more = entries.length - shown.length;
  return make("p", { class: "fields" }, ...shown, more > 0 && make("span", {}, `and ${more} more`));
}

function clipped(text, length) {
  return text.length <= length ? text : `${[...text.slice(0, length)].slice(0, -1).join("")}…`;
}

function decimals(score) {
  return Number.isFinite(score) ? score.toFixed(3) : "";
}

/** Why a hit stands where it does: ranks in short, the whole when opened. */
function why(hit) {
  const it = hit.explanation;
  if (!it) return null;
  const weight = it.dense_weight;
  const sides = [
    ["dense", it.dense_rank, it.dense_score, weight],
    ["lexical", it.lexical_rank, it.lexical_score, weight === null ? null : 1 - weight],
  ];
  const short = sides.filter(([, rank]) => rank !== null).map(([side, rank]) => `${side} #${rank}`);
  const cell = (value, digits) => make("td", {}, value === null ? "–" : value.toFixed(digits));
  const tableRows = sides.map(([side, rank, score, share]) =>
    make("tr", {}, make("th", { scope: "row" }, side), cell(rank, 0), cell(score, 3), cell(share, 2)));
  return make(
    "details",
    { class: "why" },
    make("summary", { "data-focus": `why ${hit.id}`, title: "Why this hit" },
      make("span", { class: "unseen" }, "Why this hit: "), short.join(" · ") || "why"),
    make(
      "table",
      {},
      make("thead", {}, make("tr", {}, ...["", "rank", "score", "weight"].map((name) => make("th", { scope: "col" }, name)))),
      make("tbody", {}, ...tableRows),
    ),
    make("p", { class: "quiet" }, sentence(it)),
  );
}

function sentence(it) {
  if (it.dense_rank === null) return "Ranked by BM25 alone.";
  if (it.lexical_rank === null && it.dense_weight === null) return "Ranked by similarity alone.";
  if (it.lexical_rank === null) return "It shares no term with the query.";
  if (it.dense_weight === null) return "Fused by the two ranks.";
  return "Both scores are scaled to 0 to 1, weighted and added.";
}

/** What an index holds, shown before anything is asked. */
export function showIntroduction(parent, index) {
  const facts = [
    ["documents", index.documents.toLocaleString("en")],
    ["passages", index.passages.toLocaleString("en")],
    ["model", `${index.model ?? "none, own vectors"}, ${count(index.dim, "dimension")}`],
    ["recipe", index.recipe],
    ["commit", String(index.commit)],
  ];
  fill(
    parent,
    make(
      "section",
      { class: "introduction" },
      make("h2", { dir: "auto" }, index.name),
      make("dl", {}, ...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])),
      make("p", { class: "quiet" },
        "An instruction says in one sentence what to find, such as documents that refute a claim. ",
        "Compare two to see what each brings up."),
    ),
  );
}
