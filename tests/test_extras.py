"""What --extra adds: views of the targets, session metadata, an audit log."""
import json
import shutil
import sqlite3

import pytest
from databases import build
from helpers import content, product, query, run, schema, script, whole
from test_rule import EXTRAS, GOAL, open_in_memory, refused

METADATA = "INSERT INTO session_metadata (session_id, key, value, root_id) VALUES (?, ?, 'x', ?)"


@pytest.fixture
def app(migrated_once):
    return open_in_memory(migrated_once("production", *EXTRAS), 1, 0)


@pytest.mark.parametrize("text, targets, metrics", [
    (json.dumps([{"id": "t", "activity_id": "a", "name": "5 km", "description": "d",
                  "metrics": [{"metric_id": "m", "value": 5}, {"metric_id": "n"}]},
                 {"id": "u", "name": "rest"}]),
     [("t", "a", "5 km", "d", 0), ("u", None, "rest", None, 1)], [("t", "m", 5), ("t", "n", None)]),
    ('[{"name": "no id", "metrics": {"metric_id": "m"}}, 7, "x", [], null]',
     [(None, None, "no id", None, 0)], []),
    *((text, [], []) for text in (
        None, "", "x", "[", "[]", "{}", "null", "7", '"t"', 7, 1.5, b"[{}]", "[" * 2000))])
def test_what_can_be_read_of_the_targets_is_there(app, text, targets, metrics):
    app.execute("PRAGMA foreign_keys = OFF")  # SQLite 3.34 refuses any UPDATE of an orphan
    app.execute("UPDATE goals SET targets = NULL")
    app.execute("UPDATE goals SET targets = ? WHERE id = 'goal-1-03'", [text])
    goal = ("goal-1-03", "goal-1-00")
    assert app.rows("SELECT * FROM goal_targets") == [goal + row for row in targets]
    assert app.rows("SELECT * FROM goal_target_metrics") == [goal + row for row in metrics]
    plan = app.rows("EXPLAIN QUERY PLAN SELECT * FROM goal_targets WHERE root_id = 'r'")
    assert "INDEX idx_goals_" in str(plan)


def test_metadata_have_the_root_of_their_session(app):
    app.execute(GOAL, ("s", "PracticeSession", "goal-0-03"))
    for key, given in (("mood", None), ("tools", ""), ("place", "goal-0-00")):
        app.execute(METADATA, ("s", key, given))
    refused(app, "root_id does not match", METADATA, "s", "other", "goal-1-00")
    refused(app, "root_id does not match", "UPDATE session_metadata SET root_id = 'goal-1-00'")
    refused(app, "UNIQUE", METADATA, "s", "mood", None)
    roots = "SELECT DISTINCT root_id FROM session_metadata ORDER BY 1"
    assert app.column(roots) == ["goal-0-00"]
    app.execute("UPDATE goals SET parent_id = 'goal-1-00' WHERE id = 'goal-0-03'")
    assert app.column(roots) == ["goal-1-00"]
    app.execute("UPDATE session_metadata SET session_id = 'session-2-0' WHERE key = 'mood'")
    assert app.column(roots) == ["goal-1-00", "goal-2-00"]
    app.execute("DELETE FROM goals WHERE id = 's'")
    assert app.column("SELECT key FROM session_metadata") == ["mood"]


def test_metadata_of_a_row_of_sessions(migrated_once):
    app = open_in_memory(migrated_once("later", *EXTRAS), 1, 0)
    app.execute(METADATA, ("session-0-0", "mood", None))
    app.execute("UPDATE sessions SET root_id = 'goal-2-00' WHERE id = 'session-0-0'")
    assert app.column("SELECT root_id FROM session_metadata") == ["goal-2-00"]


def test_wrong_roots_of_metadata_are_found_and_corrected(tmp_path, migrated_once):
    path = shutil.copy(migrated_once("production", *EXTRAS), tmp_path / "goals.db")
    script(path, (METADATA, ("session-0-0", "mood", None)),
           "DROP TRIGGER trg_session_metadata_guard",
           "UPDATE session_metadata SET root_id = 'goal-1-00'")
    assert "session_metadata: 1 row with a wrong" in run(path, "--verify", status=1).err
    run(path, "--yes", "--no-backup")
    assert query(path, "SELECT root_id FROM session_metadata") == [("goal-0-00",)]
    run(path, "--verify")


def entries(app):
    found = app.rows("SELECT table_name, row_id, root_id, action, old_values, new_values "
                     "FROM audit_log ORDER BY id")
    app.execute("DELETE FROM audit_log")
    return [(*row[:4], *(json.loads(text or "null") for text in row[4:])) for row in found]


def test_the_apps_writes_are_logged_and_what_triggers_do_is_not(app):
    assert entries(app) == []  # nor was the migration
    app.execute(GOAL, ("x", "Step", "goal-0-03"))
    app.execute("UPDATE goals SET name = 'new', description = ?, completed = completed "
                "WHERE id = 'x'", [b"\x00\xff"])
    app.execute("UPDATE goals SET name = name WHERE id = 'x'")
    app.execute("UPDATE goals SET parent_id = 'goal-1-00' WHERE id = 'goal-0-03'")
    app.execute("DELETE FROM goals WHERE id = 'x'")
    found = entries(app)
    assert [row[:4] for row in found] == [
        ("goals", "x", "goal-0-00", "insert"), ("goals", "x", "goal-0-00", "update"),
        ("goals", "goal-0-03", "goal-1-00", "update"), ("goals", "x", "goal-1-00", "delete")]
    assert found[0][4] is None and found[3][5] is None
    assert found[0][5].items() >= {"id": "x", "parent_id": "goal-0-03", "name": "n"}.items()
    assert found[1][4:] == ({"name": "n", "description": found[0][5]["description"]},
                            {"name": "new", "description": "00FF"})
    assert found[2][4:] == ({"parent_id": "goal-0-01"}, {"parent_id": "goal-1-00"})
    app.execute("UPDATE activity_groups SET root_id = 'goal-1-00', name = 'y' WHERE rowid = 1")
    assert entries(app)[0][5] == {"root_id": "goal-1-00", "name": "y"}


def test_every_table_is_logged_and_an_entry_stays_as_it_is(app):
    for table in product.TABLES:
        app.execute(f"UPDATE {table} SET updated_at = '2030-01-01' WHERE rowid = 1")
    app.execute("PRAGMA foreign_keys = ON")
    app.execute("DELETE FROM metric_values WHERE rowid = 1")
    for forged in ("UPDATE audit_log SET action = 'x'",
                   "INSERT OR REPLACE INTO audit_log SELECT * FROM audit_log"):
        refused(app, "audit_log cannot be changed", forged)
    assert app.value("SELECT count(*) FROM audit_log WHERE at GLOB '????-??-??T??:??:??.???Z' AND "
                     "julianday(at) > julianday('now', '-1 hour')") == len(product.TABLES) + 1
    assert [row[0] for row in entries(app)] == [*product.TABLES, "metric_values"]


def test_extras_come_in_a_first_run_or_a_later_one_and_are_checked(tmp_path):
    first, later = (build(tmp_path / name) for name in ("first.db", "later.db"))
    run(first, "--yes", "--no-backup", *EXTRAS)
    run(later, "--yes", "--no-backup")
    before = whole(later)
    assert not {"goal_targets", "session_metadata", "audit_log"} & {row[1] for row in before[1]}
    run(later, "--dry-run", *EXTRAS)
    assert whole(later) == before
    for name in product.EXTRA_OBJECTS:
        run(later, "--yes", "--no-backup", "--extra", name)
    assert "Nothing to do" in run(later, "--yes").out
    for drop in ("VIEW goal_targets", "INDEX idx_goals_targets", "TABLE session_metadata",
                 "TRIGGER trg_goals_audit_insert"):
        script(later, f"DROP {drop}")
        assert drop.split()[1] in run(later, "--verify", status=1).err
        run(later, "--yes", "--no-backup")
    assert whole(later) == whole(first)
    run(later, "--verify")


def test_a_rebuild_keeps_extras_and_their_rows(tmp_path):
    path = build(tmp_path / "goals.db")
    run(path, "--yes", "--no-backup", "--skip-constraint", product.DEADLINE, *EXTRAS)
    script(path, (GOAL, ("x", "Step", "goal-0-00")), (METADATA, ("session-0-0", "mood", None)))
    before = content(path)
    run(path, "--yes", "--no-backup")
    after = content(path)
    for name in ("audit_log", "session_metadata"):
        assert before[name] == after[name] and before[name]
    run(path, "--verify")


@pytest.mark.parametrize("name", ["goal_targets", "session_metadata", "audit_log",
                                  "trg_goals_audit_insert"])
def test_what_the_owner_has_under_such_a_name_is_left_alone(database, name):
    trigger = "TRIGGER {} AFTER INSERT ON goals BEGIN SELECT 1; END"
    script(database, f"CREATE {trigger if 'trg' in name else 'TABLE {} (id, mine)'}".format(name))
    assert f"{name} has a name that the migration needs" in run(
        database, "--yes", *EXTRAS, status=1).err
    run(database, "--yes", "--no-backup")
    assert name in [row[1] for row in schema(database)]
    run(database, "--verify")


def test_without_json_an_extra_is_refused(database):
    connection = product.connect(database)
    connection.set_authorizer(lambda action, _, name, *rest: sqlite3.SQLITE_DENY if (
        action, name) == (sqlite3.SQLITE_FUNCTION, "json") else sqlite3.SQLITE_OK)
    with pytest.raises(sqlite3.DatabaseError) as stopped:
        product.compare_schema(connection, product.make_parser().parse_args(EXTRAS))
    said = product.explain(stopped.value)
    assert said.status == 2 and "has no JSON functions, which --extra needs" in str(said)
    connection.close()
