"""Single imports, for tests: archives as other programs make them, runs, and what has come."""

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
from tests.conftest import Client, raw_message
from tests.support.accounts.user_operations import ERRORS, run

RUN = """id state trial connector { id } stage folder seen imported skipped bytes error log
startedAt finishedAt"""
INPUTS = {
    "connectorCancel": "IdsInput",
    "connectorDelete": "IdsInput",
    "connectorRun": "ConnectorRunInput",
}
RUNS = f"replayed run {{ id }} runs {{ {RUN} }}"


MANY = [f"{number:02}" for number in range(10)]


class Crashed(BaseException):
    """A worker that is gone, and has noted nothing."""


def mbox(messages: Iterable[bytes]) -> bytes:
    """As mail programs keep mail in one file, with line ends of their own."""
    return b"".join(
        b"From carol@example.com Tue Jan  6 10:00:00 2026\n" + raw.replace(b"\r\n", b"\n") + b"\n"
        for raw in messages
    )


def many(size: int = 0) -> bytes:
    """An mbox of ten."""
    return mbox(raw_message(name, body="y" * size) for name in MANY)


def maildir_tar(folders: Mapping[str, Iterable[tuple[str, bytes]]]) -> bytes:
    """A Maildir with folders like ".Deep.er", and in each messages with their flags."""
    held, number = io.BytesIO(), 0
    with tarfile.open(fileobj=held, mode="w") as archive:
        for folder, messages in folders.items():
            for name in ("cur", "new", "tmp"):
                place = tarfile.TarInfo(f"Maildir/{folder}/{name}".replace("//", "/"))
                place.type = tarfile.DIRTYPE
                archive.addfile(place)
            for flags, raw in messages:
                number += 1
                file = tarfile.TarInfo(f"Maildir/{folder}/cur/{number}.host:2,{flags}")
                file.name = file.name.replace("//", "/")
                file.size, file.mtime = len(raw), 1_700_000_000 + number
                archive.addfile(file, io.BytesIO(raw))
    return held.getvalue()


def eml_zip(files: Mapping[str, bytes]) -> bytes:
    """A ZIP of files."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, raw in files.items():
            archive.writestr(name, raw)
    return held.getvalue()


async def sent(client: Client, content: bytes) -> str:
    """An upload's id."""
    answer = await client.http.post("/rest/uploads", content=content, headers=client.headers)
    return str(answer.json()["id"])


async def begin(client: Client, source: Mapping[str, Any], **given: Any) -> Any:
    """The payload of mailImport."""
    return await run(client, "mailImport", RUNS, source=source, **given)


async def begun(client: Client, content: bytes, **given: Any) -> list[str]:
    """The runs of an archive that may be imported."""
    done = await begin(client, {"upload": await sent(client, content)}, **given)
    assert done["errors"] == []
    assert [one["state"] for one in done["runs"]] == ["QUEUED"] * len(done["runs"])
    return [one["id"] for one in done["runs"]]


async def work(world: Environment) -> None:
    """Run what is due, until nothing is."""
    worker = ConnectorWorker(world, NetworkPolicy(allows_private=True))
    while True:
        await connector_worker.start_due_runs(worker)
        if not worker.running:
            return
        for task in list(worker.running):
            await task


async def crash(world: Environment, nth: int, place: str = "brought") -> None:
    """Run what is due until its nth unit is stored, which its worker does not survive."""
    seen = 0

    def fault(here: str) -> None:
        nonlocal seen
        seen += here == place
        if seen == nth:
            raise Crashed

    with pytest.raises(Crashed):
        await work(replace(world, reach_fault_point=fault))


async def upon(client: Client, mutation: str, key: str) -> Any:
    """What a mutation of connectors or runs does to one."""
    document = f"""mutation ($input: {INPUTS[mutation]}!) {{
      {mutation}(input: $input) {{ {ERRORS} }} }}"""
    return (await client(document, input={"ids": [key]}))[mutation]


async def ended(client: Client, key: str) -> Any:
    """A run as its owner sees it."""
    document = f"query ($id: ID!) {{ connectorRun(id: $id) {{ {RUN} }} }}"
    return (await client(document, id=key))["connectorRun"]


async def imported(client: Client, content: bytes, **given: Any) -> Any:
    """The only run of an archive, at its end."""
    (key,) = await begun(client, content, **given)
    await work(client.world)
    return await ended(client, key)


async def held(client: Client) -> dict[str, list[str]]:
    """Subjects by folder, without our own letters."""
    asked = (
        select(col(Mailbox.path), col(Message.subject))
        .join(Message, col(Message.mailbox_id) == col(Mailbox.id))
        .where(
            col(Message.user_id) == client.user.id,
            col(Message.archived_at).is_(None),
            col(Message.from_address) != "mailer-daemon@mx.example.org",
        )
    )
    found: dict[str, list[str]] = {}
    for row in await client.world.database.read(asked.order_by(col(Message.id))):
        found.setdefault(row.path, []).append(row.subject)
    return found


def counted(run: Any) -> tuple[int, int, int]:
    """Seen, imported, skipped."""
    return int(run["seen"]), int(run["imported"]), int(run["skipped"])
