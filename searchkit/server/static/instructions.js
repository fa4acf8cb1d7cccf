// An instruction box: a list of named tasks and a text, which follow each other.

import { byId, make } from "./dom.js";

/**
 * @param {"a" | "b"} letter
 * @param {(how: "step" | "typed") => void} onChange
 */
export function instructionBox(letter, onChange) {
  const task = letter === "a" ? byId("task-a") : byId("task-b");
  const text = letter === "a" ? byId("instruction-a") : byId("instruction-b");
  let tasks = [];

  /** Makes the list show what the text says. */
  function follow(none) {
    const known = tasks.find(({ instruction }) => instruction === text.value.trim());
    task.value = text.value.trim() ? (known ? `task ${known.name}` : "own") : none ? "none" : "default";
    text.placeholder = { default: "The model's own instruction", none: "No instruction" }[task.value] ?? "";
  }

  task.addEventListener("change", () => {
    const chosen = tasks.find(({ name }) => task.value === `task ${name}`);
    if (task.value !== "own") text.value = chosen?.instruction ?? "";
    text.placeholder = task.value === "none" ? "No instruction" : task.value === "own" ? "Say what to find" : "The model's own instruction";
    if (task.value === "own") text.focus();
    onChange("step");
  });
  text.addEventListener("input", () => {
    follow(false);
    onChange("typed");
  });
  text.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.isComposing) return;
    event.preventDefault(); // an instruction is one sentence
    onChange("step");
  });

  return {
    /** The instruction: a text, "" for none, null for the model's default. */
    get value() {
      const written = text.value.trim();
      return written || (task.value === "none" ? "" : null);
    },
    set value(instruction) {
      if ((instruction ?? "") !== text.value.trim()) text.value = instruction ?? "";
      follow(instruction === "");
    },
    set tasks(named) {
      const none = task.value === "none";
      tasks = named;
      task.replaceChildren(
        make("option", { value: "default" }, "Default"),
        make("option", { value: "none" }, "None"),
        make("option", { value: "own" }, "Own words"),
        make("optgroup", { label: "Named tasks" }, ...named.map(({ name }) => make("option", { value: `task ${name}` }, name))),
      );
      follow(none);
    },
  };
}
