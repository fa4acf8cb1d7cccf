"""GGUF files become folders with the same vectors and the same tokens."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import call
from ggufs import smollm2, write_gguf
from texts import TEXTS
from tiny_models import build_model

from searchkit.errors import InputError
from searchkit.models.conventions import Conventions
from searchkit.models.embedder import Embedder
from searchkit.models.gguf import import_gguf
from searchkit.models.gguf_header import read_header
from searchkit.models.gguf_tokenizer import build_tokenizer

pytest.importorskip("gguf", reason="reading GGUF files needs gguf")

LAST = Conventions(pooling="last", append_eos=True, max_length=64)
ODD = ["Hello world! 123", "  multiple   spaces\n\nand 2024's <|im_end|>", "naïve 東京 🙂", "a</s>b", "\ttab", ""]


def rows(folder: Path) -> np.ndarray:
    return Embedder(folder, device="cpu", dtype="float32", conventions=LAST).encode_passages(TEXTS)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "causal-gemma3"])
def test_vectors_and_tokens_are_those_of_the_model(tmp_path: Path, kind: str) -> None:
    model = build_model(tmp_path / "model", kind, bos=False, eos=False)
    found = import_gguf(write_gguf(model, tmp_path / "model.gguf"), tmp_path / "out")
    assert (found.layers, found.width, found.vocabulary, found.bos, found.eos) == (2, 64, 512, None, "</s>")
    np.testing.assert_allclose(rows(tmp_path / "out"), rows(model), atol=5e-3)  # weights in float16
    ours, theirs = (Embedder(folder, conventions=LAST) for folder in (tmp_path / "out", model))
    assert ours.tokenize([*TEXTS, *ODD]) == theirs.tokenize([*TEXTS, *ODD])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["architectures"][0].endswith("ForCausalLM")


@pytest.mark.parametrize(("kind", "least"), [("F16", 0.9999), ("Q8_0", 0.99), ("Q5_0", 0.8)])
def test_quantised_weights_come_close(tmp_path: Path, kind: str, least: float) -> None:
    model = build_model(tmp_path / "model", "llama", bos=False, eos=False)
    found = import_gguf(write_gguf(model, tmp_path / "model.gguf", kind=kind), tmp_path / "out")
    assert found.quantisation == kind
    assert (rows(tmp_path / "out") * rows(model)).sum(1).mean() > least


def test_bos_eos_and_the_template_of_a_chat_are_kept(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = build_model(tmp_path / "model", "qwen2", bos=True, eos=True)
    fields = {
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
        "tokenizer.chat_template": "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}",
    }
    found = import_gguf(write_gguf(model, tmp_path / "model.gguf", changes=fields), tmp_path / "out")
    assert (found.bos, found.eos) == ("<s>", "</s>")
    tokens = Embedder(tmp_path / "out", conventions=LAST).tokenize(TEXTS)
    assert tokens == Embedder(model, conventions=LAST).tokenize(TEXTS)
    assert {(ids[0], ids[-2] == 2, ids[-1]) for ids in tokens} == {(1, False, 2)}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    chat = [{"role": "user", "content": "tea"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<s>tea</s>"


def pieces(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's algorithm: join the two neighbours that make the best piece until none do."""
    symbols = list(text.replace(" ", "▁"))
    while True:
        joined = [(scores[a + b], -n) for n, (a, b) in enumerate(pairwise(symbols)) if a + b in scores]
        if not joined:
            return symbols
        n = -max(joined)[1]
        symbols[n : n + 2] = [symbols[n] + symbols[n + 1]]


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_vocabularies_split_as_sentencepiece(prefix: bool) -> None:
    words = ["▁t", "he", "▁the", "in", "▁in", "an", "ing", "▁a", "er", "on", "re", "▁s", "▁▁", "ea", "▁tea"]
    letters = sorted({letter for text in TEXTS for letter in text.replace(" ", "▁")})
    marks = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens = [*marks, *words, *letters]
    scores = {word: -float(n) for n, word in enumerate([*words, *letters])}
    tokenizer = build_tokenizer(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": [scores.get(token, 0.0) for token in tokens],
            "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)],
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.add_space_prefix": prefix,
        },
        "a file",
    )
    for text in TEXTS:
        expected = pieces(" " + text if prefix else text, scores)
        assert tokenizer.encode(text).tokens == ["<s>", *expected]
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.encode("東", add_special_tokens=False).tokens[-3:] == ["<0xE6>", "<0x9D>", "<0xB1>"]


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [("gpt-2", "in 2024", ["in", "Ġ2024"]), ("smollm", "in 2024", ["in", "Ġ", "2", "0", "2", "4"]),
     ("qwen2", "in 2024", ["in", "Ġ", "2", "0", "2", "4"]), ("llama-bpe", "in 2024", ["in", "Ġ", "202", "4"]),
     ("tekken", "in 2024", ["in", "Ġ", "2", "0", "2", "4"]), ("tekken", "inTea", ["in", "Tea"])],
)  # fmt: skip
def test_texts_are_split_as_the_file_says(pre: str, text: str, expected: list[str]) -> None:
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fields = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": alphabet}
    tokenizer = build_tokenizer(fields, "a file")
    assert [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"general.architecture": "bert"}, "architecture 'bert'; those that can be imported are llama, mistral"),
     ({"general.type": "adapter"}, "is of type 'adapter', not a model"), ({"split.count": 3}, "one of 3 parts; join"),
     ({"llama.rope.scaling.type": "yarn"}, r"scales its rotary embedding \(yarn\)"),
     ({"tokenizer.ggml.pre": "klingon"}, "splits texts by 'klingon'.* known are .*qwen2"),
     ({"tokenizer.ggml.model": "rwkv"}, "tokenizer of kind 'rwkv'"),
     ({"tokenizer.ggml.tokens": None}, "has no vocabulary"),
     ({"tokenizer.ggml.eos_token_id": 512}, "its eos token is number 512 of 512 tokens"),
     ({"tokenizer.ggml.token_type": [1, 1]}, "has 2 of tokenizer.ggml.token_type for 512 tokens"),
     ({"tokenizer.ggml.model": "llama"}, "has 0 of tokenizer.ggml.scores for 512 tokens"),
     ({"llama.block_count": 3}, "lacks 9 of the model's weights, such as model.layers.2.")],
)  # fmt: skip
def test_what_cannot_be_converted_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    model = build_model(tmp_path / "model", "llama", bos=False, eos=False)
    file = write_gguf(model, tmp_path / "model.gguf", changes=changes)
    with pytest.raises(InputError, match=message):
        import_gguf(file, tmp_path / "out")
    assert not [each for each in tmp_path.iterdir() if each.name.startswith("out")]


def test_a_vocabulary_without_weights_is_refused(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "vocabulary.gguf", "llama")
    writer.add_token_list(["a", "b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(InputError, match="holds a vocabulary and no weights"):
        import_gguf(tmp_path / "vocabulary.gguf", tmp_path / "out")


def test_a_token_that_is_listed_twice_is_refused() -> None:
    fields = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": ["a", "b", "a"]}
    with pytest.raises(InputError, match="lists 'a' as token 0 and again as 2"):
        build_tokenizer(fields, "a file")


def test_the_header_is_read_as_by_gguf(tmp_path: Path) -> None:
    import gguf

    changes = {"some.list": [1.5, 2.5], "some.names": ["a", "naïve 東京"], "some.flag": False, "some.text": ""}
    model = build_model(tmp_path / "model", "llama")
    file = write_gguf(model, tmp_path / "model.gguf", kind="Q8_0", changes=changes)
    ours, theirs = read_header(file), gguf.GGUFReader(file)
    expected = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert ours.values == expected
    assert [(tensor.name, tensor.shape, tensor.kind, ours.weights + tensor.start) for tensor in ours.tensors] == [
        (tensor.name, tuple(tensor.shape), tensor.tensor_type, tensor.data_offset) for tensor in theirs.tensors
    ]


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = write_gguf(build_model(tmp_path / "model", "llama"), tmp_path / "model.gguf").read_bytes()
    file = tmp_path / "damaged.gguf"
    for size in (4, 5, 100, len(whole) // 100, len(whole) // 10, len(whole) // 2, len(whole) - 64):
        file.write_bytes(whole[:size])
        with pytest.raises(InputError, match="damaged"):
            import_gguf(file, tmp_path / "out")
    position = whole.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 2 * 8
    file.write_bytes(whole[:position] + b"\xc8" + whole[position + 1 :])  # the tensor's type
    with pytest.raises(InputError, match="quantised in a way that the installed gguf does not know"):
        import_gguf(file, tmp_path / "out")
    for version in (b"\x01\0\0\0", b"\0\0\0\x03"):  # the second has the highest byte first
        file.write_bytes(whole[:4] + version + whole[8:])
        with pytest.raises(InputError, match=r"has version .* of the format; expected 2 or 3"):
            import_gguf(file, tmp_path / "out")
    file.write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(InputError, match="is not a GGUF file: it begins with"):
        import_gguf(file, tmp_path / "out")


def test_the_command_makes_a_model_that_is_indexed_and_searched(tmp_path: Path) -> None:
    file = write_gguf(build_model(tmp_path / "model", "llama", eos=False), tmp_path / "model.gguf", kind="Q8_0")
    out, index, texts = tmp_path / "out", tmp_path / "x.index", tmp_path / "texts.txt"
    done = call("import-gguf", file, out)
    assert "llama, 2 layers of width 64, Q8_0 to float16" in done.stdout
    assert "EOS </s>" in done.stdout
    texts.write_text("\n".join(TEXTS))
    built = call("index", texts, "--index", index, "--model", out)
    assert "was not trained to embed" in built.output
    assert TEXTS[3][:20] in call("search", index, TEXTS[3], "-k", "1", "--mode", "dense").stdout
    again = call("import-gguf", file, out, code=1)
    assert "exists and is not an empty folder; name a new one" in again.output


def test_smollm2_is_read_as_it_was_trained(tmp_path: Path) -> None:
    found = import_gguf(smollm2(), tmp_path / "out")
    assert (found.layers, found.width, found.vocabulary) == (30, 576, 49152)
    assert (found.bos, found.eos, found.quantisation) == (None, "<|im_end|>", "Q4_1")
    embedder = Embedder(tmp_path / "out", conventions=LAST)
    told = {"Hello world! 123": [19556, 905, 17, 216, 33, 34, 35, 2], "  multiple   spaces": [216, 2701, 256, 5600, 2]}
    assert embedder.tokenize(list(told)) == list(told.values())
