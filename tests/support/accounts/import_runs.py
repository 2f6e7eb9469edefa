"""Mail imports: archives in the formats of other programs, the runs, and the imported messages."""

import io
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from mail.network.outbound_http import NetworkPolicy
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.runtime.environment import Environment
from resolvers.connectors import worker as connector_worker
from resolvers.connectors.worker import ConnectorWorker
from tests.conftest import GraphQLClient, raw_message
from tests.support.accounts.user_operations import ERROR_FIELDS, execute_mutation

RUN_FIELDS = """id state dryRun connector { id } stage folder seenCount importedCount
skippedCount size error log startedAt finishedAt"""
REFERENCE_FIELDS = {
    "connectorRunCancel": "connectorRuns",
    "connectorDelete": "connectors",
    "connectorStart": "connectors",
}
IMPORT_FIELDS = f"replayed connectorRuns {{ {RUN_FIELDS} }}"
TEN_SUBJECTS = [f"{number:02}" for number in range(10)]


class WorkerCrash(BaseException):
    """The simulated crash of a connector worker; the worker stores nothing after it."""


def mbox_file(messages: Iterable[bytes]) -> bytes:
    """An mbox file with LF line ends, as mail programs store it."""
    return b"".join(
        b"From carol@example.com Tue Jan  6 10:00:00 2026\n" + raw.replace(b"\r\n", b"\n") + b"\n"
        for raw in messages
    )


def ten_message_mbox(size: int = 0) -> bytes:
    """An mbox file of ten messages."""
    return mbox_file(raw_message(subject, body="y" * size) for subject in TEN_SUBJECTS)


def maildir_tar(folders: Mapping[str, Iterable[tuple[str, bytes]]]) -> bytes:
    """A tar archive of a Maildir, with messages and their flags by folder such as ".Deep.er"."""
    buffer, number = io.BytesIO(), 0
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for folder, messages in folders.items():
            for name in ("cur", "new", "tmp"):
                directory = tarfile.TarInfo(f"Maildir/{folder}/{name}".replace("//", "/"))
                directory.type = tarfile.DIRTYPE
                archive.addfile(directory)
            for flags, raw in messages:
                number += 1
                file = tarfile.TarInfo(f"Maildir/{folder}/cur/{number}.host:2,{flags}")
                file.name = file.name.replace("//", "/")
                file.size, file.mtime = len(raw), 1_700_000_000 + number
                archive.addfile(file, io.BytesIO(raw))
    return buffer.getvalue()


def eml_zip(files: Mapping[str, bytes]) -> bytes:
    """A ZIP archive of files, by name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, raw in files.items():
            archive.writestr(name, raw)
    return buffer.getvalue()


async def upload_content(client: GraphQLClient, content: bytes) -> str:
    """Upload content and return the id of the upload."""
    response = await client.http.post("/rest/uploads", content=content, headers=client.headers)
    return str(response.json()["id"])


async def start_import(client: GraphQLClient, source: Mapping[str, Any], **options: Any) -> Any:
    """Run `mailImport` and return its payload."""
    return await execute_mutation(client, "mailImport", IMPORT_FIELDS, source=source, **options)


async def start_import_runs(client: GraphQLClient, content: bytes, **options: Any) -> list[str]:
    """Upload an archive, start its import, and return the ids of the queued runs."""
    payload = await start_import(
        client, {"upload": await upload_content(client, content)}, **options
    )
    assert payload["errors"] == []
    assert all(import_run["state"] == "QUEUED" for import_run in payload["connectorRuns"])
    return [import_run["id"] for import_run in payload["connectorRuns"]]


async def run_due_imports(environment: Environment) -> None:
    """Work on due runs until no run is due."""
    worker = ConnectorWorker(environment, NetworkPolicy(allows_private=True))
    while True:
        await connector_worker.start_due_runs(worker)
        if not worker.running:
            return
        for task in list(worker.running):
            await task


async def crash_worker(
    environment: Environment, crash_at: int, fault_point: str = "messages imported"
) -> None:
    """Work on due runs until the worker crashes at the `crash_at`-th pass of a fault point."""
    reached_count = 0

    def fault(reached_point: str) -> None:
        nonlocal reached_count
        reached_count += reached_point == fault_point
        if reached_count == crash_at:
            raise WorkerCrash

    with pytest.raises(WorkerCrash):
        await run_due_imports(replace(environment, reach_fault_point=fault))


async def run_mutation_on_id(client: GraphQLClient, mutation: str, object_id: str) -> Any:
    """Run a mutation of connectors or runs on one id, and return its payload."""
    document = f"""mutation ($input: {mutation[0].upper()}{mutation[1:]}Input!) {{
      {mutation}(input: $input) {{ {ERROR_FIELDS} }} }}"""
    return (await client(document, input={REFERENCE_FIELDS[mutation]: [{"id": object_id}]}))[
        mutation
    ]


async def load_run(client: GraphQLClient, run_id: str) -> Any:
    """Load a run as its owner sees it."""
    document = f"query ($id: ID!) {{ connectorRun(by: {{id: $id}}) {{ {RUN_FIELDS} }} }}"
    return (await client(document, id=run_id))["connectorRun"]


async def import_archive(client: GraphQLClient, content: bytes, **options: Any) -> Any:
    """Import an archive as one run, and return the finished run."""
    (run_id,) = await start_import_runs(client, content, **options)
    await run_due_imports(client.environment)
    return await load_run(client, run_id)


async def load_subjects_by_mailbox(client: GraphQLClient) -> dict[str, list[str]]:
    """Load the subjects of messages by mailbox path, without the server's own notices."""
    query = (
        select(col(Mailbox.path), col(Message.subject))
        .join(Message, col(Message.mailbox_id) == col(Mailbox.id))
        .where(
            col(Message.user_id) == client.user.id,
            col(Message.deleted_at).is_(None),
            col(Message.from_address) != "mailer-daemon@mx.example.org",
        )
    )
    subjects: dict[str, list[str]] = {}
    for row in await client.environment.database.read(query.order_by(col(Message.id))):
        subjects.setdefault(row.path, []).append(row.subject)
    return subjects


def message_counts(import_run: Any) -> tuple[int, int, int]:
    """The numbers of messages that a run has seen, imported and skipped."""
    return (
        int(import_run["seenCount"]),
        int(import_run["importedCount"]),
        int(import_run["skippedCount"]),
    )
