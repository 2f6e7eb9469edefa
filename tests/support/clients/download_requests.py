"""A message to download, the paths of its files, and the error code of a response."""

import httpx
import pytest

from graph.http import download_urls
from tests.conftest import GraphQLClient, deliver_to
from tests.support.mail.multipart_message import MULTIPART_MESSAGE


@pytest.fixture
async def message(ada: GraphQLClient) -> int:
    """The multipart message in the mailbox of ada."""
    return (await deliver_to(ada, MULTIPART_MESSAGE)).message_id


def error_code(response: httpx.Response) -> str:
    (error,) = response.json()["errors"]
    assert error["message"]
    return str(error["extensions"]["code"])


def download_paths(message_id: int) -> list[str]:
    return [
        download_urls.message_source_path(message_id),
        download_urls.attachment_download_path(message_id, 0),
        download_urls.mime_part_path(message_id, "1.1"),
    ]
