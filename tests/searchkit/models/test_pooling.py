from __future__ import annotations

import pytest
import torch

from searchkit.models.pooling import POOLINGS

LENGTHS = [3, 1, 5]


def padded(states: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states (3, 5, 4) with rubbish where the mask is 0, and the mask."""
    hidden, mask = torch.full((3, 5, 4), 1e4), torch.zeros(3, 5, dtype=torch.int64)
    for row, state in enumerate(states):
        place = slice(0, len(state)) if side == "right" else slice(5 - len(state), 5)
        hidden[row, place], mask[row, place] = state, 1
    return hidden, mask


def by_hand(name: str, state: torch.Tensor) -> torch.Tensor:
    """What the name means for one text without padding, (tokens, 4) -> (4,)."""
    if name == "weighted-mean":
        weights = [n + 1 for n in range(len(state))]
        return sum(weight * row for weight, row in zip(weights, state, strict=True)) / sum(weights)  # type: ignore
    return {"last": state[-1], "cls": state[0], "mean": state.mean(0), "max": state.max(0).values}[name]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", POOLINGS)
def test_padding_on_either_side_changes_nothing(name: str, side: str) -> None:
    torch.manual_seed(0)
    states = [torch.randn(length, 4) for length in LENGTHS]
    found = POOLINGS[name](*padded(states, side))
    torch.testing.assert_close(found, torch.stack([by_hand(name, state) for state in states]))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_pad_id_equal_to_eos_hides_no_real_eos(side: str) -> None:
    eos = pad = 2
    tokens = [[1, 7, eos], [1, eos, 9, 8, eos]]  # an EOS within the text too
    rows = [t + [pad] * (5 - len(t)) if side == "right" else [pad] * (5 - len(t)) + t for t in tokens]
    hidden = torch.arange(10.0).reshape(2, 5, 1)
    _, mask = padded([torch.zeros(len(t), 4) for t in tokens], side)
    last = POOLINGS["last"](hidden, mask[:2])[:, 0]
    assert last.tolist() == [2.0 if side == "right" else 4.0, 9.0]
    assert [rows[row][int(place) % 5] for row, place in enumerate(last)] == [eos, eos]


def test_maximum_of_negative_states_is_not_the_padding_s_zero() -> None:
    hidden, mask = torch.tensor([[[-3.0], [-1.0], [0.0]]]), torch.tensor([[1, 1, 0]])
    assert POOLINGS["max"](hidden, mask).item() == -1


@pytest.mark.parametrize("name", POOLINGS)
def test_one_text_gives_one_row(name: str) -> None:
    assert POOLINGS[name](torch.ones(1, 1, 4), torch.ones(1, 1, dtype=torch.int64)).shape == (1, 4)
