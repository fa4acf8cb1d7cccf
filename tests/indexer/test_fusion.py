from __future__ import annotations

import pytest

from searchkit.indexer.fusion import reciprocal_rank, weighted


def test_reciprocal_rank_by_hand() -> None:
    fused = reciprocal_rank([{7: 0.9, 8: 0.5, 9: 0.1}, {9: 12.0, 7: 3.0}])
    assert fused == pytest.approx({7: 1 / 61 + 1 / 62, 8: 1 / 62, 9: 1 / 63 + 1 / 61})


def test_reciprocal_rank_takes_its_constant() -> None:
    assert reciprocal_rank([{1: 2.0, 2: 1.0}, {2: 5.0}], rrf_k=1) == pytest.approx({1: 1 / 2, 2: 1 / 3 + 1 / 2})


def test_reciprocal_rank_needs_only_the_order_of_scores() -> None:
    small, large = {1: -0.2, 2: -0.1, 3: 0.3}, {1: 1.0, 2: 50.0, 3: 1e6}
    assert reciprocal_rank([small]) == reciprocal_rank([large])


def test_reciprocal_rank_breaks_ties_by_item_and_not_by_input_order() -> None:
    assert reciprocal_rank([{5: 1.0, 3: 1.0}]) == reciprocal_rank([{3: 1.0, 5: 1.0}]) == {3: 1 / 61, 5: 1 / 62}


def test_reciprocal_rank_of_one_side_or_none() -> None:
    assert reciprocal_rank([{4: 0.3}, {}]) == {4: 1 / 61}
    assert reciprocal_rank([{}, {}]) == {}


def test_weighted_by_hand() -> None:
    fused = weighted({1: 0.9, 2: 0.5, 3: 0.4}, {2: 8.0, 3: 2.0}, dense_weight=0.75)
    assert fused == pytest.approx({1: 0.75, 2: 0.75 * 0.2 + 0.25, 3: 0.25 * 0.25})


@pytest.mark.parametrize(("share", "order"), [(1.0, [1, 2, 3]), (0.0, [3, 2, 1])])
def test_the_ends_of_the_weight_are_one_side_alone(share: float, order: list[int]) -> None:
    fused = weighted({1: 0.9, 2: 0.5, 3: 0.4}, {1: 1.0, 2: 2.0, 3: 3.0}, share)
    assert sorted(fused, key=fused.__getitem__, reverse=True) == order
    assert max(fused.values()) == 1


def test_weighted_is_the_same_for_scaled_scores() -> None:
    plain = weighted({1: 0.9, 2: 0.5, 3: -0.4}, {2: 8.0, 3: 2.0}, 0.5)
    assert plain == pytest.approx(weighted({1: 90.0, 2: 50.0, 3: -40.0}, {2: 0.8, 3: 0.2}, 0.5))


def test_weighted_without_lexical_hits_keeps_the_dense_order() -> None:
    assert weighted({1: 0.9, 2: 0.5, 3: 0.7}, {}, 0.5) == pytest.approx({1: 0.5, 2: 0.0, 3: 0.25})


def test_weighted_of_equal_similarities_is_decided_by_bm25() -> None:
    assert weighted({1: 0.7, 2: 0.7}, {2: 3.0}, 0.5) == pytest.approx({1: 0.5, 2: 1.0})


def test_weighted_of_one_candidate_or_none() -> None:
    assert weighted({1: 0.2}, {1: 0.1}, 0.5) == {1: 1.0}
    assert weighted({}, {}, 0.5) == {}
