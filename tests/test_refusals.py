"""What is refused: one line with the table, the reason and the way out; nothing is touched."""
import os
import sqlite3
import subprocess
import sys

import pytest
from helpers import ROOT, SAMPLE, environment, folder_state, process, run, script

GROUPS = {  # how activity_groups is declared: why it is refused, the way out
    "id TEXT PRIMARY KEY, root_id, name) WITHOUT ROWID": "WITHOUT ROWID; make it anew without that",
    "id TEXT PRIMARY KEY, root_id TEXT, name TEXT) STRICT": "STRICT; make it anew without that",
    "id, root_id, name)":
        "id is not unique; CREATE UNIQUE INDEX activity_groups_id ON activity_groups(id)",
    "key INTEGER PRIMARY KEY, root_id, name)": "has no id; add one",
    "id TEXT UNIQUE, root_id, RowID)": "a column named rowid; rename that column",
    "id TEXT UNIQUE, name CHECK (activity_groups.name <> ''))":
        "names the table itself; leave the name out",
    "id TEXT UNIQUE, name, root_id AS (name))": "root_id is a generated column; make it plain",
    "id TEXT UNIQUE, root_id INTEGER)": "root_id is declared INTEGER; make it VARCHAR",
    "id TEXT UNIQUE, root_id REFERENCES goals(id) ON DELETE RESTRICT)":
        "REFERENCES goals ON DELETE RESTRICT; ON DELETE CASCADE",
    "id TEXT UNIQUE, root_id REFERENCES goals ON DELETE SET NULL)":
        "ON DELETE SET NULL; let it refer to goals(id)",
    "id TEXT UNIQUE, root_id REFERENCES other(id))": "REFERENCES other; goals(id)",
    "id INTEGER PRIMARY KEY, root_id, name)": "id is declared INTEGER; make it VARCHAR",
    "id STRING UNIQUE DEFAULT '007', name)": "ids are numbers; make them text",
    "id TEXT UNIQUE, name CHECK (name <> \"updated_at\"))": '"updated_at"; single quotes',
    # Names that differ for SQLite, but not for Python: the nearest there is.
    "id TEXT UNIQUE, \xe4, \xc4, name)": "text and its columns disagree; compare",
}
REFUSED = [  # statements, what is named, why, the way out
    *((f"DROP TABLE activity_groups; CREATE TABLE activity_groups ({declared}; "
       + "INSERT INTO activity_groups DEFAULT VALUES" * ("STRING" in declared),
       f"table activity_groups; {told}") for declared, told in GROUPS.items()),
    ("DROP TABLE goals; CREATE TABLE goals (id, score)",
     "no Fractal Goals database; no table goals; name the app's own"),
    ("DROP TABLE activity_groups; CREATE VIEW activity_groups AS SELECT 1 AS id",
     "table activity_groups; is a view; rename it"),
    ("DROP TABLE goals; CREATE TABLE goals (id TEXT UNIQUE, type, name, up, parent_id AS (up))",
     "table goals; parent_id is a generated; make it plain"),
    ("DROP TABLE metric_definitions; CREATE TABLE metric_definitions (id TEXT UNIQUE, "
     "activity_id DOUBLE, name)", "table metric_definitions; is declared DOUBLE; VARCHAR"),
    ("CREATE INDEX x ON activity_instances (time_start) WHERE duration_seconds = \"data\"",
     "table activity_instances; \"data\"; single quotes"),
    ("DROP TABLE practice_session_goals; CREATE TABLE practice_session_goals (a, b)",
     "table practice_session_goals; no practice_session_id; columns"),
    ("CREATE TABLE mine (a); CREATE INDEX idx_goals_type ON mine (a)",
     "index idx_goals_type; has a name; rename it"),
    ("CREATE VIEW idx_goals_root_id AS SELECT 1", "view idx_goals_root_id; has a name; rename it"),
    ("CREATE TRIGGER trg_goals_follow AFTER UPDATE ON goals BEGIN SELECT 1; END",
     "trigger trg_goals_follow; has a name that the migration needs; rename it"),
    ("CREATE TRIGGER idx_goals_type AFTER UPDATE ON goals BEGIN SELECT 1; END",
     "trigger idx_goals_type; has a name; rename it"),
    ("CREATE TABLE migration_log (mine)", "table migration_log; has a name; rename it"),
    ("CREATE VIEW odd AS SELECT 'x'; PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = "
     "CAST(x'435245415445205649455720206f64642041532053454c4543542027e927' AS TEXT) "
     "WHERE name = 'odd'", "view odd; is not UTF-8; write it anew"),
]


@pytest.mark.parametrize("statements, words", REFUSED)
def test_is_refused(database, statements, words):
    if "STRICT" in statements and sqlite3.sqlite_version_info < (3, 37):
        pytest.skip("STRICT came with SQLite 3.37")
    with sqlite3.connect(database) as connection:
        connection.executescript(statements)
    connection.close()
    before = folder_state(database)
    for flags in (["--dry-run"], ["--yes"], ["--output", database + ".new"]):
        said = run(database, *flags, status=2 if "no Fractal Goals" in words else 1).err
        assert said.count("\n") == 1 and "nothing was changed" in said
        assert all(word in said for word in words.split("; ")), said
        assert folder_state(database) == before


def test_what_looks_like_it_is_not_refused(database):
    script(database, 'CREATE INDEX "data" ON activity_instances ("created_at")',
           'CREATE TABLE "notes" ("id" INTEGER PRIMARY KEY, "data" TEXT)',
           'CREATE VIEW "recent" AS SELECT "id", "created_at" AS "data" FROM activity_instances',
           'ALTER TABLE activity_instances ADD COLUMN note_id INTEGER REFERENCES "notes" ("id")',
           "CREATE TABLE sessions (id INTEGER PRIMARY KEY, session_id, data)",
           "CREATE UNIQUE INDEX idx_goals_type ON goals (type, id)")  # ours: it is replaced
    run(database, "--yes", "--no-backup")
    run(database, "--verify")


BAD_FILES = {
    "missing": (lambda path: None, 2, "no such database"),
    "folder": (lambda path: path.mkdir(), 2, "is no file"),
    "empty": (lambda path: path.write_bytes(b""), 2, "or empty"),
    "text": (lambda path: path.write_text("hello" * 999), 2, "is no SQLite database, or encrypted"),
    "other": (lambda path: script(path, "CREATE TABLE notes (id)"), 2, "no Fractal Goals database"),
    "truncated": (lambda path: path.write_bytes(SAMPLE.read_bytes()[:40000]), 1, "damaged"),
    "overwritten": (lambda path: path.write_bytes(
        SAMPLE.read_bytes()[:100] + b"\xa5" * 40000 + SAMPLE.read_bytes()[40100:]), 1, "damaged"),
}


@pytest.mark.parametrize("flags", [["--dry-run"], ["--yes"], ["--verify"], ["--output", "new.db"]])
@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_gets_one_clear_line(tmp_path, monkeypatch, kind, flags):
    make, status, words = BAD_FILES[kind]
    path = tmp_path / "in put.db"
    make(path)
    monkeypatch.chdir(tmp_path)
    before = folder_state(path)
    said = run(path, *flags, status=status).err
    assert words in said and "nothing was changed" in said
    assert "snapshot.db" not in said and "partial" not in said
    assert str(path) in said or status == 1
    assert folder_state(path) == before


@pytest.mark.parametrize("flags", [
    "--nonsense", "--phases x", "--skip-constraint x", "--dry-run --verify", "a b",
    "--skip-constraint chk_activity_groups_root_id", "--timeout -1", "--timeout soon",
    "--output x --backup y", "--verify --repair", "--backup x --no-backup", "--restore x --sql y"])
def test_wrong_flags_end_in_2(database, flags):
    before = folder_state(database)
    said = run(database, *flags.split(), status=2).err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert folder_state(database) == before


@pytest.mark.parametrize("flag, name", [
    ("--output", "{0}"), ("--output", "here.txt"), ("--output", "no/such/folder"), ("--output", ""),
    ("--output", "stale.db"), ("--backup", "{0}-wal"), ("--backup", "here.txt"), ("--backup", "."),
    ("--backup", "stale.db"), ("--restore", ""), ("--report", "{0}"), ("--report", "here.txt"),
    ("--report", ""), ("--report", "{0}-journal"), ("--sql", "here.txt"), ("--sql", "{0}"),
    ("--sql", "-"), ("--sql", "{0}-shm")])
def test_files_that_are_not_to_be_written_are_not(database, monkeypatch, tmp_path, flag, name):
    (tmp_path / "here.txt").write_text("#!/bin/sh\nmigrate_database_improvements.py --verify")
    (tmp_path / "stale.db-wal").write_bytes(b"stale")
    monkeypatch.chdir(tmp_path)
    before = folder_state(database)
    said = run(database, "--yes", flag, name.format(database), status=2).err
    assert f"{flag}: " in said or flag == "--restore" and "is no file" in said
    assert folder_state(database) == before


def test_a_report_and_a_script_of_this_script_are_replaced(database, tmp_path):
    for _ in range(2):
        run(database, "--dry-run", "--report", tmp_path / "r.json", "--sql", tmp_path / "r.sql")
    run(database, "--dry-run", "--report", "/dev/null")


def test_nothing_is_migrated_by_mistake(database):
    """Neither without a terminal or --yes, nor for an empty variable, nor a backup."""
    before = folder_state(database)
    assert "add --yes" in process(database, status=2).err
    assert "is no file" in run("", "--yes", status=2).err
    assert folder_state(database) == before
    backup = database + ".backup-20260101T000000Z"
    os.rename(database, backup)
    assert "is a backup" in run(backup, "--yes", status=2).err
    run(backup, "--dry-run")
    assert [*folder_state(backup).values()] == [*before.values()]


def test_an_old_sqlite_is_told(database):
    code = ("import sqlite3, sys; sqlite3.sqlite_version_info = (3, 33, 0); "
            "sys.argv[0] = 'x'; import migrate_database_improvements as m; sys.exit(m.main())")
    done = subprocess.run([sys.executable, "-c", code, database, "--dry-run"], cwd=ROOT, text=True,
                          capture_output=True, env=environment())
    assert done.returncode == 2 and "3.34 or newer is needed" in done.stderr
