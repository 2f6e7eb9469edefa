"""Weighted rendezvous hashing: which node a user belongs to.

Each pair of user and node has a random number that only depends on the two. The node with the
lowest number, divided by its weight, has the user. So a new node takes users from each of the
others in proportion to the weights, and no user moves between two old nodes.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

NodeId = TypeVar("NodeId")
HASH_SIZE = 8  # bytes
_SCALE = 1 << (8 * HASH_SIZE)


def user_hash(username_key: str) -> bytes:
    """Return the hash of a user, by the normal form of the username: 8 bytes."""
    return hashlib.blake2b(username_key.encode(), digest_size=HASH_SIZE).digest()


class RendezvousNode(Generic[NodeId]):
    """A node with its weight. `address` is `host:port`: a node that returns has its users again."""

    __slots__ = ("_hash", "_inverse_weight", "node_id")

    def __init__(self, node_id: NodeId, address: str, weight: int) -> None:
        self.node_id = node_id
        self._hash = hashlib.blake2b(address.encode(), digest_size=HASH_SIZE, person=b"node")
        self._inverse_weight = -1.0 / weight

    def score(self, hash_of_user: bytes) -> float:
        """Return the number of this node for a user: the node with the lowest one has the user.

        The numbers are exponentially distributed, by weight.
        """
        pair_hash = self._hash.copy()
        pair_hash.update(hash_of_user)
        number = int.from_bytes(pair_hash.digest())
        return math.log((number + 0.5) / _SCALE) * self._inverse_weight


class RendezvousHash(Generic[NodeId]):
    """The nodes that users are mapped to."""

    def __init__(self, nodes: Iterable[RendezvousNode[NodeId]]) -> None:
        self.nodes: Sequence[RendezvousNode[NodeId]] = list(nodes)

    def node_id_of_user(self, hash_of_user: bytes) -> NodeId | None:
        """Return the id of the node of a user; None without nodes."""
        if not self.nodes:
            return None
        return min(self.nodes, key=lambda node: node.score(hash_of_user)).node_id
