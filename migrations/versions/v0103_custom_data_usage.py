"""Count the custom data that applications store in the storage of its user."""

from alembic import op

from models.users import custom_data_usage

revision = "0103"
down_revision = "0102"


def upgrade() -> None:
    connection = op.get_bind()
    dialect = connection.dialect.name
    connection.exec_driver_sql(custom_data_usage.add_stored_data_to_usage_sql(dialect))
    for statement in custom_data_usage.create_triggers_sql(dialect):
        connection.exec_driver_sql(statement)


def downgrade() -> None:
    raise NotImplementedError("no older version: restore a copy of the database instead")
