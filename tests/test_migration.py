"""End to end: every generation arrives at the target, by every way there is."""
import contextlib
import json
import os
import shutil
import sqlite3
import subprocess

import pytest
from databases import FIRST_SCRIPT, GENERATIONS, build
from helpers import (
    ROOT,
    SAMPLE,
    TABLES,
    assert_kept,
    content,
    derive,
    digest,
    environment,
    folder_state,
    product,
    query,
    rewrite,
    run,
    schema,
    script,
    stored_roots,
    whole,
)


def version_1(path):
    """A database that version 1 has migrated, with its quarantine and an owner's trigger."""
    with contextlib.closing(sqlite3.connect(str(path))) as connection:
        connection.executescript((ROOT / "fixtures" / "version-1.sql").read_text(encoding="utf-8"))
    return str(path)


def assert_target(path):
    """Everything of DESIGN.md section 3 is there."""
    texts = {row[1]: row[3] for row in schema(path)}
    for table, columns in product.TABLES.items():
        found = {row[1].lower(): row for row in query(path, f"PRAGMA table_info({table})")}
        assert columns.keys() <= found.keys()
        assert found["root_id"][2].upper() == "VARCHAR" and found["root_id"][3:5] == (1, "''")
        keys = {(row[3].lower(), row[2].lower(), row[6])
                for row in query(path, f"PRAGMA foreign_key_list({table})")}
        assert ("root_id", "goals", "CASCADE") in keys
        assert {(column, parent) for name, column, parent in product.REFERENCES
                if (name, column) in product.ADDED_REFERENCES and name == table} <= {
                    key[:2] for key in keys}
        checks = product.declared_checks(
            query(path, "SELECT sql FROM sqlite_master WHERE lower(name) = ?", table)[0][0])
        assert {name: expression for name, (owner, expression) in product.ALL_CHECKS.items()
                if owner == table}.items() <= checks.items()
        for row in found.values():
            assert not row[2].upper().startswith("STRING")
    for name, on in product.INDEXES.items():
        assert texts[name] == f"CREATE INDEX {name} ON {on}"
    for name, (table, columns) in product.UNIQUE_NAMES.items():
        assert texts[name] == (f"CREATE UNIQUE INDEX {name} ON {table} ({columns}) "
                               "WHERE deleted_at IS NULL")
    created = [row[0] for row in query(path, "SELECT name FROM sqlite_master WHERE type = 'table' "
                                       "AND rootpage ORDER BY rowid") if row[0] in TABLES]
    assert created == TABLES


@pytest.mark.parametrize("generation", [*GENERATIONS, "version 1", "version 1, quick win"])
def test_every_generation_arrives_with_every_value_and_the_right_roots(tmp_path, generation):
    path = tmp_path / "goals.db"
    if generation in GENERATIONS:
        build(path, generation)
    else:
        version_1(path)
    if generation.endswith("quick win"):  # as its --phases columns,backfill,indexes left a table
        rewrite(path, "metric_values", " DEFAULT CURRENT_TIMESTAMP", " DEFAULT (+NULL)")
    before, expected = content(path), derive(path)
    run(path, "--yes", "--no-backup")
    after = content(path)
    assert_kept({name: rows for name, rows in before.items() if name != "migration_log"}, after)
    assert stored_roots(path) == expected
    assert_target(path)
    for _, now, default in query(path, "SELECT cid, name, dflt_value FROM pragma_table_info("
                                 "'metric_values') WHERE name IN ('created_at', 'updated_at')"):
        assert default == "CURRENT_TIMESTAMP", now
    before = digest(path)
    assert "Nothing to do" in run(path, "--yes").out
    assert digest(path) == before
    run(path, "--verify")


def test_version_1s_triggers_go_and_its_quarantine_stays(tmp_path):
    path = version_1(tmp_path / "goals.db")
    kept = content(path)["migration_quarantine"]
    report = tmp_path / "r.json"
    run(path, "--yes", "--no-backup", "--report", report)
    names = {row[1] for row in schema(path) if row[0] == "trigger"}
    assert "trg_goals_audit" in names and not names & {"trg_goals_orphan", "trg_goals_refill"}
    assert content(path)["migration_quarantine"] == kept
    assert json.loads(report.read_text())["quarantined_by_version_1"] == 1


@pytest.mark.parametrize("steps", range(0, len(FIRST_SCRIPT) + 1, 3))
def test_a_first_script_that_stopped_anywhere_is_completed(tmp_path, steps):
    path = build(tmp_path / "goals.db", "half-migrated", steps=steps, instances=4)
    expected = derive(path)
    run(path, "--yes", "--no-backup")
    assert stored_roots(path) == expected
    assert_target(path)


LISTS = ["SELECT id FROM goals WHERE parent_id = 'goal-0-00'",
         "SELECT id FROM goals WHERE parent_id IS NULL",
         "SELECT id FROM activity_definitions WHERE root_id = 'goal-1-00'",
         "SELECT id FROM metric_definitions WHERE activity_id = 'activity-0-0'",
         "SELECT id FROM activity_instances WHERE practice_session_id = 'session-0-0'"]


@pytest.mark.parametrize("generation", ["production", "models", "half-migrated"])
@pytest.mark.parametrize("flags", [[], ["--without-constraints"]])
def test_lists_without_order_by_keep_their_order(tmp_path, generation, flags):
    path = build(tmp_path / "goals.db", generation)
    script(path, "UPDATE goals SET type = char(90 - rowid % 5) || type WHERE type <> "
           "'PracticeSession' AND type <> 'Step'" if generation != "models" else "SELECT 1")
    before = [query(path, sql) for sql in LISTS]
    run(path, "--yes", "--no-backup", *flags)
    assert [query(path, sql) for sql in LISTS] == before
    for sql in (*LISTS, *(f"SELECT * FROM {table} WHERE root_id = 'x'" for table in TABLES)):
        assert "USING INDEX idx_" in str(query(path, f"EXPLAIN QUERY PLAN {sql}")), sql


def test_indexes_that_were_created_out_of_order_are_made_anew(migrated):
    script(migrated, "DROP INDEX idx_goals_parent_type",
           "CREATE INDEX idx_goals_parent_type ON goals (parent_id, type)")
    run(migrated, "--yes", "--no-backup")
    names = [row[0] for row in query(
        migrated, "SELECT name FROM sqlite_master WHERE type = 'index' "
                  "AND tbl_name = 'goals' AND sql > '' ORDER BY rowid")]
    assert names == [name for name, table in product.INDEXED_TABLE.items() if table == "goals"]


@pytest.mark.parametrize("generation", ["early", "production", "models", "later"])
def test_the_quick_win_is_completed_by_a_later_run(tmp_path, generation):
    path, at_once = (build(tmp_path / name, generation) for name in ("goals.db", "whole.db"))
    before, expected = content(path), derive(path)
    run(path, "--yes", "--no-backup", "--without-constraints")
    assert_kept(before, content(path))
    assert stored_roots(path) == expected
    names = {row[1] for row in schema(path)}
    assert {*product.INDEXES} <= names and not names & {*product.UNIQUE_NAMES}
    assert "complete but for the constraints, as chosen" in run(path, "--verify").out
    assert "Nothing to do" in run(path, "--yes", "--without-constraints").out
    script(path, "INSERT INTO goals (id, type, name, parent_id) VALUES ('new', 'Step', 'n', "
           "'goal-0-03')")
    assert query(path, "SELECT root_id FROM goals WHERE id = 'new'") == [("goal-0-00",)]
    script(path, "DELETE FROM goals WHERE id = 'new'")
    run(path, "--yes", "--no-backup")
    run(at_once, "--yes", "--no-backup")
    assert_target(path)
    assert whole(path)[0] == whole(at_once)[0]
    assert "consistent" in run(path, "--verify").out


def test_a_split_table_that_was_dropped_comes_back_older_than_the_values(migrated):
    script(migrated, "DROP TABLE split_definitions")
    run(migrated, "--yes", "--no-backup")
    assert_target(migrated)
    script(migrated, "INSERT INTO split_definitions (id, activity_id, name) VALUES "
           "('s', 'activity-1-0', 'n')", "UPDATE metric_values SET split_definition_id = 's' "
           "WHERE root_id = 'goal-1-00'")
    script(migrated, "UPDATE metric_values SET split_definition_id = NULL WHERE "
           "split_definition_id <> 's'", "DELETE FROM goals WHERE id = 'goal-1-00'",
           foreign_keys=True)


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_output_and_script_give_what_the_live_run_gives(tmp_path, journal):
    path = build(tmp_path / "goals.db", "half-migrated", journal=journal)
    script(path, "INSERT INTO session_templates (id, root_id, name) VALUES ('t', 'goal-0-00', "
           "'Template')", "INSERT INTO metric_definitions (id, activity_id, name) "
           "VALUES ('lost', 'no', 'n')", "CREATE INDEX open_end ON goals (name) -- to do")
    os.chmod(path, 0o640)
    replayed = shutil.copy(path, tmp_path / "replayed.db")
    before = digest(path)
    run(path, "--output", tmp_path / "copy.db", "--repair")
    assert digest(path) == before and os.stat(tmp_path / "copy.db").st_mode & 0o777 == 0o640
    run(path, "--yes", "--no-backup", "--repair", "--sql", tmp_path / "run.sql")
    made = f"UPDATE goals SET created_at = NULL WHERE id = '{product.RECOVERED}'"
    script(path, made)
    script(tmp_path / "copy.db", made)
    assert whole(tmp_path / "copy.db") == whole(path)
    replay(replayed, tmp_path / "run.sql", "Done: the database is migrated.", 0)
    script(replayed, made, "DROP INDEX open_end")  # its comment's last line has an end now
    script(path, "DROP INDEX open_end")
    assert whole(replayed) == whole(path)
    run(replayed, "--verify")
    replay(replayed, tmp_path / "run.sql", "this is not the database", 1)
    other = build(tmp_path / "other.db", "half-migrated", instances=2)
    before = digest(other)
    replay(other, tmp_path / "run.sql", "this is not the database that the script was made from", 1)
    assert digest(other) == before


def replay(path, text, words, status):
    if not shutil.which("sqlite3"):
        pytest.skip("the sqlite3 shell is not installed")
    with open(text, encoding="utf-8") as commands:  # the shell comes with a library of its own
        done = subprocess.run(["sqlite3", path], stdin=commands, capture_output=True, text=True,
                              env=environment(LD_LIBRARY_PATH=""))
    assert (done.returncode != 0) == bool(status) and words in done.stdout + done.stderr
    assert status or done.stdout.strip() == words


def test_a_script_suits_a_copy_with_other_rowids_and_spares_what_was_edited(database, tmp_path):
    script(database, "DELETE FROM metric_values WHERE rowid < 4", *[
        ("INSERT INTO session_templates (id, root_id, name) VALUES (?, 'goal-0-00', 'Twin')", id)
        for id in ("s", "t")])
    run(database, "--dry-run", "--repair", "--sql", tmp_path / "run.sql")
    copy, edited = tmp_path / "copy.db", shutil.copy(database, tmp_path / "edited.db")
    with contextlib.closing(sqlite3.connect(database)) as source:
        with contextlib.closing(sqlite3.connect(str(copy))) as target:
            target.executescript("\n".join(source.iterdump()))
    replay(copy, tmp_path / "run.sql", "Done: the database is migrated.", 0)
    run(copy, "--verify")
    values = "SELECT id, value FROM metric_values ORDER BY id"
    assert query(copy, values) == query(database, values)
    script(edited, "UPDATE session_templates SET name = 'Mine' WHERE id = 't'")
    replay(edited, tmp_path / "run.sql", "Done: the database is migrated.", 0)
    assert query(edited, "SELECT name FROM session_templates WHERE id IN ('s', 't') "
                         "ORDER BY id") == [("Twin",), ("Mine",)]


@pytest.mark.parametrize("loss", ["DELETE FROM migration_log", "DROP TABLE migration_log"])
def test_a_lost_log_is_written_anew(migrated, loss):
    script(migrated, loss)
    assert "is not migrated" in run(migrated, "--verify", status=1).err
    run(migrated, "--yes", "--no-backup")
    run(migrated, "--verify")


def test_a_script_that_can_not_be_written_changes_nothing(database):
    before = folder_state(database)
    run(database, "--yes", "--sql", "/dev/full", status=1)
    assert folder_state(database) == before


# ---- verification -----------------------------------------------------------------------------

BREAKS = {
    "wrong or empty root_id": ["DROP TRIGGER trg_metric_values_guard", "UPDATE metric_values SET "
                               "root_id = 'goal-1-00' WHERE id = 'value-00001-0'"],
    "index idx_goals_root_type": ["DROP INDEX idx_goals_root_type"],
    "index uq_session_templates_root_name": ["DROP INDEX uq_session_templates_root_name"],
    "trg_goals_move": ["DROP TRIGGER trg_goals_move"],
    "worse does not compile": ["CREATE VIEW worse AS SELECT no_such FROM goals"],
    "no_such_table": ["CREATE TRIGGER mine AFTER UPDATE ON goals BEGIN "
                      "INSERT INTO no_such_table VALUES (1); END"],
    "a ring of links": ["INSERT INTO practice_session_goals VALUES ('session-0-1', 'session-0-2'), "
                        "('session-0-2', 'session-0-1')"],
}


@pytest.mark.parametrize("named", BREAKS)
def test_verify_names_what_is_broken(migrated, named):
    before = digest(migrated)
    run(migrated, "--verify")
    assert digest(migrated) == before
    script(migrated, *BREAKS[named])
    said = run(migrated, "--verify", status=1).err
    assert named in said and len(said.splitlines()[0]) <= 200 and "fault" in said.splitlines()[0]
    assert ("migrating again" in said) != ("does not compile" in said)


@pytest.mark.parametrize("table, old, new, named", [
    ("metric_values", "CHECK (value >= 0)", "CHECK (1)", "lacks chk_metric_values_non_negative"),
    ("goals", '"sort_order"', '"sorted"', "goals.sort_order is missing"),
    ("goals", "ON DELETE CASCADE", "", "goals lacks a constraint")])
def test_verify_names_what_a_text_lacks(migrated, table, old, new, named):
    rewrite(migrated, table, old, new)
    assert named in run(migrated, "--verify", status=1).err
    run(migrated, "--yes", "--no-backup")
    run(migrated, "--verify")
    assert "Nothing to do" in run(migrated, "--yes").out


def test_what_the_app_does_daily_is_no_fault(migrated, tmp_path):
    script(migrated, "DELETE FROM activity_instances WHERE id = 'instance-00001'",
           "DELETE FROM goals WHERE id = 'goal-1-00'",
           "UPDATE activity_instances SET activity_definition_id = 'activity-1-0' WHERE rowid = 5",
           "INSERT INTO practice_session_goals VALUES ('session-0-1', 'goal-2-03')")
    report = tmp_path / "r.json"
    said = run(migrated, "--verify", "--report", report).out
    found = json.loads(report.read_text())
    lost = query(migrated, "SELECT count(*) FROM metric_values WHERE activity_instance_id NOT IN "
                 "(SELECT id FROM activity_instances)")[0][0]
    assert found["references_to_missing_rows"]["metric_values.activity_instance_id"] == lost > 0
    crossing = found["crossing_fractals"]
    assert crossing["activity_instances.activity_definition_id"]["ids"] == ["instance-00005"]
    assert crossing["practice_session_goals"]["count"] == 1
    for one in crossing.values():
        assert len(query(migrated, one["query"])) == one["count"]
    assert "references to missing rows, 2 rows that link two fractals" in said


@pytest.mark.parametrize("logged", ["{}", "[]", "null", "x", '{"options": {}}'])
def test_an_odd_log_is_no_obstacle(migrated, logged):
    script(migrated, ("INSERT INTO migration_log (run_at, script_version, sqlite_version, report) "
                      "VALUES ('', '', '', ?)", (logged,)))
    run(migrated, "--yes")
    run(migrated, "--verify", status=None)


def test_verify_of_what_is_not_migrated_says_just_that(database):
    said = run(database, "--verify", status=1)
    assert said.out == "" and "is not migrated" in said.err


def test_a_damaged_index_of_a_migrated_database_is_not_nothing_to_do(migrated):
    page, = query(migrated, "SELECT rootpage FROM sqlite_master WHERE name = 'idx_goals_type'")
    script(migrated, "PRAGMA writable_schema = ON", (
        "UPDATE sqlite_master SET rootpage = ? WHERE name = 'idx_goals_created_at'", page))
    for flag in ("--yes", "--verify"):
        assert "damaged" in run(migrated, flag, status=1).err


@pytest.mark.parametrize("before, statement, named", [
    ("CREATE TABLE archive AS SELECT * FROM metric_values WHERE 0",
     "CREATE TRIGGER keep AFTER DELETE ON metric_values BEGIN "
     "INSERT INTO archive SELECT * FROM metric_values WHERE id = OLD.id; END", "metric_values"),
    ("CREATE VIEW quick AS SELECT id, root_id, name FROM session_templates",
     "CREATE TRIGGER quick_insert INSTEAD OF INSERT ON quick BEGIN INSERT INTO session_templates "
     "VALUES (NEW.id, NEW.root_id, NEW.name, NULL, NULL, NULL); END", "INSERT quick"),
    ("CREATE VIEW old AS SELECT root_id FROM activity_definitions d, activity_groups g",
     "CREATE VIEW report AS SELECT root_id, value FROM metric_values, goals", "SELECT report")])
@pytest.mark.parametrize("flags", [[], ["--without-constraints"]])
def test_what_new_columns_break_is_named_and_rolled_back(database, before, statement, named, flags):
    script(database, before, statement)
    kept = folder_state(database)
    for flag in ("--dry-run", "--yes"):
        said = run(database, flag, *flags, status=1).err
        assert named in said and "does not compile any more" in said and "SELECT old" not in said
    assert folder_state(database) == kept


def test_what_was_broken_before_stays_as_it_is(database):
    broken = ["CREATE TRIGGER broken AFTER DELETE ON goals BEGIN INSERT INTO gone VALUES (1); END",
              "CREATE VIEW empty AS SELECT nil FROM nowhere",
              "CREATE TRIGGER told AFTER INSERT ON goals BEGIN SELECT app_notify(NEW.id); END"]
    script(database, *broken)
    run(database, "--yes", "--no-backup")
    assert {*broken} <= {row[3] for row in schema(database)}
    run(database, "--verify")


def test_repairs_that_violate_an_owners_foreign_key_are_rolled_back(database):
    script(database, "INSERT INTO session_templates (id, root_id, name) VALUES ('t', 'goal-0-00', "
           "'Template')", "CREATE UNIQUE INDEX both ON session_templates (id, name)",
           "CREATE TABLE note (a, b, FOREIGN KEY (a, b) REFERENCES session_templates (id, name))",
           "INSERT INTO note VALUES ('t', 'Template')", "INSERT INTO note VALUES ('gone', 'x')")
    said = run(database, "--yes", "--repair", status=1).err
    assert "note: the row of rowid 1 refers to no row of session_templates any more" in said


def test_a_conflict_clause_of_the_owner_drops_no_row_in_silence(database):
    script(database, "DROP TABLE session_templates", "CREATE TABLE session_templates (id VARCHAR "
           "PRIMARY KEY, root_id VARCHAR, name VARCHAR, UNIQUE (name) ON CONFLICT REPLACE)",
           "INSERT INTO session_templates VALUES ('a', 'r', 'x'), ('b', 'r', 'y')",
           "PRAGMA writable_schema = ON", "UPDATE sqlite_master SET sql = replace(sql, 'UNIQUE "
           "(name)', 'UNIQUE (root_id)') WHERE name = 'session_templates'")
    before = digest(database)
    run(database, "--yes", "--no-backup", status=None)
    assert digest(database) == before or len(content(database)["session_templates"]) == 2


@pytest.mark.parametrize("generation", GENERATIONS)
def test_app_code_old_and_new_works(tmp_path, generation):
    """Old code names the columns it knew, unset ones NULL; new code names the others too."""
    path = build(tmp_path / "goals.db", generation, instances=2)
    columns = [{table: [row[1] for row in query(path, f"PRAGMA table_info({table})")]
                for table in TABLES} for _ in (0, run(path, "--yes", "--no-backup"))]
    for release, known in zip("on", columns):
        rows = {
            "goals": dict(id=release + "g", type="MidTermGoal", name="n", parent_id="goal-0-03"),
            "activity_definitions": dict(id=release + "a", root_id="goal-0-00", name=release),
            "metric_definitions": dict(id=release + "m", activity_id=release + "a", name="n",
                                       unit="kg"),
            "activity_instances": dict(
                id=release + "i", practice_session_id="session-0-0", session_id="session-0-0",
                activity_definition_id=release + "a"),
            "metric_values": dict(id=release + "v", activity_instance_id=release + "i",
                                  metric_definition_id=release + "m", value=1.5)}
        for table, values in rows.items():
            names = ", ".join(f'"{column}"' for column in known[table])
            marks = ", ".join("?" * len(known[table]))
            script(path, (f"INSERT INTO {table} ({names}) VALUES ({marks})",
                          [values.get(column) for column in known[table]]))
            assert query(path, f"SELECT root_id FROM {table} WHERE id = ?", values["id"]) == [
                ("goal-0-00",)]
        for table, values in reversed(rows.items()):
            script(path, (f"DELETE FROM {table} WHERE {table}.id = ?", (values["id"],)))
    run(path, "--verify")


def test_the_report_names_what_was_corrected(database, tmp_path):
    report = tmp_path / "r.json"
    run(database, "--yes", "--no-backup", "--report", report)
    found = json.loads(report.read_text())
    assert len(found["corrections"]["goals"]) == found["tables"]["goals"]["corrected"] > 0
    for identity, before, after in found["corrections"]["goals"]:
        assert query(database, "SELECT root_id FROM goals WHERE id = ?", identity) == [(after,)]
        assert before != after
    logged = json.loads(query(database, "SELECT report FROM migration_log")[0][0])
    assert logged.keys() == found.keys() and logged["tables"] == found["tables"]
    assert logged["status"] == found["status"] == "done"
    assert found["made_by"].startswith("migrate_database_improvements.py")


def test_the_sample_is_what_its_maker_makes(tmp_path):
    made = tmp_path / "sample.db"
    build(made)
    assert schema(made) == schema(SAMPLE) and content(made) == content(SAMPLE)


def test_names_and_values_are_data_nowhere_sql(tmp_path):
    path = build(tmp_path / "goals.db", instances=3)
    odd = "x\"]`'; DROP TABLE goals; --\n"
    quoted = odd.replace('"', '""')
    script(path, f'CREATE TABLE "{quoted}" ("{quoted}" TEXT)', f'ALTER TABLE goals ADD "{quoted}"',
           ("UPDATE goals SET name = ?", (odd,)),
           *[("INSERT INTO session_templates (id, root_id, name) VALUES (?, 'goal-0-00', ?)",
              (odd + end, odd)) for end in "12"])
    before = content(path)
    run(path, "--yes", "--no-backup", "--repair")
    assert_kept(before, content(path), ("root_id", "name"))
    run(path, "--verify")
