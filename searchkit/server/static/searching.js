// Searches one after the other, of which only the last one counts.

import { ask, searchPath } from "./api.js";
import { requestBody } from "./request.js";

const MOST_RETRIES = 5; // where the service is busy

let last = null; // AbortController of the search that counts

/** From now on, an answer that is still on its way is dropped. */
export function forgetSearch() {
  last?.abort();
  last = null;
}

/**
 * Searches for a state; the search before it is given up.
 *
 * @param {object} state
 * @param {{ facets: boolean, onBusy: () => void }} options `onBusy` is called when the service says to come back.
 * @returns {Promise<object | null>} What was asked and found, or null if a newer search has begun.
 * @throws {ServiceError}
 */
export async function runSearch(state, { facets, onBusy }) {
  forgetSearch();
  const mine = new AbortController();
  last = mine;
  const began = performance.now();
  try {
    const content = await patiently(
      () => ask(searchPath(state.index), { body: requestBody(state, { facets }), signal: mine.signal }),
      mine.signal,
      onBusy,
    );
    if (last !== mine) return null; // it came although it was aborted
    const results = content.results ?? [content];
    return {
      asked: state,
      content,
      lists: results.map(({ hits }) => hits),
      words: results.flatMap((result) => result.matched_words ?? []),
      facets: results[0].facets,
      facetsOver: results[0].facets_over,
      ms: performance.now() - began,
    };
  } catch (error) {
    if (last !== mine) return null;
    throw error;
  }
}

/** Calls again where the service says that it is busy, as late as it says. */
async function patiently(call, signal, onBusy) {
  for (let tries = 0; ; tries++) {
    try {
      return await call();
    } catch (error) {
      if (error.status !== 429 || tries === MOST_RETRIES) throw error;
      onBusy();
      await new Promise((done) => setTimeout(done, Math.min(error.retryAfter || 1000, 10_000)));
      signal.throwIfAborted();
    }
  }
}
