"""Descriptions of fields contain the validation rules that a client can't guess."""

from datetime import timedelta

import pytest
from graphql import GraphQLInputObjectType

from models.errors import InvalidInput
from resolvers.auth import app_passwords
from resolvers.auth.app_password_validation import NewAppPassword
from resolvers.mailboxes import retention as mailbox_retention
from tests.conftest import GraphQLClient, client_context
from tests.support.schema.printed_schema import SDL

RULE_TEXTS = {
    "AppPasswordCreateInput.password": ("16 characters", "`WEAK`", "6 different characters"),
    "AppPasswordCreateInput.ttl": ("1 minute", "3,650 days"),
    "AppPasswordCreateInput.generateMobileconfig": ("SMTP", "`SERVER`"),
    "KeyValueSetInput.ttl": ("1 second", "3,650 days"),
    "MailboxCreateInput.retention": ("1 second", "36,500 days"),
    "MailboxPatch.retention": ("1 second", "36,500 days"),
    "UserCreateInput.retention": ("1 second", "36,500 days"),
    "UserPatch.retention": ("1 second", "36,500 days"),
}


@pytest.mark.parametrize("field", RULE_TEXTS)
def test_field_description_contains_its_rules(field: str) -> None:
    kind, _, name = field.partition(".")
    input_type = SDL.get_type(kind)
    assert isinstance(input_type, GraphQLInputObjectType)
    description = input_type.fields[name].description or ""
    assert [text for text in RULE_TEXTS[field] if text not in description] == []


def test_retention_limits_equal_the_description() -> None:
    for seconds in (1, 36_500 * 86_400):
        assert mailbox_retention.validated_retention_seconds(timedelta(seconds=seconds)) == seconds
    for invalid_duration in (timedelta(), timedelta(milliseconds=999), timedelta(days=36_501)):
        with pytest.raises(InvalidInput):
            mailbox_retention.validated_retention_seconds(invalid_duration)


@pytest.mark.parametrize(
    ("password", "is_weak"),
    [("abcdeabcdeabcdea", True), ("abcdefghijklmnop", True), ("ponmlkjihgfedcba", True),
     ("aabbccddeeaabbcc", True), ("abcdefghabcdefgh", True), ("qmzkwxjvbnplrtds", False)],
)  # fmt: skip
async def test_weak_passwords_are_refused_as_described(
    ada: GraphQLClient, password: str, is_weak: bool
) -> None:
    new_password = NewAppPassword(description="Phone", password=password)
    if not is_weak:
        assert (
            await app_passwords.create_app_password(client_context(ada), None, new_password)
        ).password == password
        return
    with pytest.raises(InvalidInput) as refusal:
        await app_passwords.create_app_password(client_context(ada), None, new_password)
    assert refusal.value.constraint == "WEAK"
