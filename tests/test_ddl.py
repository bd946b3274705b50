"""What becomes of a table's text, and that all it held survives: text to text, then end to end."""
import sqlite3

import pytest
from databases import PRODUCTION, build
from helpers import assert_kept, content, product, query, rewrite, run, schema, script, text_of

KEYED = "REFERENCES goals(id) ON DELETE CASCADE"
FILL = "NOT NULL ON CONFLICT REPLACE DEFAULT ''"
DONE = f"root_id VARCHAR {FILL} {KEYED}"
END = f"FOREIGN KEY (root_id) {KEYED})"
DEADLINE = "CONSTRAINT chk_goals_deadline_after_creation CHECK (date(deadline{}) >= date({}))"

TEXTS = {  # table, its text, what becomes of it
    "root_id gets its declaration, the table its key": (
        "activity_groups", "(id VARCHAR PRIMARY KEY, root_id VARCHAR NOT NULL)",
        f"(id VARCHAR PRIMARY KEY, root_id VARCHAR NOT NULL {FILL},\n    {END}"),
    "a key without an action gets a second one": (
        "activity_groups", "(id, root_id, FOREIGN KEY(root_id) REFERENCES goals(id))",
        f"(id, root_id {FILL}, FOREIGN KEY(root_id) REFERENCES goals(id),\n    {END}"),
    "a clause comes before the comment": (
        "activity_groups", "(id, root_id -- why, (so)\n)",
        f"(id, root_id {FILL} -- why, (so)\n,\n    {END}"),
    "STRING becomes VARCHAR, with its length": (
        "activity_instances",
        f"(id, notes STRING, data string(9) UNIQUE, STRING TEXT DEFAULT 'STRING', {DONE})",
        f"(id, notes VARCHAR, data VARCHAR(9) UNIQUE, STRING TEXT DEFAULT 'STRING', {DONE})"),
    "group_id and split_definition_id get their references": (
        "metric_values", f"(id, split_definition_id STRING, {DONE})",
        "(id, split_definition_id VARCHAR REFERENCES split_definitions(id) ON DELETE RESTRICT, "
        f"{DONE})"),
    "a reference that is there is enough": (
        "activity_definitions", f"(group_id REFERENCES activity_groups ON DELETE SET NULL, {DONE})",
        f"(group_id REFERENCES activity_groups ON DELETE SET NULL, {DONE})"),
    "brackets, commas and keywords in strings and names are no syntax": (
        "goals", "(a TEXT DEFAULT ') -- (' CHECK (a <> 'x, y'), \"b, )\" TEXT, [c (] /* ), */, "
        f"`d``e` DECIMAL(10, 2), {DONE})",
        "(a TEXT DEFAULT ') -- (' CHECK (a <> 'x, y'), \"b, )\" TEXT, [c (] /* ), */, "
        f"`d``e` DECIMAL(10, 2), {DONE})"),
    "the check of version 1 is replaced": (
        "goals", f"(deadline, created_at, {DONE}, {DEADLINE.format('', 'created_at')})",
        f"(deadline, created_at, {DONE}, " + DEADLINE.format(", '+1 day'", "created_at") + ")"),
    "the place kept by ALTER TABLE gets its default": (
        "goals", f"(id, updated_at DATETIME DEFAULT (+NULL), {DONE})",
        f"(id, updated_at DATETIME DEFAULT CURRENT_TIMESTAMP, {DONE})"),
    "checks are added at the end": (
        "session_templates", f"(name, {DONE} -- last\n)", f"(name, {DONE} -- last\n,\n"
        "    CONSTRAINT chk_session_templates_root_id CHECK (root_id <> ''))"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_in_a_tables_text(name):
    table, before, after = TEXTS[name]
    checks = ["chk_session_templates_root_id"] if table == "session_templates" else []
    for text, wanted in ((before, checks), (after, [])):
        db = product.connect(":memory:", "memory")
        db.execute(f"CREATE TABLE {table} {text}")  # it is sound SQL, and made once
        edited = product.new_text(table, product.read_table(db, table), wanted)
        assert edited == f"CREATE TABLE {table} {after}"


# ---- end to end -------------------------------------------------------------------------------

COLUMNS = [
    "extra TEXT DEFAULT 'a, (b' NOT NULL",
    "a1 INTEGER CONSTRAINT \"odd name\" CHECK (a1 IS NULL OR a1 > 0)",
    "a2 INTEGER CHECK (a2 IS NULL OR a2 IN (1, 2))",
    "a3 TEXT COLLATE NOCASE",
    "a4 TEXT DEFAULT (upper('x') || ')')",
    "a5 INTEGER DEFAULT -5",
    "a6 TEXT UNIQUE ON CONFLICT IGNORE",
    "a7 TEXT NOT NULL ON CONFLICT REPLACE DEFAULT 'q'",
    "a8 VARCHAR REFERENCES goals(id) ON UPDATE CASCADE ON DELETE SET NULL "
    "DEFERRABLE INITIALLY DEFERRED",
    "\"select\" TEXT, [group] TEXT, `order by` TEXT, \U0001f3af\U0001f3af TEXT",
    "a9 TEXT -- a comment, with ) and '\n, a10 /* and (, another */ TEXT",
    "a11, a12 DOUBLE PRECISION, a13 DECIMAL(10, 2), a14 TEXT NULL DEFAULT NULL",
    "up TEXT GENERATED ALWAYS AS (upper(name) || ', )') STORED, low AS (lower(name))"]
CONSTRAINTS = [
    "CHECK (length(name) < 99)",
    "CONSTRAINT u UNIQUE (id, name) ON CONFLICT ROLLBACK",
    "FOREIGN KEY (id, name) REFERENCES pairs (a, b) ON DELETE CASCADE DEFERRABLE",
    "CHECK (sort_order > -9) UNIQUE (id)",
    "/* last */ CHECK (1) -- end )\n"]


def instead(table, definition):
    """Statements that make a table anew, for `build`."""
    return [f"DROP TABLE {table}", f"CREATE TABLE {table} {definition}"]


def told(path):
    """What the PRAGMAs tell of activity_groups, but for what the migration adds."""
    columns = {row[1]: row[2:] for row in query(path, "PRAGMA table_xinfo(activity_groups)")
               if row[1] not in ("root_id", "deleted_at", "updated_at")}
    keys = {row[2:] for row in query(path, "PRAGMA foreign_key_list(activity_groups)")
            if row[3] != "root_id"}
    uniques = sorted((row[3], [part[2:5] for part in query(
        path, f"PRAGMA index_xinfo(\"{row[1]}\")")]) for row in query(
            path, "PRAGMA index_list(activity_groups)") if row[1].startswith("sqlite_"))
    return columns, keys, uniques


def survives(path):
    """Migrate: every value, index, view and trigger, and what activity_groups declares is kept."""
    before, was = content(path), told(path)
    theirs = {row for row in schema(path) if row[0] != "table"}
    run(path, "--yes", "--no-backup")
    assert_kept(before, content(path))
    assert told(path) == was and theirs <= {*schema(path)}
    assert "Nothing to do" in run(path, "--yes").out
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    run(path, "--verify")


@pytest.mark.parametrize("columns, constraints", [
    *(([column], []) for column in COLUMNS), *(([], [one]) for one in CONSTRAINTS),
    (COLUMNS, CONSTRAINTS)])
def test_what_the_owner_declares_survives(tmp_path, columns, constraints):
    path = build(tmp_path / "goals.db", instances=2, before=instead("activity_groups", f"""(
        -- the first, (
        id VARCHAR PRIMARY KEY, root_id VARCHAR NOT NULL, name VARCHAR NOT NULL,
        {''.join(f'{column}, ' for column in columns)} description VARCHAR, created_at DATETIME,
        sort_order INTEGER DEFAULT 0{''.join(f', {one}' for one in constraints)})"""))
    survives(path)
    for part in ["-- the first, (", *columns, *constraints]:
        assert part.strip() in text_of(path, "activity_groups")


@pytest.mark.parametrize("gone", ["n = 3", "1"])
def test_autoincrement_keeps_its_sequence(tmp_path, gone):
    path = build(tmp_path / "goals.db", before=instead("activity_groups", "(root_id, name, "
                 "n INTEGER PRIMARY KEY AUTOINCREMENT, id VARCHAR UNIQUE)"))
    script(path, f"DELETE FROM activity_groups WHERE {gone}")
    run(path, "--yes", "--no-backup")
    script(path, "INSERT INTO activity_groups (id, root_id, name) VALUES ('z', 'r', 'z')")
    assert query(path, "SELECT n FROM activity_groups WHERE id = 'z'") == [(4,)]


def test_a_copy_that_would_differ_is_rolled_back(database):
    """Numbers in a column that was declared TEXT later: a new table would hold text."""
    rewrite(database, "metric_values", "value FLOAT", "value TEXT")
    before = content(database)
    assert "the copy of metric_values differs in" in run(database, "--yes", status=1).err
    assert content(database) == before


@pytest.mark.parametrize("spelled", ['"Goals"', "[GOALS]", "`goals`", "'goals'"])
def test_names_quoted_and_in_other_cases_survive(tmp_path, spelled):
    ddl = PRODUCTION[0].replace('"goals"', spelled).replace("    id VARCHAR", '    "ID" VARCHAR')
    survives(build(tmp_path / "goals.db", instances=3, before=["DROP TABLE goals", ddl]))


def test_columns_that_alter_table_left_before_a_comment_survive(tmp_path):
    comments = ["-- it's the key, (not \"rowid\")", "/* CHECK (0), FOREIGN KEY */", "-- ) one",
                "-- the last, REFERENCES nothing"]
    path = build(tmp_path / "goals.db", instances=5, before=[*instead("metric_values", """(
        id VARCHAR PRIMARY KEY, {}
        activity_instance_id VARCHAR NOT NULL, metric_definition_id VARCHAR NOT NULL {},
        value FLOAT DEFAULT (1 {}
        ) NOT NULL {}
        )""".format(*comments)), "ALTER TABLE metric_values ADD COLUMN root_id STRING",
        "ALTER TABLE metric_values ADD COLUMN split_definition_id STRING"])
    survives(path)
    assert all(comment in text_of(path, "metric_values") for comment in comments)
    assert {row[3]: row[6] for row in query(path, "PRAGMA foreign_key_list(metric_values)")} == {
        "root_id": "CASCADE", "split_definition_id": "RESTRICT"}


def test_odd_values_and_rowids_survive_as_they_are(database):
    odd = ["007", "1e3", " 12 ", "\U0001f3af", "a\0b", "it's \"quoted\"; --\n", "x" * 3_000_000]
    for number, value in enumerate(odd):
        script(database, (
            "INSERT INTO goals (id, type, name, description) VALUES (?, 'Step', ?, ?)",
            (value[:9], value, value)), (
            "INSERT INTO session_templates (id, root_id, name, template_data) "
            "VALUES (?, 'goal-0-00', ?, ?)", (f"t{number}", f"odd {number}", value.encode())))
    script(database, "INSERT INTO goals (id, type, name, targets) VALUES "
           "('blob', 'Step', x'00ff', 5), ('text', 'Step', CAST(x'ff41' AS TEXT), NULL)",
           "UPDATE metric_values SET rowid = -7 WHERE rowid = 1",
           "UPDATE metric_values SET rowid = 9000000000000000000 WHERE rowid = 2")
    survives(database)


def test_numbers_in_string_columns_become_the_text_that_reads_back(tmp_path):
    path = build(tmp_path / "goals.db", "development", instances=3)
    values = [7, 0.1 + 0.2, 1e300, 2.5, 2 ** 53 + 1, "text", b"\1", None]
    for number, value in enumerate(values, 1):
        script(path, ("UPDATE activity_instances SET notes = ? WHERE rowid = ?", (value, number)))
    run(path, "--yes", "--no-backup")
    found = [row[0] for row in query(path, "SELECT notes FROM activity_instances LIMIT 8")]
    assert found[5:] == values[5:] and all(isinstance(value, str) for value in found[:5])
    assert [float(value) for value in found[:4]] == values[:4]
    assert (found[0], found[4]) == ("7", str(2 ** 53 + 1))


OWNERS = """
CREATE INDEX "my index" ON goals (lower(name) COLLATE NOCASE DESC) WHERE type <> 'x -- y';
CREATE UNIQUE INDEX mine ON metric_values (id, value);
CREATE VIEW v1 AS SELECT g.ID, "G".Name FROM Goals g JOIN goals ON 1 = 1 LIMIT 3;
CREATE VIEW v2 AS SELECT * FROM v1;
CREATE VIEW broken AS SELECT nil FROM nowhere;
CREATE TABLE mirror (id TEXT PRIMARY KEY, name);
CREATE TRIGGER mirror_insert AFTER INSERT ON goals
    BEGIN INSERT INTO mirror VALUES (NEW.id, NEW.name); END;
CREATE TRIGGER mirror_update AFTER UPDATE ON goals BEGIN
    DELETE FROM mirror WHERE id = OLD.id; INSERT INTO mirror VALUES (NEW.id, NEW.name); END;
CREATE TRIGGER v1_insert INSTEAD OF INSERT ON v1
    BEGIN INSERT INTO goals (id, type, name) VALUES (NEW.id, 'MidTermGoal', NEW.name); END;
CREATE TRIGGER elsewhere AFTER INSERT ON mirror
    BEGIN UPDATE "GOALS" SET updated_at = 'now' WHERE id = NEW.id; END;
CREATE TRIGGER trg_goals_audit AFTER DELETE ON goals BEGIN SELECT app_notify(OLD.id); END;
CREATE TRIGGER broken_too AFTER DELETE ON goals BEGIN INSERT INTO gone VALUES (1); END;
INSERT INTO mirror SELECT id, name FROM goals;
"""


def test_indexes_views_and_triggers_of_the_owner_survive_and_work(database):
    """Those that were broken before stay as they are."""
    with sqlite3.connect(database) as connection:
        connection.executescript(OWNERS)
    connection.close()
    survives(database)
    script(database, "INSERT INTO v1 (id, name) VALUES ('through', 'the view')")
    assert query(database, "SELECT root_id FROM goals WHERE id = 'through'") == [("through",)]
    assert query(database, "SELECT name FROM mirror WHERE id = 'through'") == [("the view",)]
