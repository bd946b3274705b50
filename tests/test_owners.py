"""What owners of databases have added, and how it gets on with the migration."""
import json
import re
import sqlite3

import pytest
from databases import build
from helpers import digest, query, run, script

GOAL = "INSERT INTO goals (id, type, name, parent_id) VALUES (?, ?, ?, ?)"
TEMPLATE = "INSERT INTO session_templates (id, root_id, name) VALUES (?, 'goal-0-00', ?)"


def test_repairs_fire_none_of_the_owners_triggers(database):
    """A cascade by hand would lose rows, and RAISE(IGNORE) would keep what is moved."""
    script(database,
           "CREATE TRIGGER tidy AFTER DELETE ON activity_definitions BEGIN "
           "DELETE FROM activity_instances WHERE activity_definition_id = OLD.id; END",
           "CREATE TRIGGER final BEFORE UPDATE ON session_templates BEGIN SELECT RAISE(IGNORE); END",
           "CREATE TRIGGER kept BEFORE DELETE ON activity_definitions BEGIN SELECT RAISE(IGNORE); END",
           "UPDATE activity_definitions SET root_id = '' WHERE id = 'activity-0-0'",
           (TEMPLATE, ("t1", "Twice")), (TEMPLATE, ("t2", "Twice")))
    before = query(database, "SELECT count(*) FROM activity_instances")
    triggers = query(database, "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY name")
    run(database, "--yes", "--no-backup", "--repair")
    assert query(database, "SELECT count(*) FROM activity_instances") == before
    assert query(database, "SELECT id FROM migration_quarantine WHERE \"table\" = 'activity_definitions'") == [("activity-0-0",)]
    assert query(database, "SELECT name FROM session_templates WHERE id IN ('t1', 't2') ORDER BY id") == [("Twice",), ("Twice (2)",)]
    assert query(database, "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND name NOT LIKE 'trg_%' ORDER BY name") == triggers


def test_many_equal_names_each_get_a_free_one(database):
    script(database, (TEMPLATE, ("taken", "Same (7)")), *[(TEMPLATE, ("t%d" % n, "Same")) for n in range(300)])
    run(database, "--yes", "--no-backup", "--repair")
    names = {row[0] for row in query(database, "SELECT name FROM session_templates WHERE name LIKE 'Same%'")}
    assert names == {"Same"} | {"Same (%d)" % n for n in range(2, 302)}


@pytest.mark.parametrize("trigger", [
    "CREATE TRIGGER broken AFTER DELETE ON goals BEGIN INSERT INTO dropped_audit VALUES (OLD.id); END",
    "CREATE TRIGGER told AFTER INSERT ON activity_instances BEGIN SELECT app_notify(NEW.id); END",
])
def test_a_trigger_that_cannot_be_compiled_here_is_carried_over(database, trigger):
    script(database, trigger)
    run(database, "--dry-run")
    run(database, "--yes", "--no-backup")
    assert query(database, "SELECT sql FROM sqlite_master WHERE name IN ('broken', 'told')") == [(trigger,)]
    run(database, "--verify")
    script(database, "CREATE TRIGGER worse AFTER UPDATE ON goals BEGIN INSERT INTO no_such_table VALUES (1); END")
    assert "no_such_table" in run(database, "--verify", status=1).stderr + run(database, "--verify", status=1).stdout


@pytest.mark.parametrize("statement", [
    "CREATE UNIQUE INDEX one_name ON goals (root_id, name)",
    "CREATE UNIQUE INDEX one_root ON metric_values (root_id)",
])
def test_a_constraint_of_the_owner_that_right_roots_break_needs_a_decision(database, statement):
    script(database, "UPDATE goals SET root_id = NULL, name = 'Evening' WHERE type = 'PracticeSession'")
    if "metric_values" in statement:
        script(database, "ALTER TABLE metric_values ADD COLUMN root_id VARCHAR")
    script(database, statement)
    before = digest(database)
    for flag in ("--dry-run", "--yes"):
        assert "UNIQUE constraint failed" in run(database, flag, status=3).stderr
    assert digest(database) == before


@pytest.mark.parametrize("statement", [
    "CREATE UNIQUE INDEX idx_goals_type ON playlist (goal)",
    "CREATE TRIGGER trg_goals_fill AFTER INSERT ON playlist BEGIN SELECT 1; END",
    "CREATE VIEW idx_goals_root_id AS SELECT 1",
    "CREATE VIEW migration_log AS SELECT 1",
    "CREATE INDEX migration_log ON playlist (goal)",
    "CREATE TABLE migration_quarantine (id)",
])
def test_a_name_that_is_taken_is_told_before_anything_happens(database, statement):
    script(database, "CREATE TABLE playlist (goal)", statement)
    before = digest(database)
    for flag in ("--dry-run", "--yes"):
        assert "has a name that the migration needs" in run(database, flag, status=1).stderr
    assert digest(database) == before


def test_an_index_that_is_replaced_is_told(database):
    script(database, "CREATE UNIQUE INDEX idx_goals_type ON goals (type, id)")
    assert "idx_goals_type replaces one that was: CREATE UNIQUE INDEX" in run(database, "--yes", "--no-backup").stdout


@pytest.mark.parametrize("table", [
    "CREATE TABLE practice_session_goals (session_id VARCHAR, goal_id VARCHAR)",
    "CREATE TABLE practice_session_goals (practice_session_goal_id INTEGER PRIMARY KEY, practice_session_id VARCHAR, "
    "short_term_goal_id VARCHAR)",
])
def test_links_under_other_column_names_give_their_sessions_a_root(database, table):
    columns = "session_id, goal_id" if "(session_id" in table else "practice_session_id, short_term_goal_id"
    script(database, "DROP TABLE practice_session_goals", table, (GOAL, ("linked", "PracticeSession", "s", None)),
           "INSERT INTO practice_session_goals (%s) VALUES ('linked', 'goal-1-05')" % columns)
    run(database, "--yes", "--no-backup")
    root = "SELECT root_id FROM goals WHERE id = 'linked'"
    assert query(database, root) == [("goal-1-00",)]
    script(database, "UPDATE practice_session_goals SET %s = 'goal-0-05'" % columns.split(", ")[1])
    assert query(database, root) == [("goal-0-00",)]
    run(database, "--verify")


def test_links_of_an_unknown_shape_are_refused(database):
    script(database, "DROP TABLE practice_session_goals", "CREATE TABLE practice_session_goals (one, two)",
           "INSERT INTO practice_session_goals VALUES (1, 2)")
    assert "no telling which" in run(database, "--dry-run", status=1).stderr


def test_a_trigger_that_may_refuse_the_fill_is_told(database):
    script(database, "CREATE TRIGGER final BEFORE UPDATE ON metric_values BEGIN SELECT RAISE(ABORT, 'final'); END",
           "CREATE TRIGGER named BEFORE UPDATE OF value ON metric_values BEGIN SELECT RAISE(ABORT, 'final'); END")
    said = run(database, "--dry-run").stdout
    assert "trigger final on metric_values may refuse" in said and "trigger named" not in said


def test_instances_follow_a_session_whose_root_comes_later(tmp_path):
    path = build(tmp_path / "goals.db", "later")
    script(path, "PRAGMA writable_schema = ON",
           "UPDATE sqlite_master SET sql = replace(sql, 'root_id VARCHAR NOT NULL', 'root_id VARCHAR') WHERE name = 'sessions'")
    session, = query(path, "SELECT id FROM sessions LIMIT 1")[0]
    run(path, "--yes", "--no-backup")
    script(path, "UPDATE sessions SET root_id = NULL WHERE id = '%s'" % session,
           "INSERT INTO activity_instances (id, session_id, activity_definition_id) "
           "SELECT 'late', '%s', id FROM activity_definitions LIMIT 1" % session)
    run(path, "--verify")
    for root in ("goal-1-00", "", "goal-2-00"):
        script(path, "UPDATE sessions SET root_id = '%s' WHERE id = '%s'" % (root, session))
        derived = root or query(path, "SELECT d.root_id FROM activity_definitions d JOIN activity_instances i "
                                "ON i.activity_definition_id = d.id WHERE i.id = 'late'")[0][0]
        assert query(path, "SELECT root_id FROM activity_instances WHERE id = 'late'") == [(derived,)]
        run(path, "--verify")


def test_a_deep_fractal_can_be_deleted_with_foreign_keys_on(migrated):
    script(migrated, (GOAL, ("d0", "UltimateGoal", "deep", None)),
           *[(GOAL, ("d%d" % n, "MidTermGoal", "deep", "d%d" % (n - 1))) for n in range(1, 600)])
    before = query(migrated, "SELECT count(*) FROM goals")[0][0]
    script(migrated, "DELETE FROM goals WHERE id = 'd0'", foreign_keys=True)
    assert query(migrated, "SELECT count(*) FROM goals")[0][0] == before - 600
    run(migrated, "--verify")


def test_a_time_that_a_check_can_never_hold_needs_a_decision(database):
    script(database, "UPDATE goals SET deadline = 'now' WHERE id = 'goal-0-03'")
    assert "chk_goals_deadline_after_creation" in run(database, "--dry-run", status=3).stdout
    run(database, "--yes", "--no-backup", "--skip-constraint", "chk_goals_deadline_after_creation")



def test_integer_ids_are_refused(tmp_path):
    path = build(tmp_path / "goals.db", instances=1)
    script(path, "PRAGMA writable_schema = ON",
           "UPDATE sqlite_master SET sql = replace(sql, 'id VARCHAR PRIMARY KEY', 'id INTEGER UNIQUE') WHERE name = 'goals'")
    assert "its ids are numbers" in run(path, "--dry-run", status=1).stderr


@pytest.mark.parametrize("table, column", [("activity_groups", "group_id"), ("split_definitions", "split_definition_id"),
                                           ("metric_definitions", "metric_definition_id")])
def test_references_to_a_table_that_is_missing_are_no_fault(tmp_path, table, column):
    path = build(tmp_path / "goals.db", "development")
    owner = "activity_definitions" if column == "group_id" else "metric_values"
    script(path, "UPDATE %s SET %s = 'gone' WHERE rowid < 5" % (owner, column), "DROP TABLE " + table)
    run(path, "--yes", "--no-backup")
    run(path, "--verify")


def test_a_value_that_breaks_its_declaration_is_no_damage(database):
    """SQLite 3.40 says so of the first two even though they are sound; the third is really so."""
    script(database, "CREATE TABLE settings (value TEXT NOT NULL, key TEXT PRIMARY KEY) WITHOUT ROWID",
           "INSERT INTO settings VALUES ('v', 'k')",
           "CREATE TABLE playlist (id)", "INSERT INTO playlist VALUES (1)", "ALTER TABLE playlist ADD COLUMN shown VARCHAR DEFAULT TRUE",
           "CREATE TABLE notes (body)", "INSERT INTO notes VALUES (NULL)", "PRAGMA writable_schema = ON",
           "UPDATE sqlite_master SET sql = 'CREATE TABLE notes (body NOT NULL)' WHERE name = 'notes'")
    run(database, "--dry-run")
    run(database, "--yes")
    run(database, "--verify")


@pytest.mark.parametrize("before, statement, named", [
    ("CREATE TABLE archive AS SELECT * FROM metric_values WHERE 0", "CREATE TRIGGER keep AFTER DELETE ON metric_values BEGIN "
     "INSERT INTO archive SELECT * FROM metric_values WHERE id = OLD.id; END", "keep"),
    ("CREATE TABLE quick (id, name)", "CREATE TRIGGER quick_group AFTER INSERT ON quick BEGIN "
     "INSERT INTO activity_groups VALUES (NEW.id, 'goal-0-00', NEW.name, NULL, NULL, 0); END", "quick_group"),
    ("SELECT 1", "CREATE VIEW joined AS SELECT root_id, v.value FROM metric_values v JOIN activity_instances i "
     "ON i.id = v.activity_instance_id JOIN goals g ON g.id = i.practice_session_id", "joined"),
])
def test_what_new_columns_would_break_is_named(database, before, statement, named):
    script(database, before, statement)
    kept = digest(database)
    for flag in ("--dry-run", "--yes"):
        assert re.search("does not compile any more.*" + named + "|" + named + " does not compile any more",
                         run(database, flag, status=1).stderr)
    assert digest(database) == kept


@pytest.mark.parametrize("sql", [
    "CREATE TABLE activity_groups (/* \\e9 */ id VARCHAR PRIMARY KEY, root_id VARCHAR, name VARCHAR, description VARCHAR, "
    "created_at DATETIME, sort_order INTEGER)", "CREATE INDEX by_name ON goals (name /* \\e9 */)",
    "CREATE TRIGGER audit AFTER DELETE ON goals BEGIN SELECT '\\e9'; END"])
def test_bytes_that_are_no_utf8_in_the_schema_are_told_before_anything(database, sql):
    kind, name = sql.split()[1:3]
    script(database, "CREATE INDEX IF NOT EXISTS by_name ON goals (name)",
           "CREATE TRIGGER audit AFTER DELETE ON goals BEGIN SELECT 1; END", "PRAGMA writable_schema = ON",
           "UPDATE sqlite_master SET sql = CAST(replace(CAST('%s' AS BLOB), CAST('\\e9' AS BLOB), x'e9') AS TEXT) "
           "WHERE name = '%s'" % (sql.replace("'", "''"), name))
    kept = digest(database)
    done = run(database, "--yes", status=1)
    assert "the CREATE statement of the %s %s holds bytes that are not UTF-8" % (kind.lower(), name) in done.stderr
    assert "[1/5]" not in done.stdout and digest(database) == kept


def test_ddl_without_spaces_keeps_its_meaning(tmp_path):
    path = build(tmp_path / "goals.db", instances=1)
    script(path, "DROP TABLE session_templates", "CREATE TABLE session_templates(id VARCHAR PRIMARY KEY,"
           "root_id[VARCHAR]DEFAULT''CHECK(1)REFERENCES goals(id)DEFERRABLE INITIALLY DEFERRED,name VARCHAR)")
    run(path, "--yes", "--no-backup")
    run(path, "--verify")
    assert "DEFERRABLE INITIALLY DEFERRED" in query(path, "SELECT sql FROM sqlite_master WHERE name = 'session_templates'")[0][0]


def test_a_default_of_null_stays(database):
    script(database, "ALTER TABLE activity_definitions ADD COLUMN updated_at DATETIME DEFAULT (NULL)")
    run(database, "--yes", "--no-backup")
    assert query(database, "SELECT dflt_value FROM pragma_table_info('activity_definitions') WHERE name = 'updated_at'") == [("NULL",)]


def test_a_conflict_clause_of_the_owner_drops_no_row_in_silence(database):
    script(database, "CREATE TABLE copy AS SELECT * FROM metric_definitions", "DROP TABLE metric_definitions",
           "CREATE TABLE metric_definitions (id VARCHAR PRIMARY KEY, activity_id VARCHAR, name VARCHAR, root_id VARCHAR, "
           "UNIQUE (root_id, name) ON CONFLICT REPLACE)",
           "INSERT INTO metric_definitions SELECT id, activity_id, 'Metric', NULL FROM copy GROUP BY activity_id", "DROP TABLE copy")
    before = digest(database)
    assert "UNIQUE constraint failed" in run(database, "--yes", status=3).stderr
    assert digest(database) == before


def test_odd_sessions_get_their_root(migrated):
    """One whose fractal is gone becomes another kind of goal; one is linked to itself."""
    for recursive in (0, 1):
        script(migrated, "PRAGMA recursive_triggers = %d" % recursive,
               "INSERT INTO goals (id, type, name, root_id) VALUES ('odd', 'PracticeSession', 's', 'gone')",
               "UPDATE goals SET type = 'MidTermGoal' WHERE id = 'odd'")
        assert query(migrated, "SELECT root_id FROM goals WHERE id = 'odd'") == [("odd",)]
        script(migrated, "PRAGMA recursive_triggers = %d" % recursive,
               "INSERT INTO practice_session_goals VALUES ('self', 'self')",
               (GOAL, ("self", "PracticeSession", "s", None)),
               "INSERT OR REPLACE INTO goals (id, type, name) VALUES ('self', 'PracticeSession', 's')")
        assert query(migrated, "SELECT root_id FROM goals WHERE id = 'self'") == [("self",)]
        run(migrated, "--verify")
        script(migrated, "DELETE FROM goals WHERE id IN ('odd', 'self')", "DELETE FROM practice_session_goals WHERE "
               "practice_session_id = 'self'")


def has_fts5():
    return bool(sqlite3.connect(":memory:").execute("SELECT sqlite_compileoption_used('ENABLE_FTS5')").fetchone()[0])


@pytest.mark.skipif(not has_fts5(), reason="this SQLite was built without FTS5")
@pytest.mark.parametrize("table, columns, untidy, flags", [
    ("session_templates", "name", "INSERT INTO session_templates (id, root_id, name) VALUES ('t1', 'goal-0-00', 'Twice'), "
     "('t2', 'goal-0-00', 'Twice')", ["--repair"]),
    ("activity_definitions", "name", "INSERT INTO activity_definitions (id, root_id, name) VALUES ('lost', '', 'Twice')", ["--repair"]),
    ("goals", "name, root_id", "UPDATE goals SET description = 'new'", [])])
def test_full_text_tables_fit_their_content_after_repairs_and_backfill(database, table, columns, untidy, flags):
    script(database, untidy, "CREATE VIRTUAL TABLE found USING fts5(%s, content='%s')" % (columns, table),
           "INSERT INTO found (found) VALUES ('rebuild')")
    run(database, "--yes", "--no-backup", *flags)
    script(database, "INSERT INTO found (found, rank) VALUES ('integrity-check', 1)")  # raises where it does not
    assert len(query(database, "SELECT * FROM found WHERE found MATCH 'twice'")) == (2 if table == "session_templates" else 0)


def test_strings_in_double_quotes_stay_strings(database):
    script(database, "ALTER TABLE activity_instances ADD COLUMN state VARCHAR CHECK (state IN (\"planned\", \"completed\", \"data\"))",
           "UPDATE activity_instances SET state = 'completed'",
           "CREATE UNIQUE INDEX once ON activity_instances (state) WHERE state = \"data\"",
           "CREATE VIEW aliases AS SELECT id AS \"notes\", count(*) \"data\" FROM activity_instances",
           "CREATE VIEW done AS SELECT id FROM activity_instances WHERE state = \"completed\"")
    before = digest(database)
    assert 'the view done says "completed" for a text' in run(database, "--yes", status=1).stderr
    script(database, "DROP VIEW done")
    assert "says" in run(database, "--yes", "--phases", "columns,backfill,indexes", status=1).stderr
    assert digest(database) != before
    run(database, "--yes", "--no-backup")
    script(database, "UPDATE activity_instances SET state = 'data' WHERE rowid = 1")
    for state, where in (("data", 2), ("other", 2)):
        with pytest.raises(sqlite3.IntegrityError):
            script(database, "UPDATE activity_instances SET state = '%s' WHERE rowid = %d" % (state, where))
    run(database, "--verify")


def test_an_instead_of_trigger_that_would_break_is_named_whatever_was_broken_before(database):
    script(database, "CREATE VIEW quick AS SELECT id, root_id, name FROM session_templates",
           "CREATE VIEW old AS SELECT root_id FROM activity_definitions d, activity_groups g",
           "CREATE VIEW report AS SELECT root_id, value FROM metric_values, goals",
           "CREATE TRIGGER quick_insert INSTEAD OF INSERT ON quick BEGIN INSERT INTO session_templates "
           "VALUES (NEW.id, NEW.root_id, NEW.name, NULL, NULL, NULL); END")
    broken = len(query(database, "SELECT * FROM pragma_table_info('metric_values') WHERE name = 'root_id'"))
    said = run(database, "--dry-run", status=1).stderr
    assert not broken and "INSERT quick does not compile any more" in said and "quick_insert" in said
    assert "SELECT report does not compile any more: ambiguous column name: root_id" in said and "SELECT old" not in said


def test_an_owners_trigger_under_a_name_of_ours_is_refused(database):
    script(database, "CREATE TABLE audit (id)",
           "CREATE TRIGGER trg_goals_follow AFTER UPDATE ON goals BEGIN INSERT INTO audit VALUES (NEW.id); END")
    assert "trigger trg_goals_follow of goals has a name that the migration needs" in run(database, "--yes", status=1).stderr


def test_a_foreign_key_of_an_owners_table_that_would_be_violated_stops_the_run(database):
    script(database, "CREATE UNIQUE INDEX both ON goals (id, root_id)",
           "CREATE TABLE note (goal, root, FOREIGN KEY (goal, root) REFERENCES goals (id, root_id))",
           "INSERT INTO note VALUES ('gone', 'already')")
    run(database, "--dry-run")
    script(database, "UPDATE goals SET root_id = 'wrong' WHERE id = 'goal-0-01'", "INSERT INTO note VALUES ('goal-0-01', 'wrong')")
    assert "note: 2 rows refer to rows that no longer exist, 1 more than before" in run(database, "--yes", status=1).stderr


def test_what_only_the_app_brings_hinders_no_other_table(database):
    connection = sqlite3.connect(database)
    connection.create_collation("local", lambda one, other: (one > other) - (one < other))
    connection.execute("CREATE TABLE contacts (name TEXT COLLATE local UNIQUE)")
    connection.execute("INSERT INTO contacts VALUES ('x')")
    connection.commit()
    if sqlite3.sqlite_version_info < (3, 33):  # ALTER TABLE itself refuses
        assert "drop it, and create it again" in run(database, "--yes", status=1).stderr
        return
    run(database, "--yes", "--no-backup")
    run(database, "--verify")
    connection.execute("CREATE INDEX local_names ON goals (name COLLATE local)")
    connection.close()
    assert "drop it, and create it again" in run(database, "--yes", status=1).stderr


@pytest.mark.parametrize("inserts", ["metric_values", "goals"])
def test_or_ignore_leaves_no_row_without_root(migrated, inserts):
    """An owner's UNIQUE with root_id, and a statement whose OR IGNORE holds for our triggers as well."""
    script(migrated, "ALTER TABLE metric_values ADD COLUMN note", "CREATE UNIQUE INDEX one_note ON metric_values (root_id, note)",
           "CREATE UNIQUE INDEX one_name ON goals (root_id, name)" if inserts == "goals" else "SELECT 1")
    value = ("INSERT OR IGNORE INTO metric_values (id, activity_instance_id, metric_definition_id, value, note) SELECT '%s', "
             "activity_instance_id, metric_definition_id, 1, 'hello' FROM metric_values WHERE root_id = '%s'")
    goal = "INSERT OR IGNORE INTO goals (id, type, name, parent_id) VALUES ('%s', 'Step', 'hello', '%s')"
    add = {"metric_values": value, "goals": goal}[inserts]
    roots = [row[0] for row in query(migrated, "SELECT DISTINCT root_id FROM metric_values ORDER BY 1")][:2]
    script(migrated, add % ("a1", roots[0]), add % ("b1", roots[1]))
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE values of another row"):
        script(migrated, add % ("a2", roots[0]))
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE values of another row"):
        script(migrated, {"goals": "UPDATE OR IGNORE goals SET parent_id = '%s' WHERE id = 'a1'" % roots[1],
                          "metric_values": "UPDATE OR IGNORE metric_values SET activity_instance_id = (SELECT activity_instance_id "
                          "FROM metric_values WHERE id = 'b1') WHERE id = 'a1'"}[inserts])
    run(migrated, "--verify")


def test_ids_that_a_string_column_made_numbers_of_and_others_spell_otherwise_are_told(tmp_path):
    path = build(tmp_path / "goals.db", instances=1)
    script(path, "ALTER TABLE activity_definitions RENAME TO old", "CREATE TABLE activity_definitions (id STRING PRIMARY KEY, root_id, name)",
           "INSERT INTO activity_definitions SELECT id, root_id, name FROM old", "DROP TABLE old",
           "INSERT INTO activity_definitions VALUES ('007', 'goal-0-00', 'Bond')",
           "INSERT INTO metric_definitions (id, activity_id, name) VALUES ('m', '007', 'kisses')")
    assert "activity_definitions.id is a STRING that has made numbers of ids" in run(path, "--yes", status=1).stderr


def test_a_table_of_very_many_columns_is_copied(database):
    script(database, *["ALTER TABLE goals ADD COLUMN extra_%d" % number for number in range(1200)])
    run(database, "--dry-run")


def test_a_link_column_may_have_braces(database):
    script(database, 'ALTER TABLE practice_session_goals RENAME TO old',
           'CREATE TABLE practice_session_goals ("{x}_session_id", goal_id, short_term_goal_id)', "DROP TABLE old")
    run(database, "--yes", "--no-backup")
    run(database, "--verify")


def test_a_constraint_left_out_counts_only_while_it_is_missing(migrated):
    script(migrated, "DROP INDEX idx_goals_type")
    run(migrated, "--yes", "--no-backup", "--skip-constraint", "uq_activity_groups_root_name")
    script(migrated, "DROP INDEX uq_activity_groups_root_name")
    run(migrated, "--verify", status=1)


def test_a_goal_below_one_without_id_stays(database):
    script(database, "INSERT INTO goals (id, type, name, parent_id) VALUES ('', 'Step', 'none', NULL), ('kid', 'Step', 'kid', '')")
    run(database, "--yes", "--no-backup", "--repair")
    assert query(database, "SELECT root_id FROM goals WHERE id = 'kid'") == [("kid",)]
    assert query(database, "SELECT count(*) FROM migration_quarantine") == [(1,)]


def test_a_view_that_takes_inserts_alone_is_sound(database):
    script(database, "CREATE VIEW names AS SELECT id, name FROM goals", "CREATE TRIGGER add_name INSTEAD OF INSERT ON names "
           "BEGIN INSERT INTO goals (id, type, name) VALUES (NEW.id, 'Step', NEW.name); END")
    assert json.loads(run(database, "--yes", "--no-backup", "--report", "-").stdout)["not_compiling_before"] == {}
    script(database, "INSERT INTO names VALUES ('new', 'New')")
    run(database, "--verify")


@pytest.mark.parametrize("columns, row, why", [
    ("id VARCHAR PRIMARY KEY, type, name, up VARCHAR, parent_id VARCHAR AS (up)", "'1', 't', 'n', NULL", "generated column"),
    ("id PRIMARY KEY, type, name, parent_id", "1, 't', 'n', NULL", "ids are numbers")])
def test_goals_whose_tree_can_not_be_kept_are_refused(database, columns, row, why):
    if "AS (" in columns and sqlite3.sqlite_version_info < (3, 31):
        pytest.skip("generated columns came with SQLite 3.31")
    script(database, "DROP TABLE goals", "CREATE TABLE goals (%s)" % columns, "INSERT INTO goals VALUES (%s)" % row)
    assert why in run(database, "--yes", status=1).stderr


QUOTED = [  # names, not strings: none of this may be taken for a text
    'CREATE TABLE "notes" ("id" INTEGER PRIMARY KEY, "instance_id" VARCHAR, "body" TEXT)',
    'CREATE TRIGGER "completed" AFTER DELETE ON "activity_instances" BEGIN DELETE FROM "notes" WHERE "instance_id" = OLD."id"; END',
    'CREATE VIEW "recent" AS SELECT "id", "created_at" AS "data" FROM "activity_instances"',
    'CREATE TRIGGER "set_recent" INSTEAD OF UPDATE OF "data" ON "recent" BEGIN '
    'UPDATE "activity_instances" SET "created_at" = NEW."data" WHERE "id" = OLD."id"; END',
    'CREATE TRIGGER "copy" AFTER INSERT ON "notes" BEGIN INSERT INTO "notes" ("instance_id") '
    'SELECT "data" FROM (SELECT NEW."id" "data" FROM "goals" "notes" JOIN "activity_instances") WHERE 0; END',
    'CREATE VIEW "never" AS SELECT i.gone, "notes".body FROM "activity_instances" i JOIN "notes" ON "notes"."id" = i."id"',
    'CREATE VIEW "neither" AS SELECT "notes" AS kind, i.gone FROM activity_instances i',
    'CREATE INDEX "data" ON "activity_instances" ("created_at")',
    'ALTER TABLE activity_instances ADD COLUMN note_id INTEGER REFERENCES "notes" ("id")']


@pytest.mark.parametrize("phases", ["columns,backfill,indexes", "columns,backfill,constraints,indexes"])
def test_quoted_names_are_no_strings(database, phases):
    script(database, *QUOTED)
    run(database, "--yes", "--no-backup", "--phases", phases)
    run(database, "--yes", "--no-backup")
    run(database, "--verify")


@pytest.mark.parametrize("statements", [
    ["CREATE VIEW v1 AS SELECT * FROM activity_instances", 'CREATE VIEW v2 AS SELECT "notes" AS kind FROM v1'],
    ["CREATE TABLE audit (i, notes)", 'CREATE VIEW v2 AS SELECT "notes" AS kind FROM activity_instances WHERE id NOT IN (SELECT i FROM audit)'],
    ["CREATE TABLE audit (i, notes)", 'CREATE TRIGGER v2 AFTER UPDATE ON goals BEGIN INSERT INTO audit (i, notes) '
     'SELECT id, "notes" FROM activity_instances LIMIT 1; END']])
def test_strings_in_double_quotes_are_found_in_views_and_triggers(database, statements):
    script(database, *statements)
    assert 'v2 says "notes" for a text' in run(database, "--yes", status=1).stderr


@pytest.mark.parametrize("declared, stored", [("", (0, "integer")), ("BLOB", (0, "integer")), ("INTEGER", (0, "integer")),
                                              ("VARCHAR", ("0", "text"))])
def test_defaults_false_change_no_value(database, declared, stored):
    script(database, "ALTER TABLE goals ADD COLUMN archived %s DEFAULT FALSE" % declared)
    run(database, "--yes", "--no-backup")
    assert query(database, "SELECT DISTINCT archived, typeof(archived) FROM goals") == [stored]


@pytest.mark.parametrize("statements", [
    ["INSERT INTO metric_definitions (id, activity_id, name) VALUES ('lost', 'nowhere', 'n')",
     "CREATE TABLE note (a VARCHAR REFERENCES metric_definitions (id))", "INSERT INTO note VALUES ('lost')"],
    [(TEMPLATE, ("t1", "Twice")), (TEMPLATE, ("t2", "Twice")), "CREATE UNIQUE INDEX both ON session_templates (id, name)",
     "CREATE TABLE note (a, b, FOREIGN KEY (a, b) REFERENCES session_templates (id, name))", "INSERT INTO note VALUES ('t2', 'Twice')"]])
def test_repairs_that_violate_an_owners_foreign_key_stop_the_run(database, statements):
    script(database, *statements)
    assert "note: 1 rows refer to rows that no longer exist" in run(database, "--yes", "--repair", status=1).stderr


def test_a_trigger_that_was_broken_is_carried_over(database):
    script(database, "CREATE TRIGGER broken AFTER UPDATE ON activity_instances BEGIN INSERT INTO gone VALUES (1); END")
    run(database, "--yes", "--no-backup")


@pytest.mark.skipif(not has_fts5(), reason="this SQLite was built without FTS5")
def test_a_full_text_table_that_can_not_be_filled_anew_is_named(database):
    script(database, "CREATE VIRTUAL TABLE found USING fts5(title, root_id, content='goals')")
    assert "full-text table found may not fit any more" in run(database, "--yes", "--no-backup").stdout


def test_repairs_leave_names_that_are_unique_by_their_collation(database):
    script(database, "DROP TABLE session_templates", "CREATE TABLE session_templates (id VARCHAR PRIMARY KEY, root_id VARCHAR, "
           "name VARCHAR COLLATE RTRIM)", (TEMPLATE, ("t1", "A")), (TEMPLATE, ("t2", "A")), (TEMPLATE, ("t3", "A (2) ")))
    run(database, "--yes", "--no-backup", "--repair")
    assert query(database, "SELECT name FROM session_templates ORDER BY id") == [("A",), ("A (3)",), ("A (2) ",)]


def test_repairs_heed_the_new_names_of_other_spellings(database):
    script(database, "DROP TABLE session_templates", "CREATE TABLE session_templates (id VARCHAR PRIMARY KEY, root_id VARCHAR, "
           "name VARCHAR COLLATE NOCASE)", *[(TEMPLATE, (name + str(n), name)) for n, name in enumerate(["Legs", "legs", "LEGS", "legs"])])
    run(database, "--yes", "--no-backup", "--repair")
    names = [row[0].lower() for row in query(database, "SELECT name FROM session_templates")]
    assert sorted(names) == ["legs", "legs (2)", "legs (3)", "legs (4)"]


def test_all_cycles_are_listed_at_once(database):
    for pair in ("ab", "cd"):
        for goal, parent in (pair, pair[::-1]):
            script(database, (GOAL, (goal, "Step", goal, parent)))
    script(database, (GOAL, ("below", "Step", "x", "d")))
    report = json.loads(run(database, "--dry-run", "--report", "-", status=3).stdout)
    assert [(set(one["ids"]), one["rows"]) for one in report["decisions"]] == [({"a", "b"}, 2), ({"c", "d"}, 3)]
