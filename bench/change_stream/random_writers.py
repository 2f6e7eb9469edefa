"""Clients that change accounts at random. Requests may be invalid or interrupted."""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import httpx
import orjson

from bench.change_stream.follow_transports import (
    RETRYABLE_ERRORS,
    AccountEndpoint,
    ConnectionEnded,
    open_http_client,
    request_data,
)
from bench.load.lmtp_client import LmtpConnection, connect
from graph.types.global_ids import encode

MAILBOX_PATHS = ["INBOX", "Sent", "Trash", "Junk", "A", "A/B", "A/B/C", "B", "C", "C/D", "E", "a"]
FLAG_NAMES = ["\\Seen", "\\Flagged", "\\Answered", "\\Draft", "x", "y", "z"]
ARCHIVED_QUERY = "{ viewer { user { deletedMessages(first: 20) { nodes { id } } } } }"
RESTORED_PERIOD_SHARE = 0.3  # of the requests to restore, besides those by ID
VALIDATE_ONLY_SHARE, INVALID_SHARE, INTERRUPTED_SHARE = 0.05, 0.03, 0.03  # of all requests
MAX_SNOOZE_SECONDS = 2.0
MIN_INTERRUPT_SECONDS = 0.001
MAX_INTERRUPT_SECONDS = 0.02
REQUESTS_PER_CONNECTION = 12
RECONNECT_SECONDS = 0.1

MutationInput = dict[str, Any]


@dataclass
class RandomWriter:
    """A client that changes accounts."""

    endpoints: list[AccountEndpoint]
    addresses: list[str]
    lmtp_port: int
    random: Random
    operation_counts: Counter[str] = field(default_factory=Counter)  # by operation and outcome
    undo_tokens: list[tuple[int, str]] = field(default_factory=list)  # with the account
    message_count: int = 0
    name: str = ""

    async def write(self) -> None:
        """Write until cancelled."""
        roads: dict[str, tuple[int, Callable[[int], MutationInput]]] = {
            "messageUpdate": (8, self._flag_input),
            "messageMove": (5, self._move_input),
            "messageCopy": (2, self._copy_input),
            "messageDelete": (4, self._delete_input),
            "mailboxCreate": (3, self._create_mailbox_input),
            "mailboxRename": (3, self._rename_mailbox_input),
            "mailboxDelete": (2, self._delete_mailbox_input),
            "mailboxUpdate": (1, self._update_mailbox_input),
            "deletedMessageRestore": (3, self._restore_messages_input),
            "undo": (1, self._undo_input),
        }
        names, weights = [*roads, "deliver"], [*(one for one, _ in roads.values()), 12]
        while True:
            account_index = self.random.randrange(len(self.endpoints))
            try:
                async with open_http_client(
                    self.endpoints[account_index]
                ) as http:  # a connection to any of the processes
                    for name in self.random.choices(names, weights, k=REQUESTS_PER_CONNECTION):
                        if name == "deliver":
                            await self._deliver_messages()
                        else:
                            await self._send_mutation(
                                http, account_index, name, roads[name][1](account_index)
                            )
            except (*RETRYABLE_ERRORS, ConnectionEnded, asyncio.IncompleteReadError):
                self.operation_counts["away"] += 1
                await asyncio.sleep(RECONNECT_SECONDS)

    async def _send_mutation(
        self,
        client: httpx.AsyncClient,
        account_index: int,
        mutation_name: str,
        mutation_input: MutationInput,
    ) -> None:
        chance = self.random.random()
        is_restore_by_id = mutation_name == "deletedMessageRestore" and (
            "ids" in mutation_input["select"]
        )
        if is_restore_by_id and chance >= INVALID_SHARE:
            user = (await request_data(client, ARCHIVED_QUERY))["viewer"]["user"]
            ids = [one["id"] for one in user["deletedMessages"]["nodes"]]
            if not ids:
                return
            chosen_ids = self.random.sample(ids, min(len(ids), 7))
            mutation_input["select"] = {"ids": chosen_ids}
        if chance < INVALID_SHARE:
            _make_input_invalid(mutation_input, self.random)
        elif chance < INVALID_SHARE + VALIDATE_ONLY_SHARE:
            mutation_input["options"] = {"validateOnly": True}
        undoes = "undo { token }" if mutation_name in UNDOABLE_MUTATIONS else ""
        document = (
            f"mutation ($input: {mutation_name[0].upper()}{mutation_name[1:]}Input!) {{ it: "
            f"{mutation_name}(input: $input) "
            f"{{ {undoes} errors {{ code }} }} }}"
        )
        if (
            INVALID_SHARE + VALIDATE_ONLY_SHARE
            <= chance
            < INVALID_SHARE + VALIDATE_ONLY_SHARE + INTERRUPTED_SHARE
        ):
            await self._send_and_interrupt(client, document, mutation_input)
            self.operation_counts[f"{mutation_name}: broken off"] += 1
            return
        payload = (await request_data(client, document, input=mutation_input))["it"]
        outcome = (
            "refused" if payload["errors"] else "tried" if "options" in mutation_input else "done"
        )
        self.operation_counts[f"{mutation_name}: {outcome}"] += 1
        if payload.get("undo"):
            self.undo_tokens = [*self.undo_tokens[-9:], (account_index, payload["undo"]["token"])]

    async def _send_and_interrupt(
        self, client: httpx.AsyncClient, document: str, mutation_input: MutationInput
    ) -> None:
        """Send a mutation, and disconnect before the response."""
        with suppress(TimeoutError):
            async with asyncio.timeout(
                self.random.uniform(MIN_INTERRUPT_SECONDS, MAX_INTERRUPT_SECONDS)
            ):
                body = orjson.dumps({"query": document, "variables": {"input": mutation_input}})
                await client.post(
                    "/graphql", content=body, headers={"Content-Type": "application/json"}
                )

    async def _deliver_messages(self) -> None:
        """Deliver some messages over one LMTP connection. Some are interrupted."""
        lmtp_connection = await connect(self.lmtp_port)
        try:
            for _ in range(self.random.randint(1, 8)):
                self.message_count += 1
                text = f"{self.name} {self.message_count}"
                if self.random.random() < INTERRUPTED_SHARE:
                    await self._send_half_message(lmtp_connection, text)
                    self.operation_counts["deliver: broken off"] += 1
                    return
                reply = await lmtp_connection.deliver(
                    self.random.choice(self.addresses), make_message(text)
                )
                self.operation_counts[
                    f"deliver: {'done' if reply.startswith('250') else reply[:9]}"
                ] += 1
        finally:
            await lmtp_connection.close()

    async def _send_half_message(self, connection: LmtpConnection, text: str) -> None:
        to = self.random.choice(self.addresses)
        connection.writer.write(f"MAIL FROM:<x@example.com>\r\nRCPT TO:<{to}>\r\nDATA\r\n".encode())
        connection.writer.write(make_message(text)[:-40])
        await connection.writer.drain()

    def _random_selection(self) -> MutationInput:
        """Return a random selection of messages: all of a mailbox, some UIDs, or by flag."""
        chosen: MutationInput = {"mailbox": self._random_mailbox()}
        chance = self.random.random()
        if chance < 0.4:  # noqa: PLR2004
            first = self.random.randint(1, 400)
            chosen["uids"] = f"{first}:{first + self.random.randint(0, 60)}"
        elif chance < 0.7:  # noqa: PLR2004
            chosen["filter"] = {self.random.choice(["seen", "flagged"]): self._random_bool()}
        return chosen

    def _random_bool(self) -> bool:
        return self.random.random() < 0.5  # noqa: PLR2004

    def _random_mailbox(self) -> MutationInput:
        return {"path": self.random.choice(MAILBOX_PATHS)}

    def _flag_input(self, _account_index: int) -> MutationInput:
        flag_names = self.random.sample(FLAG_NAMES, self.random.randint(0, 2))
        given: MutationInput = {self.random.choice(["addFlags", "removeFlags"]): flag_names}
        if self.random.random() < 0.1:  # noqa: PLR2004
            until = datetime.now(UTC) + timedelta(
                seconds=self.random.uniform(0.5, MAX_SNOOZE_SECONDS)
            )
            given = {"snoozedUntil": self.random.choice([until.isoformat(), None])}
        elif self._random_bool():
            given["seen"] = self._random_bool()
        return {"select": self._random_selection(), "set": given}

    def _move_input(self, _account_index: int) -> MutationInput:
        return {"select": self._random_selection(), "to": self._random_mailbox()}

    def _copy_input(self, _account_index: int) -> MutationInput:
        first = self.random.randint(1, 400)
        uids = f"{first}:{first + self.random.randint(0, 9)}"
        return {
            "select": {"mailbox": self._random_mailbox(), "uids": uids},
            "to": self._random_mailbox(),
        }

    def _delete_input(self, _account_index: int) -> MutationInput:
        return {
            "select": self._random_selection(),
            "permanent": self.random.random() < 0.4,  # noqa: PLR2004
            "deleteEmptyMailbox": self.random.random() < 0.2,  # noqa: PLR2004
        }

    def _create_mailbox_input(self, _account_index: int) -> MutationInput:
        return {"paths": self.random.sample(MAILBOX_PATHS, self.random.randint(1, 2))}

    def _rename_mailbox_input(self, _account_index: int) -> MutationInput:
        return {"mailbox": self._random_mailbox(), "newPath": self.random.choice(MAILBOX_PATHS)}

    def _delete_mailbox_input(self, _account_index: int) -> MutationInput:
        return {"mailboxes": [self._random_mailbox()], "recursive": self._random_bool()}

    def _update_mailbox_input(self, _account_index: int) -> MutationInput:
        return {"mailboxes": [self._random_mailbox()], "set": {"subscribed": self._random_bool()}}

    def _restore_messages_input(self, _account_index: int) -> MutationInput:
        if self.random.random() < RESTORED_PERIOD_SHARE:
            end = datetime.now(UTC)
            start = end - timedelta(seconds=self.random.uniform(1, 5))
            return {"select": {"period": {"since": start.isoformat(), "before": end.isoformat()}}}
        return {"select": {"ids": [encode("DeletedMessage", 1)]}}

    def _undo_input(self, account_index: int) -> MutationInput:
        for tokens in self.undo_tokens:
            if tokens[0] == account_index:
                self.undo_tokens.remove(tokens)
                return {"token": tokens[1]}
        return {"token": "none"}


UNDOABLE_MUTATIONS = {"messageUpdate", "messageMove", "messageDelete"}


def _make_input_invalid(mutation_input: MutationInput, random: Random) -> None:
    """Make an input invalid, if possible so that it fails after half of the work."""
    wrong = random.choice(["No/such", "x/" * 40, "a//b"])
    for name in ("to", "mailbox"):
        if name in mutation_input:
            mutation_input[name] = {"path": wrong}
    if "mailboxes" in mutation_input:
        mutation_input["mailboxes"] = [*mutation_input["mailboxes"], {"path": wrong}]
    if "paths" in mutation_input:
        mutation_input["paths"] = [*mutation_input["paths"], "INBOX"]
    if "set" in mutation_input and "select" in mutation_input:
        mutation_input["set"] = {"addFlags": ["x", "not a word"]}
    if "newPath" in mutation_input:
        mutation_input["newPath"] = "INBOX"
    if set(mutation_input) == {"select"} and "ids" in mutation_input["select"]:
        mutation_input["select"] = {"ids": [encode("Message", 1)]}


def make_message(text: str) -> bytes:
    """Return a small message with this subject."""
    lines = (
        "From: Carol <carol@example.com>",
        "To: ada@example.org",
        f"Subject: {text}",
        f"Message-ID: <{text.replace(' ', '.')}@example.com>",
        "",
        f"This is {text}, and it says no more than that.",
    )
    return "".join(f"{line}\r\n" for line in lines).encode()
