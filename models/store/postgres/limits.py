"""Limits of connections and transactions of PostgreSQL: their number, and times."""

# Connections that a process has at most: 15 of transactions, 15 of reads and 11 of heartbeats, 8 of
# reads by the driver, and one each for the event bus, the lock of the server and the log store.
# Three are a reserve for connections that are being closed.
CONNECTIONS_PER_PROCESS = 55
CONNECT_TIMEOUT = 5  # seconds to connect to one host, unless `connect_timeout` is given
# PostgreSQL ends a connection whose peer has vanished. A transaction takes milliseconds, so a
# transaction that waits for its client for 10 s has lost it. `lock_timeout` is below the 5 s
# after which LMTP answers 451.
SESSION_SETTINGS = {
    "idle_in_transaction_session_timeout": "10s",
    "lock_timeout": "4s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "3",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "15s",
    "client_connection_check_interval": "5s",
}
# The first statements of a transaction that may take or wait longer, such as a migration.
UNLIMITED_STATEMENTS = (
    "SET LOCAL lock_timeout = 0",
    "SET LOCAL idle_in_transaction_session_timeout = 0",
)
TCP_USER_TIMEOUT_MS = 15_000  # until unacknowledged data ends the connection on our side
CONNECTION_CHECK_VERSION = (
    14  # the first major version of PostgreSQL with `client_connection_check_interval`
)
TCP_KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 3, "keepalives_count": 3}
