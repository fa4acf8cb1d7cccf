from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_two
from texts import TEXTS
from torch import Tensor, nn

from searchkit.training.gradcache import cached_backward, gather_list
from searchkit.training.loss import info_nce, matryoshka

CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
Encode = Callable[[Sequence[Any]], Tensor]


def contrast(queries: Tensor, *passages: Tensor) -> Tensor:
    return info_nce(queries, torch.cat(passages), temperature=0.3)


def mlp(*, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 8)).to(dtype)


def encoder(model: nn.Module) -> Encode:
    return lambda inputs: nn.functional.normalize(model(torch.stack(list(inputs))), dim=1)


def groups_of(*sizes: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [list(torch.randn(size, 6, dtype=dtype, generator=generator)) for size in sizes]


def chunked(encode: Encode, inputs: Sequence[Any], chunk: int) -> Tensor:
    return torch.cat([encode(inputs[start : start + chunk]) for start in range(0, len(inputs), chunk)])


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Those that are there; they are taken away."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    assert any(gradient.abs().max() > 1e-3 for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, **(tolerance or CLOSE), msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("chunk", [1, 3, 99])
def test_gradients_equal_those_of_the_whole_batch(chunk: int) -> None:
    model, groups = mlp(), groups_of(5, 5, 7)
    encode = encoder(model)
    plain = contrast(*map(encode, groups))
    plain.backward()
    expected = gradients(model)
    found = cached_backward(encode, groups, contrast, chunk=chunk)
    torch.testing.assert_close(found, plain.detach(), **CLOSE)
    assert not found.requires_grad
    assert_same(gradients(model), expected)


@pytest.mark.parametrize("chunk", [1, 3, 99])
def test_inputs_of_like_size_share_a_chunk_and_the_loss_sees_none_of_it(chunk: int) -> None:
    model, groups = mlp(), groups_of(5, 5, 0, 7)
    weights, together = torch.arange(17.0), []

    def loss(*rows: Tensor) -> Tensor:  # of each row another, so that their order matters
        return contrast(*rows) + (weights @ torch.cat(rows).float()).square().sum()

    def seen(inputs: Sequence[Tensor]) -> Tensor:
        together.append([size(one) for one in inputs])
        return encoder(model)(inputs)

    def size(one: Tensor) -> int:
        return int(100 * one[0])

    plain = loss(*(encoder(model)(group) if group else torch.empty(0, 8).double() for group in groups))
    plain.backward()
    expected = gradients(model)
    found = cached_backward(seen, groups, loss, chunk=chunk, size=size)
    torch.testing.assert_close(found, plain.detach(), **CLOSE)
    assert_same(gradients(model), expected, rtol=1e-6, atol=1e-6)
    longest_first = [sorted(map(size, group), reverse=True) for group in groups]
    assert together[: len(together) // 2] == [
        group[start : start + chunk] for group in longest_first for start in range(0, len(group), chunk)
    ]


@pytest.mark.parametrize("chunk", [1, 3, 99])
def test_dropout_falls_the_same_twice(chunk: int) -> None:
    model, groups = mlp(dropout=0.5), groups_of(5, 5, 7)
    encode = encoder(model)

    def loss(*rows: Tensor) -> Tensor:
        return torch.rand(()) * contrast(*rows)  # draws too

    torch.manual_seed(7)
    plain = loss(*(chunked(encode, group, chunk) for group in groups))
    plain.backward()
    after, expected = torch.rand(3), gradients(model)
    torch.manual_seed(7)
    found = cached_backward(encode, groups, loss, chunk=chunk)
    torch.testing.assert_close(found, plain.detach(), **CLOSE)
    assert_same(gradients(model), expected)
    assert torch.equal(torch.rand(3), after)  # and the generator stands where one pass leaves it


def test_gradients_add_to_those_already_there() -> None:
    model, groups = mlp(), groups_of(4, 4)
    cached_backward(encoder(model), groups, contrast, chunk=3)
    once = gradients(model)
    for _ in range(2):
        cached_backward(encoder(model), groups, contrast, chunk=3)
    assert_same(gradients(model), {name: 2 * gradient for name, gradient in once.items()})


def test_any_loss_of_rows_will_do() -> None:
    model, groups = mlp(), groups_of(5, 5)
    loss = partial(matryoshka, contrast, dims=[8, 4])
    plain = loss(*map(encoder(model), groups))
    plain.backward()
    expected = gradients(model)
    torch.testing.assert_close(cached_backward(encoder(model), groups, loss, chunk=2), plain.detach(), **CLOSE)
    assert_same(gradients(model), expected)


def test_a_group_may_be_empty_or_unused() -> None:
    model, (queries, positives, others) = mlp(), groups_of(5, 5, 2)
    cached_backward(encoder(model), [queries, positives], contrast, chunk=2)
    expected = gradients(model)
    cached_backward(encoder(model), [queries, positives, []], contrast, chunk=2)
    assert_same(gradients(model), expected)
    cached_backward(encoder(model), [queries, positives, others], lambda q, p, _: contrast(q, p), chunk=2)
    assert_same(gradients(model), expected)


def test_a_scaled_loss_scales_the_gradients() -> None:
    model, groups = mlp(), groups_of(5, 5)
    cached_backward(encoder(model), groups, contrast, chunk=2)
    expected = {name: 1024 * gradient for name, gradient in gradients(model).items()}
    cached_backward(encoder(model), groups, lambda *rows: 1024 * contrast(*rows), chunk=2)
    assert_same(gradients(model), expected)


def test_no_more_than_a_chunk_is_ever_embedded_with_a_graph() -> None:
    model, sizes = mlp(), []

    def encode(inputs: Sequence[Tensor]) -> Tensor:
        sizes.append((len(inputs), torch.is_grad_enabled()))
        return encoder(model)(inputs)

    cached_backward(encode, groups_of(5, 4), contrast_of_less, chunk=3)
    assert sizes == [(size, graph) for graph in (False, True) for size in (3, 2, 3, 1)]


def contrast_of_less(queries: Tensor, positives: Tensor) -> Tensor:
    return contrast(queries[: len(positives)], positives)


def test_all_chunks_but_the_last_are_kept_from_synchronising() -> None:
    model, inside, seen = mlp(), [False], []

    @contextmanager
    def no_sync() -> Iterator[None]:
        inside[0] = True
        yield
        inside[0] = False

    def encode(inputs: Sequence[Tensor]) -> Tensor:
        if torch.is_grad_enabled():
            seen.append(("forward", inside[0]))
        rows = encoder(model)(inputs)
        if rows.requires_grad:
            rows.register_hook(lambda _: seen.append(("backward", inside[0])))
        return rows

    cached_backward(encode, groups_of(4, 4), contrast, chunk=2, no_sync=no_sync)
    assert seen == [("forward", True), ("backward", True)] * 3 + [("forward", False), ("backward", False)]


@pytest.mark.parametrize("around", ["encode", "everything"])
def test_autocast_gives_the_gradients_of_the_plain_loss_under_autocast(around: str) -> None:
    model, groups = mlp(dtype=torch.float32), groups_of(5, 5, 4, dtype=torch.float32)
    plain_encode = encoder(model)

    def autocast() -> Any:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    def encode(inputs: Sequence[Tensor]) -> Tensor:
        with autocast() if around == "encode" else nullcontext():
            return plain_encode(inputs)

    with autocast():
        plain = contrast(*(chunked(plain_encode, group, 3) for group in groups))
    plain.backward()
    expected = gradients(model)
    with autocast() if around == "everything" else nullcontext():
        found = cached_backward(encode, groups, contrast, chunk=3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain.detach(), rtol=1e-6, atol=1e-6)
    assert_same(gradients(model), expected, rtol=0.02, atol=0.002)


def lora_encoder(folder: Path, *, dropout: float) -> tuple[nn.Module, Encode]:
    """The tiny Mistral with an adapter that has moved, checkpointed; last-token rows in float64 of unit length."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel, AutoTokenizer

    from searchkit.models.pooling import last_token

    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    base = AutoModel.from_pretrained(folder).double()
    base.gradient_checkpointing_enable({"use_reentrant": False})
    base.enable_input_require_grads()
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], lora_dropout=dropout)
    model = get_peft_model(base, config).double().train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)

    def encode(texts: Sequence[str]) -> Tensor:
        batch = tokenizer(list(texts), padding=True, return_tensors="pt")
        hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        return nn.functional.normalize(last_token(hidden, batch["attention_mask"]), dim=1)

    return model, encode


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")  # transformers 5.23
@pytest.mark.parametrize(("dropout", "chunk"), [(0.0, 1), (0.0, 3), (0.0, 99), (0.3, 3)])
def test_a_checkpointed_decoder_with_lora_gets_the_gradients_of_the_plain_loss(
    mistral: Path, dropout: float, chunk: int
) -> None:
    model, encode = lora_encoder(mistral, dropout=dropout)
    groups = [TEXTS[:4], TEXTS[10:14], TEXTS[24:27]]
    torch.manual_seed(7)
    plain = contrast(*(chunked(encode, group, chunk if dropout else 99) for group in groups))
    plain.backward()
    expected = gradients(model)
    assert len(expected) == 2 * 2 * 2  # A and B, two modules, two layers
    assert all(gradient.abs().max() > 1e-4 for gradient in expected.values())
    torch.manual_seed(7)
    found = cached_backward(encode, groups, contrast, chunk=chunk)
    # Mistral's norms and rotations are float32 whatever the weights.
    torch.testing.assert_close(found, plain.detach(), rtol=1e-5, atol=1e-5)
    assert_same(gradients(model), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_dropout_on_a_gpu_falls_the_same_twice() -> None:
    model = mlp(dropout=0.5).cuda()
    encode, groups = encoder(model), [[row.cuda() for row in group] for group in groups_of(5, 5)]
    torch.manual_seed(7)
    contrast(*(chunked(encode, group, 2) for group in groups)).backward()
    expected = gradients(model)
    torch.manual_seed(7)
    cached_backward(encode, groups, contrast, chunk=2)
    assert_same(gradients(model), expected)


SHARES = ((slice(0, 3), slice(0, 3), slice(0, 4)), (slice(3, 8), slice(3, 8), slice(4, 5)))  # of groups_of(8, 8, 5)
COPIES = [0, 1, 2, 3, 1, 5, 0, 7]  # which positives are copies of each other


def contrast_of_copies(copies: list[int], queries: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    names = torch.tensor([*copies, *range(100, 100 + len(negatives))])
    duplicates = names[: len(queries), None] == names
    return info_nce(queries, torch.cat([positives, negatives]), temperature=0.3, duplicates=duplicates)


def process(rank: int, folder: str) -> None:
    """One of two: its share of the batch, and its gradients as DistributedDataParallel leaves them."""
    from torch.nn.parallel import DistributedDataParallel

    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = mlp()
    ddp = DistributedDataParallel(model)
    groups = [group[part] for group, part in zip(groups_of(8, 8, 5), SHARES[rank], strict=True)]
    loss = partial(contrast_of_copies, gather_list(COPIES[SHARES[rank][1]]))
    runs = []
    for chunk in (99, 2, 2):  # the second with other numbers of chunks, the third after DDP has rebuilt its buckets
        value = cached_backward(encoder(ddp), groups, loss, chunk=chunk, no_sync=ddp.no_sync)
        runs.append((value, gradients(model)))
    if rank == 1:  # no texts here: both processes have to hear of it
        groups = [[], [], []]
    try:
        cached_backward(encoder(ddp), groups, loss, chunk=2, no_sync=ddp.no_sync)
        refused = ""
    except ValueError as error:
        refused = str(error)
    torch.save((runs, refused), f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    # torch's reducer is destroyed with the GIL held, and waits for gloo's thread, which may be waiting for the GIL.
    os._exit(0)


def test_two_processes_under_ddp_get_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    model, groups = mlp(), groups_of(8, 8, 5)
    plain = contrast_of_copies(COPIES, *map(encoder(model), groups))
    plain.backward()
    expected = gradients(model)
    run_two(process, tmp_path)
    for rank in (0, 1):
        runs, refused = torch.load(tmp_path / f"{rank}.pt")
        for value, found in runs:
            torch.testing.assert_close(value, plain.detach(), **CLOSE)
            assert_same(found, expected)
        assert "every process needs at least one" in refused


def test_alone_a_list_is_gathered_from_oneself() -> None:
    assert gather_list(("a", "b")) == ["a", "b"]


def test_rows_without_a_graph_are_refused() -> None:
    model = mlp().requires_grad_(False)
    with pytest.raises(ValueError, match=r"nothing would be trained.*enable_input_require_grads"):
        cached_backward(encoder(model), groups_of(2, 2), contrast, chunk=2)


@pytest.mark.parametrize(
    ("sizes", "chunk", "complaint"),
    [((2, 2), 0, "chunk is 0"), ((0, 0), 1, r"\[\[0, 0\]\].*at least one"), ((), 1, "at least one")],
)
def test_what_cannot_be_embedded_is_refused(sizes: tuple[int, ...], chunk: int, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        cached_backward(encoder(mlp()), groups_of(*sizes), contrast, chunk=chunk)


def test_rows_that_are_not_one_for_each_input_are_refused() -> None:
    encode = encoder(mlp())
    with pytest.raises(ValueError, match=r"encode returns \(1, 8\) for 2 inputs"):
        cached_backward(lambda inputs: encode(inputs)[:1], groups_of(2, 2), contrast, chunk=2)
