"""Implementation of `merganser documents remove`."""

import typer

from graph.execution.documents.documents_by_hash import DOCUMENT_ID_PREFIX, SHA256_HEX
from merganser.commands.environment_run import run_in_environment
from merganser.errors import EXIT_USAGE, CommandError
from merganser.server.environment_factory import root_context
from models.errors import NotFound
from resolvers.admin import trusted_documents


def remove_documents(hashes: list[str]) -> None:
    """Remove trusted documents. Raises CommandError if one is missing."""
    digests = list(dict.fromkeys(_parse_hash(hash_) for hash_ in hashes))
    try:
        run_in_environment(
            lambda environment, _settings: trusted_documents.remove_trusted_documents(
                root_context(environment), digests
            )
        )
    except NotFound as problem:
        text = f"Document not found: {problem.ref}. `merganser documents list` lists all documents."
        raise CommandError(text) from problem
    typer.echo(f"{len(digests)} removed.")


def _parse_hash(text: str) -> bytes:
    digest = text.removeprefix(DOCUMENT_ID_PREFIX)
    if not SHA256_HEX.fullmatch(digest):
        raise CommandError(
            f"{text} is not a hash. `merganser documents list` lists the hashes.",
            exit_code=EXIT_USAGE,
        )
    return bytes.fromhex(digest)
