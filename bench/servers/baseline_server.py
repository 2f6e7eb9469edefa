"""The baseline: the same reads and writes, hand-written, in a process of its own.

It uses SQL, dictionaries and orjson over a copy of the SQLite file: no GraphQL, no credentials,
no rules, no undo, no wake-ups. Its deliveries are an LMTP conversation and one row with the
whole message.
"""

import asyncio
import email
import email.policy
import sqlite3
import sys
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import nh3
import orjson
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FLAGS = ("\\Seen", "\\Answered", "\\Flagged", "\\Deleted", "\\Draft")
PREVIEW_LENGTH = 128  # bytes
SELECT_MAILBOX = "SELECT id, path, message_count, unseen_count, user_id FROM mailboxes WHERE id = ?"
SELECT_MESSAGES = (
    'SELECT id, subject, from_name, from_address, "to", date, size, preview, attachment_count,'
    " keywords, seen, answered, flagged, deleted, draft FROM messages WHERE mailbox_id = ?"
)
ORDER_AND_LIMIT = " ORDER BY listed_at DESC, id DESC LIMIT 50"
SELECT_POSITION = (
    "SELECT listed_at, id FROM messages WHERE mailbox_id = ?"
    " ORDER BY listed_at DESC, id DESC LIMIT 1 OFFSET ?"
)
SELECT_MAILBOXES = (
    "SELECT id, path, special_use, message_count, unseen_count, size FROM mailboxes"
    " WHERE user_id = ? ORDER BY path <> 'INBOX', path"
)
SELECT_OWNER = "SELECT user_id FROM mailboxes WHERE id = ?"
ADVANCE_STREAM = "UPDATE streams SET last = last + ? WHERE id = ? RETURNING last"
UPDATE_FLAG = (
    "UPDATE messages SET flagged = ?, modseq = ? WHERE id IN (SELECT value FROM json_each(?))"
    " RETURNING id, seen, answered, flagged, deleted, draft, keywords"
)
UPDATE_MAILBOX = "UPDATE mailboxes SET modseq = ? WHERE id = ?"
INSERT_CHANGE = "INSERT INTO changes VALUES (?, ?, ?, ?, ?, ?, NULL)"
INSERT_MESSAGE = "INSERT INTO baseline_messages (at, raw) VALUES (?, ?)"

RequestHandler = Callable[[dict[str, Any]], dict[str, Any]]


def global_id(prefix: str, key: int) -> str:
    """Return an ID in the format of Merganser's global IDs."""
    return f"{prefix}_{urlsafe_b64encode(key.to_bytes(8, 'big')).decode().rstrip('=')}"


class BaselineDatabase:
    """One SQLite connection. Its methods answer requests; their names are the HTTP paths."""

    def __init__(self, database_file: str) -> None:
        self.db = sqlite3.connect(database_file, isolation_level=None, cached_statements=512)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "mmap_size=268435456"):
            self.db.execute(f"PRAGMA {pragma}")
        self.db.execute("CREATE TABLE IF NOT EXISTS baseline_messages (at TEXT, raw BLOB)")

    def page(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the mailbox and 50 of its messages, after a position if one is given."""
        key, path, total, unseen, _ = self.db.execute(SELECT_MAILBOX, (request["box"],)).fetchone()
        if after := request.get("after"):
            sql = f"{SELECT_MESSAGES} AND (listed_at, id) < (?, ?){ORDER_AND_LIMIT}"
            rows = self.db.execute(sql, (key, *after))
        else:
            rows = self.db.execute(SELECT_MESSAGES + ORDER_AND_LIMIT, (key,))
        mailbox = {
            "id": global_id("box", key),
            "path": path,
            "messageCount": total,
            "unseenCount": unseen,
            "messages": {"nodes": [_message_node(row) for row in rows]},
        }
        return {"mailbox": mailbox}

    def place(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the position before a page, by the number of newer messages.

        It is not measured.
        """
        row = self.db.execute(SELECT_POSITION, (request["box"], request["skip"] - 1)).fetchone()
        return {"after": row}

    def boxes(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return all mailboxes with their counters."""
        (user,) = self.db.execute(SELECT_OWNER, (request["box"],)).fetchone()
        nodes = [_mailbox_node(row) for row in self.db.execute(SELECT_MAILBOXES, (user,))]
        return {"user": {"mailboxes": {"nodes": nodes}}}

    def message(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return a message in full, parsed by the standard library."""
        row = self.db.execute("SELECT raw FROM baseline_messages WHERE rowid = 1").fetchone()
        parsed = email.message_from_bytes(row[0], policy=email.policy.default)
        text, html = parsed.get_body(("plain",)), parsed.get_body(("html",))
        message = {
            "text": text.get_content() if text else None,
            "html": [nh3.clean(html.get_content())] if html else [],
            "headers": [{"name": key, "value": str(value)} for key, value in parsed.items()],
            "attachments": [
                {"filename": part.get_filename(), "contentType": part.get_content_type()}
                for part in parsed.iter_attachments()
            ],
        }
        return {"message": message}

    def start(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return page, mailboxes and message together."""
        return {**self.page(request), **self.boxes(request), **self.message(request)}

    def flag(self, request: dict[str, Any]) -> dict[str, Any]:
        """Set or clear a flag and write the journal in one durable transaction."""
        ids, mailbox_id, at = request["ids"], request["box"], datetime.now(UTC).isoformat(" ")
        (user,) = self.db.execute(SELECT_OWNER, (mailbox_id,)).fetchone()
        self.db.execute("BEGIN IMMEDIATE")
        (last,) = self.db.execute(ADVANCE_STREAM, (len(ids), user)).fetchone()
        rows = self.db.execute(UPDATE_FLAG, (request["flagged"], last, orjson.dumps(ids).decode()))
        flags = {row[0]: _flag_names(row[1:6], row[6]) for row in rows.fetchall()}
        nodes = [
            {"id": global_id("msg", key), "imap": {"flags": names, "modseq": last}}
            for key, names in flags.items()
        ]
        facts = orjson.dumps({"mailbox": mailbox_id, "flags": list(flags.values())})
        self.db.execute(UPDATE_MAILBOX, (last, mailbox_id))
        plain = orjson.dumps(ids).decode()
        self.db.execute(INSERT_CHANGE, (user, last, at, "MESSAGE_UPDATED", plain, facts.decode()))
        self.db.execute("COMMIT")
        return {
            "updatedCount": len(ids),
            "messages": nodes if request.get("display_address") else [],
        }

    def store_message(self, raw_message: bytes) -> None:
        """Store a whole message durably."""
        self.db.execute(INSERT_MESSAGE, (datetime.now(UTC).isoformat(), raw_message))


def _message_node(message_row: Sequence[Any]) -> dict[str, Any]:
    (key, subject, name, address, to, date, size, preview, count, keywords, *flags) = message_row
    return {
        "id": global_id("msg", key),
        "subject": subject,
        "from": {"name": name, "address": address} if name or address else None,
        "to": [{"name": name, "address": address} for name, address in orjson.loads(to)],
        "date": f"{date[:10]}T{date[11:19]}Z" if date else None,
        "imap": {"flags": _flag_names(flags, keywords)},
        "size": size,
        "preview": preview.encode()[:PREVIEW_LENGTH].decode(errors="ignore"),
        "attachmentCount": count,
    }


def _flag_names(values: Sequence[int], keywords: str) -> list[str]:
    flag_names = [name for name, value in zip(FLAGS, values, strict=True) if value]
    return [*flag_names, *orjson.loads(keywords)]


def _mailbox_node(mailbox_row: Sequence[Any]) -> dict[str, Any]:
    key, path, use, total, unseen, size = mailbox_row
    return {
        "id": global_id("box", key),
        "path": path,
        "specialUse": use,
        "messageCount": total,
        "unseenCount": unseen,
        "size": size,
    }


class BaselineLmtpProtocol(asyncio.Protocol):
    """LMTP server with pipelining that accepts mail for every recipient."""

    def __init__(self, database: BaselineDatabase) -> None:
        self.database = database
        self.received = bytearray()
        self.is_in_data = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the greeting."""
        self.transport = cast("asyncio.Transport", transport)  # of a TCP socket
        self.transport.write(b"220 baseline\r\n")

    def data_received(self, data: bytes) -> None:
        """Process commands and messages."""
        self.received += data
        while (end := self.received.find(b"\r\n.\r\n" if self.is_in_data else b"\r\n")) >= 0:
            if self.is_in_data:
                self.database.store_message(
                    bytes(self.received[: end + 2]).replace(b"\r\n..", b"\r\n.")
                )
                del self.received[: end + 5]
                self.is_in_data = False
                self.transport.write(b"250 2.0.0 Kept\r\n")
                continue
            self.is_in_data = self.received.startswith(b"DATA")
            del self.received[: end + 2]
            self.transport.write(b"354 Go on\r\n" if self.is_in_data else b"250 2.0.0 Fine\r\n")


def _json_endpoint(handler: RequestHandler) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        arguments = orjson.loads(await request.body())
        return Response(orjson.dumps(handler(arguments)), media_type="application/json")

    return endpoint


async def _health(_request: Request) -> Response:
    return Response()


async def serve(database_file: str, http_port: int, lmtp_port: int) -> None:
    """Serve on loopback until SIGTERM."""
    database = BaselineDatabase(database_file)
    answers = (
        database.page,
        database.place,
        database.boxes,
        database.message,
        database.start,
        database.flag,
    )
    routes = [
        Route(f"/{answer.__name__}", _json_endpoint(answer), methods=["POST"]) for answer in answers
    ]
    app = Starlette(routes=[*routes, Route("/health", _health)])
    loop = asyncio.get_running_loop()
    mailmen = await loop.create_server(
        lambda: BaselineLmtpProtocol(database), "127.0.0.1", lmtp_port
    )
    config = uvicorn.Config(
        app, port=http_port, log_config=None, access_log=False, http="httptools", loop="uvloop"
    )
    await uvicorn.Server(config).serve()
    mailmen.close()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
