"""The names of usage counters, the kinds of their keys, and the names of statistics."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class MetricSetKind(StrEnum):
    """What the counters of a set count the usage of."""

    GLOBAL = "GLOBAL"
    DOMAIN = "DOMAIN"
    USER = "USER"
    IP = "IP"
    SESSION = "SESSION"
    COMMAND = "COMMAND"


class MetricName(StrEnum):
    """The name of a counter."""

    # counted for keys: models/metrics/usage_recorder.py
    COMMANDS = "COMMANDS"
    COMMAND_ERRORS = "COMMAND_ERRORS"
    COMMAND_TIME = "COMMAND_TIME"
    SIGN_INS = "SIGN_INS"
    SIGN_IN_FAILURES = "SIGN_IN_FAILURES"
    MESSAGES_IN = "MESSAGES_IN"
    BYTES_IN = "BYTES_IN"
    MESSAGES_JUNK = "MESSAGES_JUNK"
    VIRUSES = "VIRUSES"
    MESSAGES_OUT = "MESSAGES_OUT"
    BYTES_OUT = "BYTES_OUT"
    MESSAGES_BOUNCED = "MESSAGES_BOUNCED"
    # counted for the platform only: models/metrics/process_counters.py
    CONNECTED_SESSIONS = "CONNECTED_SESSIONS"
    AUTH_CACHE_HITS = "AUTH_CACHE_HITS"
    AUTH_CACHE_MISSES = "AUTH_CACHE_MISSES"
    DATABASE_READS = "DATABASE_READS"
    DATABASE_READ_TIME = "DATABASE_READ_TIME"
    DATABASE_WRITES = "DATABASE_WRITES"
    DATABASE_WRITE_TIME = "DATABASE_WRITE_TIME"
    SEARCHES = "SEARCHES"
    SEARCH_TIME = "SEARCH_TIME"
    BLOB_READS = "BLOB_READS"
    BLOB_READ_TIME = "BLOB_READ_TIME"
    BLOB_READ_BYTES = "BLOB_READ_BYTES"
    BLOB_WRITES = "BLOB_WRITES"
    BLOB_WRITE_TIME = "BLOB_WRITE_TIME"
    BLOB_WRITE_BYTES = "BLOB_WRITE_BYTES"
    BLOB_DELETES = "BLOB_DELETES"
    BLOB_STATS = "BLOB_STATS"
    BLOB_LISTINGS = "BLOB_LISTINGS"
    USER_CPU_TIME = "USER_CPU_TIME"
    SYSTEM_CPU_TIME = "SYSTEM_CPU_TIME"
    VOLUNTARY_SWITCHES = "VOLUNTARY_SWITCHES"
    INVOLUNTARY_SWITCHES = "INVOLUNTARY_SWITCHES"
    MINOR_FAULTS = "MINOR_FAULTS"
    MAJOR_FAULTS = "MAJOR_FAULTS"
    MEMORY = "MEMORY"
    READS = "READS"
    READ_BYTES = "READ_BYTES"
    WRITES = "WRITES"
    WRITE_BYTES = "WRITE_BYTES"
    DISK_INPUT = "DISK_INPUT"
    DISK_OUTPUT = "DISK_OUTPUT"


SECONDS, BYTES = "s", "By"  # units of UCUM, as in OpenTelemetry
GAUGES = frozenset((MetricName.CONNECTED_SESSIONS, MetricName.MEMORY))  # no reset changes them


@dataclass(frozen=True, slots=True)
class MetricDescription:
    """The unit of a counter, None for a number, and what it counts."""

    text: str
    unit: str | None = None


METRIC_DESCRIPTIONS: Mapping[MetricName, MetricDescription] = {
    MetricName.COMMANDS: MetricDescription(
        "Number of GraphQL operations, and of SMTP and LMTP commands."
    ),
    MetricName.COMMAND_ERRORS: MetricDescription(
        "Number of operations with an error, and of commands with a 4xx or 5xx reply."
    ),
    MetricName.COMMAND_TIME: MetricDescription(
        "Time from a GraphQL operation or an SMTP or LMTP command to its response, in seconds, "
        "without subscriptions. The time of DATA includes the transfer of the message.",
        SECONDS,
    ),
    MetricName.SIGN_INS: MetricDescription("Number of sign-ins with a password."),
    MetricName.SIGN_IN_FAILURES: MetricDescription(
        "Number of refused sign-ins: wrong names and passwords, and users that can't sign in."
    ),
    MetricName.MESSAGES_IN: MetricDescription(
        "Number of messages stored in accounts by a delivery, once for each account."
    ),
    MetricName.BYTES_IN: MetricDescription("Size of the messages of MESSAGES_IN.", BYTES),
    MetricName.MESSAGES_JUNK: MetricDescription(
        "Number of received messages with the verdict spam, once for each account. They are "
        "stored in Junk, quarantined or refused."
    ),
    MetricName.VIRUSES: MetricDescription(
        "Number of received messages with a virus, once for each account."
    ),
    MetricName.MESSAGES_OUT: MetricDescription(
        "Number of recipients to whom the queue has delivered a message, here or on another server."
    ),
    MetricName.BYTES_OUT: MetricDescription(
        "Size of the messages of MESSAGES_OUT, once for each recipient.", BYTES
    ),
    MetricName.MESSAGES_BOUNCED: MetricDescription(
        "Number of recipients of the queue whose delivery has failed or expired."
    ),
    MetricName.CONNECTED_SESSIONS: MetricDescription("Number of sessions that are open now."),
    MetricName.AUTH_CACHE_HITS: MetricDescription(
        "Number of access tokens and API keys that were found in the cache of credentials."
    ),
    MetricName.AUTH_CACHE_MISSES: MetricDescription(
        "Number of access tokens and API keys that were looked up in the database."
    ),
    MetricName.DATABASE_READS: MetricDescription("Number of queries, without searches."),
    MetricName.DATABASE_READ_TIME: MetricDescription(
        "Duration of the queries of DATABASE_READS, with the wait for a connection, in seconds.",
        SECONDS,
    ),
    MetricName.DATABASE_WRITES: MetricDescription("Number of transactions that can write."),
    MetricName.DATABASE_WRITE_TIME: MetricDescription(
        "Duration of the transactions of DATABASE_WRITES, with the wait for a connection, in "
        "seconds.",
        SECONDS,
    ),
    MetricName.SEARCHES: MetricDescription("Number of searches for messages."),
    MetricName.SEARCH_TIME: MetricDescription(
        "Duration of the searches for messages, in seconds.", SECONDS
    ),
    MetricName.BLOB_READS: MetricDescription("Number of reads from object stores."),
    MetricName.BLOB_READ_TIME: MetricDescription(
        "Duration of the reads from object stores, in seconds.", SECONDS
    ),
    MetricName.BLOB_READ_BYTES: MetricDescription(
        "Bytes that were read from object stores.", BYTES
    ),
    MetricName.BLOB_WRITES: MetricDescription("Number of objects written to object stores."),
    MetricName.BLOB_WRITE_TIME: MetricDescription(
        "Duration of the writes to object stores, in seconds.", SECONDS
    ),
    MetricName.BLOB_WRITE_BYTES: MetricDescription(
        "Size of the objects written to object stores.", BYTES
    ),
    MetricName.BLOB_DELETES: MetricDescription(
        "Number of requests to object stores that delete objects. One can delete many."
    ),
    MetricName.BLOB_STATS: MetricDescription(
        "Number of requests to object stores for the size or the facts of one object."
    ),
    MetricName.BLOB_LISTINGS: MetricDescription(
        "Number of pages of lists of objects that were read from object stores."
    ),
    MetricName.USER_CPU_TIME: MetricDescription("CPU time in user mode, in seconds.", SECONDS),
    MetricName.SYSTEM_CPU_TIME: MetricDescription("CPU time in system mode, in seconds.", SECONDS),
    MetricName.VOLUNTARY_SWITCHES: MetricDescription("Number of voluntary context switches."),
    MetricName.INVOLUNTARY_SWITCHES: MetricDescription("Number of involuntary context switches."),
    MetricName.MINOR_FAULTS: MetricDescription("Number of page faults without disk input."),
    MetricName.MAJOR_FAULTS: MetricDescription("Number of page faults with disk input."),
    MetricName.MEMORY: MetricDescription("Resident memory of the processes now.", BYTES),
    MetricName.READS: MetricDescription("Number of system calls that read."),
    MetricName.READ_BYTES: MetricDescription(
        "Bytes that system calls have read, also from caches and sockets.", BYTES
    ),
    MetricName.WRITES: MetricDescription("Number of system calls that write."),
    MetricName.WRITE_BYTES: MetricDescription(
        "Bytes that system calls have written, also to caches and sockets.", BYTES
    ),
    MetricName.DISK_INPUT: MetricDescription("Bytes that were read from disks.", BYTES),
    MetricName.DISK_OUTPUT: MetricDescription("Bytes that were written to disks.", BYTES),
}

_COMMAND_NAMES = (MetricName.COMMANDS, MetricName.COMMAND_ERRORS, MetricName.COMMAND_TIME)
_SIGN_IN_NAMES = (MetricName.SIGN_INS, MetricName.SIGN_IN_FAILURES)
_RECEIVED_NAMES = (
    MetricName.MESSAGES_IN,
    MetricName.BYTES_IN,
    MetricName.MESSAGES_JUNK,
    MetricName.VIRUSES,
)
_SENT_NAMES = (MetricName.MESSAGES_OUT, MetricName.BYTES_OUT, MetricName.MESSAGES_BOUNCED)
_OWNER_NAMES = (*_COMMAND_NAMES, *_SIGN_IN_NAMES, *_RECEIVED_NAMES, *_SENT_NAMES)
NAMES_BY_TYPE: Mapping[MetricSetKind, tuple[MetricName, ...]] = {
    MetricSetKind.GLOBAL: tuple(MetricName),
    MetricSetKind.DOMAIN: _OWNER_NAMES,
    MetricSetKind.USER: _OWNER_NAMES,
    MetricSetKind.IP: (*_COMMAND_NAMES, *_SIGN_IN_NAMES, *_RECEIVED_NAMES),
    MetricSetKind.SESSION: _COMMAND_NAMES,
    MetricSetKind.COMMAND: _COMMAND_NAMES,
}


class StatisticName(StrEnum):
    """The name of a statistic."""

    MESSAGES_IN = "MESSAGES_IN"
    BYTES_IN = "BYTES_IN"
    MESSAGES_OUT = "MESSAGES_OUT"
    BYTES_OUT = "BYTES_OUT"
    MESSAGES_BOUNCED = "MESSAGES_BOUNCED"
    MESSAGES_JUNK = "MESSAGES_JUNK"
    VIRUSES = "VIRUSES"
    SIGN_INS = "SIGN_INS"
    SIGN_IN_FAILURES = "SIGN_IN_FAILURES"
    API_OPERATIONS = "API_OPERATIONS"
    API_LATENCY_P50 = "API_LATENCY_P50"
    API_LATENCY_P95 = "API_LATENCY_P95"
    STORAGE = "STORAGE"
    ACTIVE_USERS = "ACTIVE_USERS"
    QUEUE_LENGTH = "QUEUE_LENGTH"
