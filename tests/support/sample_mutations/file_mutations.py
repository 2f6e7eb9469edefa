"""Calls about files, and accounts as files."""

from tests.conftest import Client, Clock
from tests.support.sample_mutations.mutation_call import Call, call


@call
async def file_delete(ada: Client, root: Client) -> Call:
    made = await (await file_upload(ada, root))(ada)
    return Call("fileDelete", {"ids": [made["file"]["id"]]}, "deletedIds")


@call
async def file_share_create(ada: Client, root: Client) -> Call:
    made = await (await file_upload(ada, root))(ada)
    _later(ada)
    given = {"file": made["file"]["id"], "mode": "SHARE_RW", "password": "correct horse"}
    return Call("fileShareCreate", given, "share { mode hasPassword }")


@call
async def file_share_delete(ada: Client, root: Client) -> Call:
    create = await file_share_create(ada, root)
    made = await Call(create.name, create.input, "share { id }")(ada)
    _later(ada)
    return Call("fileShareDelete", {"ids": [made["share"]["id"]]}, "deletedIds")


@call
async def account_export(_ada: Client, _root: Client) -> Call:
    return Call("accountExport", {"format": "JSON"}, "export { format state }")


@call
async def account_import(_ada: Client, _root: Client) -> Call:
    text = "From a@b.example Tue Jan  6 10:00:00 2026\nSubject: x\n\nx\n"
    return Call("accountImport", {"archive": {"text": text}}, "task { kind state }")


@call
async def file_upload(_ada: Client, _root: Client) -> Call:
    given = {"filename": "pond.txt", "content": {"text": "Ducks."}}
    return Call("fileUpload", given, "file { id filename size }")


def _later(client: Client) -> None:
    """Let a second pass: a change shows that leaves but its time."""
    clock = client.world.clock.read
    assert isinstance(clock, Clock)
    clock.tick(seconds=1)
