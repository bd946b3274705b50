"""Decisions, repairs, constraints, triggers and isolation; app code old and new."""
import json
import os
import random
import sqlite3

import pytest
from databases import GENERATIONS, build
from helpers import (
    TABLES,
    assert_kept,
    content,
    derive,
    digest,
    query,
    run,
    schema,
    script,
    stored_roots,
    without_log,
)

import migrate_database_improvements as product

GOAL = "INSERT INTO goals (id, type, name, parent_id) VALUES (?, ?, 'n', ?)"


def untidy(path):
    """One of each finding of DESIGN.md section 7 that --repair resolves; returns the path."""
    script(path, "INSERT INTO session_templates (id, root_id, name, created_at, template_data) VALUES ('t1', 'goal-0-00', "
           "'Template', '2024-01-01', x'00ff')",
           "INSERT INTO session_templates (id, root_id, name) VALUES ('t2', 'goal-0-00', 'Template (2)')",
           "INSERT INTO session_templates (id, root_id, name, created_at) VALUES ('t3', 'goal-0-00', 'Template', '2026-01-01')",
           "INSERT INTO metric_definitions (id, activity_id, name, unit) VALUES ('m1', 'nowhere', 'Lost', 'a' || char(0) || 'b')",
           "INSERT INTO metric_definitions (id, activity_id, name, unit) VALUES ('m2', 'activity-0-0', 'Metric 0', 'kg')",
           (GOAL, ("s-both", "PracticeSession", None)),
           "INSERT INTO practice_session_goals VALUES ('s-both', 'goal-1-05')",
           "INSERT INTO practice_session_goals VALUES ('s-both', 'goal-0-05')")
    return path


def test_all_decisions_are_listed_at_once_with_queries_that_work(database):
    untidy(database)
    script(database, "UPDATE metric_values SET value = -1 WHERE rowid < 4",
           "UPDATE goals SET parent_id = 'goal-2-09' WHERE id = 'goal-2-00'",
           "UPDATE goals SET parent_id = 'goal-2-00' WHERE id = 'goal-2-09'")
    before = digest(database)
    for flags in (["--yes"], ["--dry-run"], ["--yes", "--repair"]):
        report = json.loads(run(database, *flags, "--report", "-", status=3).stdout)
        kinds = {d["kind"]: d for d in report["decisions"]}
        assert set(kinds) == {"duplicate name", "no fractal", "several fractals", "check violated", "cycle"}
        for decision in report["decisions"]:
            found = query(database, decision["query"])
            assert found and decision["ids"] and decision["resolve"]
            if decision["kind"] in ("duplicate name", "no fractal", "check violated", "cycle"):
                assert len(found) == decision["rows"], decision
        assert set(kinds["cycle"]["ids"]) >= {"goal-2-00", "goal-2-09"}
    assert digest(database) == before
    assert os.listdir(os.path.dirname(database)) == ["goals.db"]


def test_repair_is_lossless_deterministic_and_says_what_it_did(tmp_path):
    paths = [untidy(build(tmp_path / name)) for name in ("one.db", "two.db")]
    before = content(paths[0])
    reports = [json.loads(run(path, "--yes", "--no-backup", "--repair", "--report", "-").stdout) for path in paths]
    assert reports[0]["repairs"] == reports[1]["repairs"]
    names = dict(query(paths[0], "SELECT id, name FROM session_templates WHERE root_id = 'goal-0-00'"))
    assert names == {"t1": "Template", "t2": "Template (2)", "template-0": "Template (3)", "t3": "Template (4)"}
    assert query(paths[0], "SELECT root_id FROM goals WHERE id = 's-both'") == [("goal-1-00",)]
    renamed = {(r["id"], r["before"], r["after"]) for r in reports[0]["repairs"] if r["kind"] == "renamed"}
    assert ("t3", "Template", "Template (4)") in renamed
    kept = query(paths[0], 'SELECT "table", "rowid", id, reason, row FROM migration_quarantine')
    assert [row[:3] for row in kept] == [("metric_definitions", 20, "m1")]
    row = json.loads(kept[0][4])
    assert row == {k: v for k, v in before["metric_definitions"][20].items()}
    assert json.loads(query(paths[0], "SELECT report FROM migration_log")[0][0])["repairs"] == reports[0]["repairs"]
    del before["metric_definitions"][20]
    assert_kept(before, content(paths[0]), ("root_id", "name"))
    run(paths[0], "--verify")


def test_quarantined_blobs_are_hex_in_the_json(database):
    script(database, "INSERT INTO metric_definitions (id, activity_id, name, unit) VALUES ('m1', 'nowhere', x'00ff', 2.5)")
    run(database, "--yes", "--no-backup", "--repair")
    row = json.loads(query(database, "SELECT row FROM migration_quarantine")[0][0])
    assert row["name"] == {"blob": "00ff"}


def test_dry_run_shows_the_repairs_and_makes_none(database):
    untidy(database)
    before = digest(database)
    said = run(database, "--dry-run", "--repair").stdout
    assert "Template (3)" in said and "quarantined" in said
    assert digest(database) == before


@pytest.mark.parametrize("name", product.CONSTRAINTS)
def test_skip_constraint_leaves_out_exactly_that_one(tmp_path, name):
    paths = [build(tmp_path / "whole.db", instances=2), build(tmp_path / "part.db", instances=2)]
    run(paths[0], "--yes", "--no-backup")
    run(paths[1], "--yes", "--no-backup", "--skip-constraint", name)
    whole, part = ({row[:2]: row[3] for row in schema(path)} for path in paths)
    if name in product.UNIQUE_NAMES:
        del whole["index", name]
    else:
        owner, expression, _ = product.CHECKS[name]
        text = "CONSTRAINT %s CHECK (%s)" % (name, expression)
        assert text in whole["table", owner]
        assert product.missing_checks(owner, product.Table(owner, part["table", owner], {c: None for c in product.TABLES[owner]},
                                                           "rowid", True, False, {}), []) == [name]
        del whole["table", owner], part["table", owner]
    assert whole == part
    assert "left out on purpose: " + name in run(paths[1], "--verify").stdout
    run(paths[1], "--yes", "--no-backup")
    assert without_log(content(paths[0])) == without_log(content(paths[1]))
    assert "left out" not in run(paths[1], "--verify").stdout


def test_a_skipped_constraint_comes_later_once_the_data_allows(database):
    script(database, "UPDATE metric_values SET value = -1 WHERE rowid = 1")
    run(database, "--yes", "--no-backup", "--skip-constraint", "chk_metric_values_non_negative")
    run(database, "--yes", "--no-backup", status=3)
    script(database, "UPDATE metric_values SET value = 1 WHERE rowid = 1")
    run(database, "--yes", "--no-backup")
    with pytest.raises(sqlite3.IntegrityError):
        script(database, "UPDATE metric_values SET value = -1 WHERE rowid = 1")


@pytest.mark.parametrize("generation", ["early", "production", "models"])
def test_phases_without_recreating_then_a_full_run(tmp_path, generation):
    path, whole = build(tmp_path / "goals.db", generation), build(tmp_path / "whole.db", generation)
    expected = derive(path)
    run(path, "--yes", "--no-backup", "--phases", "columns,backfill,indexes")
    assert stored_roots(path) == expected
    assert not query(path, "SELECT 1 FROM sqlite_master WHERE name LIKE 'uq_%'")
    script(path, (GOAL, ("fresh", "MidTermGoal", "goal-0-03")))
    assert query(path, "SELECT root_id FROM goals WHERE id = 'fresh'") == [("goal-0-00",)]
    script(path, "DELETE FROM goals WHERE id = 'fresh'")
    run(path, "--verify", status=1)
    run(path, "--yes", "--no-backup")
    run(whole, "--yes", "--no-backup")
    assert [row[:3] for row in schema(path)] == [row[:3] for row in schema(whole)]
    for table in TABLES:
        assert sorted(query(path, "PRAGMA table_info(%s)" % table)) == sorted(query(whole, "PRAGMA table_info(%s)" % table))
    run(path, "--verify")


@pytest.mark.parametrize("phases", ["backfill", "constraints", "indexes", "columns,constraints"])
def test_a_phase_whose_precondition_is_not_met_is_refused(database, phases):
    before = digest(database)
    assert "--phases" in run(database, "--yes", "--phases", phases, status=2).stderr
    assert digest(database) == before


def app(path, foreign_keys, recursive):
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA foreign_keys = %d" % foreign_keys)
    connection.execute("PRAGMA recursive_triggers = %d" % recursive)
    return connection


@pytest.fixture(params=[(0, 0), (0, 1), (1, 0), (1, 1)], ids=lambda p: "fk%d-recursive%d" % p)
def connection(request, migrated):
    opened = app(migrated, *request.param)
    yield opened
    opened.close()


def root(connection, table, identity):
    return connection.execute("SELECT root_id FROM %s WHERE id = ?" % table, (identity,)).fetchone()[0]


def refused(connection, words, sql, *values):
    with pytest.raises(sqlite3.IntegrityError, match=words):
        connection.execute(sql, values)


def test_fill_gives_each_insert_its_root(connection):
    connection.execute(GOAL, ("new-root", "UltimateGoal", None))
    connection.execute("INSERT INTO goals (id, type, name, parent_id, root_id) VALUES ('kid', 'MidTermGoal', 'n', 'new-root', NULL)")
    connection.execute(GOAL, ("s", "PracticeSession", "kid"))
    connection.execute("INSERT INTO activity_definitions (id, root_id, name) VALUES ('a', 'new-root', 'n')")
    connection.execute("INSERT INTO metric_definitions (id, activity_id, name, unit) VALUES ('m', 'a', 'n', 'u')")
    connection.execute("INSERT INTO split_definitions (id, activity_id, name, root_id) VALUES ('sp', 'a', 'n', NULL)")
    connection.execute("INSERT INTO activity_instances (id, practice_session_id, activity_definition_id) VALUES ('i', 's', 'a')")
    connection.execute("INSERT INTO metric_values (id, activity_instance_id, metric_definition_id, value, root_id) "
                       "VALUES ('v', 'i', 'm', 1, 'new-root')")
    for table, identity in (("goals", "new-root"), ("goals", "kid"), ("goals", "s"), ("metric_definitions", "m"),
                            ("split_definitions", "sp"), ("activity_instances", "i"), ("metric_values", "v")):
        assert root(connection, table, identity) == "new-root"


def test_guard_refuses_another_fractals_root(connection):
    words = "root_id does not match.*%s"
    refused(connection, words % "goals", "INSERT INTO goals (id, type, name, parent_id, root_id) VALUES ('x', 'MidTermGoal', 'n', "
            "'goal-0-03', 'goal-1-00')")
    refused(connection, words % "goals", "UPDATE goals SET root_id = 'goal-1-00' WHERE id = 'goal-0-03'")
    refused(connection, words % "metric_values", "UPDATE metric_values SET root_id = 'goal-1-00' WHERE id = 'value-00001-0'")
    refused(connection, words % "activity_instances", "INSERT INTO activity_instances (id, practice_session_id, "
            "activity_definition_id, root_id) VALUES ('x', 'session-0-0', 'activity-0-0', 'goal-1-00')")
    refused(connection, words % "metric_definitions", "INSERT INTO metric_definitions (id, activity_id, name, unit, root_id) "
            "VALUES ('x', 'activity-0-0', 'n', 'u', 'goal-1-00')")


def test_a_row_without_derivable_root_is_refused(connection):
    connection.execute("PRAGMA foreign_keys = OFF")
    refused(connection, "metric_definitions.root_id", "INSERT INTO metric_definitions (id, activity_id, name, unit) "
            "VALUES ('x', 'nowhere', 'n', 'u')")
    refused(connection, "session_templates.root_id", "INSERT INTO session_templates (id, name) VALUES ('x', 'n')")


def test_a_move_carries_the_subtree_its_sessions_instances_and_values(connection, migrated):
    connection.execute("UPDATE goals SET parent_id = 'goal-1-02' WHERE id = 'goal-0-03'")
    assert root(connection, "goals", "session-0-0") == "goal-1-00"
    moved = connection.execute("SELECT count(*), sum(v.root_id = 'goal-1-00') FROM metric_values v JOIN activity_instances i "
                               "ON i.id = v.activity_instance_id WHERE i.practice_session_id = 'session-0-0'").fetchone()
    assert moved[0] == moved[1] > 0
    assert stored_roots(migrated) == derive(migrated)
    connection.execute("UPDATE goals SET parent_id = NULL WHERE id = 'goal-0-03'")
    assert root(connection, "goals", "session-0-0") == "goal-0-03"
    assert stored_roots(migrated) == derive(migrated)


def test_a_session_follows_its_link_and_an_instance_its_session(connection, migrated):
    connection.execute(GOAL, ("s", "PracticeSession", None))
    connection.execute("UPDATE activity_instances SET practice_session_id = 's' WHERE id = 'instance-00001'")
    assert root(connection, "activity_instances", "instance-00001") == "s"
    connection.execute("INSERT INTO practice_session_goals VALUES ('s', 'goal-2-03')")
    assert root(connection, "goals", "s") == root(connection, "activity_instances", "instance-00001") == "goal-2-00"
    assert root(connection, "metric_values", "value-00001-0") == "goal-2-00"
    assert stored_roots(migrated) == derive(migrated)


def test_a_cycle_is_refused(connection):
    for parent in ("goal-0-00", "goal-0-03"):
        refused(connection, "descendant", "UPDATE goals SET parent_id = (SELECT id FROM goals WHERE parent_id = ?) WHERE id = ?",
                parent, parent) if connection.execute("SELECT count(*) FROM goals WHERE parent_id = ?", (parent,)).fetchone()[0] else None
        refused(connection, "descendant", "UPDATE goals SET parent_id = id WHERE id = ?", parent)


def test_a_deep_subtree_moves(connection):
    connection.execute("BEGIN")
    for n in range(3000):
        connection.execute(GOAL, ("deep-%04d" % n, "MidTermGoal", "deep-%04d" % (n - 1) if n else "goal-0-00"))
    connection.execute("COMMIT")
    connection.execute("UPDATE goals SET parent_id = 'goal-1-00' WHERE id = 'deep-0000'")
    assert root(connection, "goals", "deep-2999") == "goal-1-00"


def walk(connection, rng, number):
    """One random statement, as the app might send it; refusals are the database's right."""
    goals = [row[0] for row in connection.execute("SELECT id FROM goals WHERE type NOT IN ('PracticeSession', 'Step')")]
    sessions = [row[0] for row in connection.execute("SELECT id FROM goals WHERE type = 'PracticeSession'")]
    instances = [row[0] for row in connection.execute("SELECT id FROM activity_instances")]
    pick = rng.choice
    sql, values = pick([
        (GOAL, ("w%d" % number, "MidTermGoal", pick(goals + [None] * 9))),
        (GOAL, ("w%d" % number, "PracticeSession", pick(goals + [None] * 30))),
        (GOAL, ("w%d" % number, "Step", pick(sessions))),
        ("INSERT INTO goals (id, type, name, parent_id, root_id) VALUES (?, 'MidTermGoal', 'n', ?, ?)",
         ("w%d" % number, pick(goals), pick(goals))),
        ("UPDATE goals SET parent_id = ? WHERE id = ?", (pick(goals), pick(goals))),
        ("UPDATE goals SET parent_id = ? WHERE id = ?", (pick(goals + [None] * 30), pick(sessions))),
        ("UPDATE goals SET parent_id = NULL WHERE id = ?", (pick(goals),)),
        ("UPDATE goals SET root_id = ? WHERE id = ?", (pick(goals), pick(goals + sessions))),
        ("UPDATE goals SET deleted_at = '2026-01-01' WHERE id = ?", (pick(goals),)),
        ("INSERT OR IGNORE INTO practice_session_goals VALUES (?, ?)", (pick(sessions), pick(goals))),
        ("DELETE FROM practice_session_goals WHERE rowid = ?", (rng.randrange(1, 12),)),
        ("UPDATE activity_instances SET practice_session_id = ? WHERE id = ?", (pick(sessions), pick(instances))),
        ("UPDATE metric_values SET activity_instance_id = ? WHERE rowid = ?", (pick(instances), rng.randrange(1, 150))),
        ("INSERT INTO activity_instances (id, practice_session_id, activity_definition_id) VALUES (?, ?, ?)",
         ("w%d" % number, pick(sessions), "activity-%d-%d" % (rng.randrange(3), rng.randrange(3)))),
        ("INSERT INTO metric_values (id, activity_instance_id, metric_definition_id, value, root_id) VALUES (?, ?, "
         "'metric-0-0-0', 1, ?)", ("w%d" % number, pick(instances), pick([None, "goal-0-00"]))),
        ("UPDATE activity_definitions SET root_id = ? WHERE id = ?",
         ("goal-%d-00" % rng.randrange(3), "activity-%d-1" % rng.randrange(3))),
        ("DELETE FROM activity_instances WHERE id = ?", (pick(instances),)),
        ("DELETE FROM goals WHERE id = ?", (pick(goals[8:] + sessions[2:]),)),
    ])
    try:
        connection.execute(sql, values)
    except sqlite3.IntegrityError as error:
        return str(error)


@pytest.mark.parametrize("generation", ["production", "models"])
@pytest.mark.parametrize("foreign_keys, recursive", [(0, 0), (0, 1), (1, 0)])
def test_after_any_sequence_of_statements_every_root_is_the_derived_one(tmp_path, generation, foreign_keys, recursive):
    path = build(tmp_path / "goals.db", generation, instances=20)
    run(path, "--yes", "--no-backup")
    connection = app(path, foreign_keys, recursive)
    connection.execute("PRAGMA synchronous = OFF")
    rng = random.Random(foreign_keys * 2 + recursive)
    for number in range(1500):
        walk(connection, rng, number)
        if number % 50 == 49:
            assert stored_roots(path) == derive(path), number
    connection.close()
    assert "root_id      ok" in run(path, "--verify", status=None).stdout


@pytest.mark.parametrize("generation", [g for g in GENERATIONS])
def test_deleting_a_fractal_with_foreign_keys_removes_exactly_its_rows(tmp_path, generation):
    path = build(tmp_path / "goals.db", generation, untidy=False)
    run(path, "--yes", "--no-backup")
    before = content(path, TABLES)
    script(path, "DELETE FROM goals WHERE id = 'goal-1-00'", foreign_keys=1)
    after = content(path, TABLES)
    for table in TABLES:
        assert after[table] == {key: row for key, row in before[table].items() if row["root_id"] != "goal-1-00"}
        assert len(after[table]) < len(before[table]) or not before[table]
    assert query(path, "PRAGMA foreign_key_check") == []


def test_the_apps_top_down_deletes_work_with_foreign_keys_off(migrated):
    before = content(migrated, TABLES)
    connection = sqlite3.connect(migrated, isolation_level=None)
    tree = [row[0] for row in connection.execute(
        "WITH RECURSIVE t(id, depth) AS (SELECT 'goal-1-00', 0 UNION ALL SELECT g.id, depth + 1 FROM t JOIN goals g "
        "ON g.parent_id = t.id) SELECT id FROM t ORDER BY depth")]
    for identity in tree:
        connection.execute("DELETE FROM goals WHERE id = ?", (identity,))
    connection.close()
    after = content(migrated, TABLES)
    assert {key for key in before["goals"] if key not in after["goals"]} == {
        key for key, row in before["goals"].items() if row["id"] in tree}
    for table in TABLES[1:]:
        assert set(after[table]) == set(before[table])


def test_a_soft_deleted_name_is_free_again_and_its_row_can_not_come_back(migrated):
    again = "INSERT INTO session_templates (id, root_id, name, template_data) VALUES ('t', 'goal-0-00', 'Template', '')"
    with pytest.raises(sqlite3.IntegrityError):
        script(migrated, again)
    script(migrated, "UPDATE session_templates SET deleted_at = '2026-01-01' WHERE id = 'template-0'", again)
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        script(migrated, "UPDATE session_templates SET deleted_at = NULL WHERE id = 'template-0'")


EDGES = [  # table, id, columns that pass, columns that fail
    ("goals", "goal-0-01", "deadline = '2026-03-01 00:00:00', created_at = '2026-03-01 17:30:00.5'",
     "deadline = '2026-02-28T23:59:59Z', created_at = '2026-03-01'"),
    ("goals", "session-0-0", "session_start = '2026-03-01T10:00:00Z', session_end = '2026-03-01 10:00:00.000000'",
     "session_start = '2026-03-01T10:00:00', session_end = '2026-03-01 09:59:59'"),
    ("goals", "session-0-0", "session_start = '2026-03-01 10:00', session_end = NULL", "total_duration_seconds = -1"),
    ("goals", "session-0-0", "total_duration_seconds = 0", "total_duration_seconds = -0.5"),
    ("activity_instances", "instance-00001", "time_start = '2026-03-01 10:00:00', time_stop = '2026-03-01T10:00:00Z'",
     "time_start = '2026-03-02', time_stop = '2026-03-01T23:00'"),
    ("activity_instances", "instance-00001", "duration_seconds = 0", "duration_seconds = -1"),
    ("activity_instances", "instance-00001", "duration_seconds = NULL, time_stop = NULL", "duration_seconds = -9"),
    ("metric_values", "value-00001-0", "value = 0", "value = -0.001"),
]


@pytest.mark.parametrize("table, identity, good, bad", EDGES)
def test_checks_bite_on_insert_and_update_and_pass_at_the_edge(migrated, table, identity, good, bad):
    script(migrated, "UPDATE %s SET %s WHERE id = '%s'" % (table, good, identity))
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        script(migrated, "UPDATE %s SET %s WHERE id = '%s'" % (table, bad, identity))
    for assignments, passes in ((good, True), (bad, False)):
        values = dict(part.split(" = ") for part in assignments.split(", "))
        row = {c: "NULL" if v is None else repr(v) for c, v in content(migrated)[table][
            query(migrated, "SELECT rowid FROM %s WHERE id = ?" % table, identity)[0][0]].items()}
        row.update(values, id="'edge-%s'" % passes)
        sql = 'INSERT INTO %s (%s) VALUES (%s)' % (table, ", ".join(row), ", ".join(row.values()))
        if passes:
            script(migrated, sql)
        else:
            with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
                script(migrated, sql)


def test_no_row_is_left_without_root_by_null_or_empty(migrated):
    for value in ("NULL", "''"):
        script(migrated, "UPDATE metric_values SET root_id = %s WHERE id = 'value-00001-0'" % value,
               "UPDATE goals SET root_id = %s WHERE id = 'goal-0-05'" % value)
        assert query(migrated, "SELECT root_id FROM metric_values WHERE id = 'value-00001-0'") == [("goal-0-00",)]
        assert query(migrated, "SELECT root_id FROM goals WHERE id = 'goal-0-05'") == [("goal-0-00",)]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_app_code_old_and_new_works_on_every_migrated_generation(tmp_path, generation):
    """Old code names the columns it knew, unset ones NULL; new code names root_id and the others too."""
    path = build(tmp_path / "goals.db", generation, instances=2)
    old = {table: [row[1] for row in query(path, "PRAGMA table_info(%s)" % table)] for table in TABLES}
    run(path, "--yes", "--no-backup")
    new = {table: [row[1] for row in query(path, "PRAGMA table_info(%s)" % table)] for table in TABLES}
    for release, names in (("old", old), ("new", new)):
        known = {
            "goals": dict(id=release + "-g", type="MidTermGoal", name="n", parent_id="goal-0-03"),
            "activity_definitions": dict(id=release + "-a", root_id="goal-0-00", name=release),
            "metric_definitions": dict(id=release + "-m", activity_id=release + "-a", name="n", unit="kg"),
            "session_templates": dict(id=release + "-t", root_id="goal-0-00", name=release, template_data="{}"),
            "activity_instances": dict(id=release + "-i", practice_session_id="session-0-0", session_id="session-0-0",
                                       activity_definition_id=release + "-a"),
            "metric_values": dict(id=release + "-v", activity_instance_id=release + "-i",
                                  metric_definition_id=release + "-m", value=1.5)}
        for table, values in known.items():
            columns = names[table]
            script(path, ("INSERT INTO %s (%s) VALUES (%s)" % (
                table, ", ".join('"%s"' % c for c in columns), ", ".join("?" * len(columns))),
                [values.get(c) for c in columns]))
            assert query(path, "SELECT root_id FROM %s WHERE id = ?" % table, values["id"]) == [("goal-0-00",)]
        script(path, ("UPDATE goals SET name = ?, completed = 1, updated_at = '2026-01-01' WHERE goals.id = ?",
                      ("renamed", release + "-g")),
               ("DELETE FROM metric_values WHERE metric_values.id = ?", (release + "-v",)),
               ("DELETE FROM activity_instances WHERE activity_instances.id = ?", (release + "-i",)),
               ("DELETE FROM goals WHERE goals.id = ?", (release + "-g",)))
    run(path, "--verify")


def test_rows_that_link_two_fractals_are_counted_and_listed(database):
    script(database, "UPDATE activity_instances SET activity_definition_id = 'activity-1-0' WHERE id = 'instance-00001'")
    report = json.loads(run(database, "--yes", "--no-backup", "--report", "-").stdout)
    crossing = report["crossing_fractals"]["activity_instances.activity_definition_id"]
    assert crossing["count"] == 1 and crossing["ids"] == ["instance-00001"]
    assert query(database, crossing["query"]) == [("instance-00001",)]
    assert "link two fractals" in run(database, "--verify").stdout


def test_a_choice_is_reported_beside_a_quarantined_row(database):
    script(database, "INSERT INTO practice_session_goals VALUES ('session-0-1', 'goal-1-09')",
           "INSERT INTO activity_instances (id, practice_session_id, activity_definition_id) VALUES ('lost', 'no', 'no')")
    said = run(database, "--yes", "--no-backup", "--repair").stdout
    assert "first link wins" in said and "quarantined" in said and "less 1 in migration_quarantine" in said


def test_a_ring_of_linked_sessions_is_no_obstacle(tmp_path):
    path = build(tmp_path / "goals.db", fill=None)
    script(path, *[(GOAL, (name, "PracticeSession", None)) for name in ("S0", "S1", "S2")],
           *[("INSERT INTO practice_session_goals VALUES (?, ?)", pair) for pair in (("S0", "S1"), ("S1", "S2"), ("S2", "S1"))])
    run(path, "--yes", "--no-backup")
    assert set(query(path, "SELECT root_id FROM goals")) == {("S1",)}


def test_or_ignore_leaves_no_row_without_root(migrated):
    for sql in ("INSERT OR IGNORE INTO activity_groups (id, name) VALUES ('z', 'z')",
                "INSERT OR IGNORE INTO metric_values (id, activity_instance_id, metric_definition_id, value) VALUES ('z', 'n', 'n', 1)"):
        with pytest.raises(sqlite3.IntegrityError, match="root_id"):
            script(migrated, sql)


def test_a_link_of_another_fractals_session_does_not_forbid_deleting_a_fractal(migrated):
    script(migrated, "INSERT INTO practice_session_goals VALUES ('session-0-1', 'goal-1-00')")
    script(migrated, "DELETE FROM goals WHERE id = 'goal-1-00'", foreign_keys=1)
    assert query(migrated, "SELECT root_id FROM goals WHERE id = 'session-0-1'") == [("goal-0-00",)]
    assert query(migrated, "PRAGMA foreign_key_check(practice_session_goals)") == []


def test_numbers_that_a_string_column_made_of_ids_find_their_ids_again(tmp_path):
    path = build(tmp_path / "goals.db", "development", instances=3)
    script(path, "INSERT INTO split_definitions (id, activity_id, name) VALUES ('007', 'activity-0-0', 'odd')",
           "UPDATE metric_values SET split_definition_id = '007' WHERE rowid = 1")
    assert query(path, "SELECT split_definition_id FROM metric_values WHERE rowid = 1") == [(7,)]
    run(path, "--yes", "--no-backup")
    assert query(path, "SELECT split_definition_id FROM metric_values WHERE rowid = 1") == [("007",)]
