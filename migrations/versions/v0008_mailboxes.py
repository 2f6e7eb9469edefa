"""mailboxes: paths of any length"""

from alembic import op

revision = "0008"
down_revision = "0004"


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.drop_constraint("uq_mailboxes_user_id_path", "mailboxes")
        op.execute("CREATE UNIQUE INDEX uq_mailboxes_path ON mailboxes (user_id, md5(path))")


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.drop_index("uq_mailboxes_path", "mailboxes")
        op.create_unique_constraint("uq_mailboxes_user_id_path", "mailboxes", ["user_id", "path"])
