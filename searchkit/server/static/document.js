// One document in a dialog, with its best passage marked.

import { ask, documentPath } from "./api.js";
import { byId, fill, make, say } from "./dom.js";
import { spelled } from "./filters.js";
import { marked, unitsOf } from "./marks.js";

const LONGEST_MARKED = 200_000; // characters in which words are marked, besides the passage

const dialog = byId("document");
const page = byId("document-page");
let shown = null; // "index/id/passage", so that the same document is not fetched again
let request = null;

/**
 * Shows a document.
 *
 * @param {string} index
 * @param {string} id
 * @param {object | undefined} hit Where the search found it, for its passage.
 * @param {(text: string) => [number, number][]} find Finds the words of the query.
 */
export async function openDocument(index, id, hit, find) {
  const key = JSON.stringify([index, id, hit?.start, hit?.stop]);
  if (!dialog.open) dialog.showModal();
  else if (shown === key) return;
  shown = key;
  request?.abort();
  request = new AbortController();
  show({ title: hit?.title || id, about: id, metadata: hit?.metadata, text: [hit?.text ?? "Loading"] });
  try {
    const whole = await ask(documentPath(index, id), { signal: request.signal });
    const { nodes, passage, note } = body(whole.text, hit, find);
    const about = [id, `commit ${whole.commit}`, note].filter(Boolean).join(" · ");
    show({ title: whole.title || id, about, metadata: whole.metadata, text: nodes });
    page.scrollTop = 0;
    if (passage && passage.offsetTop > page.clientHeight / 2) passage.scrollIntoView({ block: "center" });
  } catch (error) {
    if (error.name === "AbortError") return;
    shown = null;
    show({ title: hit?.title || id, about: `${id} · ${error.message}`, metadata: hit?.metadata, text: [hit?.text ?? ""] });
  }
}

/** Closes the dialog. */
export function closeDocument() {
  request?.abort();
  shown = null;
  if (dialog.open) dialog.close();
}

function show({ title, about, metadata, text }) {
  byId("document-title").textContent = title;
  say(byId("document-about"), about);
  const rows = Object.entries(metadata ?? {}).flatMap(([key, value]) => [
    make("dt", { dir: "auto" }, key),
    make("dd", { dir: "auto" }, spelled(value)),
  ]);
  fill(byId("document-metadata"), ...rows);
  fill(byId("document-text"), ...text);
}

function body(text, hit, find) {
  if (!hit) return { nodes: words(text, find), passage: null, note: "" };
  const [from, to] = unitsOf(text, hit.start, hit.stop);
  if (to <= from) return { nodes: words(text, find), passage: null, note: "" };
  if (!text.slice(from, to).includes(hit.text.trim())) {
    const note = "it has changed since the search, so the passage is not marked";
    return { nodes: words(text, find), passage: null, note };
  }
  const passage = make("mark", { class: "passage", "aria-label": "Best passage" }, ...marked(text.slice(from, to), find));
  const nodes = [...words(text.slice(0, from), find), passage, ...words(text.slice(to), find)];
  const whole = from === 0 && to >= text.trimEnd().length;
  return { nodes, passage, note: whole ? "" : `passage at ${Math.round((100 * from) / text.length)} %` };
}

function words(text, find) {
  return text.length > LONGEST_MARKED ? [text] : marked(text, find);
}
