// Requests to the service that this page came from, with the key that the user gave.

import { readJson } from "./json.js";

const STORED = "searchkit-key";

let key = ""; // also kept here: storage may be switched off
try {
  key = sessionStorage.getItem(STORED) ?? "";
} catch {
  // the user is asked
}

/** The key of this tab, or "". */
export function storedKey() {
  return key;
}

/** Keeps a key until the tab is closed; "" forgets it. */
export function storeKey(another) {
  key = another;
  try {
    if (key) sessionStorage.setItem(STORED, key);
    else sessionStorage.removeItem(STORED);
  } catch {
    // without storage the user is asked again after a reload
  }
}

/** An answer that is an error, or no answer at all (status 0). */
export class ServiceError extends Error {
  constructor(status, code, message, param, retryAfter) {
    super(message);
    Object.assign(this, { status, code, param, retryAfter });
  }
}

/** The whole address of a path of the service. */
export function serviceAddress(path) {
  return new URL(path, document.baseURI).href;
}

/** The path of a search of an index. */
export function searchPath(index) {
  return `indexes/${encodeURIComponent(index)}/search`;
}

/** The path of a document. */
export function documentPath(index, id) {
  return `indexes/${encodeURIComponent(index)}/documents/${encodeURIComponent(id)}`;
}

/**
 * Asks the service.
 *
 * @param {string} path
 * @param {{ body?: string, signal?: AbortSignal }} options A body makes it a POST.
 * @returns {Promise<object>} The JSON of the answer.
 * @throws {ServiceError} And DOMException AbortError.
 */
export async function ask(path, { body, signal } = {}) {
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(serviceAddress(path), {
      method: body === undefined ? "GET" : "POST", headers, body, signal, credentials: "omit",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError(0, "no_answer", "The service does not answer. Is it running?");
  }
  let content;
  try {
    content = readJson(await response.text());
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError(response.status, "no_json", `The service answered ${response.status} without JSON.`);
  }
  if (response.ok) return content;
  const { code, message, param } = content.error ?? {};
  const wait = Number(response.headers.get("retry-after-ms") ?? 1000 * response.headers.get("Retry-After"));
  throw new ServiceError(response.status, code, message ?? `The service answered ${response.status}.`, param, wait);
}
