"""Sample calls of mutations of files, exports and imports."""

from tests.conftest import GraphQLClient, ManualClock
from tests.support.sample_mutations.mutation_call import Call, call


@call
async def file_delete(ada: GraphQLClient, root: GraphQLClient) -> Call:
    payload = await (await file_upload(ada, root))(ada)
    return Call("fileDelete", {"ids": [payload["file"]["id"]]}, "deletedIds")


@call
async def file_share_create(ada: GraphQLClient, root: GraphQLClient) -> Call:
    payload = await (await file_upload(ada, root))(ada)
    _tick_one_second(ada)
    input_fields = {"file": payload["file"]["id"], "mode": "SHARE_RW", "password": "correct horse"}
    return Call("fileShareCreate", input_fields, "share { mode hasPassword }")


@call
async def file_share_delete(ada: GraphQLClient, root: GraphQLClient) -> Call:
    create = await file_share_create(ada, root)
    payload = await Call(create.name, create.input, "share { id }")(ada)
    _tick_one_second(ada)
    return Call("fileShareDelete", {"ids": [payload["share"]["id"]]}, "deletedIds")


@call
async def account_export(_ada: GraphQLClient, _root: GraphQLClient) -> Call:
    return Call("accountExport", {"format": "JSON"}, "export { format state }")


@call
async def account_import(_ada: GraphQLClient, _root: GraphQLClient) -> Call:
    text = "From a@b.example Tue Jan  6 10:00:00 2026\nSubject: x\n\nx\n"
    return Call("accountImport", {"archive": {"text": text}}, "task { kind state }")


@call
async def file_upload(_ada: GraphQLClient, _root: GraphQLClient) -> Call:
    input_fields = {"filename": "pond.txt", "content": {"text": "Ducks."}}
    return Call("fileUpload", input_fields, "file { id filename size }")


def _tick_one_second(client: GraphQLClient) -> None:
    """Advance the clock by a second, so that a changed time is visible."""
    clock = client.environment.clock.read
    assert isinstance(clock, ManualClock)
    clock.tick(seconds=1)
