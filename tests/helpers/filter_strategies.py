"""Random metadata and filters from one pool of keys and values, so that they often meet."""

from __future__ import annotations

import re

from hypothesis import strategies as st

NUMBERS = [0, 1, -1, 2.5, 1e300, -0.0, 0.1, 2**53, 2**53 + 1, float(2**53), 2**63 - 1, float(2**63), -(2**63), 1.0]
STRINGS = [
    "",
    "a",
    "A",
    "ab",
    "é",
    "\uffff",
    "\U0001f600",
    "1",
    "null",
    "true",
    '{"a": 1}',
    '["a"]',
    "2024-05-01",
    "\"'\\\n",
]
DATES = [
    f"{day}{clock}{zone}"
    for day in ("2024-05-01", "2024-02-29", "2023-02-29", "1969-12-31", "2024-04-31", "0001-01-01", "9998-12-31")
    for clock in (
        "T00:00",
        " 23:59",
        "T12:30:05",
        " 12:30:05.0",
        "T12:30:05.25",
        "T12:30:05.2500",
        "T23:59:59.99987654321",
    )
    for zone in ("", "Z", "+00:00", "+02:00", "-11:30")
]
MOMENTS = ["2024-05-01", "2024-02-29", "1969-12-31", *[text for text in DATES if re.match("2024-0[25]|1969", text)]]
NO_DATES = [
    "2024",
    "12:00",
    "now",
    "2024-5-1",
    "20240501",
    "2024-05-01T",
    "2024-05-01T12",
    "2024-05-01T12:30:05.",
    "2024-13-01",
]
KEYS = ["a", "b", "é x", "[0]", "c.d", "$e", "_id"]
WRITTEN = {"c.d": "c\\.d", "$e": "\\$e", "_id": "\\_id"}

numbers = st.one_of(st.sampled_from(NUMBERS), st.integers(-3, 3), st.floats(allow_nan=False, allow_infinity=False))
strings = st.one_of(
    st.sampled_from(STRINGS),
    st.sampled_from(MOMENTS),
    st.text(st.characters(exclude_categories=["Cs"], min_codepoint=1), max_size=3),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, strings)
stored = st.recursive(
    st.one_of(scalars, st.sampled_from([2**63, -(2**64), 10**30, *NO_DATES])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)),
    max_leaves=6,
)
documents = st.lists(st.dictionaries(st.sampled_from(KEYS), stored, max_size=4), min_size=1, max_size=6)
dates = st.builds(lambda text: {"$date": text}, st.sampled_from(MOMENTS))
operands = st.one_of(scalars, dates)
paths = st.lists(st.sampled_from(KEYS), min_size=1, max_size=3).map(
    lambda parts: ".".join(WRITTEN.get(p, p) for p in parts)
)
operators = st.recursive(
    st.one_of(
        st.builds(lambda name, value: {name: value}, st.sampled_from(["$eq", "$ne"]), operands),
        st.builds(
            lambda name, value: {name: value},
            st.sampled_from(["$gt", "$gte", "$lt", "$lte"]),
            numbers | strings | dates,
        ),
        st.builds(
            lambda name, values: {name: values}, st.sampled_from(["$in", "$nin"]), st.lists(operands, max_size=4)
        ),
        st.builds(lambda value: {"$exists": value}, st.booleans()),
    ),
    lambda inner: st.one_of(st.builds(lambda a, b: {**a, **b}, inner, inner), st.builds(lambda a: {"$not": a}, inner)),
    max_leaves=3,
)
filters = st.recursive(
    st.dictionaries(paths, operands | operators, max_size=2),
    lambda inner: st.one_of(
        st.builds(
            lambda name, parts: {name: parts},
            st.sampled_from(["$and", "$or", "$nor"]),
            st.lists(inner, min_size=1, max_size=3),
        ),
        st.builds(lambda part: {"$not": part}, inner),
        st.builds(lambda a, b: {**a, **b}, inner, inner),
    ),
    max_leaves=4,
)
