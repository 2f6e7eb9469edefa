"""Rules that a client can't guess are in the descriptions of the fields that have them."""

from datetime import timedelta

import pytest
from graphql import GraphQLInputObjectType

from models.errors import InvalidInput
from resolvers.auth import app_passwords
from resolvers.auth.app_passwords import NewAppPassword
from resolvers.mailboxes import loaders as mailbox_loaders
from tests.conftest import Client, context
from tests.support.schema.printed_schema import SDL

RULES = {
    "AppPasswordCreateInput.password": ("16 letters", "`weak`", "6 different letters"),
    "AppPasswordCreateInput.ttl": ("1 minute", "3,650 days"),
    "AppPasswordCreateInput.generateMobileconfig": ("SMTP", "`server`"),
    "KeyValueSetInput.ttl": ("1 second", "3,650 days"),
    "MailboxCreateInput.retention": ("1 second", "36,500 days"),
    "MailboxPatch.retention": ("1 second", "36,500 days"),
    "UserCreateInput.retention": ("1 second", "36,500 days"),
    "UserPatch.retention": ("1 second", "36,500 days"),
}


@pytest.mark.parametrize("field", RULES)
def test_the_description_of_a_field_tells_its_rule(field: str) -> None:
    kind, _, name = field.partition(".")
    found = SDL.get_type(kind)
    assert isinstance(found, GraphQLInputObjectType)
    description = found.fields[name].description or ""
    assert [words for words in RULES[field] if words not in description] == []


def test_the_rules_are_those_that_are_described() -> None:
    for seconds, life in ((1, 1), (36_500 * 86_400, 36_500 * 86_400), (0, None)):
        assert mailbox_loaders.retention_seconds(timedelta(seconds=seconds)) == life
    for wrong in (timedelta(milliseconds=999), timedelta(days=36_501)):
        with pytest.raises(InvalidInput):
            mailbox_loaders.retention_seconds(wrong)


@pytest.mark.parametrize(
    ("password", "is_weak"),
    [("abcdeabcdeabcdea", True), ("abcdefghijklmnop", True), ("ponmlkjihgfedcba", True),
     ("aabbccddeeaabbcc", True), ("abcdefghabcdefgh", True), ("qmzkwxjvbnplrtds", False)],
)  # fmt: skip
async def test_weak_passwords_are_those_that_are_described(
    ada: Client, password: str, is_weak: bool
) -> None:
    new = NewAppPassword(description="Phone", password=password)
    if not is_weak:
        assert (
            await app_passwords.create_app_password(context(ada), None, new)
        ).password == password
        return
    with pytest.raises(InvalidInput) as refusal:
        await app_passwords.create_app_password(context(ada), None, new)
    assert refusal.value.constraint == "weak"
