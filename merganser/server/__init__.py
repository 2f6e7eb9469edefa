"""The identity of a server, and the processes that may use its database."""
