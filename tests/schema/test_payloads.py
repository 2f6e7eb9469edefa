"""Payloads: one with errors alone can be returned by every mutation."""

from collections.abc import Iterator

import graph.schema  # noqa: F401 - imports the module of every payload
from graph.types.errors import MutationPayload


def payload_classes(base: type[MutationPayload] = MutationPayload) -> Iterator[type]:
    """Yield the classes of all payloads."""
    for payload_class in base.__subclasses__():
        yield payload_class
        yield from payload_classes(payload_class)


def test_every_payload_can_be_made_from_errors_alone() -> None:
    failing = []
    for payload_class in payload_classes():
        try:
            payload_class(errors=[])
        except TypeError as error:
            failing.append(str(error))
    assert list(payload_classes())
    assert failing == []
