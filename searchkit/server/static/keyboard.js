// Keys that work on the whole page.

import { byId } from "./dom.js";

const results = byId("results");

/** The links of the hits, list by list. */
function lists() {
  return [...results.querySelectorAll("ol.hits")].map((list) => [...list.querySelectorAll("a.open")]);
}

/** Where the focus is: [list, place], or null outside of the hits. */
function place() {
  const item = document.activeElement?.closest?.("li.hit");
  if (!item) return null;
  const all = lists();
  const list = all.findIndex((links) => links.some((link) => item.contains(link)));
  return list < 0 ? null : [list, all[list].findIndex((link) => item.contains(link))];
}

function focus(link) {
  link?.focus({ preventScroll: true });
  link?.closest("li").scrollIntoView({ block: "nearest" });
}

/** Moves down or up in a list, or across to the other one. From outside, to the first hit. */
function move(down, across) {
  const all = lists();
  const at = place();
  if (!at) {
    if (down > 0) focus(all[0]?.[0]);
    return down > 0;
  }
  const [list, row] = at;
  if (down < 0 && row === 0) {
    byId("query").focus();
    return true;
  }
  const target = all[list + across] ?? (across ? [] : all[list]);
  const link = target[Math.min(row + down, target.length - 1)];
  if (link) focus(link);
  return Boolean(link) || !across;
}

const writes = (node) => node.matches?.("input, textarea, select") ?? false;

/**
 * Listens on the whole page.
 *
 * @param {{ help: () => void, like: (id: string) => void, step: (by: number) => void }} actions
 *   `step` goes to the next or previous document while one is open.
 */
export function listenToKeys(actions) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.defaultPrevented) return;
    const typing = writes(event.target);
    if (document.querySelector("dialog[open]")) {
      if (!byId("document").open || typing) return;
      if (event.key === "j") actions.step(1);
      if (event.key === "k") actions.step(-1);
      return;
    }
    const inQuery = event.target === byId("query");
    const inControl = event.target.matches?.("summary, button") ?? false;
    let done = true;
    if (inQuery && event.key === "ArrowDown") done = move(1, 0);
    else if (inQuery && event.key === "Escape") event.target.blur();
    else if (typing) return;
    else if (event.key === "/") byId("query").select();
    else if (event.key === "?") actions.help();
    else if (event.key === "j" || (event.key === "ArrowDown" && place())) done = move(1, 0);
    else if (event.key === "k" || (event.key === "ArrowUp" && place())) done = move(-1, 0);
    else if (event.key === "ArrowRight") done = Boolean(place()) && move(0, 1);
    else if (event.key === "ArrowLeft") done = Boolean(place()) && move(0, -1);
    else if (event.key === "Escape") byId("query").focus();
    else if (event.key === "Enter" && place() && !inControl) event.target.closest("li").querySelector("a.open").click();
    else if (event.key === "m" && place()) actions.like(event.target.closest("li").dataset.id);
    else done = false;
    if (done) event.preventDefault();
  });
}
