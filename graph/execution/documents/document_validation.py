"""Validation of a document and of all its operations without running it."""

from typing import NamedTuple

from graphql import GraphQLSyntaxError, OperationDefinitionNode, parse

from graph.execution.documents.document_cache import (
    MAX_COMMENTS,
    MAX_DOCUMENT_LENGTH,
    MAX_TOKENS,
    DocumentCache,
    DocumentFault,
)


class DocumentVerdict(NamedTuple):
    """The operation names of a document and its faults. A valid document has no faults."""

    operation_names: tuple[str, ...]
    faults: tuple[DocumentFault, ...]


def validate_document(documents: DocumentCache, text: str) -> DocumentVerdict:
    """Validate a document and each of its operations."""
    if "\0" in text:  # graphql-core refuses it in strings only, PostgreSQL everywhere
        return DocumentVerdict(
            (), (DocumentFault("A document must not contain the character NUL.", "BAD_USER_INPUT"),)
        )
    names = _operation_names_or_single_none(text)
    all_faults = [
        fault
        for name in names
        for fault in documents.find_or_prepare_with_faults(text, name).faults
    ]
    distinct_faults = tuple(
        fault for nth, fault in enumerate(all_faults) if fault not in all_faults[:nth]
    )
    return DocumentVerdict(tuple(name for name in names if name), distinct_faults)


def _operation_names_or_single_none(text: str) -> list[str | None]:
    """Return the names of the operations; [None] if the document has none or can't be parsed."""
    if len(text) > MAX_DOCUMENT_LENGTH:
        return [None]
    try:
        document = parse(
            text,
            no_location=True,
            max_tokens=MAX_TOKENS,
            max_comments=MAX_COMMENTS,
            max_source_length=MAX_DOCUMENT_LENGTH,
        )
    except GraphQLSyntaxError:
        return [None]
    operation_names = [
        node.name.value if node.name else None
        for node in document.definitions
        if isinstance(node, OperationDefinitionNode)
    ]
    return operation_names or [None]
