"""Validation of a document and of all its operations without running it."""

from typing import NamedTuple

from graphql import GraphQLSyntaxError, OperationDefinitionNode, parse

from graph.execution.documents.document_cache import (
    COMMENTS_MAX,
    TEXT_MAX,
    TOKENS_MAX,
    Documents,
    Fault,
)


class Judged(NamedTuple):
    """The operation names of a document and its faults. A valid document has no faults."""

    operations: tuple[str, ...]
    faults: tuple[Fault, ...]


def judge(documents: Documents, text: str) -> Judged:
    """Validate a document and each of its operations."""
    if "\0" in text:  # graphql-core refuses it in strings only, PostgreSQL everywhere
        return Judged((), (Fault("A document must not hold the character NUL.", "BAD_USER_INPUT"),))
    names = _names(text)
    found = [fault for name in names for fault in documents.find(text, name).faults]
    once = tuple(fault for nth, fault in enumerate(found) if fault not in found[:nth])
    return Judged(tuple(name for name in names if name), once)


def _names(text: str) -> list[str | None]:
    """Return the names of the operations; [None] if the document has none or can't be parsed."""
    if len(text) > TEXT_MAX:
        return [None]
    try:
        document = parse(
            text,
            no_location=True,
            max_tokens=TOKENS_MAX,
            max_comments=COMMENTS_MAX,
            max_source_length=TEXT_MAX,
        )
    except GraphQLSyntaxError:
        return [None]
    found = [
        node.name.value if node.name else None
        for node in document.definitions
        if isinstance(node, OperationDefinitionNode)
    ]
    return found or [None]
