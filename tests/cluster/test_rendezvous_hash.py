"""Weighted rendezvous hashing: shares by weight, and few users that move."""

from collections import Counter

import pytest

from models.cluster.rendezvous_hash import RendezvousHash, RendezvousNode, user_hash

USER_COUNT = 10_000
HASHES = [user_hash(f"user{number}@example.org") for number in range(USER_COUNT)]


def nodes_of_users(weights: dict[str, int]) -> list[str | None]:
    """Return the node of each user."""
    rendezvous = RendezvousHash(
        RendezvousNode(name, f"{name}.example.org:8025", weight) for name, weight in weights.items()
    )
    return [rendezvous.node_id_of_user(hash_of_user) for hash_of_user in HASHES]


def test_new_node_takes_its_share_and_no_other_user_moves() -> None:
    before = nodes_of_users({"a": 100, "b": 100, "c": 100})
    after = nodes_of_users({"a": 100, "b": 100, "c": 100, "d": 100})
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert 0.23 <= len(moved) / USER_COUNT <= 0.27
    assert set(moved) == {"d"}


def test_removed_node_gives_its_users_away_and_no_other_user_moves() -> None:
    before = nodes_of_users({"a": 100, "b": 100, "c": 100})
    after = nodes_of_users({"a": 100, "c": 100})
    moved = {old for old, new in zip(before, after, strict=True) if old != new}
    assert moved == {"b"}
    assert set(after) == {"a", "c"}


@pytest.mark.parametrize("weight", [1, 50, 200, 10_000])
def test_share_is_proportional_to_weight(weight: int) -> None:
    counts = Counter(nodes_of_users({"a": 100, "b": 100, "c": weight}))
    assert counts["c"] / USER_COUNT == pytest.approx(weight / (200 + weight), abs=0.02)


def test_changed_weight_moves_users_only_to_or_from_that_node() -> None:
    before = nodes_of_users({"a": 100, "b": 100, "c": 100})
    after = nodes_of_users({"a": 100, "b": 100, "c": 150})
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {"c"}
    assert len(moved) / USER_COUNT == pytest.approx(150 / 350 - 1 / 3, abs=0.02)


def test_no_node_serves_users_without_nodes() -> None:
    assert nodes_of_users({})[:2] == [None, None]


def test_hash_is_the_same_on_every_machine() -> None:
    assert user_hash("ada@example.org").hex() == "94c98cf6f23eed72"
    assert nodes_of_users({"a": 100, "b": 100, "c": 300})[:8] == list("caaaacac")
