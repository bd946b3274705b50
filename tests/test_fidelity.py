"""Whatever people and tools added to the tables survives the rebuild."""
import random
import shutil
import sqlite3
import subprocess

import pytest
from databases import PRODUCTION, SESSION_COLUMNS, build, populate
from helpers import TABLES, assert_kept, content, digest, environment, query, run, schema, script

FEATURES = {  # name: (text to put into the list of columns of activity_groups, what must be in the new DDL)
    "extra column": "extra TEXT DEFAULT 'a, (b' NOT NULL",
    "named check": "a1 INTEGER CONSTRAINT \"odd name\" CHECK (a1 IS NULL OR a1 > 0)",
    "unnamed check": "a2 INTEGER CHECK (a2 IS NULL OR a2 IN (1, 2))",
    "collation": "a3 TEXT COLLATE NOCASE",
    "default expression": "a4 TEXT DEFAULT (upper('x') || ')')",
    "default negative": "a5 INTEGER DEFAULT -5",
    "unique conflict": "a6 TEXT UNIQUE ON CONFLICT IGNORE",
    "not null conflict": "a7 TEXT NOT NULL ON CONFLICT REPLACE DEFAULT 'q'",
    "foreign key": "a8 VARCHAR REFERENCES goals(id) ON UPDATE CASCADE ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED",
    "keyword": "\"select\" TEXT, [group] TEXT, `order by` TEXT",
    "comments": "a9 TEXT -- a comment, with ) and '\n, a10 /* and (, another */ TEXT",
    "emoji": "\U0001f3af TEXT",
    "typeless": "a11, a12 DOUBLE PRECISION, a13 DECIMAL(10, 2)",
    "null": "a14 TEXT NULL DEFAULT NULL",
    "column named rowid": "rowid TEXT",
}
TABLE_FEATURES = {
    "table check": "CHECK (length(name) < 99)", "named unique": "CONSTRAINT u UNIQUE (id, name) ON CONFLICT ROLLBACK",
    "composite key": "FOREIGN KEY (id, name) REFERENCES pairs (a, b) ON DELETE CASCADE DEFERRABLE",
    "no comma": "CHECK (sort_order > -9) UNIQUE (id)", "comment": "/* last */ CHECK (1) -- end )\n",
}


def groups(columns=(), constraints=(), options="", first=""):
    return """CREATE TABLE activity_groups (%s
    id VARCHAR PRIMARY KEY, root_id VARCHAR NOT NULL, name VARCHAR NOT NULL, %s description VARCHAR,
    created_at DATETIME, sort_order INTEGER DEFAULT 0%s
) %s""" % (first, "".join("%s, " % c for c in columns), "".join(", %s" % c for c in constraints), options)


def with_groups(path, ddl, **options):
    build(path, fill=None)
    script(path, "DROP TABLE activity_groups", ddl)
    connection = sqlite3.connect(str(path))
    populate(connection, instances=2, **options)
    connection.commit()
    connection.close()
    return str(path)


def behaviour(path):
    """What the PRAGMAs tell of activity_groups, root_id and what the migration adds left out."""
    columns = {row[1]: row[2:] for row in query(path, "PRAGMA table_xinfo(activity_groups)")
               if row[1] not in ("root_id", "deleted_at", "updated_at")}
    keys = sorted(row[2:] for row in query(path, "PRAGMA foreign_key_list(activity_groups)") if row[3] != "root_id")
    uniques = sorted((row[2], row[3], [tuple(i[2:5]) for i in query(path, "PRAGMA index_xinfo(\"%s\")" % row[1]) if i[5]])
                     for row in query(path, "PRAGMA index_list(activity_groups)") if row[1].startswith("sqlite_"))
    return columns, keys, uniques


def migrated_whole(path):
    before, was = content(path), behaviour(path)
    run(path, "--dry-run")
    run(path, "--yes", "--no-backup")
    assert_kept(before, content(path))
    assert behaviour(path) == was
    after = digest(path)
    assert "Nothing to do" in run(path, "--yes").stdout and digest(path) == after
    run(path, "--verify")
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    return dict(query(path, "SELECT name, sql FROM sqlite_master WHERE type = 'table'"))["activity_groups"]


@pytest.mark.parametrize("feature", sorted(FEATURES))
def test_a_column_survives(tmp_path, feature):
    ddl = migrated_whole(with_groups(tmp_path / "g.db", groups([FEATURES[feature]])))
    assert FEATURES[feature] in ddl


@pytest.mark.parametrize("feature", sorted(TABLE_FEATURES))
def test_a_table_constraint_survives(tmp_path, feature):
    ddl = migrated_whole(with_groups(tmp_path / "g.db", groups([], [TABLE_FEATURES[feature]])))
    assert TABLE_FEATURES[feature].strip() in ddl


@pytest.mark.parametrize("seed", range(6))
def test_random_combinations_survive(tmp_path, seed):
    rng = random.Random(seed)
    columns = rng.sample(sorted(set(FEATURES) - {"column named rowid"}), 6)
    constraints = rng.sample(sorted(TABLE_FEATURES), 2)
    ddl = migrated_whole(with_groups(tmp_path / "g.db", groups(
        [FEATURES[c] for c in columns], [TABLE_FEATURES[c] for c in constraints], first="-- the first, (\n")))
    assert all(FEATURES[c] in ddl for c in columns) and "-- the first, (" in ddl


def test_a_constraint_that_survived_still_bites(tmp_path):
    path = with_groups(tmp_path / "g.db", groups(["a1 INTEGER CHECK (activity_groups.a1 > 0)"]))
    run(path, "--yes", "--no-backup")
    with pytest.raises(sqlite3.IntegrityError):
        script(path, "UPDATE activity_groups SET a1 = -1")


@pytest.mark.skipif(sqlite3.sqlite_version_info < (3, 31), reason="generated columns came with 3.31")
@pytest.mark.parametrize("kind", ["VIRTUAL", "STORED"])
def test_generated_columns_survive(tmp_path, kind):
    text = "up TEXT GENERATED ALWAYS AS (upper(name) || ', )') %s, low AS (lower(name))" % kind
    assert text in migrated_whole(with_groups(tmp_path / "g.db", groups([text])))


@pytest.mark.skipif(sqlite3.sqlite_version_info < (3, 37), reason="STRICT came with 3.37")
def test_strict_tables_survive(tmp_path):
    ddl = groups().replace("VARCHAR", "TEXT").replace("DATETIME", "TEXT").replace(") \n", ") STRICT")
    ddl = ddl.rstrip() + " STRICT"
    assert migrated_whole(with_groups(tmp_path / "g.db", ddl)).rstrip().endswith("STRICT")


def test_tables_without_rowid_survive(tmp_path):
    path = build(tmp_path / "g.db", fill=None)
    for table in ("activity_groups", "metric_values", "goals", "practice_session_goals"):
        sql, = query(path, "SELECT sql FROM sqlite_master WHERE name = ?", table)[0]
        script(path, "DROP TABLE " + table, sql + " WITHOUT ROWID")
    connection = sqlite3.connect(path)
    populate(connection, instances=5)
    connection.commit()
    connection.close()
    assert migrated_whole(path).endswith("WITHOUT ROWID")
    script(path, "INSERT INTO goals (id, type, name, parent_id) VALUES ('x', 'MidTermGoal', 'n', 'goal-0-03')")
    assert query(path, "SELECT root_id FROM goals WHERE id = 'x'") == [("goal-0-00",)]


def test_autoincrement_keeps_its_sequence(tmp_path):
    path = with_groups(tmp_path / "g.db", groups().replace("id VARCHAR PRIMARY KEY,", "n INTEGER PRIMARY KEY AUTOINCREMENT, id VARCHAR UNIQUE,"))
    script(path, "INSERT INTO activity_groups (n, id, root_id, name) VALUES (500, 'x', 'goal-0-00', 'x')",
           "DELETE FROM activity_groups WHERE n = 500")
    migrated_whole(path)
    script(path, "INSERT INTO activity_groups (id, root_id, name) VALUES ('y', 'goal-0-00', 'y')")
    assert query(path, "SELECT n FROM activity_groups WHERE id = 'y'") == [(501,)]


def test_rowids_survive_gaps_and_negative_ones(database):
    script(database, "UPDATE metric_values SET rowid = -7 WHERE rowid = 1", "UPDATE metric_values SET rowid = 9000000000000000000 "
           "WHERE rowid = 2")
    migrated_whole(database)


OTHERS = """
CREATE INDEX "my index" ON goals (lower(name) COLLATE NOCASE DESC) WHERE type <> 'x -- y';
CREATE UNIQUE INDEX mine ON metric_values (id, value);
CREATE VIEW v1 AS SELECT g.ID, "G".Name FROM Goals g JOIN goals ON 1 = 1 LIMIT 3;
CREATE VIEW v2 AS SELECT * FROM v1;
CREATE VIEW broken AS SELECT nil FROM nowhere;
CREATE TABLE mirror (id TEXT PRIMARY KEY, name);
CREATE TRIGGER mirror_insert AFTER INSERT ON goals BEGIN INSERT INTO mirror VALUES (NEW.id, NEW.name); END;
CREATE TRIGGER mirror_update AFTER UPDATE ON goals BEGIN DELETE FROM mirror WHERE id = OLD.id; INSERT INTO mirror VALUES (NEW.id, NEW.name); END;
CREATE TRIGGER v1_insert INSTEAD OF INSERT ON v1 BEGIN INSERT INTO goals (id, type, name) VALUES (NEW.id, 'MidTermGoal', NEW.name); END;
CREATE TRIGGER elsewhere AFTER INSERT ON mirror BEGIN UPDATE "GOALS" SET updated_at = 'now' WHERE id = NEW.id; END;
"""


def test_indexes_views_and_triggers_of_others_survive_and_work(database):
    connection = sqlite3.connect(database)
    connection.executescript(OTHERS + "INSERT INTO mirror SELECT id, name FROM goals;")
    connection.close()
    theirs = [row for row in schema(database) if row[0] != "table"]
    before = content(database)
    run(database, "--yes", "--no-backup")
    assert set(theirs) <= set(schema(database))
    assert_kept(before, content(database))
    script(database, "INSERT INTO v1 (id, name) VALUES ('through', 'the view')")
    assert query(database, "SELECT root_id FROM goals WHERE id = 'through'") == [("through",)]
    assert query(database, "SELECT name FROM mirror WHERE id = 'through'") == [("the view",)]
    run(database, "--verify")


def has_fts():
    try:
        sqlite3.connect(":memory:").execute("CREATE VIRTUAL TABLE t USING fts5 (x)")
    except sqlite3.OperationalError:
        return False
    return True


@pytest.mark.skipif(not has_fts(), reason="this SQLite has no FTS5")
def test_a_full_text_table_fed_by_triggers_goes_on(database):
    connection = sqlite3.connect(database)
    connection.executescript("""
        CREATE VIRTUAL TABLE found USING fts5 (name, content='goals');
        CREATE TRIGGER f1 AFTER INSERT ON goals BEGIN INSERT INTO found (rowid, name) VALUES (NEW.rowid, NEW.name); END;
        CREATE TRIGGER f2 AFTER UPDATE ON goals BEGIN
            INSERT INTO found (found, rowid, name) VALUES ('delete', OLD.rowid, OLD.name);
            INSERT INTO found (rowid, name) VALUES (NEW.rowid, NEW.name); END;
        INSERT INTO found (found) VALUES ('rebuild');""")
    connection.close()
    run(database, "--yes", "--no-backup")
    script(database, "INSERT INTO goals (id, type, name) VALUES ('x', 'MidTermGoal', 'zebra')",
           "INSERT INTO found (found) VALUES ('integrity-check')")
    assert query(database, "SELECT name FROM found WHERE found MATCH 'zebra'") == [("zebra",)]


@pytest.mark.parametrize("pragma, value", [("user_version", 7), ("application_id", 99), ("page_size", 1024),
                                           ("encoding", "UTF-16le"), ("auto_vacuum", 1), ("auto_vacuum", 2)])
def test_properties_of_the_file_survive(tmp_path, pragma, value):
    path = str(tmp_path / "g.db")
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA %s = '%s'" % (pragma, value) if pragma == "encoding" else "PRAGMA %s = %s" % (pragma, value))
    connection.execute("CREATE TABLE keep (x)")
    connection.close()
    build(path, instances=3)
    run(path, "--yes", "--no-backup")
    assert query(path, "PRAGMA " + pragma) == [(value,)]
    run(path, "--verify")


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_the_journal_mode_survives(tmp_path, journal):
    path = build(tmp_path / "g.db", journal=journal, instances=1)
    run(path, "--yes")
    assert query(path, "PRAGMA journal_mode") == [(journal,)]


@pytest.mark.parametrize("spelled", ['"Goals"', "[GOALS]", "`goals`", "'goals'"])
def test_names_quoted_and_in_other_cases(tmp_path, spelled):
    path = build(tmp_path / "g.db", fill=None)
    ddl = PRODUCTION[0].replace('"goals"', spelled).replace("    id VARCHAR", '    "ID" VARCHAR').format(sessions=SESSION_COLUMNS)
    script(path, "DROP TABLE goals", ddl)
    connection = sqlite3.connect(path)
    populate(connection, instances=3)
    connection.commit()
    connection.close()
    before = content(path)
    run(path, "--yes", "--no-backup")
    assert_kept(before, content(path))
    assert "Nothing to do" in run(path, "--yes").stdout
    run(path, "--verify")


def test_a_root_key_of_the_table_keeps_all_but_its_action(tmp_path):
    key = "FOREIGN KEY(root_id) REFERENCES goals (id) /* why, ( */ ON UPDATE CASCADE -- x)\n ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED"
    path = with_groups(tmp_path / "g.db", groups([], [key]))
    ddl = migrated_whole(path)
    for part in ("/* why, ( */", "ON UPDATE CASCADE", "-- x)", "DEFERRABLE INITIALLY DEFERRED"):
        assert part in ddl
    assert [row[6] for row in query(path, "PRAGMA foreign_key_list(activity_groups)")] == ["CASCADE"]


REFUSED = {
    "a view": ("DROP TABLE activity_groups", "CREATE VIEW activity_groups AS SELECT 1 AS id"),
    "not unique": ("DROP TABLE activity_groups", groups().replace(" PRIMARY KEY", "")),
    "PRIMARY KEY is not its id": ("DROP TABLE activity_groups", groups([], ["PRIMARY KEY (name)"], "WITHOUT ROWID").replace(
        "id VARCHAR PRIMARY KEY", "id VARCHAR UNIQUE")),
    "numbers": ("DROP TABLE activity_groups", groups().replace("root_id VARCHAR", "root_id INTEGER")),
    "migration_log": ("CREATE TABLE migration_log (mine)",),
}


@pytest.mark.parametrize("reason", sorted(REFUSED))
def test_what_can_not_be_carried_over_is_refused_before_anything(database, reason):
    script(database, *REFUSED[reason])
    before = digest(database)
    for flags in (["--dry-run"], ["--yes"]):
        said = run(database, *flags, status=1).stderr
        assert reason in said and "nothing was changed" in said
    assert digest(database) == before


def test_every_table_is_known_here():
    import migrate_database_improvements as product
    assert set(product.TABLES) == set(TABLES)


TEMPLATES = "CREATE TABLE session_templates (id VARCHAR PRIMARY KEY, root_id VARCHAR %s, name VARCHAR %s)"


@pytest.mark.parametrize("root, more, kept", [
    ("REFERENCES goals(id) NOT NULL DEFERRABLE INITIALLY DEFERRED", "", "ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED"),
    ("REFERENCES goals(id) DEFAULT 3 NOT DEFERRABLE", "", "ON DELETE CASCADE NOT DEFERRABLE"),
    ("REFERENCES goals(id) ON DELETE CASCADE ON DELETE SET NULL", "", "REFERENCES goals(id) ON DELETE CASCADE,"),
    ("", ", mood TEXT CHECK (session_templates.'mood' <> 'bad')", "CHECK (\"mood\" <> 'bad')"),
    ("", ", mood TEXT CHECK (main.session_templates.mood <> 'bad')", "CHECK (\"mood\" <> 'bad')"),
    ("", ', "true" TEXT CHECK (session_templates.true IS NULL)', 'CHECK ("true" IS NULL)'),
    ("", ", \u00e4 TEXT, \u00c4 TEXT", "\u00e4 TEXT, \u00c4 TEXT")])
def test_odd_declarations_keep_their_meaning(database, root, more, kept):
    script(database, "DROP TABLE session_templates", TEMPLATES % (root, more))
    run(database, "--yes", "--no-backup")
    sql = " ".join(query(database, "SELECT sql FROM sqlite_master WHERE name = 'session_templates'")[0][0].split(" "))
    assert kept in sql + ",", sql
    run(database, "--verify")


def test_a_default_true_of_a_text_column_is_copied(database):
    script(database, "ALTER TABLE goals ADD COLUMN shown VARCHAR DEFAULT TRUE", "ALTER TABLE goals ADD COLUMN hidden BOOLEAN DEFAULT FALSE")
    run(database, "--yes", "--no-backup")
    assert query(database, "SELECT DISTINCT shown, typeof(shown), hidden, typeof(hidden) FROM goals") == [("1", "text", 0, "integer")]


def test_a_comment_without_end_does_not_swallow_the_script(database, tmp_path):
    script(database, "CREATE INDEX open_end ON goals (name) /* to do")
    shutil.copy(database, str(tmp_path / "copy.db"))
    run(database, "--yes", "--no-backup", "--sql", tmp_path / "run.sql")
    subprocess.run(["sqlite3", str(tmp_path / "copy.db")], stdin=open(str(tmp_path / "run.sql")), check=True,
                   env=environment(LD_LIBRARY_PATH=""), stdout=subprocess.DEVNULL)
    run(tmp_path / "copy.db", "--verify")
