// Elements and the text in them. Text is only ever set as text, never as markup.

/** The element of that id in index.html. */
export function byId(id) {
  return document.getElementById(id);
}

/** A new element. Attributes that are undefined, null or false are left out; "onNAME" adds a listener. */
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== undefined && child !== null && child !== false));
  return node;
}

/** Replaces what is in an element, and gives the focus back to the control with the same data-focus. */
export function fill(parent, ...children) {
  const focused = parent.contains(document.activeElement) ? document.activeElement.dataset.focus : undefined;
  parent.replaceChildren(...children);
  if (focused === undefined) return;
  const again = [...parent.querySelectorAll("[data-focus]")].find((node) => node.dataset.focus === focused);
  again?.focus({ preventScroll: true });
}

/** Shows a text, or hides the element where there is none. */
export function say(node, text) {
  node.textContent = text ?? "";
  node.hidden = !text;
}

/** "1 document", "2 documents". */
export function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}
