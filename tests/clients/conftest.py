"""What the tests of all clients need."""

import pytest

from tests.support.clients import npm_programs


@pytest.fixture(scope="session")
def typed() -> str:
    """What graphql-codegen says: it makes types and documents in generated/graphql."""
    return npm_programs.typed()
