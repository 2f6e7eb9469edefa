"""What the tests of all clients need."""

import pytest

from tests.clients import npm


@pytest.fixture(scope="session")
def typed() -> str:
    """What graphql-codegen says: it makes types and documents in generated/graphql."""
    return npm.typed()
