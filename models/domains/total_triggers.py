"""Triggers that update the storage totals of domains.

Since they are triggers, no code can forget it. Each domain has a row for each sixteenth of its
users, so concurrent deliveries to one domain seldom wait for the same row. A read adds up sixteen
rows for any number of users.
"""


def _add(row: str, used: str, messages: str) -> str:
    return (
        "INSERT INTO domain_totals (domain_id, part, used, messages)"
        f" SELECT {row}.domain_id, {row}.id & 15, {used}, {messages}"
        f" WHERE {row}.domain_id IS NOT NULL"
        " ON CONFLICT (domain_id, part) DO UPDATE SET used = domain_totals.used + excluded.used,"
        " messages = domain_totals.messages + excluded.messages;"
    )


_IN = _add("new", "new.used", "new.message_count")
_OUT = _add("old", "-old.used", "-old.message_count")
_MORE = _add("new", "new.used - old.used", "new.message_count - old.message_count")
_SAME = "new.domain_id IS NOT DISTINCT FROM old.domain_id"
_FILL = (
    "INSERT INTO domain_totals (domain_id, part, used, messages)"
    " SELECT domain_id, id & 15, sum(used), sum(message_count) FROM users"
    " WHERE domain_id IS NOT NULL GROUP BY domain_id, id & 15"
)

CREATE = {
    "sqlite": (
        f"CREATE TRIGGER domain_totals_in AFTER INSERT ON users BEGIN {_IN} END",
        f"CREATE TRIGGER domain_totals_out AFTER DELETE ON users BEGIN {_OUT} END",
        "CREATE TRIGGER domain_totals_more AFTER UPDATE OF used, message_count ON users"
        f" WHEN {_SAME} BEGIN {_MORE} END",
        "CREATE TRIGGER domain_totals_moved AFTER UPDATE OF domain_id ON users"
        f" WHEN NOT ({_SAME}) BEGIN {_OUT} {_IN} END",
        _FILL,
    ),
    "postgresql": (
        "CREATE FUNCTION domain_totals_follow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF TG_OP = 'INSERT' THEN {_IN}"
        f" ELSIF TG_OP = 'DELETE' THEN {_OUT}"
        f" ELSIF {_SAME} THEN {_MORE}"
        f" ELSE {_OUT} {_IN} END IF; RETURN NULL; END $$",
        "CREATE TRIGGER domain_totals_follow AFTER INSERT OR DELETE"
        " OR UPDATE OF used, message_count, domain_id ON users"
        " FOR EACH ROW EXECUTE FUNCTION domain_totals_follow()",
        _FILL,
    ),
}
DROP = {
    "sqlite": (
        "DROP TRIGGER domain_totals_in",
        "DROP TRIGGER domain_totals_out",
        "DROP TRIGGER domain_totals_more",
        "DROP TRIGGER domain_totals_moved",
    ),
    "postgresql": (
        "DROP TRIGGER domain_totals_follow ON users",
        "DROP FUNCTION domain_totals_follow()",
    ),
}
