"""Batches whose lines or which as a whole are refused; those that go well are tested in test_synthesize."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_llm import FakeLLM, Reply, draw_of, written
from synthetic import config, rows

from searchkit.training.synthesis.synthesize import synthesize

SETTINGS: dict[str, Any] = {"groups": {"sts": 1}, "count": 10, "check_language": False, "batch": True, "poll": 0.01}


def strict(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
    """As models that think: they want another name of the limit, and no temperature."""
    for name in ("max_tokens", "temperature"):
        if name in asked:
            return Reply(f"Unsupported parameter: '{name}' is not supported with this model.", status=400)
    return Reply(json.dumps(written(asked)))


def test_a_batch_that_is_refused_line_by_line_is_handed_in_as_the_server_takes_it(tmp_path: Path) -> None:
    with FakeLLM() as server:
        synthesize(config(server, tmp_path / "willing", **SETTINGS))
    with FakeLLM(strict) as server:
        report = synthesize(config(server, tmp_path / "strict", **SETTINGS))
        assert len(server.batches) == 3  # two in vain, of which none of the lines is paid for
    assert report.tokens_in + report.tokens_out == sum(usage["total_tokens"] for usage in server.delivered)
    assert (tmp_path / "strict" / "pairs.jsonl").read_bytes() == (tmp_path / "willing" / "pairs.jsonl").read_bytes()


def test_an_answer_may_hold_separators_of_lines(tmp_path: Path) -> None:
    def paragraphs(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        answer = {name: text.replace(" ", " \u2028") for name, text in written(asked).items()}
        return Reply(json.dumps(answer, ensure_ascii=False))

    with FakeLLM(paragraphs) as server:
        assert synthesize(config(server, tmp_path, **SETTINGS)).answers == 10
        assert len(server.batches) == 1


def test_a_batch_that_failed_ends_the_run_with_the_services_reason(tmp_path: Path) -> None:
    with FakeLLM() as server:
        server.batch_faults = ["Enqueued token limit reached", "Enqueued token limit reached"]
        with pytest.raises(ValueError, match="the batch is failed: Enqueued token limit reached; run the same command"):
            synthesize(config(server, tmp_path, **SETTINGS))
        assert len(server.batches) == 1
        server.batch_faults = []
        assert synthesize(config(server, tmp_path, **SETTINGS)).examples == 10


def test_a_wrong_key_or_model_ends_the_run_at_the_first_batch(tmp_path: Path) -> None:
    with FakeLLM(lambda *asked: Reply("no such model", status=404)) as server:
        with pytest.raises(ValueError, match="the server answered 404: no such model; does the server know"):
            synthesize(config(server, tmp_path, **SETTINGS))
        assert len(server.batches) == 1


def test_failed_lines_are_reported_and_sent_again_by_the_next_run(tmp_path: Path) -> None:
    def moody(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        chance = draw_of(asked).random()
        if chance < 0.3:
            return Reply("blocked by our content_filter", status=400)
        return Reply("overloaded", status=500) if chance < 0.7 and well < 1 else Reply(json.dumps(written(asked)))

    well = 0
    with FakeLLM(moody) as server:
        first = synthesize(config(server, tmp_path, **SETTINGS, tries=1))
        details = {row["reason"]: row["detail"] for row in rows(tmp_path / "pairs.rejects.jsonl")}
        assert details["no answer"] == "status 500: overloaded"
        assert "content_filter" in details["refused by the model"]
        well = 1
        again = synthesize(config(server, tmp_path, **SETTINGS, tries=1))
    assert again.examples == first.examples + first.refused["no answer"]
    assert again.refused == {"refused by the model": first.refused["refused by the model"]}
