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


@declarations.command("list")
@implemented_in("merganser.commands.admin.document_list_command")
def list_documents(as_json: JsonOption = False) -> None:
    """List all trusted documents: hash, operations, and when they were added.

    Example: merganser documents list --json
    """


@declarations.command("remove")
@implemented_in("merganser.commands.admin.document_remove_command")
def remove_documents(
    hashes: Annotated[
        list[str], typer.Argument(help="Hashes, as `merganser documents list` shows them.")
    ],
) -> None:
    """Trust documents no more, all or none. A running server forgets them within 5 seconds.

    Example: merganser documents remove 5d37f2d5…
    """
