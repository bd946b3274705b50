"""What becomes of a table's text, and that all it held survives: text to text, then end to end."""
import random
import sqlite3

import pytest
from databases import PRODUCTION, SESSION_COLUMNS, build, populate
from helpers import assert_kept, content, product, query, rewrite, run, schema, script

END = "FOREIGN KEY (root_id) REFERENCES goals(id) ON DELETE CASCADE"
FILL = "NOT NULL ON CONFLICT REPLACE DEFAULT ''"
KEYED = "REFERENCES goals(id) ON DELETE CASCADE"


def edited(table, text, checks=()):
    """The text that follows CREATE TABLE, brought to the target."""
    connection = sqlite3.connect(":memory:", factory=product.Database)
    connection.script = []
    connection.execute(f"CREATE TABLE {text}")
    sql = product.new_text(table, product.read_table(connection, table), checks)
    connection.execute(f"CREATE TABLE copy {sql[sql.index('('):]}")  # it is sound SQL
    assert sql.startswith("CREATE TABLE ")
    return sql[len("CREATE TABLE "):]


TEXTS = {
    "root_id gets its declaration, the table its key": (
        "activity_groups", "activity_groups (id VARCHAR PRIMARY KEY, root_id VARCHAR NOT NULL)",
        f"activity_groups (id VARCHAR PRIMARY KEY, root_id VARCHAR NOT NULL {FILL},\n    {END})"),
    "one that is there is left alone": (
        "activity_groups", f"activity_groups (id PRIMARY KEY, root_id VARCHAR {FILL} {KEYED})",
        f"activity_groups (id PRIMARY KEY, root_id VARCHAR {FILL} {KEYED})"),
    "a key without an action gets a second one": (
        "activity_groups",
        "activity_groups (id, root_id, FOREIGN KEY(root_id) REFERENCES goals(id))",
        f"activity_groups (id, root_id {FILL}, FOREIGN KEY(root_id) REFERENCES goals(id),\n"
        f"    {END})"),
    "a clause comes before the comment": (
        "activity_groups", "activity_groups (id, root_id -- why, (so)\n)",
        f"activity_groups (id, root_id {FILL} -- why, (so)\n,\n    {END})"),
    "STRING becomes VARCHAR, with its length": (
        "activity_instances", f"activity_instances (id, notes STRING, data string(9) UNIQUE, "
        f"STRING TEXT DEFAULT 'STRING', root_id {FILL} {KEYED})",
        f"activity_instances (id, notes VARCHAR, data VARCHAR(9) UNIQUE, "
        f"STRING TEXT DEFAULT 'STRING', root_id {FILL} {KEYED})"),
    "group_id and split_definition_id get their references": (
        "metric_values", f"metric_values (id, split_definition_id STRING, root_id {FILL} {KEYED})",
        "metric_values (id, split_definition_id VARCHAR REFERENCES split_definitions(id) "
        f"ON DELETE RESTRICT, root_id {FILL} {KEYED})"),
    "a reference that is there is enough": (
        "activity_definitions", "activity_definitions (group_id REFERENCES activity_groups "
        f"ON DELETE SET NULL, root_id {FILL} {KEYED})",
        "activity_definitions (group_id REFERENCES activity_groups "
        f"ON DELETE SET NULL, root_id {FILL} {KEYED})"),
    "brackets, commas and keywords in strings and names are no syntax": (
        "goals",
        "goals (a TEXT DEFAULT ') -- (' CHECK (a <> 'x, y'), \"b, )\" TEXT, [c (] /* ), */, "
        f"`d``e` DECIMAL(10, 2), root_id {FILL} {KEYED})",
        "goals (a TEXT DEFAULT ') -- (' CHECK (a <> 'x, y'), \"b, )\" TEXT, [c (] /* ), */, "
        f"`d``e` DECIMAL(10, 2), root_id {FILL} {KEYED})"),
    "the check of version 1 is replaced": (
        "goals", f"goals (deadline, created_at, root_id {FILL} {KEYED}, CONSTRAINT "
        "chk_goals_deadline_after_creation CHECK (date(deadline) >= date(created_at)))",
        f"goals (deadline, created_at, root_id {FILL} {KEYED}, CONSTRAINT "
        "chk_goals_deadline_after_creation CHECK (date(deadline, '+1 day') >= date(created_at)))"),
    "the place kept by ALTER TABLE gets its default": (
        "goals", f"goals (id, updated_at DATETIME DEFAULT (+NULL), root_id {FILL} {KEYED})",
        f"goals (id, updated_at DATETIME DEFAULT CURRENT_TIMESTAMP, root_id {FILL} {KEYED})"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_in_a_tables_text(name):
    table, before, after = TEXTS[name]
    assert edited(table, before) == after
    assert edited(table, after) == after


def test_checks_are_added_at_the_end():
    assert edited("metric_values", f"metric_values (value, root_id {FILL} {KEYED} -- last\n)",
                  ["chk_metric_values_non_negative"]) == (
        f"metric_values (value, root_id {FILL} {KEYED} -- last\n,\n"
        "    CONSTRAINT chk_metric_values_non_negative CHECK (value >= 0))")


@pytest.mark.parametrize("sql, checks", [
    ("CREATE TABLE t (a CHECK (a > (1)), CONSTRAINT \"Odd name\" CHECK(b<>')'), b)",
     {"CHECK (a > (1))": "a > (1)", "odd name": "b<>')'"}),
    ("CREATE TABLE t (a TEXT /* CHECK (0) */ DEFAULT 'CHECK (1)', \"check\" TEXT)", {})])
def test_the_checks_of_a_text_are_found(sql, checks):
    assert product.declared_checks(sql) == checks


FEATURES = {  # in the list of columns of activity_groups
    "extra column": "extra TEXT DEFAULT 'a, (b' NOT NULL",
    "named check": "a1 INTEGER CONSTRAINT \"odd name\" CHECK (a1 IS NULL OR a1 > 0)",
    "unnamed check": "a2 INTEGER CHECK (a2 IS NULL OR a2 IN (1, 2))",
    "collation": "a3 TEXT COLLATE NOCASE",
    "default expression": "a4 TEXT DEFAULT (upper('x') || ')')",
    "default negative": "a5 INTEGER DEFAULT -5",
    "unique conflict": "a6 TEXT UNIQUE ON CONFLICT IGNORE",
    "not null conflict": "a7 TEXT NOT NULL ON CONFLICT REPLACE DEFAULT 'q'",
    "foreign key": "a8 VARCHAR REFERENCES goals(id) ON UPDATE CASCADE ON DELETE SET NULL "
                   "DEFERRABLE INITIALLY DEFERRED",
    "keyword": "\"select\" TEXT, [group] TEXT, `order by` TEXT",
    "comments": "a9 TEXT -- a comment, with ) and '\n, a10 /* and (, another */ TEXT",
    "emoji": "\U0001f3af\U0001f3af TEXT",
    "typeless": "a11, a12 DOUBLE PRECISION, a13 DECIMAL(10, 2)",
    "null": "a14 TEXT NULL DEFAULT NULL",
    "generated": "up TEXT GENERATED ALWAYS AS (upper(name) || ', )') STORED, low AS (lower(name))",
    "table check": "CHECK (length(name) < 99)",
    "named unique": "CONSTRAINT u UNIQUE (id, name) ON CONFLICT ROLLBACK",
    "composite key": "FOREIGN KEY (id, name) REFERENCES pairs (a, b) ON DELETE CASCADE DEFERRABLE",
    "no comma": "CHECK (sort_order > -9) UNIQUE (id)",
    "comment at the end": "/* last */ CHECK (1) -- end )\n",
}
CONSTRAINTS = list(FEATURES)[-5:]


def with_groups(path, columns=(), constraints=()):
    build(path, fill=None)
    script(path, "DROP TABLE activity_groups", f"""CREATE TABLE activity_groups ( -- the first, (
        id VARCHAR PRIMARY KEY, root_id VARCHAR NOT NULL, name VARCHAR NOT NULL,
        {''.join(f'{column}, ' for column in columns)} description VARCHAR, created_at DATETIME,
        sort_order INTEGER DEFAULT 0{''.join(f', {one}' for one in constraints)})""")
    with sqlite3.connect(path) as connection:
        populate(connection, instances=2)
    connection.close()
    return str(path)


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
    before, was = content(path), told(path)
    run(path, "--yes", "--no-backup")
    assert_kept(before, content(path))
    assert told(path) == was
    assert "Nothing to do" in run(path, "--yes").out
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    return query(path, "SELECT sql FROM sqlite_master WHERE name = 'activity_groups'")[0][0]


@pytest.mark.parametrize("feature", FEATURES)
def test_it_survives(tmp_path, feature):
    parts = [[], [FEATURES[feature]]] if feature in CONSTRAINTS else [[FEATURES[feature]], []]
    sql = survives(with_groups(tmp_path / "g.db", *parts))
    assert FEATURES[feature].strip() in sql and "-- the first, (" in sql


@pytest.mark.parametrize("seed", range(4))
def test_random_combinations_survive(tmp_path, seed):
    rng = random.Random(seed)
    columns = rng.sample(sorted(set(FEATURES) - {*CONSTRAINTS}), 6)
    constraints = rng.sample(CONSTRAINTS, 2)
    sql = survives(with_groups(tmp_path / "g.db", [FEATURES[c] for c in columns],
                               [FEATURES[c] for c in constraints]))
    assert all(FEATURES[name].strip() in sql for name in [*columns, *constraints])


def test_a_check_that_survived_still_bites(tmp_path):
    path = with_groups(tmp_path / "g.db", [FEATURES["named check"]])
    run(path, "--yes", "--no-backup")
    with pytest.raises(sqlite3.IntegrityError, match="odd name"):
        script(path, "UPDATE activity_groups SET a1 = -1")


@pytest.mark.parametrize("gone", ["n = 500", "1"])
def test_autoincrement_keeps_its_sequence(tmp_path, gone):
    path = build(tmp_path / "g.db", fill=None)
    script(path, "DROP TABLE activity_groups",
           "CREATE TABLE activity_groups (n INTEGER PRIMARY KEY AUTOINCREMENT, id VARCHAR UNIQUE, "
           "root_id VARCHAR, name VARCHAR)",
           "INSERT INTO activity_groups VALUES (500, 'x', 'r', 'x'), (3, 'y', 'r', 'y')",
           f"DELETE FROM activity_groups WHERE {gone}")
    run(path, "--yes", "--no-backup")
    script(path, "INSERT INTO activity_groups (id, root_id, name) VALUES ('z', 'r', 'z')")
    assert query(path, "SELECT n FROM activity_groups WHERE id = 'z'") == [(501,)]


def test_a_copy_that_would_differ_is_rolled_back(database):
    """Numbers in a column that was declared TEXT later: a new table would hold text."""
    rewrite(database, "metric_values", "value FLOAT", "value TEXT")
    before = content(database)
    assert "the copy of metric_values differs in" in run(database, "--yes", status=1).err
    assert content(database) == before


def test_rowids_gaps_and_all_survive(database):
    script(database, "UPDATE metric_values SET rowid = -7 WHERE rowid = 1",
           "UPDATE metric_values SET rowid = 9000000000000000000 WHERE rowid = 2")
    survives(database)


@pytest.mark.parametrize("spelled", ['"Goals"', "[GOALS]", "`goals`", "'goals'"])
def test_names_quoted_and_in_other_cases_survive(tmp_path, spelled):
    path = build(tmp_path / "g.db", fill=None)
    ddl = PRODUCTION[0].replace('"goals"', spelled).replace("    id VARCHAR", '    "ID" VARCHAR')
    script(path, "DROP TABLE goals", ddl.replace("{sessions}", SESSION_COLUMNS))
    with sqlite3.connect(path) as connection:
        populate(connection, instances=3)
    connection.close()
    survives(path)
    run(path, "--verify")


def test_columns_that_alter_table_left_before_a_comment_survive(tmp_path):
    path = build(tmp_path / "goals.db", fill=None)
    script(path, "DROP TABLE metric_values", """CREATE TABLE metric_values (
        id VARCHAR PRIMARY KEY, -- it's the key, (not "rowid")
        activity_instance_id VARCHAR NOT NULL, metric_definition_id VARCHAR NOT NULL
        /* CHECK (0), FOREIGN KEY */, value FLOAT DEFAULT (1 -- ) one
        ) NOT NULL -- the last, REFERENCES nothing
        )""", "ALTER TABLE metric_values ADD COLUMN root_id STRING",
           "ALTER TABLE metric_values ADD COLUMN split_definition_id STRING")
    with sqlite3.connect(path) as connection:
        populate(connection, instances=5)
    connection.close()
    survives(path)
    ddl = query(path, "SELECT sql FROM sqlite_master WHERE name = 'metric_values'")[0][0]
    for comment in ("-- it's the key, (not \"rowid\")", "/* CHECK (0), FOREIGN KEY */", "-- ) one",
                    "-- the last, REFERENCES nothing"):
        assert comment in ddl
    assert {row[3]: row[6] for row in query(path, "PRAGMA foreign_key_list(metric_values)")} == {
        "root_id": "CASCADE", "split_definition_id": "RESTRICT"}


def test_a_table_of_very_many_columns_survives(database):
    script(database, *[f"ALTER TABLE goals ADD COLUMN extra_{n} DEFAULT {n}" for n in range(1200)])
    survives(database)


def test_odd_values_survive_as_they_are(tmp_path):
    path = build(tmp_path / "goals.db", instances=3)
    odd = ["007", "1e3", " 12 ", "\U0001f3af", "a\0b", "it's \"quoted\"; --\n", "x" * 3_000_000]
    for number, value in enumerate(odd):
        script(path, ("INSERT INTO goals (id, type, name, description) VALUES (?, 'Step', ?, ?)",
                      (value[:9], value, value)),
               ("INSERT INTO session_templates (id, root_id, name, template_data) "
                "VALUES (?, 'goal-0-00', ?, ?)", (f"t{number}", f"odd {number}", value.encode())))
    script(path, ("INSERT INTO goals (id, type, name, targets) VALUES ('blob', 'Step', ?, 5)",
                  (b"\0\xff",)),
           "INSERT INTO goals (id, type, name) VALUES ('text', 'Step', CAST(x'ff41' AS TEXT))")
    survives(path)


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


@pytest.mark.parametrize("pragma, value", [
    ("user_version", 7), ("application_id", 99), ("page_size", 1024), ("encoding", "UTF-16le"),
    ("auto_vacuum", 1), ("auto_vacuum", 2), ("journal_mode", "wal")])
def test_properties_of_the_file_survive(tmp_path, pragma, value):
    path = str(tmp_path / "g.db")
    script(path, f"PRAGMA {pragma} = '{value}'", "CREATE TABLE keep (x)")
    build(path, instances=3, journal="wal" if value == "wal" else "delete")
    run(path, "--yes", "--no-backup")
    assert query(path, f"PRAGMA {pragma}") == [(value,)]
    run(path, "--verify")


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
INSERT INTO mirror SELECT id, name FROM goals;
"""


def test_indexes_views_and_triggers_of_the_owner_survive_and_work(database):
    connection = sqlite3.connect(database)
    connection.executescript(OWNERS)
    connection.close()
    theirs = [row for row in schema(database) if row[0] != "table"]
    before = content(database)
    run(database, "--yes", "--no-backup")
    assert {*theirs} <= {*schema(database)}
    assert_kept(before, content(database))
    script(database, "INSERT INTO v1 (id, name) VALUES ('through', 'the view')")
    assert query(database, "SELECT root_id FROM goals WHERE id = 'through'") == [("through",)]
    assert query(database, "SELECT name FROM mirror WHERE id = 'through'") == [("the view",)]
    run(database, "--verify")
