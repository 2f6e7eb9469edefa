"""Requests that the benchmark sends to Merganser, to the baseline and to plain Strawberry."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.load.http_client import Target, once, post
from bench.load.sample_account import House
from bench.servers.compared_servers import Sides
from graph.types.global_ids import decode

PAGE_SIZE, WALK = 50, 250  # messages; larger steps on the way to page 100
MANY = 1000
NODES = (
    "nodes { id subject from { name address } to { name address } date flags size intro "
    "attachmentCount }"
)
MAILBOX = f"id path total unseen messages(first: 50, after: $after) {{ {NODES} }}"
FOLDERS = "mailboxes { id path specialUse total unseen size }"
FULL = (
    "id subject from { name address } to { name address } cc { name address } date receivedAt "
    "flags size text html headers { key value } "
    "attachments { id filename contentType size url }"
)
PAGE = f"query Page($box: ID!, $after: String) {{ mailbox(by: {{id: $box}}) {{ {MAILBOX} }} }}"
BOXES = f"query Boxes {{ user {{ {FOLDERS} }} }}"
MESSAGE = f"query Read($id: ID!) {{ message(by: {{id: $id}}) {{ {FULL} }} }}"
START = (
    "query Start($box: ID!, $id: ID!, $after: String) { "
    f"mailbox(by: {{id: $box}}) {{ {MAILBOX} }} user {{ {FOLDERS} }} "
    f"message(by: {{id: $id}}) {{ {FULL} }} }}"
)
CURSOR = (
    "query Walk($box: ID!, $first: Int!, $after: String) { mailbox(by: {id: $box}) { "
    "messages(first: $first, after: $after) { pageInfo { endCursor } } } }"
)
FLAG = (
    "mutation Flag($ids: [ID!]!, $flagged: Boolean!) { messageUpdate(input: {select: {ids: $ids}, "
    "set: {flagged: $flagged}}) { updatedCount %s errors { code message } } }"
)
FLAG_ONE, FLAG_MANY = FLAG % "messages { id flags modseq }", FLAG % "undo { token }"


@dataclass(frozen=True, slots=True)
class Work:
    """Endless encoded requests of one kind for each compared server."""

    name: str
    ours: Iterator[bytes]
    floor: Iterator[bytes]
    plain: Iterator[bytes] | None = None  # only for queries


@dataclass(frozen=True, slots=True)
class Desk:
    """Builds requests for the compared servers over the sample account."""

    ours: Target
    floor: Target
    plain: Target
    house: House

    def query(self, document: str, **variables: Any) -> dict[str, Any]:
        """Return the body of a GraphQL request."""
        return {"query": document, "variables": variables}

    def work(
        self, name: str, ours: Mapping[str, Any], place: str, floor: Mapping[str, Any]
    ) -> Work:
        """Return a workload that repeats one request."""
        return Work(
            name,
            itertools.repeat(post(self.ours, "/graphql", ours)),
            itertools.repeat(post(self.floor, place, floor)),
            itertools.repeat(post(self.plain, "/graphql", ours)),
        )


async def works(both: Sides, page: int) -> list[Work]:
    """Build all workloads that are measured over HTTP.

    Raises RuntimeError if the servers do not return the same mail.
    """
    ours, floor, house = both.ours, both.floor, both.house
    desk = Desk(ours, floor, both.plain, house)
    key = decode("Mailbox", house.floor or house.box)
    skip = (page - 1) * PAGE_SIZE
    place = await once(floor, "/place", {"box": key, "skip": skip})
    first, there = {"box": key}, {"box": key, **place}
    box, full = house.box, house.full
    after = await _walked(ours, box, skip)
    asked = {
        "inbox page": (desk.query(PAGE, box=box), "/page", first),
        f"page {page}": (desk.query(PAGE, box=box, after=after), "/page", there),
        "mailboxes": (desk.query(BOXES), "/boxes", first),
        "one message in full": (desk.query(MESSAGE, id=full), "/message", first),
        "app start": (desk.query(START, box=box, id=full), "/start", first),
    }
    for name, (query, path, body) in asked.items():
        theirs = await once(floor, path, body)
        shown = (await once(ours, "/graphql", query))["data"]
        _compared(name, shown, theirs)
        if _unsigned(shown) != _unsigned((await once(desk.plain, "/graphql", query))["data"]):
            raise RuntimeError(f"{name}: plain Strawberry shows something else")
    reads = [desk.work(name, query, path, body) for name, (query, path, body) in asked.items()]
    return [*reads, _flag_one(desk, key), _flag_many(desk, key)]


async def _walked(target: Target, box: str, skip: int) -> str | None:
    """Return the cursor after this many messages, fetched page by page."""
    after = None
    for start in range(0, skip, WALK):
        variables = {"box": box, "first": min(WALK, skip - start), "after": after}
        found = await once(target, "/graphql", {"query": CURSOR, "variables": variables})
        after = found["data"]["mailbox"]["messages"]["pageInfo"]["endCursor"]
    return after


def _compared(name: str, ours: dict[str, Any], floor: dict[str, Any]) -> None:
    """Raise RuntimeError if both do not return the same mail, apart from IDs.

    The message in full is not compared, since the baseline parses it differently.
    """
    shown, wanted = ({**each, "message": None} for each in (ours, floor))
    if _plain(shown) != _plain(wanted):
        raise RuntimeError(f"{name}: the floor shows something else")


def _unsigned(value: Any) -> Any:
    """Return a JSON value without URLs, because their signatures differ each time."""
    if isinstance(value, dict):
        return {key: _unsigned(item) for key, item in value.items() if key != "url"}
    return [_unsigned(item) for item in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """Return a JSON value without IDs."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key != "id"}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _flag_one(desk: Desk, box: int) -> Work:
    """Return a workload that flags one message per request, in rotation."""
    ids = desk.house.messages
    keys = desk.house.floor_keys or [decode("Message", one) for one in ids]

    def ours() -> Iterator[bytes]:
        for number in itertools.count():
            turn, nth = divmod(number, len(ids))
            body = desk.query(FLAG_ONE, ids=[ids[nth]], flagged=turn % 2 == 0)
            yield post(desk.ours, "/graphql", body)

    def floor() -> Iterator[bytes]:
        for number in itertools.count():
            turn, nth = divmod(number, len(keys))
            body = {"ids": [keys[nth]], "box": box, "flagged": turn % 2 == 0, "shown": True}
            yield post(desk.floor, "/flag", body)

    return Work("flag 1 message", ours(), floor())


def _flag_many(desk: Desk, box: int) -> Work:
    """Return a workload that flags and unflags 1,000 messages."""
    ids = desk.house.messages[:MANY]
    keys = (desk.house.floor_keys or [decode("Message", one) for one in ids])[:MANY]
    ours = [
        post(desk.ours, "/graphql", desk.query(FLAG_MANY, ids=ids, flagged=flagged))
        for flagged in (True, False)
    ]
    floor = [
        post(desk.floor, "/flag", {"ids": keys, "box": box, "flagged": flagged})
        for flagged in (True, False)
    ]
    return Work("flag 1,000 messages", itertools.cycle(ours), itertools.cycle(floor))
