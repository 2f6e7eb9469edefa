"""Payloads: one with errors alone can be returned by every mutation."""

from collections.abc import Iterator

import graph.schema  # noqa: F401 - imports the module of every payload
from graph.types.errors import MutationPayload
from tests.support.schema.printed_schema import SDL


def payload_classes(base: type[MutationPayload] = MutationPayload) -> Iterator[type]:
    """Yield the classes of all payloads, without base classes that the schema does not have."""
    for payload_class in base.__subclasses__():
        if payload_class.__name__ in SDL.type_map:
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
