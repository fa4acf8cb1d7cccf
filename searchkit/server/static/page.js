// The search page: what is asked is a state, kept in the address; every change of it is searched and shown.

import { ServiceError, ask, documentPath } from "./api.js";
import { copySearches } from "./copying.js";
import { closeDocument, openDocument } from "./document.js";
import { byId, count, make, say } from "./dom.js";
import { parseFilter, showFacets, toggled } from "./filters.js";
import { instructionBox } from "./instructions.js";
import { writeJson } from "./json.js";
import { askForKey, onKey } from "./key.js";
import { listenToKeys } from "./keyboard.js";
import { wordFinder } from "./marks.js";
import { showIntroduction, showLists } from "./results.js";
import { forgetSearch, runSearch } from "./searching.js";
import { DEFAULTS, address, endTyping, readState, writeState } from "./state.js";

const TYPING_PAUSE = 150; // ms between the last letter and the search

let state = readState(location.hash);
let names = []; // of the indexes
let described = null; // the index of the state, with its metadata keys
let answer = null; // the one that is shown
let timer = 0;

const query = byId("query");
const where = byId("where");
const instructionA = instructionBox("a", (how) => change({ instruction: instructionA.value }, how));
const instructionB = instructionBox("b", (how) => change({ instructionB: instructionB.value }, how));

// The state and the controls that show it

/** Changes the state, writes it to the address and searches, after a pause while the user types. */
function change(values, how = "step") {
  state = { ...state, ...values };
  writeState(state, how);
  showControls();
  clearTimeout(timer);
  timer = setTimeout(search, how === "typed" ? TYPING_PAUSE : 0);
}

/** Shows the state in the controls, leaving alone what the user is typing in. */
function showControls() {
  const set = (node, value) => node.value !== value && (node.value = value);
  set(query, state.query);
  set(where, state.where);
  set(byId("mode"), state.mode);
  if (document.activeElement !== byId("k")) set(byId("k"), String(state.k));
  set(byId("index"), state.index);
  instructionA.value = state.instruction;
  instructionB.value = state.instructionB;
  byId("side-b").hidden = !state.compare;
  byId("compare").setAttribute("aria-pressed", String(state.compare));
  document.body.classList.toggle("comparing", state.compare);
  byId("like").hidden = !state.like;
  byId("like-title").textContent = titleOf(state.like);
  query.placeholder = state.like ? "Search instead" : "Search";
  byId("filters-toggle").textContent = state.where.trim() ? "Filter (in use)" : "Filter";
  say(byId("hint"), hint());
}

function hint() {
  if (state.like) return "Similar documents are found by their vectors; instruction and mode play no part.";
  const instructed = state.compare || state.instruction;
  return state.mode === "lexical" && instructed ? "Lexical search looks at words only; instructions play no part." : "";
}

const titles = new Map(); // id -> title, of the hits seen
const titleOf = (id) => titles.get(id) || id;

// Searching

/** Searches for the state, unless there is nothing to search for or the filter cannot be sent. */
async function search() {
  clearTimeout(timer);
  forgetSearch();
  const { error } = parseFilter(state.where);
  showFilterError(error);
  busy(false);
  if (!described || error) return;
  if (!state.like && !state.query.trim()) {
    answer = null;
    showNothingAsked();
    return;
  }
  busy(true);
  try {
    const found = await runSearch(state, {
      facets: Object.keys(described.metadata).length > 0,
      onBusy: () => say(byId("status"), "The service is busy; waiting for it."),
    });
    if (!found) return;
    answer = found;
    busy(false);
    showAnswer();
    if (found.content.commit !== described.commit) await describe();
  } catch (error) {
    busy(false);
    showError(error);
  }
}

function busy(is) {
  byId("main").setAttribute("aria-busy", String(is));
}

// Showing what came

function showAnswer() {
  const { asked, content, lists, words, ms } = answer;
  for (const hit of lists.flat()) titles.set(hit.id, hit.title);
  byId("error").hidden = true;
  showLists(byId("results"), lists, {
    find: wordFinder(words),
    link: (id) => address({ ...asked, open: id }),
    onLike: (hit) => lookLike(hit.id),
    advice: asked.where.trim() ? "No document passes the filter." : "Try other words, or hybrid or dense mode.",
  });
  showFilterError("", content.warnings);
  const [first, second] = lists.map((list) => list.length);
  const found = second === undefined ? count(first, "document") : `${first} and ${count(second, "document")}`;
  say(byId("status"), first || second ? found : "Nothing found.");
  const stages = Object.entries(content.timings).map(([name, value]) => `${name.replace(/_ms$/, "")} ${value.toFixed(1)} ms`);
  say(byId("timings"), [...stages, `${ms.toFixed(0)} ms in all`, `commit ${content.commit}`].join(" · "));
  byId("copying").hidden = false;
  showFilters();
  showControls();
  document.title = `${asked.like ? `Like ${titleOf(asked.like)}` : asked.query} - searchkit`;
  showDocument();
  if (asked.like && !titles.has(asked.like)) nameLike(asked);
}

function showNothingAsked() {
  document.title = "searchkit";
  byId("error").hidden = true;
  byId("copying").hidden = true;
  say(byId("status"), `${count(described.documents, "document")} to search.`);
  say(byId("timings"), "");
  showIntroduction(byId("results"), described);
  showFilters();
  showDocument();
}

function showFilters() {
  const keys = described?.metadata ?? {};
  showFacets(byId("facets"), keys, answer?.facets, parseFilter(state.where).value, (key, value) => {
    const filter = toggled(parseFilter(state.where).value, key, value);
    change({ where: filter ? writeJson(filter) : "" });
  });
  const counted = Object.keys(answer?.facets ?? {}).length ? `Counted over ${count(answer.facetsOver, "matching document")}.` : "";
  say(byId("facets-note"), Object.keys(keys).length ? counted : "The documents have no metadata.");
}

function showFilterError(error, warnings = []) {
  where.setAttribute("aria-invalid", String(Boolean(error)));
  say(byId("where-error"), [error, ...warnings].filter(Boolean).join(" "));
  if (error || warnings.length) openFilters(true);
}

function openFilters(open) {
  document.body.classList.toggle("filters-open", open);
  byId("filters-toggle").setAttribute("aria-expanded", String(open));
}

function showError(error) {
  if (error.param === "where") {
    showFilterError(error.message);
    return;
  }
  if (error.status === 401) askForKey(error);
  say(byId("error-text"), error instanceof ServiceError ? error.message : `The page failed: ${error.message}`);
  byId("error").hidden = false;
  byId("copying").hidden = true;
  say(byId("timings"), "");
  say(byId("status"), "");
  byId("results").replaceChildren();
  answer = null;
}

// A document, and documents like it

function hits() {
  return answer?.lists.flat() ?? [];
}

/** Where the open document is among the hits, in the list that it was opened from. */
function placeOfOpen() {
  const all = hits();
  return all[openedAt]?.id === state.open ? openedAt : all.findIndex((hit) => hit.id === state.open);
}

let openedAt = -1;

function showDocument() {
  if (!state.open) {
    closeDocument();
    return;
  }
  const all = hits();
  const at = placeOfOpen();
  byId("document-before").disabled = at <= 0;
  byId("document-after").disabled = at < 0 || at === all.length - 1;
  openDocument(state.index, state.open, all[at], wordFinder(answer?.words));
}

/** Opens a document. Going on to the next is no entry of the history, so that Back closes. */
function open(id, at) {
  const again = Boolean(state.open);
  openedAt = at;
  state = { ...state, open: id };
  writeState(state, again ? "replace" : "step");
  if (!again) history.replaceState({ opened: true }, "");
  showDocument();
}

/** Closes it: goes back where opening had gone forward. */
function close() {
  if (history.state?.opened) {
    history.back();
    return;
  }
  state = { ...state, open: "" };
  writeState(state, "replace");
  showDocument();
}

function step(by) {
  const at = placeOfOpen() + by;
  if (hits()[at]) open(hits()[at].id, at);
}

function lookLike(id) {
  closeDocument();
  change({ like: id, query: "", open: "" });
  byId("main").focus();
  window.scrollTo(0, 0);
}

/** Finds the title of the document whose like is shown, where a link led here. */
async function nameLike({ index, like }) {
  titles.set(like, "");
  const document = await ask(documentPath(index, like)).catch(() => ({ title: "" }));
  titles.set(like, document.title);
  showControls();
}

// What the service has

async function start() {
  try {
    const [{ indexes }, { tasks }] = await Promise.all([ask("indexes"), ask("tasks")]);
    instructionA.tasks = tasks;
    instructionB.tasks = tasks;
    names = indexes.map(({ name }) => name);
    byId("index").replaceChildren(...names.map((name) => make("option", { value: name }, name)));
    byId("index-field").hidden = names.length < 2;
    state.index ||= names[0];
    showControls();
    await describe();
    await search();
  } catch (error) {
    showControls();
    showError(error);
  }
}

async function describe() {
  const index = state.index;
  const found = await ask(`indexes/${encodeURIComponent(index)}`);
  if (index !== state.index) return; // another one was chosen meanwhile
  described = found;
  say(byId("about"), `${count(described.documents, "document")} · commit ${described.commit}`);
  showFilters();
}

/** After another index was chosen. */
function changeIndex() {
  forgetSearch();
  answer = null;
  described = null; // nothing is searched until its keys are known
  describe().then(search, showError);
}

// Events

query.addEventListener("input", () => change({ query: query.value, ...(query.value.trim() ? { like: "" } : {}) }, "typed"));
byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  endTyping();
  search();
});
where.addEventListener("input", () => change({ where: where.value }, "typed"));
byId("mode").addEventListener("change", (event) => change({ mode: event.target.value }));
byId("k").addEventListener("input", ({ target }) => {
  if (target.value && target.reportValidity()) change({ k: Number(target.value) }, "typed");
});
byId("k").addEventListener("blur", ({ target }) => (target.value = String(state.k)));
byId("index").addEventListener("change", (event) => {
  state = { ...state, index: event.target.value, like: "", where: "", open: "" }; // those are of the other index
  writeState(state, "step");
  showControls();
  changeIndex();
});
byId("compare").addEventListener("click", () => change({ compare: !state.compare }));
byId("like-end").addEventListener("click", () => {
  change({ like: "" });
  query.focus();
});
byId("filters-toggle").addEventListener("click", () => openFilters(!document.body.classList.contains("filters-open")));
byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("main").focus();
});
byId("retry").addEventListener("click", () => (described ? search() : start()));
byId("results").addEventListener("click", (event) => {
  const link = event.target.closest("a.open");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  open(link.closest("li").dataset.id, [...byId("results").querySelectorAll("a.open")].indexOf(link));
});
byId("document-close").addEventListener("click", close);
byId("document").addEventListener("click", (event) => {
  if (event.target === byId("document")) close(); // beside it
});
byId("document").addEventListener("cancel", (event) => {
  event.preventDefault();
  close();
});
byId("document-before").addEventListener("click", () => step(-1));
byId("document-after").addEventListener("click", () => step(1));
byId("document-like").addEventListener("click", () => lookLike(state.open));
byId("help-open").addEventListener("click", () => byId("help").showModal());
byId("help-close").addEventListener("click", () => byId("help").close());

window.addEventListener("popstate", () => {
  const before = state;
  state = readState(location.hash);
  state.index ||= names[0] ?? "";
  endTyping();
  showControls();
  if (state.index !== before.index) changeIndex();
  else if (answer && address({ ...answer.asked, open: "" }) === address({ ...state, open: "" })) showDocument();
  else search();
});

copySearches(() => answer.asked);
onKey(start);
listenToKeys({ help: () => byId("help").showModal(), like: lookLike, step });
start();
