"""Sample calls of mutations of files, exports and imports."""

from tests.conftest import GraphQLClient, ManualClock
from tests.support.sample_mutations.mutation_call import MutationCall, register_call


@register_call
async def file_delete(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    payload = await (await file_upload(ada, root))(ada)
    return MutationCall("fileDelete", {"files": [{"id": payload["file"]["id"]}]}, "deletedIds")


@register_call
async def file_share_create(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    payload = await (await file_upload(ada, root))(ada)
    _tick_one_second(ada)
    input_fields = {
        "file": {"id": payload["file"]["id"]},
        "mode": "WRITABLE_LINK",
        "password": "correct horse",
    }
    return MutationCall("fileShareCreate", input_fields, "fileShare { mode hasPassword }")


@register_call
async def file_share_delete(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    create = await file_share_create(ada, root)
    payload = await MutationCall(create.name, create.input, "fileShare { id }")(ada)
    _tick_one_second(ada)
    input_fields = {"fileShares": [{"id": payload["fileShare"]["id"]}]}
    return MutationCall("fileShareDelete", input_fields, "deletedIds")


@register_call
async def user_export(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall("userExport", {"format": "JSON"}, "userExport { format state }")


@register_call
async def user_import(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    text = "From a@b.example Tue Jan  6 10:00:00 2026\nSubject: x\n\nx\n"
    return MutationCall("userImport", {"archive": {"text": text}}, "task { kind state }")


@register_call
async def file_upload(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"filename": "pond.txt", "content": {"text": "Ducks."}}
    return MutationCall("fileUpload", input_fields, "file { id filename size }")


def _tick_one_second(client: GraphQLClient) -> None:
    """Advance the clock by a second, so that a changed time is visible."""
    clock = client.environment.clock.read
    assert isinstance(clock, ManualClock)
    clock.tick(seconds=1)
