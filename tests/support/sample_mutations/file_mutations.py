"""Sample calls of mutations of files, exports and imports."""

from tests.conftest import Client, Clock
from tests.support.sample_mutations.mutation_call import Call, call


@call
async def file_delete(ada: Client, root: Client) -> Call:
    payload = await (await file_upload(ada, root))(ada)
    return Call("fileDelete", {"ids": [payload["file"]["id"]]}, "deletedIds")


@call
async def file_share_create(ada: Client, root: Client) -> Call:
    payload = await (await file_upload(ada, root))(ada)
    _tick_one_second(ada)
    input_fields = {"file": payload["file"]["id"], "mode": "SHARE_RW", "password": "correct horse"}
    return Call("fileShareCreate", input_fields, "share { mode hasPassword }")


@call
async def file_share_delete(ada: Client, root: Client) -> Call:
    create = await file_share_create(ada, root)
    payload = await Call(create.name, create.input, "share { id }")(ada)
    _tick_one_second(ada)
    return Call("fileShareDelete", {"ids": [payload["share"]["id"]]}, "deletedIds")


@call
async def account_export(_ada: Client, _root: Client) -> Call:
    return Call("accountExport", {"format": "JSON"}, "export { format state }")


@call
async def account_import(_ada: Client, _root: Client) -> Call:
    text = "From a@b.example Tue Jan  6 10:00:00 2026\nSubject: x\n\nx\n"
    return Call("accountImport", {"archive": {"text": text}}, "task { kind state }")


@call
async def file_upload(_ada: Client, _root: Client) -> Call:
    input_fields = {"filename": "pond.txt", "content": {"text": "Ducks."}}
    return Call("fileUpload", input_fields, "file { id filename size }")


def _tick_one_second(client: Client) -> None:
    """Advance the clock by a second, so that a changed time is visible."""
    clock = client.world.clock.read
    assert isinstance(clock, Clock)
    clock.tick(seconds=1)
