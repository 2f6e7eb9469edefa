"""No message blocks the event loop: each step takes little CPU time."""

from functools import partial

import pytest

from tests.conftest import GraphQLClient, deliver_to
from tests.support.mail.expensive_messages import EXPENSIVE_SHAPES
from tests.support.servers.loop_step_timer import MAX_STEP_SECONDS, measure_steps

ADDRESS_FIELDS = "{ name address }"
PART_FIELDS = "{ section contentType { value params } disposition filename contentId size }"
MESSAGE_FIELDS = f"""
    subject from {ADDRESS_FIELDS} to {ADDRESS_FIELDS} cc {ADDRESS_FIELDS} bcc {ADDRESS_FIELDS}
    replyTo {ADDRESS_FIELDS} sender {ADDRESS_FIELDS}
    messageIdHeader inReplyTo references date preview size attachmentCount mailingList {{ listId }}
    html raw: html(sanitize: false) remoteImageCount hasComplexHtml text snippet
    headers {{ name value raw }} rawHeader header(name: "cc") body
    bodyPart(section: "1", maxBytes: 1000) rawSource
    imap {{ size envelope body bodyStructure }}
    calendarEvents {{ uid summary attendees {ADDRESS_FIELDS} }}
    attachments {{ filename text message {{ subject text }} }}
    mimeStructure {{ section parts {PART_FIELDS} }}
"""
READ_MESSAGE = f"query Read($id: ID!) {{ message(by: {{ id: $id }}) {{ {MESSAGE_FIELDS} }} }}"
LIST_MESSAGES = "{ messages(first: 1) { nodes { id } } }"


@pytest.mark.parametrize("size", [7_000, 60_000])
async def test_delivery_and_read_of_expensive_message_have_short_steps(
    ada: GraphQLClient, size: int
) -> None:
    """Deliver each expensive message and read all of its fields."""

    async def read() -> None:
        response = await ada.http.post("/graphql", json=request, headers=ada.headers)
        answer = response.json()
        assert "errors" not in answer, (name, answer["errors"])
        assert answer["data"]["message"], name

    slow = {}
    for name, shape in EXPENSIVE_SHAPES.items():
        raw = shape(size)
        _, steps = await measure_steps(partial(deliver_to, ada, raw))
        if steps.longest_seconds > MAX_STEP_SECONDS:
            slow[f"deliver {name}"] = str(steps)
        page = await ada(LIST_MESSAGES)
        variables = {"id": page["messages"]["nodes"][0]["id"]}
        # A comment makes each document a new one that is not compiled yet.
        request = {"query": f"{READ_MESSAGE} # {name} {size}", "variables": variables}
        _, steps = await measure_steps(read)
        if steps.longest_seconds > MAX_STEP_SECONDS:
            slow[f"read {name}"] = str(steps)
        _, steps = await measure_steps(read)  # with compiled plans
        if steps.longest_seconds > MAX_STEP_SECONDS:
            slow[f"read {name} again"] = str(steps)
    assert not slow, "\n".join(f"{name}: {steps}" for name, steps in slow.items())
