"""A sample call of every mutation, with the objects that it needs to succeed."""

from tests.support.sample_mutations import (
    auth_mutations,
    certificate_mutations,
    connector_mutations,
    dkim_mutations,
    domain_and_platform_mutations,
    file_mutations,
    filter_mutations,
    identity_mutations,
    key_value_mutations,
    mailbox_and_message_mutations,
    push_channel_mutations,
    quarantine_mutations,
    queue_mutations,
    routing_mutations,
    sieve_mutations,
    user_mutations,
)
from tests.support.sample_mutations.mutation_call import (
    SAMPLE_CALLS,
    AtomicMutationCalls,
    MutationCall,
)

__all__ = [
    "SAMPLE_CALLS",
    "AtomicMutationCalls",
    "MutationCall",
    "auth_mutations",
    "certificate_mutations",
    "connector_mutations",
    "dkim_mutations",
    "domain_and_platform_mutations",
    "file_mutations",
    "filter_mutations",
    "identity_mutations",
    "key_value_mutations",
    "mailbox_and_message_mutations",
    "push_channel_mutations",
    "quarantine_mutations",
    "queue_mutations",
    "routing_mutations",
    "sieve_mutations",
    "user_mutations",
]
