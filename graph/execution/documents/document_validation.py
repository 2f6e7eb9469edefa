"""What a document is, and what is wrong with it, before anybody runs it."""

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
    """The names of a document's operations, and its faults; good is what has none."""

    operations: tuple[str, ...]
    faults: tuple[Fault, ...]


def judge(documents: Documents, text: str) -> Judged:
    """Look at a document, and at each of its operations, as if all of them were to be run."""
    if "\0" in text:  # graphql-core minds it in strings only, PostgreSQL everywhere
        return Judged((), (Fault("A document must not hold the character NUL.", "BAD_USER_INPUT"),))
    names = _names(text)
    found = [fault for name in names for fault in documents.find(text, name).faults]
    once = tuple(fault for nth, fault in enumerate(found) if fault not in found[:nth])
    return Judged(tuple(name for name in names if name), once)


def _names(text: str) -> list[str | None]:
    """What its operations are called. Where it cannot be read, or has none, `find` says more."""
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
