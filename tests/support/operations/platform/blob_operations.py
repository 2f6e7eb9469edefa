"""Operations on blobs, and messages with large content."""

import random
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import Any

from tests.conftest import GraphQLClient, deliver_to, raw_message
from tests.support.accounts.user_operations import execute_mutation

BLOBS_QUERY = """query ($filter: BlobFilter, $orderBy: BlobOrder!, $first: Int, $after: String,
  $last: Int, $before: String) { blobs(filter: $filter, orderBy: $orderBy, first: $first,
  after: $after, last: $last, before: $before) {
  nodes { store path size contentSize compression refCount sha256 tier modifiedAt }
  totalCount pageInfo { hasNextPage hasPreviousPage startCursor endCursor } } }"""
BLOB_QUERY = """query ($store: String!, $path: String!) { blob(store: $store, path: $path) {
  store path size contentSize compression refCount sha256 tier } }"""
TEXT_QUERY = """query ($path: String!, $maxBytes: Int!, $store: String! = "hot") {
  blob(path: $path, store: $store) { url text(maxBytes: $maxBytes) } }"""
BLOB_FIELDS = "blob { store path size refCount sha256 }"
AUDIT_QUERY = "{ auditLog(first: 50) { nodes { mutation actor before after } } }"


def large_body(seed: int) -> str:
    """A body that is too large for its row, even if it is compressed."""
    rng = random.Random(seed)  # noqa: S311 - reproducible
    return "\r\n".join(rng.randbytes(36).hex() for _ in range(10_000))


async def deliver_large_message(client: GraphQLClient, subject: str, seed: int = 7) -> bytes:
    """Deliver a message whose content is an object, and return it."""
    message = raw_message(subject, body=large_body(seed))
    await deliver_to(client, message)
    return message


async def deliver_text_attachment(client: GraphQLClient, text: str) -> None:
    """Deliver a message with a text attachment. Its decoded content is an object if it is large."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "carol@example.com", client.address, "File"
    message.set_content("See the attachment.")
    message.add_attachment(text.encode(), maintype="text", subtype="csv", filename="list.csv")
    await deliver_to(client, message.as_bytes(policy=SMTP))


async def list_blobs(client: GraphQLClient, **variables: Any) -> Any:
    """Return a page of the objects of a store."""
    return (await client(BLOBS_QUERY, **{"orderBy": "PATH_ASC", **variables}))["blobs"]


async def put_blob(client: GraphQLClient, path: str, text: str = "hello", **fields: Any) -> Any:
    """Run blobPut and return its payload."""
    fields = {"path": path, "content": {"text": text}, **fields}
    return await execute_mutation(client, "blobPut", BLOB_FIELDS, **fields)


async def load_audit_entries(client: GraphQLClient, *names: str) -> list[Any]:
    """Return the entries of the audit log with these mutations or fields, newest first."""
    entries = (await client(AUDIT_QUERY))["auditLog"]["nodes"]
    return [entry for entry in entries if entry["mutation"] in names]


def object_paths(folder: Path) -> list[str]:
    """The paths of the files of a folder store, without marks."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in {".mark", ".json"}
    )
