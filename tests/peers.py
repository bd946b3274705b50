"""The same migration as users of Alembic and of sqlite-utils would write it, for the benchmark.

python tests/peers.py alembic|sqlite_utils DATABASE     (changes it in place)

They need tidy rows of the generation production: untidy ones stop both half-way. Neither backs
up, proves or verifies; transform() adds no CHECK, so sqlite-utils has less to do.
"""
import sys

ROOT_BY = {  # table -> SQL that yields its root_id
    "activity_instances":
        "SELECT g.root_id FROM goals g WHERE g.id = activity_instances.practice_session_id",
    "metric_values": "SELECT i.root_id FROM activity_instances i "
                     "WHERE i.id = metric_values.activity_instance_id",
    "metric_definitions": "SELECT d.root_id FROM activity_definitions d "
                          "WHERE d.id = metric_definitions.activity_id",
    "split_definitions": "SELECT d.root_id FROM activity_definitions d "
                         "WHERE d.id = split_definitions.activity_id",
}
NEW = {
    "goals": ["deleted_at", "sort_order"],
    "activity_groups": ["deleted_at", "updated_at"],
    "activity_definitions": ["has_splits", "group_id", "deleted_at", "updated_at"],
    "metric_definitions": ["root_id", "updated_at", "sort_order"],
    "split_definitions": ["root_id", "deleted_at", "updated_at"],
    "activity_instances": [
        "root_id", "deleted_at", "updated_at", "sort_order", "completed", "notes", "data"],
    "session_templates": ["deleted_at", "updated_at"],
    "metric_values": ["root_id", "created_at", "updated_at", "split_definition_id"],
}
CHECKS = {
    "goals": [("ck_deadline", "date(deadline) >= date(created_at)"),
              ("ck_session", "session_end >= session_start"),
              ("ck_total", "total_duration_seconds >= 0")],
    "activity_instances": [("ck_time", "time_stop >= time_start"),
                           ("ck_dur", "duration_seconds >= 0")],
    "metric_values": [("ck_value", "value >= 0")],
}
UNIQUE = {
    "activity_groups": ["root_id", "name"], "activity_definitions": ["root_id", "name"],
    "metric_definitions": ["activity_id", "name"], "split_definitions": ["activity_id", "name"],
    "session_templates": ["root_id", "name"],
}
INDEXES = {
    "goals": "parent_id root_id type created_at parent_id,type root_id,type",
    "activity_instances": "practice_session_id activity_definition_id root_id root_id,created_at "
                          "practice_session_id,created_at",
    "metric_values": "activity_instance_id metric_definition_id root_id "
                     "root_id,metric_definition_id",
    "metric_definitions": "activity_id root_id", "split_definitions": "activity_id root_id",
    "activity_definitions": "group_id root_id", "activity_groups": "root_id",
    "session_templates": "root_id",
}
BACKFILL = [
    """CREATE TEMP TABLE tree AS
       WITH RECURSIVE t(id, root_id) AS (
           SELECT id, id FROM goals WHERE parent_id IS NULL UNION ALL
           SELECT g.id, t.root_id FROM t JOIN goals g ON g.parent_id = t.id)
       SELECT * FROM t""",
    "CREATE INDEX temp.tree_id ON tree(id)",
    "UPDATE goals SET root_id = (SELECT root_id FROM tree WHERE tree.id = goals.id)",
    *(f"UPDATE {table} SET root_id = ({query})" for table, query in ROOT_BY.items())]


def alembic(path):
    import sqlalchemy as sa
    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    types = {"deleted_at": sa.DateTime, "updated_at": sa.DateTime, "created_at": sa.DateTime,
             "sort_order": sa.Integer, "completed": sa.Boolean, "has_splits": sa.Boolean}
    with sa.create_engine(f"sqlite:///{path}").begin() as connection:
        op = Operations(MigrationContext.configure(connection))
        for table, columns in NEW.items():
            for column in columns:
                op.add_column(table, sa.Column(column, types.get(column, sa.String)))
        op.create_index("tmp_parent", "goals", ["parent_id"])
        for statement in BACKFILL:
            op.execute(statement)
        op.drop_index("tmp_parent", "goals")
        for table in NEW:
            with op.batch_alter_table(table) as batch:
                batch.alter_column("root_id", existing_type=sa.String(), nullable=False)
                batch.create_foreign_key(f"fk_{table}_root", "goals", ["root_id"], ["id"],
                                         ondelete="CASCADE")
                for name, text in CHECKS.get(table, []):
                    batch.create_check_constraint(name, text)
        for table, columns in UNIQUE.items():
            op.create_index(f"uq_{table}", table, columns, unique=True)
        for table, indexes in INDEXES.items():
            for number, columns in enumerate(indexes.split()):
                op.create_index(f"ix_{table}_{number}", table, columns.split(","))


def sqlite_utils(path):
    import sqlite_utils

    db = sqlite_utils.Database(path)
    whole = ("sort_order", "completed", "has_splits")
    for table, columns in NEW.items():
        for column in columns:
            db[table].add_column(column, int if column in whole else str)
    db["goals"].create_index(["parent_id"], "tmp_parent")
    with db.conn:
        for statement in BACKFILL:
            db.execute(statement)
    for table in NEW:
        has_key = any(key.column == "root_id" for key in db[table].foreign_keys)
        db[table].transform(not_null={"root_id"},
                            add_foreign_keys=None if has_key else [("root_id", "goals", "id")])
    for table, columns in UNIQUE.items():
        db[table].create_index(columns, f"uq_{table}", unique=True)
    for table, indexes in INDEXES.items():
        for number, columns in enumerate(indexes.split()):
            db[table].create_index(columns.split(","), f"ix_{table}_{number}", if_not_exists=True)


if __name__ == "__main__":
    {"alembic": alembic, "sqlite_utils": sqlite_utils}[sys.argv[1]](sys.argv[2])
