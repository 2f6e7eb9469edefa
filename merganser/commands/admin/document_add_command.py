"""Implementation of `merganser documents add`. It needs the schema, which is slow to import."""

from collections.abc import Iterable
from pathlib import Path

import typer

from graph.execution.documents.document_cache import DocumentFault
from graph.execution.documents.document_validation import validate_document
from graph.schema import schema
from merganser.commands.admin.document_manifests import ManifestDocument, read_documents
from merganser.commands.environment_run import run_in_environment
from merganser.commands.progress_bar import create_progress_bar
from merganser.errors import CommandError
from merganser.server.environment_factory import root_context
from resolvers.admin import trusted_documents
from resolvers.admin.trusted_documents import NewTrustedDocument

MAX_PRINTED_ERRORS = 100  # more are mostly the same error again


def add_documents(files: list[Path]) -> None:
    """Validate the documents of files and store them as trusted."""
    entries = [entry for path in files for entry in read_documents(path)]
    new = _validate_documents_or_fail_command(entries)
    added = run_in_environment(
        lambda environment, _settings: trusted_documents.add_documents_and_count_new(
            root_context(environment), new
        )
    )
    known_count = len({entry.text for entry in new}) - added
    typer.echo(f"{added} added." + (f" {known_count} already existed." if known_count else ""))


def _validate_documents_or_fail_command(
    documents: list[ManifestDocument],
) -> list[NewTrustedDocument]:
    """Validate documents against the schema and return them.

    Prints the errors of each invalid document, then raises CommandError.
    """
    new: list[NewTrustedDocument] = []
    problems: list[list[str]] = []
    with create_progress_bar() as bar:
        for entry in bar.track(documents, description="Reading documents"):
            errors = validate_document(schema.documents, entry.text)
            new.append(NewTrustedDocument(entry.text, errors.operation_names))
            if wrong := _error_lines(entry, errors.faults):
                problems.append(wrong)
    for line in [line for wrong in problems for line in wrong][:MAX_PRINTED_ERRORS]:
        typer.echo(" ".join(line.split()), err=True)
    if problems:
        raise CommandError(
            f"No documents were added: {len(problems)} of {len(documents)} documents are invalid."
        )
    return new


def _error_lines(document: ManifestDocument, faults: Iterable[DocumentFault]) -> list[str]:
    error_lines = [f"{document.location()}: {document.hash_error}"] if document.hash_error else []
    for fault in faults:
        at = fault.locations[0] if fault.locations else None
        inside = f" (line {at.line} of it)" if at and document.hash_in_manifest else ""
        error_lines.append(f"{document.location(at.line if at else None)}: {fault.message}{inside}")
    return error_lines
