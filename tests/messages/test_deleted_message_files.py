"""The files of a deleted message are not served, but its source is."""

from graph.http import download_urls
from graph.types import global_ids
from tests.conftest import GraphQLClient, deliver_to
from tests.support.clients.http_requests import get_path
from tests.support.mail.multipart_message import MULTIPART_MESSAGE
from tests.support.operations.bulk_operations import run_message_mutation


async def test_files_of_deleted_message_are_not_served(ada: GraphQLClient) -> None:
    message_id = (await deliver_to(ada, MULTIPART_MESSAGE)).message_id
    paths = [
        download_urls.message_source_path(message_id),
        download_urls.attachment_download_path(message_id, 0),
        download_urls.mime_part_path(message_id, "1"),
        download_urls.zip_path(message_id),
    ]
    assert [(await get_path(ada, path)).status_code for path in paths] == [200] * 4
    selection = {"ids": [global_ids.encode("Message", message_id)]}
    payload = await run_message_mutation(ada, "messageDelete", select=selection)
    assert payload["deletedCount"] == 1
    assert [(await get_path(ada, path)).status_code for path in paths] == [404] * 4
    deleted = await get_path(ada, download_urls.deleted_message_path(message_id))
    assert deleted.content == MULTIPART_MESSAGE
