"""A cancelled operation leaves no coroutine that was never awaited."""

import asyncio
import gc
import warnings

import pytest

from tests.conftest import GraphQLClient, deliver_to

ENDED_PER_SWEEP = 5  # operations that end before their cancellation
MIN_CANCELLED = 40
ROW = "id subject size thread { id messages(first: 2) { nodes { id } } } mailbox { path }"
DOCUMENTS = {
    "lists": f"""{{
        user {{
            username mailboxes {{ nodes {{ path parent {{ path }} }} }}
            identities(first: 2) {{ nodes {{ id }} }}
        }}
        newest: messages(first: 5) {{ nodes {{ {ROW} }} totalCount }}
        more: messages(first: 3) {{ nodes {{ {ROW} text html attachments {{ filename }} }} }}
        again: user {{
            securityLog(first: 3) {{ nodes {{ id }} }} filters(first: 2) {{ nodes {{ id }} }}
        }}
    }}""",
    "nested": """{ user { mailboxes(first: 9) { nodes { path messages(first: 3) { totalCount nodes {
        id rawSource headers { name value } thread { id messages(first: 2) { nodes { text } } }
    } } } } } }""",
    "mutation": """mutation {
        mailboxCreate(input: {paths: ["Trial", "Trial/A"], options: {validateOnly: true}}) {
            mailboxes {
                path messages(first: 2) { nodes { id } totalCount }
                parent { path user { username } } user { username }
            }
            errors { code }
        }
        other: mailboxCreate(input: {paths: ["Other"], options: {validateOnly: true}}) {
            mailboxes { path user { username mailboxes { nodes { path parent { path } } } } }
            errors { code }
        }
    }""",
}


async def cancel_after(client: GraphQLClient, document: str, turns: int) -> bool:
    """Run an operation and cancel it after this number of turns.

    Returns True if it was still running.
    """
    operation = asyncio.create_task(client(document))
    for _ in range(turns):
        await asyncio.sleep(0)
    operation.cancel()
    try:
        await operation
    except asyncio.CancelledError:
        return True
    return False


@pytest.mark.parametrize("name", DOCUMENTS)
async def test_cancelled_operation_leaves_no_coroutine(ada: GraphQLClient, name: str) -> None:
    for number in range(3):
        await deliver_to(ada, f"Message {number}")
    await ada(DOCUMENTS[name])
    cancelled = ended = turns = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Each operation has one more turn of the event loop than the one before. How many turns it
        # needs depends on its threads: on a busy machine few sweeps cancel few operations.
        while ended < ENDED_PER_SWEEP or cancelled < MIN_CANCELLED:
            was_running = await cancel_after(ada, DOCUMENTS[name], turns)
            cancelled, ended, turns = cancelled + was_running, ended + (not was_running), turns + 1
            if not was_running and ended % ENDED_PER_SWEEP == 0:
                turns = 0
        gc.collect()
    assert [str(warning.message) for warning in caught if warning.category is RuntimeWarning] == []
