// What is asked, as part of the address after "#". It never reaches a server's log, and never holds a key.

export const DEFAULTS = Object.freeze({
  index: "",
  query: "",
  like: "", // id of a document, instead of a query
  instruction: null, // null: the model's default; "": none
  compare: false,
  instructionB: null,
  mode: "hybrid",
  k: 10,
  where: "", // as typed
  open: "", // id of the document that is shown
});

const MODES = ["hybrid", "dense", "lexical"];

/** The state that an address describes. */
export function readState(hash) {
  const values = new URLSearchParams(hash.replace(/^#/, ""));
  const text = (name) => values.get(name) ?? "";
  const k = Number(values.get("k") ?? DEFAULTS.k);
  return {
    index: text("index"),
    query: text("q"),
    like: text("like"),
    instruction: values.get("instruction"),
    compare: values.get("compare") === "1",
    instructionB: values.get("instruction_b"),
    mode: MODES.includes(values.get("mode")) ? values.get("mode") : DEFAULTS.mode,
    k: Number.isInteger(k) && k >= 1 && k <= 1000 ? k : DEFAULTS.k,
    where: text("where"),
    open: text("open"),
  };
}

/** The address of a state, "#..." and relative. */
export function address(state) {
  const values = new URLSearchParams();
  const put = (name, value) => value && values.set(name, value);
  put("index", state.index);
  if (state.like) put("like", state.like);
  else put("q", state.query);
  if (state.instruction !== null) values.set("instruction", state.instruction);
  if (state.compare) {
    values.set("compare", "1");
    if (state.instructionB !== null) values.set("instruction_b", state.instructionB);
  }
  if (state.mode !== DEFAULTS.mode) put("mode", state.mode);
  if (state.k !== DEFAULTS.k) put("k", String(state.k));
  put("where", state.where);
  put("open", state.open);
  return `#${values}`;
}

let typing = false;

/**
 * Writes a state to the address bar. What is typed in one go is one entry of the history, everything else one each.
 *
 * @param {object} state
 * @param {"step" | "typed" | "replace"} how
 */
export function writeState(state, how) {
  const target = address(state);
  const same = target === (location.hash || "#");
  if (how === "replace" || same || (how === "typed" && typing)) history.replaceState(history.state, "", target);
  else history.pushState({ inside: true }, "", target);
  if (how !== "replace") typing = how === "typed";
}

/** The next text that is typed is an entry of its own. */
export function endTyping() {
  typing = false;
}
