// The search page: what is asked is a state, kept in the address; every change of it is searched and shown.

import { ServiceError, ask, searchPath, storeKey, storedKey } from "./api.js";
import { closeDocument, openDocument } from "./document.js";
import { byId, count, make, say } from "./dom.js";
import { parseFilter, showFacets, toggled } from "./filters.js";
import { instructionBox } from "./instructions.js";
import { listenToKeys } from "./keyboard.js";
import { wordFinder } from "./marks.js";
import { asCurl, asPython, requestBody } from "./request.js";
import { showIntroduction, showLists } from "./results.js";
import { DEFAULTS, address, endTyping, readState, writeState } from "./state.js";

const TYPING_PAUSE = 150; // ms between the last letter and the search
const MOST_RETRIES = 5; // where the service is busy

let state = readState(location.hash);
let described = null; // the index, with its metadata keys
let answer = null; // the last one that is shown
let sequence = 0; // of searches; an answer to any but the last is dropped
let running = null; // AbortController of the last
let timer = 0;

const query = byId("query");
const where = byId("where");
const instructionA = instructionBox("a", (how) => change({ instruction: instructionA.value }, how));
const instructionB = instructionBox("b", (how) => change({ instructionB: instructionB.value }, how));

// --- the state -------------------------------------------------------------------------------------------------

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
  byId("compare").textContent = state.compare ? "Compare no more" : "Compare two";
  document.body.classList.toggle("comparing", state.compare && !state.like);
  byId("like").hidden = !state.like;
  byId("like-title").textContent = titleOf(state.like);
  query.placeholder = state.like ? "Search instead" : "Search";
  say(byId("hint"), hint());
}

function hint() {
  if (state.like) return "Similar documents are found by their vectors; instruction and mode play no part.";
  if (state.mode === "lexical" && (state.compare || state.instruction)) {
    return "Lexical search looks at words only; instructions play no part.";
  }
  return "";
}

const titles = new Map(); // id -> title, of the hits seen

function titleOf(id) {
  return titles.get(id) || id;
}

function hits() {
  return answer?.lists.flat() ?? [];
}

// --- searching -------------------------------------------------------------------------------------------------

/** Searches for the state, unless there is nothing to search for or the filter cannot be sent. */
async function search() {
  const number = ++sequence;
  running?.abort();
  running = new AbortController();
  const filter = parseFilter(state.where);
  showFilterError(filter.error);
  if (!described || filter.error) {
    busy(false);
    return;
  }
  if (!state.like && !state.query.trim()) {
    answer = null;
    busy(false);
    showNothingAsked();
    return;
  }
  busy(true);
  const asked = state;
  const began = performance.now();
  try {
    const content = await patiently(() => ask(searchPath(asked.index), {
      body: requestBody(asked, { facets: Object.keys(described.metadata).length > 0 }),
      signal: running.signal,
    }), running.signal);
    if (number !== sequence) return; // a newer search is on its way
    const lists = (content.results ?? [content]).map((result) => result.hits);
    const first = content.results?.[0] ?? content;
    answer = { asked, content, lists, facets: first.facets, facetsOver: first.facets_over, ms: performance.now() - began };
    busy(false);
    showAnswer();
    if (content.commit !== described.commit) await describe(asked.index);
  } catch (error) {
    if (error.name === "AbortError" || number !== sequence) return;
    busy(false);
    showError(error);
  }
}

/** Asks again where the service says that it is busy, as late as it says. */
async function patiently(call, signal) {
  for (let tries = 0; ; tries++) {
    try {
      return await call();
    } catch (error) {
      if (error.status !== 429 || tries === MOST_RETRIES) throw error;
      say(byId("status"), "The service is busy; waiting for it.");
      await new Promise((done) => setTimeout(done, Math.min(error.retryAfter || 1000, 10_000)));
      if (signal.aborted) throw new DOMException("a newer search is on its way", "AbortError");
    }
  }
}

function busy(is) {
  byId("main").setAttribute("aria-busy", String(is));
}

// --- showing ---------------------------------------------------------------------------------------------------

function showAnswer() {
  const { asked, content, lists, ms } = answer;
  for (const hit of lists.flat()) titles.set(hit.id, hit.title);
  say(byId("error-text"), "");
  byId("error").hidden = true;
  const find = wordFinder(asked.like ? "" : asked.query);
  showLists(byId("results"), lists, {
    find,
    link: (id) => address({ ...asked, open: id }),
    onLike: (hit) => lookLike(hit.id),
  });
  byId("warnings").replaceChildren();
  showFilterError("", content.warnings);
  const found = lists.length > 1 ? `${lists[0].length} and ${lists[1].length} documents` : count(lists[0].length, "document");
  say(byId("status"), lists.flat().length ? found : "Nothing found.");
  const stages = Object.entries(content.timings).map(([name, value]) => `${name.replace(/_ms$/, "")} ${value.toFixed(1)} ms`);
  say(byId("timings"), [...stages, `${ms.toFixed(0)} ms in all`, `commit ${content.commit}`].join(" · "));
  byId("copying").hidden = false;
  showFilters();
  showControls();
  document.title = asked.like ? `Like ${titleOf(asked.like)} - searchkit` : `${asked.query} - searchkit`;
  showDocument();
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
  const { value } = parseFilter(state.where);
  const keys = described?.metadata ?? {};
  showFacets(byId("facets"), keys, answer?.facets, value, (key, chosen) => {
    const next = toggled(parseFilter(state.where).value, key, chosen);
    change({ where: next ? JSON.stringify(next) : "" });
  });
  const over = answer?.facets && Object.keys(answer.facets).length ? `Counted over the best ${answer.facetsOver} hits.` : "";
  say(byId("facets-note"), Object.keys(keys).length ? over : "The documents have no metadata.");
  byId("filters-toggle").textContent = state.where.trim() ? "Filter (in use)" : "Filter";
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
  if (error.status === 401) {
    askForKey(error);
    say(byId("status"), "");
  } else if (error.param === "where") {
    showFilterError(error.message);
    return;
  }
  say(byId("error-text"), error instanceof ServiceError ? error.message : `The page failed: ${error.message}`);
  byId("error").hidden = false;
  byId("copying").hidden = true;
  say(byId("timings"), "");
  say(byId("status"), "");
  byId("results").replaceChildren();
  answer = null;
}

// --- a document, and documents like it -------------------------------------------------------------------------

function showDocument() {
  if (!state.open) {
    closeDocument();
    return;
  }
  const all = hits();
  const at = all.findIndex((hit) => hit.id === state.open);
  const find = wordFinder(state.like ? "" : state.query);
  byId("document-before").disabled = at <= 0;
  byId("document-after").disabled = at < 0 || at === all.length - 1;
  openDocument(state.index, state.open, all[at], find);
}

/** Opens or closes a document; closing goes back where opening had gone forward. */
function open(id) {
  if (!id && history.state?.opened) {
    history.back();
    return;
  }
  const again = Boolean(state.open);
  state = { ...state, open: id };
  writeState(state, again ? "replace" : "step");
  if (id && !again) history.replaceState({ opened: true }, "");
  showDocument();
}

function step(by) {
  const all = hits();
  const at = all.findIndex((hit) => hit.id === state.open);
  if (all[at + by]) open(all[at + by].id);
}

function lookLike(id) {
  state = { ...state, open: "" };
  closeDocument();
  change({ like: id, query: "" });
  byId("main").focus();
  window.scrollTo(0, 0);
}

// --- what the service has, and its key -------------------------------------------------------------------------

async function start() {
  try {
    const [{ indexes }, { tasks }] = await Promise.all([ask("indexes"), ask("tasks")]);
    instructionA.tasks = tasks;
    instructionB.tasks = tasks;
    byId("index").replaceChildren(...indexes.map(({ name }) => make("option", { value: name }, name)));
    byId("index-field").hidden = indexes.length < 2;
    if (!state.index || (indexes.length === 1 && state.index !== indexes[0].name)) state.index = indexes[0].name;
    byId("key-open").hidden = !storedKey();
    await describe(state.index);
    if (indexes.length === 1) DEFAULT_INDEX.name = state.index;
    showControls();
    await search();
  } catch (error) {
    showControls();
    showError(error);
  }
}

const DEFAULT_INDEX = { name: "" };

async function describe(index) {
  described = await ask(`indexes/${encodeURIComponent(index)}`);
  say(byId("about"), `${count(described.documents, "document")} · commit ${described.commit}`);
  showFilters();
}

function askForKey({ code, message }) {
  byId("key-open").hidden = false;
  say(byId("key-message"), code === "wrong_key" ? "The service does not know that key." : code === "no_key" ? "" : message);
  byId("key-forget").hidden = !storedKey();
  byId("key-value").value = "";
  if (!byId("key").open) byId("key").showModal();
}

function useKey(key) {
  if (/[^\x21-\x7e]/.test(key)) {
    say(byId("key-message"), "A key is made of letters, digits and signs without spaces.");
    return;
  }
  storeKey(key);
  byId("key").close();
  start();
}

// --- copying ---------------------------------------------------------------------------------------------------

async function copy(button, text) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = label), 1500);
  } catch {
    // the clipboard needs HTTPS or this machine
    byId("code-text").value = text;
    byId("code").showModal();
    byId("code-text").select();
  }
}

// --- events ----------------------------------------------------------------------------------------------------

query.addEventListener("input", () => change({ query: query.value, ...(query.value.trim() ? { like: "" } : {}) }, "typed"));
byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(timer);
  endTyping();
  search();
});
where.addEventListener("input", () => change({ where: where.value }, "typed"));
byId("mode").addEventListener("change", (event) => change({ mode: event.target.value }));
byId("k").addEventListener("input", (event) => event.target.value && event.target.checkValidity()
  && change({ k: Number(event.target.value) }, "typed"));
byId("k").addEventListener("blur", (event) => (event.target.value = String(state.k)));
byId("index").addEventListener("change", async (event) => {
  answer = null;
  state = { ...DEFAULTS, ...state, index: event.target.value, like: "", where: "", open: "" };
  await describe(state.index).catch(showError);
  change({});
});
byId("compare").addEventListener("click", () => change({ compare: !state.compare }));
byId("like-end").addEventListener("click", () => {
  change({ like: "" });
  query.focus();
});
byId("results").addEventListener("click", (event) => {
  const link = event.target.closest("a.open");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  open(link.closest("li").dataset.id);
});
byId("filters-toggle").addEventListener("click", () => openFilters(!document.body.classList.contains("filters-open")));
byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("main").focus();
});
byId("retry").addEventListener("click", () => (described ? search() : start()));

byId("document-close").addEventListener("click", () => open(""));
byId("document").addEventListener("cancel", (event) => {
  event.preventDefault();
  open("");
});
byId("document-before").addEventListener("click", () => step(-1));
byId("document-after").addEventListener("click", () => step(1));
byId("document-like").addEventListener("click", () => lookLike(state.open));

byId("key-open").addEventListener("click", () => askForKey({ code: "no_key" }));
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key-value").value.trim());
});
byId("key-forget").addEventListener("click", () => useKey(""));
byId("key-cancel").addEventListener("click", () => byId("key").close());
byId("help-open").addEventListener("click", () => byId("help").showModal());
byId("help-close").addEventListener("click", () => byId("help").close());
byId("code-close").addEventListener("click", () => byId("code").close());
byId("copy-curl").addEventListener("click", (event) => copy(event.target, asCurl(answer.asked, { key: Boolean(storedKey()) })));
byId("copy-python").addEventListener("click", (event) => copy(event.target, asPython(answer.asked, { key: Boolean(storedKey()) })));

window.addEventListener("popstate", () => {
  const index = state.index;
  state = { ...readState(location.hash) };
  state.index ||= DEFAULT_INDEX.name || index;
  endTyping();
  showControls();
  if (state.index !== index) describe(state.index).then(search, showError);
  else if (answer && sameSearch(answer.asked, state)) showDocument();
  else search();
});

function sameSearch(one, other) {
  return address({ ...one, open: "" }) === address({ ...other, open: "" });
}

listenToKeys({ help: () => byId("help").showModal(), like: lookLike, step });
start();
