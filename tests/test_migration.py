"""End to end: every generation arrives at the target, by every way there is."""
import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess

import pytest
from databases import FIRST_SCRIPT, GENERATIONS, build, columns, insert
from helpers import (ROOT, SAMPLE, TABLES, assert_kept, content, derive, digest, environment,
                     folder_state, product, query, rewrite, run, schema, script, stored_roots,
                     text_of, whole)

TWIN = ("INSERT INTO session_templates (id, root_id, name) "
        "VALUES ('t', 'goal-0-00', 'Template')")


def built(path, source):
    """A database of a generation, or one that version 1 has migrated."""
    if source in GENERATIONS:
        return build(path, source)
    with contextlib.closing(sqlite3.connect(str(path))) as connection:
        connection.executescript((ROOT / "fixtures" / "version-1.sql").read_text(encoding="utf-8"))
    if "quick win" in source:  # as its --phases columns,backfill,indexes left a table
        rewrite(path, "metric_values", " DEFAULT CURRENT_TIMESTAMP", " DEFAULT (+NULL)")
    return str(path)


def assert_target(path):
    """Everything of DESIGN.md section 3 is there."""
    texts = {row[1]: row[3] for row in schema(path)}
    for table, declared in product.TABLES.items():
        found = {row[1].lower(): row[2:5] for row in query(path, f"PRAGMA table_info({table})")}
        assert declared.keys() <= found.keys()
        assert found["root_id"] == ("VARCHAR", 1, "''")
        assert "STRING" not in {kind.upper() for kind, _, _ in found.values()}
        keys = {(row[3].lower(), row[2].lower(), row[6])
                for row in query(path, f"PRAGMA foreign_key_list({table})")}
        assert ("root_id", "goals", "CASCADE") in keys
        for column, parent in (("group_id", "activity_groups"),
                               ("split_definition_id", "split_definitions")):
            assert column not in found or (column, parent) in {key[:2] for key in keys}
        checks = product.declared_checks(text_of(path, table))
        assert {name: expression for name, (owner, expression) in product.ALL_CHECKS.items()
                if owner == table}.items() <= checks.items()
    for name, on in product.INDEXES.items():
        assert texts[name] == f"CREATE INDEX {name} ON {on}"
    for name, (table, names) in product.UNIQUE_NAMES.items():
        assert texts[name] == (f"CREATE UNIQUE INDEX {name} ON {table} ({names}) "
                               "WHERE deleted_at IS NULL")
    created = query(path, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY rowid")
    assert [name for name, in created if name in TABLES] == TABLES


@pytest.mark.parametrize("source", [*GENERATIONS, "version 1", "version 1, quick win"])
def test_every_generation_arrives_with_every_value_and_the_right_roots(tmp_path, source):
    path = built(tmp_path / "goals.db", source)
    before = content(path)
    run(path, "--yes", "--no-backup", "--report", tmp_path / "r.json")
    after = content(path)
    before.pop("migration_log", None)
    assert_kept(before, after)
    assert stored_roots(after) == derive(before)
    assert_target(path)
    stamps = query(path, "SELECT dflt_value FROM pragma_table_info('metric_values') "
                         "WHERE name IN ('created_at', 'updated_at')")
    assert stamps == [("CURRENT_TIMESTAMP",)] * 2
    if source.startswith("version 1"):
        triggers = {row[1] for row in schema(path) if row[0] == "trigger"}
        assert "trg_goals_audit" in triggers  # the owner's
        assert not triggers & {"trg_goals_orphan", "trg_goals_refill"}
        assert json.loads((tmp_path / "r.json").read_text())["quarantined_by_version_1"] == 1
    before = digest(path)
    assert "Nothing to do" in run(path, "--yes").out
    assert digest(path) == before
    run(path, "--verify")


@pytest.mark.parametrize("steps", range(0, len(FIRST_SCRIPT) + 1, 3))
def test_a_first_script_that_stopped_anywhere_is_completed(tmp_path, steps):
    path = build(tmp_path / "goals.db", "half-migrated", steps=steps, instances=4)
    expected = derive(content(path))
    run(path, "--yes", "--no-backup")
    assert stored_roots(content(path)) == expected
    assert_target(path)


LISTS = ["SELECT id FROM goals WHERE parent_id = 'goal-0-00'",
         "SELECT id FROM goals WHERE parent_id IS NULL",
         "SELECT id FROM activity_definitions WHERE root_id = 'goal-1-00'",
         "SELECT id FROM metric_definitions WHERE activity_id = 'activity-0-0'",
         "SELECT id FROM activity_instances WHERE practice_session_id = 'session-0-0'"]


@pytest.mark.parametrize("generation", ["production", "half-migrated"])
@pytest.mark.parametrize("flags", [[], ["--without-constraints"]])
def test_lists_without_order_by_keep_their_order(tmp_path, generation, flags):
    path = build(tmp_path / "goals.db", generation)
    script(path, "UPDATE goals SET type = char(90 - rowid % 5) || type WHERE type <> "
           "'PracticeSession'")
    before = [query(path, sql) for sql in LISTS]
    run(path, "--yes", "--no-backup", *flags)
    assert [query(path, sql) for sql in LISTS] == before
    for sql in (*LISTS, *(f"SELECT * FROM {table} WHERE root_id = 'x'" for table in TABLES)):
        assert "USING INDEX idx_" in str(query(path, f"EXPLAIN QUERY PLAN {sql}")), sql
    script(path, "DROP INDEX idx_goals_parent_type",
           "CREATE INDEX idx_goals_parent_type ON goals (parent_id, type)")
    run(path, "--yes", "--no-backup", *flags)  # it was too new: those after it are made anew
    names = query(path, "SELECT name FROM sqlite_master WHERE type = 'index' "
                        "AND tbl_name = 'goals' AND sql > '' ORDER BY rowid")
    assert names == [(name,) for name, of in product.INDEXED_TABLE.items() if of == "goals"]
    order = [*product.INDEXES.values()]
    for on in order:  # the plain index of a column is younger: the planner takes it
        assert order.index(on) <= order.index(re.sub(r" \((\w+).*", r" (\1)", on)), on


@pytest.mark.parametrize("generation", ["early", "production", "models", "later"])
def test_the_quick_win_is_completed_by_a_later_run(tmp_path, generation):
    path, at_once = (build(tmp_path / name, generation) for name in ("goals.db", "whole.db"))
    before = content(path)
    run(path, "--yes", "--no-backup", "--without-constraints")
    after = content(path)
    assert_kept(before, after)
    assert stored_roots(after) == derive(before)
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
           "('s', 'activity-1-0', 'n')", "UPDATE metric_values SET split_definition_id = "
           "CASE root_id WHEN 'goal-1-00' THEN 's' END")
    script(migrated, "DELETE FROM goals WHERE id = 'goal-1-00'", foreign_keys=True)


def replay(path, text, words="Done: the database is migrated.", status=0):
    if not shutil.which("sqlite3"):
        pytest.skip("the sqlite3 shell is not installed")
    with open(text, encoding="utf-8") as commands:  # the shell comes with a library of its own
        done = subprocess.run(["sqlite3", path], stdin=commands, capture_output=True, text=True,
                              env=environment(LD_LIBRARY_PATH=""))
    assert (done.returncode != 0) == bool(status) and words in done.stdout + done.stderr
    assert status or done.stdout.strip() == words


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_output_and_script_give_what_the_live_run_gives(tmp_path, journal):
    path = build(tmp_path / "goals.db", "half-migrated", journal=journal)
    script(path, TWIN, "CREATE INDEX open_end ON goals (name) -- to do",
           "INSERT INTO metric_definitions (id, activity_id, name) VALUES ('lost', 'no', 'n')")
    os.chmod(path, 0o640)
    replayed = shutil.copy(path, tmp_path / "replayed.db")
    before = digest(path)
    run(path, "--output", tmp_path / "copy.db", "--repair")
    assert digest(path) == before and os.stat(tmp_path / "copy.db").st_mode & 0o777 == 0o640
    run(path, "--yes", "--no-backup", "--repair", "--sql", tmp_path / "run.sql")
    replay(replayed, tmp_path / "run.sql")
    for one in (path, tmp_path / "copy.db", replayed):
        script(one, f"UPDATE goals SET created_at = NULL WHERE id = '{product.RECOVERED}'",
               "DROP INDEX open_end")  # in the script, its comment's last line has an end
    assert whole(tmp_path / "copy.db") == whole(replayed) == whole(path)
    run(replayed, "--verify")
    other = build(tmp_path / "other.db", "half-migrated", instances=2)
    for there in (replayed, other):
        before = whole(there)
        replay(there, tmp_path / "run.sql", "this is not the database that the script was made", 1)
        assert whole(there) == before


def test_a_script_suits_a_copy_with_other_rowids_and_spares_what_was_edited(database, tmp_path):
    script(database, "DELETE FROM metric_values WHERE rowid < 4", TWIN)
    run(database, "--dry-run", "--repair", "--sql", tmp_path / "run.sql")
    with contextlib.closing(sqlite3.connect(database)) as source:
        with contextlib.closing(sqlite3.connect(str(tmp_path / "copy.db"))) as target:
            target.executescript("\n".join(source.iterdump()))
    script(database, "UPDATE session_templates SET name = 'Mine' WHERE id = 't'")
    for path, name in ((tmp_path / "copy.db", "Template (2)"), (database, "Mine")):
        values = query(path, "SELECT id, value FROM metric_values ORDER BY id")
        replay(path, tmp_path / "run.sql")
        run(path, "--verify")
        assert query(path, "SELECT id, value FROM metric_values ORDER BY id") == values
        assert query(path, "SELECT name FROM session_templates WHERE id = 't'") == [(name,)]


def test_a_script_that_can_not_be_written_changes_nothing(database):
    before = folder_state(database)
    run(database, "--yes", "--sql", "/dev/full", status=1)
    assert folder_state(database) == before


# ---- verification -----------------------------------------------------------------------------

BREAKS = {
    "wrong or empty root_id": ["DROP TRIGGER trg_metric_values_guard", "UPDATE metric_values SET "
                               "root_id = 'goal-1-00' WHERE id = 'value-00001-0'"],
    "idx_goals_root_type is missing": ["DROP INDEX idx_goals_root_type"],
    "uq_session_templates_root_name is missing": ["DROP INDEX uq_session_templates_root_name"],
    "trg_goals_move": ["DROP TRIGGER trg_goals_move"],
    "worse does not compile": ["CREATE VIEW worse AS SELECT no_such FROM goals"],
    "no_such_table": ["CREATE TRIGGER mine AFTER UPDATE ON goals BEGIN "
                      "INSERT INTO no_such_table VALUES (1); END"],
    "a ring of links": ["INSERT INTO practice_session_goals VALUES ('session-0-1', 'session-0-2'), "
                        "('session-0-2', 'session-0-1')"],
    "lacks chk_metric_values_non_negative": ("metric_values", "CHECK (value >= 0)", "CHECK (1)"),
    "goals.sort_order is missing": ("goals", '"sort_order"', '"sorted"'),
    "goals lacks a constraint": ("goals", "ON DELETE CASCADE", ""),
}


@pytest.mark.parametrize("named", BREAKS)
def test_verify_names_what_is_broken_and_a_run_mends_it(migrated, named):
    before = digest(migrated)
    run(migrated, "--verify")
    assert digest(migrated) == before
    if isinstance(BREAKS[named], tuple):
        rewrite(migrated, *BREAKS[named])
    else:
        script(migrated, *BREAKS[named])
    said = run(migrated, "--verify", status=1).err
    assert named in said and len(said.splitlines()[0]) <= 200 and "fault" in said.splitlines()[0]
    assert ("migrating again" in said) != ("does not compile" in said)
    if "migrating again" in said and "ring" not in named:
        run(migrated, "--yes", "--no-backup")
        run(migrated, "--verify")
        assert "Nothing to do" in run(migrated, "--yes").out


def test_what_the_app_does_daily_is_no_fault(migrated, tmp_path):
    script(migrated, "DELETE FROM activity_instances WHERE id = 'instance-00001'",
           "DELETE FROM goals WHERE id = 'goal-1-00'",
           "UPDATE activity_instances SET activity_definition_id = 'activity-1-0' WHERE rowid = 5",
           "INSERT INTO practice_session_goals VALUES ('session-0-1', 'goal-2-03')")
    said = run(migrated, "--verify", "--report", tmp_path / "r.json").out
    found = json.loads((tmp_path / "r.json").read_text())
    lost = query(migrated, "SELECT count(*) FROM metric_values WHERE activity_instance_id NOT IN "
                 "(SELECT id FROM activity_instances)")[0][0]
    assert found["references_to_missing_rows"]["metric_values.activity_instance_id"] == lost > 0
    crossing = found["crossing_fractals"]
    assert crossing["activity_instances.activity_definition_id"]["ids"] == ["instance-00005"]
    assert crossing["practice_session_goals"]["count"] == 1
    for one in crossing.values():
        assert len(query(migrated, one["query"])) == one["count"]
    assert "references to missing rows, 2 rows that link two fractals" in said


@pytest.mark.parametrize("loss", ["DELETE FROM migration_log", "DROP TABLE migration_log"])
def test_what_has_no_log_is_not_migrated(migrated, loss):
    script(migrated, loss)
    said = run(migrated, "--verify", status=1)
    assert said.out == "" and "is not migrated" in said.err
    run(migrated, "--yes", "--no-backup")
    run(migrated, "--verify")


def test_a_damaged_index_of_a_migrated_database_is_not_nothing_to_do(migrated):
    script(migrated, "CREATE INDEX mine ON metric_values (value) WHERE value > 5")
    rewrite(migrated, "mine", " WHERE value > 5", "")
    for flag in ("--yes", "--verify"):
        assert "an index is damaged" in run(migrated, flag, status=1).err


@pytest.mark.parametrize("before, statement, named", [
    ("CREATE TABLE archive AS SELECT * FROM metric_values WHERE 0",
     "CREATE TRIGGER keep AFTER DELETE ON metric_values BEGIN "
     "INSERT INTO archive SELECT * FROM metric_values WHERE id = OLD.id; END", "metric_values"),
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


def test_repairs_that_violate_an_owners_foreign_key_are_rolled_back(database):
    script(database, TWIN, "CREATE UNIQUE INDEX both ON session_templates (id, name)",
           "CREATE TABLE note (a, b, FOREIGN KEY (a, b) REFERENCES session_templates (id, name))",
           "INSERT INTO note VALUES ('t', 'Template'), ('gone', 'x')")
    said = run(database, "--yes", "--repair", status=1).err
    assert "a row of note refers to a name that is to be repaired" in said


@pytest.mark.parametrize("generation", GENERATIONS)
def test_app_code_old_and_new_works(tmp_path, generation):
    """Old code names the columns it knew, unset ones NULL; new code names the others too."""
    path = build(tmp_path / "goals.db", generation, instances=2)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as app:
        releases = [{table: columns(app, table) for table in TABLES}
                    for _ in (0, run(path, "--yes", "--no-backup"))]
        for known in releases:
            for table, values in (
                    ("goals", dict(type="MidTermGoal", name="n", parent_id="goal-0-03")),
                    ("activity_definitions", dict(root_id="goal-0-00", name="new")),
                    ("metric_definitions", dict(activity_id="x", name="n", unit="kg")),
                    ("activity_instances", dict(
                        practice_session_id="session-0-0", session_id="session-0-0",
                        activity_definition_id="x")),
                    ("metric_values", dict(activity_instance_id="x", metric_definition_id="x",
                                           value=1.5))):
                insert(app, table, **{**dict.fromkeys(known[table]), **values, "id": "x"})
                roots = app.execute(f"SELECT root_id FROM {table} WHERE id = 'x'").fetchall()
                assert roots == [("goal-0-00",)]
            for table in reversed(TABLES):
                app.execute(f"DELETE FROM {table} WHERE id = 'x'")
    run(path, "--verify")


def test_the_report_names_what_was_corrected(database, tmp_path):
    run(database, "--yes", "--no-backup", "--report", tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    assert len(found["corrections"]["goals"]) == found["tables"]["goals"]["corrected"] > 0
    for identity, before, after in found["corrections"]["goals"]:
        assert query(database, "SELECT root_id FROM goals WHERE id = ?", identity) == [(after,)]
        assert before != after
    logged = json.loads(query(database, "SELECT report FROM migration_log")[0][0])
    assert logged.keys() == found.keys() and logged["tables"] == found["tables"]
    assert logged["status"] == found["status"] == "done"
    assert found["made_by"].startswith("migrate_database_improvements.py")


def test_the_sample_is_what_its_maker_makes(tmp_path):
    made = build(tmp_path / "sample.db")
    assert schema(made) == schema(SAMPLE) and content(made) == content(SAMPLE)


def test_names_and_values_are_data_nowhere_sql(tmp_path):
    odd = "x\"]`'; DROP TABLE goals; --\n"
    quoted = odd.replace('"', '""')
    path = build(tmp_path / "goals.db", instances=3)
    script(path, f'CREATE TABLE "{quoted}" ("{quoted}" TEXT)', f'ALTER TABLE goals ADD "{quoted}"',
           ("UPDATE goals SET name = ?", (odd,)),
           *[("INSERT INTO session_templates (id, root_id, name) VALUES (?, 'goal-0-00', ?)",
              (odd + end, odd)) for end in "12"])
    before = content(path)
    run(path, "--yes", "--no-backup", "--repair")
    assert_kept(before, content(path), ("root_id", "name"))
    run(path, "--verify")
