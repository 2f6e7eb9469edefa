"""Texts and values of logs name objects by global IDs, never by the IDs of database rows.

test_audit_log.py checks the mutations that write an entry to the audit log.
"""

import pytest

from tests.conftest import GraphQLClient
from tests.support.sample_mutations import SAMPLE_CALLS
from tests.support.sample_mutations.audit_log_mutations import AUDIT_LOG_EXPECTATIONS
from tests.support.schema.log_ids import assert_logs_have_no_database_ids, find_database_ids


def test_database_ids_are_found() -> None:
    assert find_database_ids({"a": [{"b": 250315129401830596}]}) == [".a.b: 250315129401830596"]
    assert find_database_ids(["key 250315129401830596"]) == [": key 250315129401830596"]
    assert find_database_ids({"id": "key_250315129401830596a", "size": 1 << 30}) == []


@pytest.mark.parametrize("name", sorted(set(SAMPLE_CALLS) - set(AUDIT_LOG_EXPECTATIONS)))
async def test_logs_of_mutation_have_no_database_ids(
    name: str, ada: GraphQLClient, root: GraphQLClient
) -> None:
    call = await SAMPLE_CALLS[name](ada, root)
    await call(ada, reason="asked for by phone")
    await assert_logs_have_no_database_ids(root)
