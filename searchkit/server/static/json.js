// JSON whose integers keep all their digits: beyond 2^53 they become BigInt, where the browser shows how they are written.

/** The value of a JSON text; throws SyntaxError. */
export function readJson(text) {
  return JSON.parse(text, (_, value, context) => {
    const exact = typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value);
    return exact && /^-?\d+$/.test(context?.source ?? "") ? BigInt(context.source) : value;
  });
}

/** A value as JSON. */
export function writeJson(value) {
  return JSON.stringify(value, (_, each) => (typeof each === "bigint" ? JSON.rawJSON(String(each)) : each));
}
