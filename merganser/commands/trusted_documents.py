"""The commands `merganser documents …`."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merganser.errors import EXIT_USAGE, CommandError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from graph.execution.documents.document_cache import DocumentFault
    from merganser.commands.document_manifests import ManifestDocument
    from merganser.settings.settings import Settings
    from models.runtime.environment import Environment
    from resolvers.admin.trusted_documents import NewTrustedDocument

MAX_PRINTED_ERRORS = 100  # more are mostly the same error again


def add_documents(
    files: Annotated[
        list[Path],
        typer.Argument(help="Files of GraphQL, or .json manifests that a client's compiler wrote."),
    ],
) -> None:
    """Trust documents, all or none: clients may then name them by their SHA-256.

    Each is held against the schema first. Known ones may be among them: adding twice is no
    error. Manifests are those of relay-compiler, of graphql-codegen (persistedDocuments) and of
    Apollo's generate-persisted-query-manifest, made with SHA-256. A running server takes new
    documents at once.

    Example: merganser documents add persisted-documents.json

    Example: merganser documents add queries/*.graphql
    """
    from merganser.commands.document_manifests import read_documents
    from merganser.commands.environment_run import run_in_environment

    found = [entry for path in files for entry in read_documents(path)]
    new = _validate_documents(found)

    async def run_operation(environment: "Environment", _settings: "Settings") -> int:
        from merganser.server.environment_factory import root_context
        from resolvers.admin import trusted_documents as documents

        return await documents.add_documents(root_context(environment), new)

    added = run_in_environment(run_operation)
    known_count = len({each.text for each in new}) - added
    typer.echo(f"{added} added." + (f" {known_count} were there already." if known_count else ""))


def _validate_documents(documents: "list[ManifestDocument]") -> "list[NewTrustedDocument]":
    """Validate documents against the schema and return them.

    Prints the errors of each invalid document, then raises CommandError.
    """
    from graph.execution.documents.document_validation import validate_document
    from graph.schema import schema
    from merganser.commands.progress_bar import create_progress_bar
    from resolvers.admin.trusted_documents import NewTrustedDocument

    new: list[NewTrustedDocument] = []
    problems: list[list[str]] = []
    with create_progress_bar() as bar:
        for entry in bar.track(documents, description="Reading documents"):
            judged = validate_document(schema.documents, entry.text)
            new.append(NewTrustedDocument(entry.text, judged.operation_names))
            if wrong := _error_lines(entry, judged.faults):
                problems.append(wrong)
    for line in [line for wrong in problems for line in wrong][:MAX_PRINTED_ERRORS]:
        typer.echo(" ".join(line.split()), err=True)
    if problems:
        raise CommandError(
            f"nothing is added: {len(problems)} of {len(documents)} documents cannot be trusted"
        )
    return new


def _error_lines(document: "ManifestDocument", faults: "Iterable[DocumentFault]") -> list[str]:
    found = [f"{document.location()}: {document.hash_error}"] if document.hash_error else []
    for fault in faults:
        at = fault.locations[0] if fault.locations else None
        inside = f" (line {at.line} of it)" if at and document.hash_in_manifest else ""
        found.append(f"{document.location(at.line if at else None)}: {fault.message}{inside}")
    return found


def list_documents(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List all trusted documents: hash, operations, and when they were added.

    Example: merganser documents list --json
    """
    import json

    from merganser.commands.environment_run import run_in_environment
    from merganser.commands.terminal_tables import print_table

    async def run_operation(
        environment: "Environment", _settings: "Settings"
    ) -> list[dict[str, Any]]:
        from merganser.server.environment_factory import root_context
        from resolvers.admin import trusted_documents as documents

        return [
            {
                "hash": row.hash.hex(),
                "operations": row.operations,
                "added_at": row.added_at.isoformat(),
            }
            for row in await documents.list_documents(root_context(environment))
        ]

    found = run_in_environment(run_operation)
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    rows = [(each["hash"], " ".join(each["operations"]), each["added_at"]) for each in found]
    print_table(("hash", "operations", "added at"), rows)


def remove_documents(
    hashes: Annotated[
        list[str], typer.Argument(help="Hashes, as `merganser documents list` shows them.")
    ],
) -> None:
    """Trust documents no more, all or none. A running server forgets them within 5 seconds.

    Example: merganser documents remove 5d37f2d5…
    """
    from merganser.commands.environment_run import run_in_environment
    from models.errors import NotFound

    digests = list(dict.fromkeys(_parse_hash(each) for each in hashes))

    async def run_operation(environment: "Environment", _settings: "Settings") -> None:
        from merganser.server.environment_factory import root_context
        from resolvers.admin import trusted_documents as documents

        await documents.remove_documents(root_context(environment), digests)

    try:
        run_in_environment(run_operation)
    except NotFound as problem:
        text = f"there is no document {problem.ref}: `merganser documents list` shows all"
        raise CommandError(text) from problem
    typer.echo(f"{len(digests)} removed.")


def _parse_hash(text: str) -> bytes:
    from graph.execution.documents.documents_by_hash import DOCUMENT_ID_PREFIX, SHA256_HEX

    found = text.removeprefix(DOCUMENT_ID_PREFIX)
    if not SHA256_HEX.fullmatch(found):
        raise CommandError(
            f"{text} is no hash: `merganser documents list` shows them", exit_code=EXIT_USAGE
        )
    return bytes.fromhex(found)


def document_commands() -> typer.Typer:
    """Create the command group `documents`."""
    app = typer.Typer(help="Add, list and remove trusted documents.", no_args_is_help=True)
    app.command("add")(add_documents)
    app.command("list")(list_documents)
    app.command("remove")(remove_documents)
    return app
