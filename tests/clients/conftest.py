"""Fixtures of the tests of JavaScript clients."""

import pytest

from tests.support.clients import npm_programs


@pytest.fixture(scope="session")
def codegen_output() -> str:
    """The output of graphql-codegen, which writes types and documents to generated/graphql."""
    return npm_programs.generate_types()
