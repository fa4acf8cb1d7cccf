// The form that asks for a key.

import { storeKey, storedKey } from "./api.js";
import { byId, say } from "./dom.js";

const dialog = byId("key");

/** Shows the form; the error, if there is one, says why. */
export function askForKey(error) {
  byId("key-open").hidden = false;
  say(byId("key-message"), { wrong_key: "The service does not know this key.", no_key: "" }[error?.code] ?? error?.message);
  byId("key-forget").hidden = !storedKey();
  byId("key-value").value = "";
  if (!dialog.open) dialog.showModal();
}

/** Calls back whenever there is another key. */
export function onKey(start) {
  const use = (key) => {
    if (/[^\x21-\x7e]/.test(key)) {
      say(byId("key-message"), "A key has letters, digits and signs only, and no spaces.");
      return;
    }
    storeKey(key);
    dialog.close();
    start();
  };
  byId("key-open").hidden = !storedKey();
  byId("key-open").addEventListener("click", () => askForKey(null));
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    use(byId("key-value").value.trim());
  });
  byId("key-forget").addEventListener("click", () => use(""));
  byId("key-cancel").addEventListener("click", () => dialog.close());
}
