"""What the data needs a decision for: told all at once, with the way out, and repaired if asked."""
import json
import re
import shlex
import sqlite3

import pytest
from databases import build
from helpers import (assert_kept, content, folder_state, product, query, rewrite, run, schema,
                     script)

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


def test_repair_renames_and_recovers_and_says_so_before_it_asks(database, tmp_path):
    script(database, *UNTIDY)
    before, report = content(database), tmp_path / "r.json"
    said = run(database, "--yes", "--no-backup", "--repair", "--report", report).out
    assert said.index("'Template'\n    becomes 'Template (3)'") < said.index("[1/5]")
    assert len(json.loads(report.read_text())["repairs"]) == 4
    after = content(database)
    goal = after["goals"].pop(max(after["goals"]))
    assert goal.items() >= {"id": product.RECOVERED, "root_id": product.RECOVERED, "type":
                            "UltimateGoal", "name": "Recovered by the migration"}.items()
    assert_kept(before, after, ("root_id", "name"))
    names = query(database, "SELECT id, name FROM session_templates WHERE root_id = 'goal-0-00'")
    assert dict(names) == {"t1": "Template", "t2": "Template (2)", "template-0": "Template (3)",
                           "t3": "Template (4)", "t4": "Template (5)"}
    recovered = {(table, row["id"], row.get("name")) for table, rows in after.items()
                 for row in rows.values() if row.get("root_id") == product.RECOVERED}
    assert recovered == {
        ("metric_definitions", "m1", "Lost"), ("activity_instances", "i1", None),
        ("metric_values", "v1", None), ("metric_values", "v2", None),
        ("session_templates", "t5", "Template"), ("session_templates", "t6", "Template (2)")}
    run(database, "--verify")
    assert "Nothing to do" in run(database, "--yes").out
    script(database, "DROP TRIGGER trg_metric_definitions_fill", (METRIC, ("m2", "nowhere", "Too")))
    run(database, "--yes", "--no-backup", "--repair")  # which join those of the earlier run
    assert query(database, "SELECT root_id FROM metric_definitions WHERE activity_id = 'nowhere'"
                 ) == [(product.RECOVERED,)] * 2
    run(database, "--verify")


def test_where_goals_takes_no_recovered_goal_sqlites_reason_is_told(database):
    rewrite(database, "goals", "name VARCHAR NOT NULL",
            "name VARCHAR NOT NULL CHECK (name NOT LIKE 'Recovered%')")
    script(database, (METRIC, ("m1", "nowhere", "Lost")))
    before = folder_state(database)
    said = run(database, "--yes", "--repair", status=3).err
    assert "CHECK constraint failed" in said and "nothing was changed" in said
    assert folder_state(database) == before


def test_new_names_are_free_by_the_columns_collation(database):
    insert = "INSERT INTO activity_definitions (id, root_id, name) VALUES (?, 'goal-0-00', ?)"
    script(database, *[(insert, (f"a{n}", name))
                       for n, name in enumerate(["Legs", "legs", "LEGS (2)", "legs"])])
    run(database, "--yes", "--no-backup", "--repair")
    assert query(database, "SELECT name FROM activity_definitions WHERE id LIKE 'a_' ORDER BY id"
                 ) == [("Legs",), ("legs (3)",), ("LEGS (2)",), ("legs (4)",)]


def test_a_reference_to_a_missing_row_is_no_fault_of_a_repair(tmp_path):
    path = build(tmp_path / "goals.db", "development")
    script(path, "UPDATE activity_definitions SET group_id = 'gone' WHERE rowid = 1",
           (TEMPLATE, ("t", "goal-0-00", "Template", None)))
    run(path, "--yes", "--no-backup", "--repair")


def test_repairs_fire_none_of_the_owners_triggers_and_name_full_text_tables(database):
    script(database, "CREATE TRIGGER final BEFORE UPDATE ON session_templates "
           "BEGIN SELECT RAISE(IGNORE); END",
           "CREATE TABLE audit (id)", "CREATE TRIGGER audited AFTER INSERT ON goals "
           "BEGIN INSERT INTO audit VALUES (NEW.id); END", *UNTIDY)
    try:
        script(database, "CREATE VIRTUAL TABLE found USING fts5(name, content='session_templates')",
               "INSERT INTO found (found) VALUES ('rebuild')")
    except sqlite3.OperationalError as error:
        pytest.skip(f"this SQLite has no FTS5: {error}")
    said = run(database, "--yes", "--no-backup", "--repair").out
    assert query(database, "SELECT name FROM session_templates "
                           "WHERE id = 't3'") == [("Template (4)",)]
    assert query(database, "SELECT count(*) FROM audit") == [(0,)]
    assert {"final", "audited"} <= {row[1] for row in schema(database)}
    script(database, re.search(r"^ +(INSERT INTO found.*)$", said, re.M)[1])
    assert query(database, "SELECT count(*) FROM found WHERE found MATCH 'template'")[0][0] > 6


@pytest.mark.parametrize("table, old, new, name", [
    ("activity_groups", "description VARCHAR", "description VARCHAR NOT NULL",
     "activity_groups.description"),
    ("metric_values", "value FLOAT NOT NULL", "value FLOAT NOT NULL CHECK (value < 40)",
     "metric_values: CHECK (value < 40)")])
def test_what_breaks_the_owners_constraints_is_told_before_the_backup(
        database, table, old, new, name):
    rewrite(database, table, old, new)
    found, said = decide(database)
    one, = found.values()
    assert one["name"] == name and len(query(database, one["query"])) == one["rows"]
    before = folder_state(database)
    assert f"resolve {name}" in run(database, "--yes", status=3).err
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
def test_a_constraint_can_be_left_out_and_is_added_once_the_data_allows(tmp_path, name):
    path = build(tmp_path / "part.db", instances=2)
    script(path, "UPDATE metric_values SET value = -1 WHERE rowid = 1")
    run(path, "--yes", "--no-backup", "--skip-constraint", name,
        "--skip-constraint", "chk_metric_values_non_negative")
    there = {row[0] for row in query(path, "SELECT name FROM sqlite_master")} | {
        check for sql, in query(path, "SELECT sql FROM sqlite_master WHERE type = 'table'")
        for check in product.declared_checks(sql)}
    assert {*product.UNIQUE_NAMES, *product.CHECKS} - there == {
        name, "chk_metric_values_non_negative"}
    assert f"without {name}" in run(path, "--verify").out
    run(path, "--yes", "--no-backup", status=3)
    script(path, "UPDATE metric_values SET value = 1 WHERE rowid = 1")
    run(path, "--yes", "--no-backup")
    assert "without" not in run(path, "--verify").out


@pytest.mark.parametrize("indexed, but, flags", [
    ("metric_values (value) WHERE value > 5", " WHERE value > 5", []),
    ("metric_values (value) WHERE value > 5", " WHERE value > 5", ["--without-constraints"]),
    ("goals (id || 1)", " || 1", ["--repair"]),
    ("activity_definitions (id || 1)", " || 1", ["--repair"])])
def test_nothing_is_decided_on_the_word_of_an_index_that_lies(database, indexed, but, flags):
    """quick_check says ok, and count(*) may take the one that lacks rows, as it is small."""
    script(database, f"CREATE INDEX mine ON {indexed}")
    rewrite(database, "mine", but, "")
    if "--repair" in flags:  # with something to repair
        script(database, (METRIC, ("m1", "nowhere", "Lost")))
    before = folder_state(database)
    said = run(database, "--yes", *flags, status=1).err
    assert "an index is damaged" in said and "mine" in said and "REINDEX" in said
    assert folder_state(database) == before


LATE = "deadline = '2025-02-27T23:59:59Z', created_at = '2025-03-01'"
EDGES = [  # table, what passes, what fails
    ("goals", "deadline = '2025-03-01T00:00:00+02:00', created_at = '2025-03-01 09:00'", LATE),
    ("goals", "deadline = '2025-03-01T00:00:00-05:00', created_at = '2025-03-01 22:00'", LATE),
    ("goals", "deadline = '2025-03-01 00:00:00', created_at = '2025-03-02 03:00:00'", LATE),
    ("goals", "session_start = '2026-03-01T10:00:00Z', session_end = '2026-03-01 10:00:00.0'",
     "session_start = '2026-03-01T10:00:00', session_end = '2026-03-01 09:59:59'"),
    ("goals", "total_duration_seconds = 0, deadline = NULL", "total_duration_seconds = -0.5"),
    ("activity_instances", "time_start = '2026-03-01 10:00', time_stop = '2026-03-01T10:00:00Z'",
     "time_start = '2026-03-02', time_stop = '2026-03-01T23:00'"),
    ("activity_instances", "duration_seconds = 0", "duration_seconds = -1"),
    ("metric_values", "value = 0", "value = -0.001")]


@pytest.mark.parametrize("table, good, bad", EDGES)
def test_checks_pass_at_the_edge_and_bite_beyond(migrated, table, good, bad):
    script(migrated, f"UPDATE {table} SET {good} WHERE rowid = 2")
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        script(migrated, f"UPDATE {table} SET {bad} WHERE rowid = 2")
