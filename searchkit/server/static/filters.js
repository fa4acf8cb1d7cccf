// The filter: whether it can be sent, and the values of metadata that a click adds to it or removes.

import { count, fill, make } from "./dom.js";
import { readJson, writeJson } from "./json.js";

/**
 * A filter as typed.
 *
 * @returns {{ value: object | null, error: string }} The error says what is wrong; "" if nothing is.
 */
export function parseFilter(text) {
  if (!text.trim()) return { value: null, error: "" };
  let value;
  try {
    value = readJson(text);
  } catch (error) {
    return { value: null, error: `This is not JSON: ${error.message}` };
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    return { value: null, error: 'A filter is an object, like {"year": {"$gte": 2015}}' };
  }
  return { value, error: "" };
}

/** The values that a filter lets a key have, where it names them one by one. */
export function chosenValues(filter, key) {
  const condition = filter?.[key];
  if (condition === undefined) return [];
  if (condition === null || typeof condition !== "object") return [condition];
  return Object.keys(condition).length === 1 && Array.isArray(condition.$in) ? condition.$in : [];
}

/** A filter with a value of a key added, or without it where it was there. Returns null for no filter. */
export function toggled(filter, key, value) {
  const chosen = chosenValues(filter, key);
  if (filter && key in filter && !chosen.length) return { $and: [filter, { [key]: value }] };
  const values = chosen.includes(value) ? chosen.filter((each) => each !== value) : [...chosen, value];
  const { [key]: _, ...others } = filter ?? {};
  if (values.length) others[key] = values.length === 1 ? values[0] : { $in: values };
  return Object.keys(others).length ? others : null;
}

/** A key as filters write it: one that begins with $ would be an operator. */
const written = (key) => key.replace(/^\$/, "\\$");

const unfolded = new Map(); // key -> whether the user has it open

/**
 * Shows the metadata keys with their values.
 *
 * @param {HTMLElement} parent
 * @param {object} keys {key: {types, examples}} of the index.
 * @param {object | undefined} facets {key: [{value, count}]} of the matching documents.
 * @param {object | null} filter
 * @param {(key: string, value: unknown) => void} onToggle
 */
export function showFacets(parent, keys, facets, filter, onToggle) {
  const names = [...new Set([...Object.keys(facets ?? {}), ...Object.keys(keys)])];
  fill(parent, ...names.map((key) => facet(key, keys[key], facets?.[key], filter, onToggle)).filter(Boolean));
}

function facet(key, described, counted, filter, onToggle) {
  const chosen = chosenValues(filter, written(key));
  const values = counted ?? (described?.examples ?? []).map((value) => ({ value, count: null }));
  const shown = values.filter(({ value }) => value === null || typeof value !== "object");
  for (const value of chosen) {
    if (!shown.some((each) => each.value === value)) shown.push({ value, count: counted ? 0 : null });
  }
  if (!shown.length) return null;
  // A key that tells hits apart one by one is no help in narrowing them down.
  const telling = shown.some((each) => each.count === null || each.count > 1) || chosen.length > 0;
  const buttons = shown.map(({ value, count: hits }) =>
    make(
      "li", {},
      make(
        "button",
        {
          type: "button",
          "data-focus": writeJson([key, value]),
          "aria-pressed": String(chosen.includes(value)),
          title: spelled(value),
          onclick: () => onToggle(written(key), value),
        },
        make("span", { class: "value", dir: "auto" }, spelled(value)),
        hits === null ? null : make("span", { class: "count", "aria-label": count(hits, "document") }, String(hits)),
      ),
    ),
  );
  const types = Object.keys(described?.types ?? {}).join(", ");
  const details = make(
    "details",
    { open: unfolded.get(key) ?? telling },
    make("summary", { "data-focus": key, onclick: () => unfolded.set(key, !details.open) }, make("span", { dir: "auto" }, key), make("span", { class: "quiet" }, ` ${types}`)),
    make("ul", {}, ...buttons),
  );
  return details;
}

/** A value as one reads it: strings without quotes, unless they could be taken for something else. */
export function spelled(value) {
  if (typeof value !== "string") return writeJson(value);
  return /^(|\s.*|.*\s|true|false|null|-?[\d.]+)$/.test(value) ? writeJson(value) : value;
}
