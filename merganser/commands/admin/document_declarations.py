"""Declarations of the commands `merganser documents …`."""

from pathlib import Path
from typing import Annotated

import typer

from merganser.commands.lazy_commands import implemented_in
from merganser.commands.shared_options import JsonOption

declarations = typer.Typer()


@declarations.command("add")
@implemented_in("merganser.commands.admin.document_add_command")
def add_documents(
    files: Annotated[
        list[Path],
        typer.Argument(help="GraphQL files, or .json manifests of a client's compiler."),
    ],
) -> None:
    """Add trusted documents, all or none. Clients name them by their SHA-256.

    Each document is validated against the schema. A document that is already trusted isn't an
    error. Supported manifests are those of relay-compiler, graphql-codegen (persistedDocuments) and
    Apollo's generate-persisted-query-manifest, with SHA-256. A running server accepts new
    documents at once.

    Example: merganser documents add persisted-documents.json

    Example: merganser documents add queries/*.graphql
    """


@declarations.command("list")
@implemented_in("merganser.commands.admin.document_list_command")
def list_documents(as_json: JsonOption = False) -> None:
    """List all trusted documents: hash, operations and time of addition.

    Example: merganser documents list --json
    """


@declarations.command("remove")
@implemented_in("merganser.commands.admin.document_remove_command")
def remove_documents(
    hashes: Annotated[
        list[str], typer.Argument(help="Hashes, as `merganser documents list` shows them.")
    ],
) -> None:
    """Remove trusted documents, all or none. A running server refuses them within 1 second.

    Example: merganser documents remove 5d37f2d5…
    """
