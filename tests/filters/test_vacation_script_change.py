"""Test that a changed vacation action replies again to senders who had a reply."""

import pytest

from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, raw_message
from tests.support.mail.queued_deliveries import queued_envelopes
from tests.support.operations.quarantine_operations import CAROL_ADDRESS, deliver_message_to
from tests.support.operations.sieve_operations import put_sieve_script

pytestmark = pytest.mark.usefixtures("verify_consistency")


@pytest.mark.parametrize(
    ("first", "second", "expected_count"),
    [
        ('"Away till May."', '"Away till May."', 1),
        ('"Away till May."', '"Away till June."', 2),
        (':subject "Away" "Back soon."', ':subject "Still away" "Back soon."', 2),
        (':handle "away" "Till May."', ':handle "away" "Till June."', 1),  # RFC 5230, section 4.3
        (':handle "may" "Away."', ':handle "june" "Away."', 2),
    ],
)
async def test_changed_reason_or_handle_replies_again(
    ada: GraphQLClient, environment: Environment, first: str, second: str, expected_count: int
) -> None:
    for vacation in (first, second):
        await put_sieve_script(ada, f'require "vacation"; vacation {vacation};')
        for _ in range(2):
            await deliver_message_to(environment, ada, raw=raw_message("Hello", To=ada.address))
    assert await queued_envelopes(environment) == [("", CAROL_ADDRESS)] * expected_count
