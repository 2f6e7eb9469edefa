"""Add the table by which the forwards to an address are found, and the triggers that keep it."""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER

revision = "0113"
down_revision = "0112"
expand_only = True

MAX_ADDRESS_LENGTH = 320  # characters: an index of PostgreSQL refuses long texts
ELEMENTS = {
    "sqlite": "json_each({row}.forward_to) AS target",
    "postgresql": "jsonb_array_elements_text({row}.forward_to) AS target(value)",
}
POSITION = {"sqlite": "instr", "postgresql": "strpos"}
# the parts of an address in normal form: without the label, dots and capitals of the local part
ADDRESS_PARTS = (
    "SELECT DISTINCT substr(text, at + 1),"
    " replace(substr(text, 1, {position}(substr(text, 1, at - 1) || '+', '+') - 1), '.', ''), id"
    " FROM (SELECT lower(target.value) AS text, {position}(lower(target.value), '@') AS at,"
    " {row}.id AS id FROM {source} WHERE length(target.value) <= {max_length}"
    " AND {position}(target.value, '://') = 0) AS targets WHERE at > 0"
)
INSERT = "INSERT INTO forward_target_keys (domain, local, address_id) {parts}"
HAS_TARGETS = "{row}.forward_to <> '[]'"
DELETE_OLD = "DELETE FROM forward_target_keys WHERE address_id = old.id"


def upgrade() -> None:
    op.create_table(
        "forward_target_keys",
        sa.Column("domain", sa.String(), nullable=False),
        sa.Column("local", sa.String(), nullable=False),
        sa.Column("address_id", BIG_INTEGER, nullable=False),
        sa.ForeignKeyConstraint(["address_id"], ["addresses.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("domain", "local", "address_id"),
    )
    op.create_index("ix_forward_target_keys_address_id", "forward_target_keys", ["address_id"])
    connection = op.get_bind()
    dialect = connection.dialect.name
    # first the triggers: on PostgreSQL, they lock the table until the rows are inserted
    for statement in _triggers(dialect):
        connection.exec_driver_sql(statement)
    elements = ELEMENTS[dialect].format(row="addresses")
    rows = f"addresses JOIN {elements} ON {HAS_TARGETS.format(row='addresses')}"
    connection.exec_driver_sql(_insert(dialect, "addresses", rows))


def _insert(dialect: str, row: str, source: str) -> str:
    """Return the statement that inserts the targets of a row, or of all rows."""
    parts = ADDRESS_PARTS.format(
        position=POSITION[dialect], row=row, source=source, max_length=MAX_ADDRESS_LENGTH
    )
    return INSERT.format(parts=parts)


def _triggers(dialect: str) -> tuple[str, ...]:
    insert_new = _insert(dialect, "new", ELEMENTS[dialect].format(row="new"))
    has_targets = HAS_TARGETS.format(row="new")
    has_changed = "new.forward_to IS DISTINCT FROM old.forward_to"
    update = "AFTER UPDATE OF forward_to ON addresses"
    if dialect == "sqlite":
        return (
            "CREATE TRIGGER forward_target_keys_in AFTER INSERT ON addresses"
            f" WHEN {has_targets} BEGIN {insert_new}; END",
            f"CREATE TRIGGER forward_target_keys_changed {update} WHEN {has_changed}"
            f" BEGIN {DELETE_OLD}; {insert_new}; END",
        )
    execute = "EXECUTE FUNCTION forward_target_keys_follow()"
    return (
        "CREATE FUNCTION forward_target_keys_follow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF TG_OP = 'UPDATE' THEN {DELETE_OLD}; END IF; {insert_new}; RETURN NULL; END $$",
        "CREATE TRIGGER forward_target_keys_in AFTER INSERT ON addresses FOR EACH ROW"
        f" WHEN ({has_targets}) {execute}",
        f"CREATE TRIGGER forward_target_keys_changed {update} FOR EACH ROW WHEN ({has_changed})"
        f" {execute}",
    )


def downgrade() -> None:
    raise NotImplementedError("no older version: restore a copy of the database instead")
