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

from bench.change_stream.follow_transports import BROKEN, Broken, Place, ask, asking
from bench.load.lmtp_client import Neighbour, connected
from graph.types.global_ids import encode

PATHS = ["INBOX", "Sent", "Trash", "Junk", "A", "A/B", "A/B/C", "B", "C", "C/D", "E", "a"]
WORDS = ["\\Seen", "\\Flagged", "\\Answered", "\\Draft", "x", "y", "z"]
ARCHIVED = "{ viewer { user { archivedMessages(first: 20) { nodes { id } } } } }"
TRIAL, WRONG, CUT = 0.05, 0.03, 0.03  # of all requests
ASLEEP = 2.0
LEAST = 0.001
LATEST = 0.02
TOGETHER = 12
PAUSE = 0.1

Given = dict[str, Any]


@dataclass
class Writer:
    """A client that changes accounts."""

    places: list[Place]
    addresses: list[str]
    lmtp: int
    random: Random
    done: Counter[str] = field(default_factory=Counter)  # by operation and outcome
    tokens: list[tuple[int, str]] = field(default_factory=list)  # with the account
    written: int = 0
    name: str = ""

    async def run(self) -> None:
        """Write until cancelled."""
        roads: dict[str, tuple[int, Callable[[int], Given]]] = {
            "messageUpdate": (8, self._flags),
            "messageMove": (5, self._move),
            "messageCopy": (2, self._copy),
            "messageDelete": (4, self._delete),
            "mailboxCreate": (3, self._create),
            "mailboxRename": (3, self._rename),
            "mailboxDelete": (2, self._drop),
            "mailboxUpdate": (1, self._box),
            "archiveRestore": (1, self._restore),
            "archivedMessageRestore": (2, self._restore_some),
            "undo": (1, self._undo),
        }
        names, weights = [*roads, "deliver"], [*(one for one, _ in roads.values()), 12]
        while True:
            who = self.random.randrange(len(self.places))
            try:
                async with asking(self.places[who]) as http:  # a connection to any of the processes
                    for name in self.random.choices(names, weights, k=TOGETHER):
                        if name == "deliver":
                            await self._deliver()
                        else:
                            await self._call(http, who, name, roads[name][1](who))
            except (*BROKEN, Broken, asyncio.IncompleteReadError):
                self.done["away"] += 1
                await asyncio.sleep(PAUSE)

    async def _call(self, http: httpx.AsyncClient, who: int, name: str, given: Given) -> None:
        fate = self.random.random()
        if name == "archivedMessageRestore" and fate >= WRONG:
            user = (await ask(http, ARCHIVED))["viewer"]["user"]
            ids = [one["id"] for one in user["archivedMessages"]["nodes"]]
            if not ids:
                return
            given["ids"] = self.random.sample(ids, min(len(ids), 7))
        if fate < WRONG:
            _spoil(given, self.random)
        elif fate < WRONG + TRIAL:
            given["options"] = {"validateOnly": True}
        undoes = "undo { token }" if name in UNDONE else ""
        document = (
            f"mutation ($input: {name[0].upper()}{name[1:]}Input!) {{ it: {name}(input: $input) "
            f"{{ {undoes} errors {{ code }} }} }}"
        )
        if WRONG + TRIAL <= fate < WRONG + TRIAL + CUT:
            await self._cut(http, document, given)
            self.done[f"{name}: broken off"] += 1
            return
        it = (await ask(http, document, input=given))["it"]
        how = "refused" if it["errors"] else "tried" if "options" in given else "done"
        self.done[f"{name}: {how}"] += 1
        if it.get("undo"):
            self.tokens = [*self.tokens[-9:], (who, it["undo"]["token"])]

    async def _cut(self, http: httpx.AsyncClient, document: str, given: Given) -> None:
        """Send a mutation, and disconnect before the response."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.random.uniform(LEAST, LATEST)):
                body = orjson.dumps({"query": document, "variables": {"input": given}})
                await http.post(
                    "/graphql", content=body, headers={"Content-Type": "application/json"}
                )

    async def _deliver(self) -> None:
        """Deliver some messages over one LMTP connection. Some are interrupted."""
        neighbour = await connected(self.lmtp)
        try:
            for _ in range(self.random.randint(1, 8)):
                self.written += 1
                text = f"{self.name} {self.written}"
                if self.random.random() < CUT:
                    await self._half(neighbour, text)
                    self.done["deliver: broken off"] += 1
                    return
                reply = await neighbour.deliver(self.random.choice(self.addresses), letter(text))
                self.done[f"deliver: {'done' if reply.startswith('250') else reply[:9]}"] += 1
        finally:
            await neighbour.close()

    async def _half(self, neighbour: Neighbour, text: str) -> None:
        to = self.random.choice(self.addresses)
        neighbour.writer.write(f"MAIL FROM:<x@example.com>\r\nRCPT TO:<{to}>\r\nDATA\r\n".encode())
        neighbour.writer.write(letter(text)[:-40])
        await neighbour.writer.drain()

    def _some(self) -> Given:
        """Return a random selection of messages: all of a mailbox, some UIDs, or by flag."""
        chosen: Given = {"mailbox": self._named()}
        how = self.random.random()
        if how < 0.4:  # noqa: PLR2004
            first = self.random.randint(1, 400)
            chosen["uids"] = f"{first}:{first + self.random.randint(0, 60)}"
        elif how < 0.7:  # noqa: PLR2004
            chosen["filter"] = {self.random.choice(["seen", "flagged"]): self._coin()}
        return chosen

    def _coin(self) -> bool:
        return self.random.random() < 0.5  # noqa: PLR2004

    def _named(self) -> Given:
        return {"path": self.random.choice(PATHS)}

    def _flags(self, _who: int) -> Given:
        words = self.random.sample(WORDS, self.random.randint(0, 2))
        given: Given = {self.random.choice(["addFlags", "removeFlags"]): words}
        if self.random.random() < 0.1:  # noqa: PLR2004
            until = datetime.now(UTC) + timedelta(seconds=self.random.uniform(0.5, ASLEEP))
            given = {"snoozedUntil": self.random.choice([until.isoformat(), None])}
        elif self._coin():
            given["seen"] = self._coin()
        return {"select": self._some(), "set": given}

    def _move(self, _who: int) -> Given:
        return {"select": self._some(), "to": self._named()}

    def _copy(self, _who: int) -> Given:
        first = self.random.randint(1, 400)
        uids = f"{first}:{first + self.random.randint(0, 9)}"
        return {"select": {"mailbox": self._named(), "uids": uids}, "to": self._named()}

    def _delete(self, _who: int) -> Given:
        return {
            "select": self._some(),
            "permanent": self.random.random() < 0.4,  # noqa: PLR2004
            "deleteEmptyMailbox": self.random.random() < 0.2,  # noqa: PLR2004
        }

    def _create(self, _who: int) -> Given:
        return {"paths": self.random.sample(PATHS, self.random.randint(1, 2))}

    def _rename(self, _who: int) -> Given:
        return {"mailbox": self._named(), "newPath": self.random.choice(PATHS)}

    def _drop(self, _who: int) -> Given:
        return {"mailboxes": [self._named()], "recursive": self._coin()}

    def _box(self, _who: int) -> Given:
        return {"mailboxes": [self._named()], "set": {"subscribed": self._coin()}}

    def _restore(self, _who: int) -> Given:
        end = datetime.now(UTC)
        start = end - timedelta(seconds=self.random.uniform(1, 5))
        return {"start": start.isoformat(), "end": end.isoformat()}

    def _restore_some(self, _who: int) -> Given:
        return {"ids": [encode("Message", 1)]}

    def _undo(self, who: int) -> Given:
        for mine in self.tokens:
            if mine[0] == who:
                self.tokens.remove(mine)
                return {"token": mine[1]}
        return {"token": "none"}


UNDONE = {"messageUpdate", "messageMove", "messageDelete"}


def _spoil(given: Given, random: Random) -> None:
    """Make an input invalid, if possible so that it fails after half of the work."""
    wrong = random.choice(["No/such", "x/" * 40, "a//b"])
    for name in ("to", "mailbox"):
        if name in given:
            given[name] = {"path": wrong}
    if "mailboxes" in given:
        given["mailboxes"] = [*given["mailboxes"], {"path": wrong}]
    if "paths" in given:
        given["paths"] = [*given["paths"], "INBOX"]
    if "set" in given and "select" in given:
        given["set"] = {"addFlags": ["x", "not a word"]}
    if "newPath" in given:
        given["newPath"] = "INBOX"
    if "ids" in given:
        given["ids"] = [encode("Message", 1)]


def letter(text: str) -> bytes:
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
