// Copies a search as code.

import { storedKey } from "./api.js";
import { byId } from "./dom.js";
import { asCurl, asPython } from "./request.js";

/** Makes the two buttons copy the search that `asked` returns. */
export function copySearches(asked) {
  byId("copy-curl").addEventListener("click", (event) => copy(event.target, asCurl(asked(), { key: Boolean(storedKey()) })));
  byId("copy-python").addEventListener("click", (event) => copy(event.target, asPython(asked(), { key: Boolean(storedKey()) })));
  byId("code-close").addEventListener("click", () => byId("code").close());
}

async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // The clipboard needs HTTPS or a service on this machine.
    byId("code-text").value = text;
    byId("code").showModal();
    byId("code-text").select();
    return;
  }
  byId("copied").textContent = "Copied.";
  setTimeout(() => (byId("copied").textContent = ""), 2000);
}
