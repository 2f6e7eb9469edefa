"""Triggers that update the storage totals of domains.

Since they are triggers, no code can forget it. Each domain has a row for each sixteenth of its
users, so concurrent deliveries to one domain seldom wait for the same row. A read adds up sixteen
rows for any number of users.
"""


def _add_to_total_sql(row_name: str, used_difference: str, message_difference: str) -> str:
    return (
        "INSERT INTO domain_totals (domain_id, part, used, messages)"
        f" SELECT {row_name}.domain_id, {row_name}.id & 15, {used_difference}, {message_difference}"
        f" WHERE {row_name}.domain_id IS NOT NULL"
        " ON CONFLICT (domain_id, part) DO UPDATE SET used = domain_totals.used + excluded.used,"
        " messages = domain_totals.messages + excluded.messages;"
    )


_ADD_NEW_USER = _add_to_total_sql("new", "new.used", "new.message_count")
_SUBTRACT_OLD_USER = _add_to_total_sql("old", "-old.used", "-old.message_count")
_ADD_DIFFERENCE = _add_to_total_sql(
    "new", "new.used - old.used", "new.message_count - old.message_count"
)
_IS_SAME_DOMAIN = "new.domain_id IS NOT DISTINCT FROM old.domain_id"
_FILL_TOTALS = (
    "INSERT INTO domain_totals (domain_id, part, used, messages)"
    " SELECT domain_id, id & 15, sum(used), sum(message_count) FROM users"
    " WHERE domain_id IS NOT NULL GROUP BY domain_id, id & 15"
)

CREATE_TRIGGERS = {
    "sqlite": (
        f"CREATE TRIGGER domain_totals_in AFTER INSERT ON users BEGIN {_ADD_NEW_USER} END",
        f"CREATE TRIGGER domain_totals_out AFTER DELETE ON users BEGIN {_SUBTRACT_OLD_USER} END",
        "CREATE TRIGGER domain_totals_more AFTER UPDATE OF used, message_count ON users"
        f" WHEN {_IS_SAME_DOMAIN} BEGIN {_ADD_DIFFERENCE} END",
        "CREATE TRIGGER domain_totals_moved AFTER UPDATE OF domain_id ON users"
        f" WHEN NOT ({_IS_SAME_DOMAIN}) BEGIN {_SUBTRACT_OLD_USER} {_ADD_NEW_USER} END",
        _FILL_TOTALS,
    ),
    "postgresql": (
        "CREATE FUNCTION domain_totals_follow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF TG_OP = 'INSERT' THEN {_ADD_NEW_USER}"
        f" ELSIF TG_OP = 'DELETE' THEN {_SUBTRACT_OLD_USER}"
        f" ELSIF {_IS_SAME_DOMAIN} THEN {_ADD_DIFFERENCE}"
        f" ELSE {_SUBTRACT_OLD_USER} {_ADD_NEW_USER} END IF; RETURN NULL; END $$",
        "CREATE TRIGGER domain_totals_follow AFTER INSERT OR DELETE"
        " OR UPDATE OF used, message_count, domain_id ON users"
        " FOR EACH ROW EXECUTE FUNCTION domain_totals_follow()",
        _FILL_TOTALS,
    ),
}
