"""What the data needs a decision for: told all at once, with the way out, and repaired if asked."""
import json
import os
import re
import shlex
import sqlite3

import pytest
from databases import build
from helpers import (
    assert_kept,
    content,
    derive,
    folder_state,
    product,
    query,
    rewrite,
    run,
    script,
    stored_roots,
    whole,
)

GOAL = "INSERT INTO goals (id, type, name, parent_id) VALUES (?, ?, 'n', ?)"
TEMPLATE = "INSERT INTO session_templates (id, root_id, name, created_at) VALUES (?, ?, ?, ?)"
METRIC = "INSERT INTO metric_definitions (id, activity_id, name) VALUES (?, ?, ?)"

UNTIDY = [  # one of each finding that --repair settles
    (TEMPLATE, ("t1", "goal-0-00", "Template", "2024-01-01")),
    (TEMPLATE, ("t2", "goal-0-00", "Template (2)", "2024-01-02")),
    (TEMPLATE, ("t3", "goal-0-00", "Template", "2026-01-01")),
    (TEMPLATE, ("t4", "goal-0-00", "Template", None)),
    (METRIC, ("m1", "nowhere", "Lost")),
    "INSERT INTO activity_instances (id, practice_session_id, activity_definition_id) "
    "VALUES ('i1', 'no', 'no')",
    "INSERT INTO metric_values (id, activity_instance_id, metric_definition_id, value) "
    "VALUES ('v1', 'i1', 'metric-0-0-0', 1), ('v2', 'i1', 'none', 1)",
    (TEMPLATE, ("t5", "", "Template", None)),
    (TEMPLATE, ("t6", "", "Template", None))]
UNREPAIRABLE = [
    "UPDATE metric_values SET value = -1 WHERE rowid < 4",
    "UPDATE goals SET parent_id = 'goal-2-09' WHERE id = 'goal-2-00'",
    "UPDATE goals SET parent_id = 'goal-2-00' WHERE id = 'goal-2-09'",
    (GOAL, ("s1", "PracticeSession", None)), (GOAL, ("s2", "PracticeSession", None)),
    "INSERT INTO practice_session_goals VALUES ('s1', 's2'), ('s2', 's1')",
    (GOAL, (None, "Step", None)), (GOAL, ("", "Step", None))]


def decide(path, *flags, status=3):
    """The decisions of a rehearsal, by name, and what it said."""
    report = path + ".json"
    said = run(path, "--dry-run", *flags, "--report", report, status=status)
    with open(report, encoding="utf-8") as file:
        return {one["name"] + "/" + one["kind"]: one for one in json.load(file)["decisions"]}, said


def test_all_are_told_at_once_with_queries_and_statements_that_work(database):
    script(database, *UNTIDY, *UNREPAIRABLE)
    before = folder_state(database)
    found, said = decide(database)
    assert {name: one["rows"] for name, one in found.items()} == {
        "goals.id/a goal without an id": 2, "goals.root_id/a cycle of parents": 2,
        "goals.root_id/a ring of links": 2, "metric_definitions.root_id/no root": 1,
        "activity_instances.root_id/no root": 1, "session_templates.root_id/no root": 2,
        "uq_session_templates_root_name/equal names": 4, "chk_metric_values_non_negative/broken": 3}
    for one in found.values():
        rows = query(database, one["query"])
        assert len(rows) == one["rows"] and rows[0][0] in one["ids"], one
    assert "the data needs 8 decisions; nothing was changed; --repair settles 4" in said.err
    run(database, "--yes", status=3)
    del before["goals.db"]
    assert before.items() <= folder_state(database).items()
    for name in ("goals.id/a goal without an id", "goals.root_id/a cycle of parents",
                 "goals.root_id/a ring of links"):
        script(database, *found[name]["resolve"])
    found, said = decide(database)
    assert len(found) == 5
    last = shlex.split(said.err[said.err.index("next: ") + 6:])
    assert last[2:] == [database, "--dry-run", "--report", database + ".json", "--repair",
                        "--skip-constraint", "chk_metric_values_non_negative"]
    run(*last[2:])


def test_repair_renames_and_recovers_and_says_so_before_it_asks(tmp_path):
    paths = [build(tmp_path / name) for name in ("one.db", "two.db")]
    said = []
    for path in paths:
        script(path, *UNTIDY)
        before = content(path)
        said.append(run(path, "--yes", "--no-backup", "--repair", "--report", path + ".json").out)
        after = content(path)
        goal = after["goals"].pop(max(after["goals"]))
        assert (goal["id"], goal["root_id"], goal["type"], goal["name"]) == (
            product.RECOVERED, product.RECOVERED, "UltimateGoal", "Recovered by the migration")
        assert_kept(before, after, ("root_id", "name"))
        run(path, "--verify")
        assert "Nothing to do" in run(path, "--yes").out
    assert said[0].index("'Template'\n    becomes 'Template (3)'") < said[0].index("[1/5]")
    reports = [json.load(open(path + ".json", encoding="utf-8")) for path in paths]
    assert reports[0]["repairs"] == reports[1]["repairs"] and len(reports[0]["repairs"]) == 4
    names = dict(query(paths[0], "SELECT id, name FROM session_templates "
                       "WHERE root_id = 'goal-0-00'"))
    assert names == {"t1": "Template", "t2": "Template (2)", "template-0": "Template (3)",
                     "t3": "Template (4)", "t4": "Template (5)"}
    recovered = {(table, row["id"], row.get("name")) for table, rows in content(paths[0]).items()
                 for row in rows.values() if row.get("root_id") == product.RECOVERED}
    assert recovered == {
        ("goals", product.RECOVERED, "Recovered by the migration"),
        ("metric_definitions", "m1", "Lost"), ("activity_instances", "i1", None),
        ("metric_values", "v1", None), ("metric_values", "v2", None),
        ("session_templates", "t5", "Template"), ("session_templates", "t6", "Template (2)")}


def test_recovered_rows_of_a_later_run_join_the_earlier(database):
    script(database, (METRIC, ("m1", "nowhere", "Lost")))
    run(database, "--yes", "--no-backup", "--repair")
    script(database, "DROP TRIGGER trg_metric_definitions_fill", (METRIC, ("m2", "nowhere", "Too")))
    run(database, "--yes", "--no-backup", "--repair")
    assert query(database, "SELECT count(*) FROM metric_definitions WHERE root_id = ?",
                 product.RECOVERED) == [(2,)]
    run(database, "--verify")


def test_where_goals_takes_no_recovered_goal_sqlites_reason_is_told(tmp_path):
    path = build(tmp_path / "goals.db", "models")
    rewrite(path, "goals", "name VARCHAR NOT NULL",
            "name VARCHAR NOT NULL CHECK (name NOT LIKE 'Recovered%')")
    script(path, (METRIC.replace("name)", "name, unit)").replace("?)", "?, 'kg')"),
                  ("m1", "nowhere", "Lost")))
    before = whole(path)
    said = run(path, "--yes", "--repair", status=3).err
    assert "CHECK constraint failed" in said and "nothing was changed" in said
    assert whole(path) == before and os.listdir(tmp_path) == ["goals.db"]


def test_many_equal_names_each_get_a_free_one(database):
    script(database, (TEMPLATE, ("taken", "goal-0-00", "Same (7)", None)),
           *[(TEMPLATE, (f"t{n}", "goal-0-00", "Same", None)) for n in range(300)])
    run(database, "--yes", "--no-backup", "--repair", "-q")
    names = {row[0] for row in query(database, "SELECT name FROM session_templates "
                                     "WHERE name LIKE 'Same%'")}
    assert names == {"Same", *(f"Same ({n})" for n in range(2, 302))}


@pytest.mark.parametrize("collation, names, after", [
    ("NOCASE", ["Legs", "legs", "LEGS", "legs"], ["Legs", "legs (2)", "LEGS (3)", "legs (4)"]),
    ("RTRIM", ["A", "A", "A (2) "], ["A", "A (3)", "A (2) "])])
def test_new_names_are_free_by_the_columns_collation(database, collation, names, after):
    script(database, "DROP TABLE session_templates", "CREATE TABLE session_templates "
           f"(id TEXT PRIMARY KEY, root_id TEXT, name TEXT COLLATE {collation}, created_at)",
           *[(TEMPLATE, (f"t{n}", "r", name, n)) for n, name in enumerate(names)])
    run(database, "--yes", "--no-backup", "--repair")
    assert [row[0] for row in query(database, "SELECT name FROM session_templates")] == after


def test_repairs_fire_none_of_the_owners_triggers(database):
    script(database, "CREATE TRIGGER final BEFORE UPDATE ON session_templates "
           "BEGIN SELECT RAISE(IGNORE); END",
           "CREATE TABLE audit (id)", "CREATE TRIGGER audited AFTER INSERT ON goals "
           "BEGIN INSERT INTO audit VALUES (NEW.id); END", *UNTIDY)
    run(database, "--yes", "--no-backup", "--repair")
    assert query(database, "SELECT name FROM session_templates "
                           "WHERE id = 't3'") == [("Template (4)",)]
    assert query(database, "SELECT count(*) FROM audit") == [(0,)]
    assert len(query(database, "SELECT 1 FROM sqlite_master "
                               "WHERE name IN ('final', 'audited')")) == 2


def test_a_full_text_table_with_changed_names_is_named(database):
    try:
        script(database, "CREATE VIRTUAL TABLE found USING fts5(name, content='session_templates')")
    except sqlite3.OperationalError as error:
        pytest.skip(f"this SQLite has no FTS5: {error}")
    script(database, "INSERT INTO found (found) VALUES ('rebuild')", *UNTIDY)
    said = run(database, "--yes", "--no-backup", "--repair").out
    script(database, re.search(r"^ +(INSERT INTO found.*)$", said, re.M)[1])
    assert query(database, "SELECT count(*) FROM found WHERE found MATCH 'template'")[0][0] > 6


@pytest.mark.parametrize("table, old, new, row, name", [
    ("activity_groups", "description VARCHAR", "description VARCHAR NOT NULL", None,
     "activity_groups.description/broken"),
    ("metric_values", "value FLOAT NOT NULL", "value FLOAT NOT NULL CHECK (value < 40)", None,
     "metric_values: CHECK (value < 40)/broken"),
    ("metric_values", "value FLOAT NOT NULL", "value FLOAT CONSTRAINT small CHECK (value < 40)",
     None, "metric_values: small/broken")])
def test_what_breaks_the_owners_constraints_is_told_before_the_backup(
        database, table, old, new, row, name):
    rewrite(database, table, old, new)
    found, said = decide(database)
    assert list(found) == [name]
    assert len(query(database, found[name]["query"])) == found[name]["rows"]
    before = folder_state(database)
    said = run(database, "--yes", status=3).err
    assert "resolve " + name.split("/")[0] in said
    assert folder_state(database) == before


def test_a_unique_index_that_right_roots_break_ends_in_3(database):
    script(database,
           "UPDATE goals SET root_id = NULL, name = 'Evening' WHERE type = 'PracticeSession'",
           "CREATE UNIQUE INDEX one_name ON goals (root_id, name)")
    before = folder_state(database)
    for flag in ("--dry-run", "--yes"):
        assert "UNIQUE constraint failed" in run(database, flag, status=3).err
    assert folder_state(database) == before


@pytest.mark.parametrize("name", [*product.UNIQUE_NAMES, *product.CHECKS])
def test_a_constraint_can_be_left_out_and_comes_later(tmp_path, name):
    path = build(tmp_path / "part.db", instances=2)
    run(path, "--yes", "--no-backup", "--skip-constraint", name)
    there = {row[0] for row in query(path, "SELECT name FROM sqlite_master")} | {
        check for sql, in query(path, "SELECT sql FROM sqlite_master WHERE type = 'table'")
        for check in product.declared_checks(sql)}
    assert {*product.UNIQUE_NAMES, *product.CHECKS} - there == {name}
    assert f"without {name}" in run(path, "--verify").out
    run(path, "--yes", "--no-backup")
    assert "without" not in run(path, "--verify").out


def test_it_is_added_once_the_data_allows(database):
    script(database, "UPDATE metric_values SET value = -1 WHERE rowid = 1")
    run(database, "--yes", "--no-backup", "--skip-constraint", "chk_metric_values_non_negative")
    run(database, "--yes", "--no-backup", status=3)
    script(database, "UPDATE metric_values SET value = 1 WHERE rowid = 1")
    run(database, "--yes", "--no-backup")
    with pytest.raises(sqlite3.IntegrityError):
        script(database, "UPDATE metric_values SET value = -1 WHERE rowid = 1")


def damage_index(path, index, table):
    """Let an index lack the entry of the first row, as quick_check does not see."""
    sql, = query(path, "SELECT sql FROM sqlite_master WHERE name = ?", table)[0]
    row = query(path, "SELECT rootpage FROM sqlite_master WHERE name = ?", index)[0]
    plain = sql.replace("id VARCHAR PRIMARY KEY", "id VARCHAR")
    script(path, "PRAGMA writable_schema = ON",
           ("UPDATE sqlite_master SET sql = ? WHERE name = ?", (plain, table)),
           ("DELETE FROM sqlite_master WHERE name = ?", (index,)))
    script(path, f"UPDATE {table} SET id = 'moved' WHERE rowid = 1")
    for name, column, parent in product.REFERENCES:
        if table == parent == "activity_definitions":
            script(path, f"UPDATE {name} SET {column} = 'moved' WHERE {column} = 'activity-0-0'")
    script(path, "PRAGMA writable_schema = ON",
           ("UPDATE sqlite_master SET sql = ? WHERE name = ?", (sql, table)),
           ("INSERT INTO sqlite_master VALUES ('index', ?, ?, ?, NULL)", (index, table, *row)))
    assert query(path, "PRAGMA quick_check") == [("ok",)]


@pytest.mark.parametrize("untidy", [[], [(METRIC, ("m1", "nowhere", "Lost"))],
                                    ["UPDATE goals SET name = 'x' WHERE id = 'goal-0-00'"]])
def test_nothing_is_decided_on_the_word_of_a_damaged_index(database, untidy):
    damage_index(database, "sqlite_autoindex_activity_definitions_1", "activity_definitions")
    script(database, *untidy)
    before = folder_state(database)
    said = run(database, "--yes", "--repair", status=1 if untidy[:1] and "INSERT" in str(untidy)
               else None)
    if "damaged" in said.err:
        assert "REINDEX" in said.err and folder_state(database) == before
    else:
        assert stored_roots(database) == derive(database)
        assert query(database, "PRAGMA integrity_check") == [("ok",)]


def test_a_root_that_a_damaged_index_hides_is_no_fault_of_the_run(database):
    damage_index(database, "sqlite_autoindex_goals_1", "goals")
    before = content(database)
    assert "an index is damaged" in run(database, "--yes", status=1).err
    assert content(database) == before


@pytest.mark.parametrize("flags", [[], ["--without-constraints"]])
def test_an_owners_index_that_lacks_rows_is_told(database, flags):
    """quick_check says ok, and count(*) takes it, as it is small."""
    script(database, "CREATE INDEX mine ON metric_values (value) WHERE value > 5",
           "PRAGMA writable_schema = ON", "UPDATE sqlite_master SET sql = "
           "replace(sql, ' WHERE value > 5', '') WHERE name = 'mine'")
    before = folder_state(database)
    said = run(database, "--yes", *flags, status=1).err
    assert "an index is damaged" in said and "mine" in said and "REINDEX" in said
    assert folder_state(database) == before


def test_a_deadline_of_today_is_no_finding_and_an_earlier_one_is(database):
    deadline = "UPDATE goals SET deadline = ?, created_at = ? WHERE id = 'goal-0-01'"
    for day, created in (("2025-03-01T00:00:00+02:00", "2025-03-01 09:00"),
                         ("2025-03-01T00:00:00-05:00", "2025-03-01 22:00"),
                         ("2025-03-01 00:00:00", "2025-03-02 03:00:00")):
        script(database, (deadline, (day, created)))
        decide(database, status=0)
    script(database, (deadline, ("2025-02-27T23:59:59Z", "2025-03-01")))
    assert "chk_goals_deadline_after_creation/broken" in decide(database)[0]


EDGES = [  # table, what passes, what fails
    ("goals", "session_start = '2026-03-01T10:00:00Z', session_end = '2026-03-01 10:00:00.0'",
     "session_start = '2026-03-01T10:00:00', session_end = '2026-03-01 09:59:59'"),
    ("goals", "total_duration_seconds = 0", "total_duration_seconds = -0.5"),
    ("goals", "deadline = NULL, session_end = NULL", "total_duration_seconds = -1"),
    ("activity_instances", "time_start = '2026-03-01 10:00', time_stop = '2026-03-01T10:00:00Z'",
     "time_start = '2026-03-02', time_stop = '2026-03-01T23:00'"),
    ("activity_instances", "duration_seconds = 0", "duration_seconds = -1"),
    ("metric_values", "value = 0", "value = -0.001")]


@pytest.mark.parametrize("table, good, bad", EDGES)
def test_checks_pass_at_the_edge_and_bite_beyond(migrated, table, good, bad):
    script(migrated, f"UPDATE {table} SET {good} WHERE rowid = 2")
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        script(migrated, f"UPDATE {table} SET {bad} WHERE rowid = 2")


@pytest.mark.parametrize("table, scope", [("metric_definitions", "metric"),
                                          ("split_definitions", "split")])
def test_the_edits_that_unique_names_refuse_until_the_app_deletes_first(migrated, table, scope):
    """SQLAlchemy flushes INSERT and UPDATE before DELETE (README, What your users will notice)."""
    old, = query(migrated, f"SELECT id, name, activity_id FROM {table} WHERE rowid = 1")
    insert = (f"INSERT INTO {table} (id, name, activity_id) VALUES ('new', ?, ?)", old[1:])
    delete = (f"DELETE FROM {table} WHERE id = ?", old[:1])
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        script(migrated, insert, delete)
    script(migrated, delete, insert)
    script(migrated, f"UPDATE {table} SET deleted_at = '2026-01-01' WHERE id = 'new'",
           (insert[0].replace("'new'", "'again'"), insert[1]))
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        script(migrated, f"UPDATE {table} SET deleted_at = NULL WHERE id = 'new'")
