// A search as the text that is sent, and as code that a user can run. All three are made of the same JSON.

import { searchPath, serviceAddress } from "./api.js";

/**
 * The body of a search.
 *
 * The filter goes in as it was typed, so that integers beyond 2^53 keep their last digits.
 *
 * @param {object} state
 * @param {{ facets: boolean }} options Whether to count the values of metadata.
 */
export function requestBody(state, { facets }) {
  const body = {};
  const instructed = (value) => (value === null ? {} : { instruction: value });
  if (state.like) {
    body.similar_to = state.like;
  } else if (state.compare) {
    // Both in one request, so that both are of one commit.
    body.queries = [state.instruction, state.instructionB].map((each) => ({ text: state.query, ...instructed(each) }));
    body.explain = true;
  } else {
    Object.assign(body, { query: state.query, ...instructed(state.instruction), explain: true });
  }
  body.k = state.k;
  if (!state.like && state.mode !== "hybrid") body.mode = state.mode;
  if (facets) body.facets = true;
  const where = state.where.trim();
  return where ? `${JSON.stringify(body).slice(0, -1)},"where":${where}}` : JSON.stringify(body);
}

/** A command for a shell. */
export function asCurl(state, { key }) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  return [
    `curl ${quoted(serviceAddress(searchPath(state.index)))}`,
    ...(key ? ['-H "Authorization: Bearer $SEARCHKIT_KEY"'] : []),
    "-H 'Content-Type: application/json'",
    `--data-raw ${quoted(requestBody(state, { facets: false }))}`,
  ].join(" \\\n  ");
}

/** Some lines of Python. */
export function asPython(state, { key }) {
  const headers = key ? ', headers={"Authorization": f"Bearer {os.environ[\'SEARCHKIT_KEY\']}"}' : "";
  return [
    ...(key ? ["import os", ""] : []),
    "import httpx",
    "",
    `body = ${asPythonLiteral(requestBody(state, { facets: false }))}`,
    `answer = httpx.post(${JSON.stringify(serviceAddress(searchPath(state.index)))}, json=body${headers}, timeout=60)`,
    "answer.raise_for_status()",
    state.compare && !state.like ? 'for hit in answer.json()["results"][0]["hits"]:' : 'for hit in answer.json()["hits"]:',
    '    print(hit["rank"], hit["score"], hit["id"], hit["title"])',
    "",
  ].join("\n");
}

/** JSON as Python writes it: three words differ, and strings have one escape less, which JSON.stringify never uses. */
function asPythonLiteral(json) {
  const words = { true: "True", false: "False", null: "None" };
  return json.replace(/"(?:[^"\\]|\\.)*"|true|false|null/g, (part) => words[part] ?? JSON.stringify(JSON.parse(part)));
}
