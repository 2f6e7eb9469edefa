"""Requests that the benchmark sends to Merganser, to the baseline and to plain Strawberry."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.load.http_client import BenchmarkTarget, encode_post_request, request_json
from bench.load.sample_account import SampleAccount
from bench.servers.compared_servers import ComparedServers
from graph.types.global_ids import decode

PAGE_SIZE, CURSOR_STEP = 50, 250  # messages; larger steps on the way to page 100
MANY_MESSAGES = 1000
NODE_FIELDS = (
    "nodes { id subject from { name address } to { name address } date imap { flags } size "
    "preview attachmentCount }"
)
MAILBOX_FIELDS = (
    f"id path messageCount unseenCount messages(first: 50, after: $after) {{ {NODE_FIELDS} }}"
)
MAILBOX_LIST_FIELDS = "mailboxes { nodes { id path specialUse messageCount unseenCount size } }"
FULL_MESSAGE_FIELDS = (
    "id subject from { name address } to { name address } cc { name address } date receivedAt "
    "imap { flags } size text html headers { name value } "
    "attachments { id filename contentType size url }"
)
PAGE_QUERY = (
    f"query Page($box: ID!, $after: String) {{ mailbox(by: {{id: $box}}) {{ {MAILBOX_FIELDS} }} }}"
)
MAILBOXES_QUERY = f"query Boxes {{ user {{ {MAILBOX_LIST_FIELDS} }} }}"
MESSAGE_QUERY = f"query Read($id: ID!) {{ message(by: {{id: $id}}) {{ {FULL_MESSAGE_FIELDS} }} }}"
APP_START_QUERY = (
    "query Start($box: ID!, $id: ID!, $after: String) { "
    f"mailbox(by: {{id: $box}}) {{ {MAILBOX_FIELDS} }} user {{ {MAILBOX_LIST_FIELDS} }} "
    f"message(by: {{id: $id}}) {{ {FULL_MESSAGE_FIELDS} }} }}"
)
CURSOR_QUERY = (
    "query Walk($box: ID!, $first: Int!, $after: String) { mailbox(by: {id: $box}) { "
    "messages(first: $first, after: $after) { pageInfo { endCursor } } } }"
)
FLAG_MUTATION = (
    "mutation Flag($ids: [ID!]!, $flagged: Boolean!) { messageUpdate(input: {select: {ids: $ids}, "
    "set: {flagged: $flagged}}) { updatedCount %s errors { code message } } }"
)
FLAG_ONE_MUTATION = FLAG_MUTATION % "messages { id imap { flags modseq } }"
FLAG_MANY_MUTATION = FLAG_MUTATION % "undo { token }"


@dataclass(frozen=True, slots=True)
class Workload:
    """Endless encoded requests of one kind for each compared server."""

    name: str
    merganser: Iterator[bytes]
    baseline: Iterator[bytes]
    strawberry: Iterator[bytes] | None = None  # only for queries


@dataclass(frozen=True, slots=True)
class RequestFactory:
    """Builds requests for the compared servers over the sample account."""

    merganser: BenchmarkTarget
    baseline: BenchmarkTarget
    strawberry: BenchmarkTarget
    account: SampleAccount

    def graphql_body(self, document: str, **variables: Any) -> dict[str, Any]:
        """Return the body of a GraphQL request."""
        return {"query": document, "variables": variables}

    def repeated_workload(
        self,
        name: str,
        body: Mapping[str, Any],
        baseline_path: str,
        baseline_body: Mapping[str, Any],
    ) -> Workload:
        """Return a workload that repeats one request."""
        return Workload(
            name,
            itertools.repeat(encode_post_request(self.merganser, "/graphql", body)),
            itertools.repeat(encode_post_request(self.baseline, baseline_path, baseline_body)),
            itertools.repeat(encode_post_request(self.strawberry, "/graphql", body)),
        )


async def build_workloads(servers: ComparedServers, page_number: int) -> list[Workload]:
    """Build all workloads that are measured over HTTP.

    Raises RuntimeError if the servers do not return the same mail.
    """
    merganser, baseline, account = servers.merganser, servers.baseline, servers.account
    factory = RequestFactory(merganser, baseline, servers.strawberry, account)
    key = decode("Mailbox", account.baseline_inbox_id or account.inbox_id)
    skip = (page_number - 1) * PAGE_SIZE
    position = await request_json(baseline, "/place", {"box": key, "skip": skip})
    first, offset_variables = {"box": key}, {"box": key, **position}
    mailbox_id, full = account.inbox_id, account.full_message_id
    after = await _cursor_after(merganser, mailbox_id, skip)
    requests_by_name = {
        "inbox page": (factory.graphql_body(PAGE_QUERY, box=mailbox_id), "/page", first),
        f"page {page_number}": (
            factory.graphql_body(PAGE_QUERY, box=mailbox_id, after=after),
            "/page",
            offset_variables,
        ),
        "mailboxes": (factory.graphql_body(MAILBOXES_QUERY), "/boxes", first),
        "one message in full": (factory.graphql_body(MESSAGE_QUERY, id=full), "/message", first),
        "app start": (
            factory.graphql_body(APP_START_QUERY, box=mailbox_id, id=full),
            "/start",
            first,
        ),
    }
    for name, (query, path, body) in requests_by_name.items():
        baseline_body = await request_json(baseline, path, body)
        merganser_data = (await request_json(merganser, "/graphql", query))["data"]
        _require_same_mail(name, merganser_data, baseline_body)
        if _without_urls(merganser_data) != _without_urls(
            (await request_json(factory.strawberry, "/graphql", query))["data"]
        ):
            raise RuntimeError(f"{name}: plain Strawberry returns different data")
    reads = [
        factory.repeated_workload(name, query, path, body)
        for name, (query, path, body) in requests_by_name.items()
    ]
    return [*reads, _flag_one_workload(factory, key), _flag_many_workload(factory, key)]


async def _cursor_after(target: BenchmarkTarget, mailbox_id: str, message_count: int) -> str | None:
    """Return the cursor after this many messages, fetched page by page."""
    after = None
    for start in range(0, message_count, CURSOR_STEP):
        variables = {
            "box": mailbox_id,
            "first": min(CURSOR_STEP, message_count - start),
            "after": after,
        }
        found = await request_json(
            target, "/graphql", {"query": CURSOR_QUERY, "variables": variables}
        )
        after = found["data"]["mailbox"]["messages"]["pageInfo"]["endCursor"]
    return after


def _require_same_mail(name: str, merganser: dict[str, Any], baseline: dict[str, Any]) -> None:
    """Raise RuntimeError if both do not return the same mail, apart from IDs.

    The message in full is not compared, since the baseline parses it differently.
    """
    merganser_fields, baseline_fields = (
        {**each, "message": None} for each in (merganser, baseline)
    )
    if _without_ids(merganser_fields) != _without_ids(baseline_fields):
        raise RuntimeError(f"{name}: the baseline returns different data")


def _without_urls(value: Any) -> Any:
    """Return a JSON value without URLs, because their signatures differ each time."""
    if isinstance(value, dict):
        return {key: _without_urls(item) for key, item in value.items() if key != "url"}
    return [_without_urls(item) for item in value] if isinstance(value, list) else value


def _without_ids(value: Any) -> Any:
    """Return a JSON value without IDs."""
    if isinstance(value, dict):
        return {key: _without_ids(item) for key, item in value.items() if key != "id"}
    return [_without_ids(item) for item in value] if isinstance(value, list) else value


def _flag_one_workload(factory: RequestFactory, mailbox_key: int) -> Workload:
    """Return a workload that flags one message per request, in rotation."""
    ids = factory.account.message_ids
    keys = factory.account.baseline_message_keys or [decode("Message", one) for one in ids]

    def merganser_requests() -> Iterator[bytes]:
        for number in itertools.count():
            pass_number, nth = divmod(number, len(ids))
            body = factory.graphql_body(
                FLAG_ONE_MUTATION, ids=[ids[nth]], flagged=pass_number % 2 == 0
            )
            yield encode_post_request(factory.merganser, "/graphql", body)

    def baseline_requests() -> Iterator[bytes]:
        for number in itertools.count():
            pass_number, nth = divmod(number, len(keys))
            body = {
                "ids": [keys[nth]],
                "box": mailbox_key,
                "flagged": pass_number % 2 == 0,
                "display_address": True,
            }
            yield encode_post_request(factory.baseline, "/flag", body)

    return Workload("flag 1 message", merganser_requests(), baseline_requests())


def _flag_many_workload(factory: RequestFactory, mailbox_key: int) -> Workload:
    """Return a workload that flags and unflags 1,000 messages."""
    ids = factory.account.message_ids[:MANY_MESSAGES]
    keys = (factory.account.baseline_message_keys or [decode("Message", one) for one in ids])[
        :MANY_MESSAGES
    ]
    merganser_requests = [
        encode_post_request(
            factory.merganser,
            "/graphql",
            factory.graphql_body(FLAG_MANY_MUTATION, ids=ids, flagged=flagged),
        )
        for flagged in (True, False)
    ]
    baseline_requests = [
        encode_post_request(
            factory.baseline, "/flag", {"ids": keys, "box": mailbox_key, "flagged": flagged}
        )
        for flagged in (True, False)
    ]
    return Workload(
        "flag 1,000 messages",
        itertools.cycle(merganser_requests),
        itertools.cycle(baseline_requests),
    )
