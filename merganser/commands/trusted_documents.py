"""The commands `merganser documents …`."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merganser.errors import MISUSED, Trouble

if TYPE_CHECKING:
    from collections.abc import Iterable

    from graph.execution.documents.document_cache import Fault
    from merganser.commands.document_manifests import Entry
    from merganser.settings.settings import Settings
    from models.runtime.environment import World
    from resolvers.admin.trusted_documents import NewDocument

TOLD = 100  # more are mostly the same error again


def add(
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
    from merganser.commands.document_manifests import entries
    from merganser.commands.environment_run import run

    found = [entry for path in files for entry in entries(path)]
    new = _judged(found)

    async def run_operation(environment: "World", _settings: "Settings") -> int:
        from merganser.server.environment_factory import owner
        from resolvers.admin import trusted_documents as documents

        return await documents.add(owner(environment), new)

    added = run(run_operation)
    known = len({each.text for each in new}) - added
    typer.echo(f"{added} added." + (f" {known} were there already." if known else ""))


def _judged(found: "list[Entry]") -> "list[NewDocument]":
    """Validate documents against the schema and return them.

    Prints the errors of each invalid document, then raises CommandError.
    """
    from graph.execution.documents.document_validation import judge
    from graph.schema import schema
    from merganser.commands.progress_bar import progress_bar
    from resolvers.admin.trusted_documents import NewDocument

    new: list[NewDocument] = []
    bad: list[list[str]] = []
    with progress_bar() as bar:
        for entry in bar.track(found, description="Reading documents"):
            judged = judge(schema.documents, entry.text)
            new.append(NewDocument(entry.text, judged.operations))
            if wrong := _complaints(entry, judged.faults):
                bad.append(wrong)
    for line in [line for wrong in bad for line in wrong][:TOLD]:
        typer.echo(" ".join(line.split()), err=True)
    if bad:
        raise Trouble(f"nothing is added: {len(bad)} of {len(found)} documents cannot be trusted")
    return new


def _complaints(entry: "Entry", faults: "Iterable[Fault]") -> list[str]:
    found = [f"{entry.place()}: {entry.fault}"] if entry.fault else []
    for fault in faults:
        at = fault.locations[0] if fault.locations else None
        inside = f" (line {at.line} of it)" if at and entry.name else ""
        found.append(f"{entry.place(at.line if at else None)}: {fault.message}{inside}")
    return found


def list_documents(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List all trusted documents: hash, operations, and when they were added.

    Example: merganser documents list --json
    """
    import json

    from merganser.commands.environment_run import run
    from merganser.commands.terminal_tables import shown

    async def run_operation(environment: "World", _settings: "Settings") -> list[dict[str, Any]]:
        from merganser.server.environment_factory import owner
        from resolvers.admin import trusted_documents as documents

        return [
            {
                "hash": row.hash.hex(),
                "operations": row.operations,
                "added_at": row.added_at.isoformat(),
            }
            for row in await documents.all_of(owner(environment))
        ]

    found = run(run_operation)
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    rows = [(each["hash"], " ".join(each["operations"]), each["added_at"]) for each in found]
    shown(("hash", "operations", "added at"), rows)


def remove(
    hashes: Annotated[
        list[str], typer.Argument(help="Hashes, as `merganser documents list` shows them.")
    ],
) -> None:
    """Trust documents no more, all or none. A running server forgets them within 5 seconds.

    Example: merganser documents remove 5d37f2d5…
    """
    from merganser.commands.environment_run import run
    from models.errors import NotFound

    wanted = list(dict.fromkeys(_hash(each) for each in hashes))

    async def run_operation(environment: "World", _settings: "Settings") -> None:
        from merganser.server.environment_factory import owner
        from resolvers.admin import trusted_documents as documents

        await documents.remove(owner(environment), wanted)

    try:
        run(run_operation)
    except NotFound as problem:
        text = f"there is no document {problem.ref}: `merganser documents list` shows all"
        raise Trouble(text) from problem
    typer.echo(f"{len(wanted)} removed.")


def _hash(text: str) -> bytes:
    from graph.execution.documents.documents_by_hash import HEX, PREFIX

    found = text.removeprefix(PREFIX)
    if not HEX.fullmatch(found):
        raise Trouble(f"{text} is no hash: `merganser documents list` shows them", code=MISUSED)
    return bytes.fromhex(found)


def documents() -> typer.Typer:
    """Create the command group `documents`."""
    made = typer.Typer(help="Add, list and remove trusted documents.", no_args_is_help=True)
    made.command("add")(add)
    made.command("list")(list_documents)
    made.command("remove")(remove)
    return made
