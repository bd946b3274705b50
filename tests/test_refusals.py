"""What is refused: one line with the table, the reason and the way out; nothing is touched."""
import os
import sqlite3
import subprocess
import sys

import pytest
from helpers import ROOT, SAMPLE, digest, environment, folder_state, process, run, script

GROUPS = "CREATE TABLE activity_groups (id VARCHAR PRIMARY KEY, root_id VARCHAR, name VARCHAR)"


def groups(old="", new=""):
    return ["DROP TABLE activity_groups", GROUPS.replace(old, new) if old else GROUPS]


REFUSED = {  # statements, exit status, the table or object, why, the way out
    "goals not ours": (["DROP TABLE goals", "CREATE TABLE goals (id, score)"], 2,
                       "no Fractal Goals database", "no table goals", "name the app's own"),
    "a view": (["DROP TABLE activity_groups", "CREATE VIEW activity_groups AS SELECT 1 AS id"], 1,
               "table activity_groups", "is a view", "rename it"),
    "without rowid": (groups("name VARCHAR)", "name VARCHAR) WITHOUT ROWID"), 1,
                      "table activity_groups", "WITHOUT ROWID", "make it anew without that"),
    "strict": (["DROP TABLE activity_groups", "CREATE TABLE activity_groups "
                "(id TEXT PRIMARY KEY, root_id TEXT, name TEXT) STRICT"], 1,
               "table activity_groups", "STRICT", "make it anew"),
    "no unique id": (groups(" PRIMARY KEY"), 1, "table activity_groups", "id is not unique",
                     "CREATE UNIQUE INDEX activity_groups_id ON activity_groups(id)"),
    "no id": (groups("id VARCHAR PRIMARY KEY", "key INTEGER PRIMARY KEY"), 1,
              "table activity_groups", "has no id", "add one"),
    "a column named rowid": (groups("name", "RowID INTEGER, name"), 1, "table activity_groups",
                             "a column named rowid", "rename that column"),
    "a check that names its table": (
        groups("name VARCHAR", "name CHECK (activity_groups.name <> '')"), 1,
        "table activity_groups", "names the table itself", "leave the name out"),
    "a generated root": (groups("root_id VARCHAR", "root_id AS (name)"), 1,
                         "table activity_groups", "root_id is a generated column", "a plain one"),
    "a generated parent": (
        ["DROP TABLE goals", "CREATE TABLE goals (id TEXT PRIMARY KEY, type, name, up, "
         "parent_id AS (up))"], 1, "table goals", "parent_id is a generated", "a plain one"),
    "a root that is a number": (groups("root_id VARCHAR", "root_id INTEGER"), 1,
                                "table activity_groups", "is declared INTEGER", "VARCHAR"),
    "a parent that is a number": (
        ["DROP TABLE metric_definitions", "CREATE TABLE metric_definitions (id TEXT PRIMARY KEY, "
         "activity_id DOUBLE, name)"], 1, "table metric_definitions", "is declared DOUBLE", ""),
    "a restricting key": (groups("root_id VARCHAR",
                                 "root_id REFERENCES goals(id) ON DELETE RESTRICT"),
                          1, "table activity_groups", "REFERENCES goals ON DELETE RESTRICT",
                          "ON DELETE CASCADE"),
    "a key that sets null": (
        groups("root_id VARCHAR", "root_id REFERENCES goals ON DELETE SET NULL"), 1,
        "table activity_groups", "ON DELETE SET NULL", "let it refer to goals(id)"),
    "a key to another table": (groups("root_id VARCHAR", "root_id REFERENCES other(id)"), 1,
                               "table activity_groups", "REFERENCES other", "goals(id)"),
    "ids that are integers": (groups("id VARCHAR", "id INTEGER"), 1, "table activity_groups",
                              "ids are numbers", "make them text"),
    "ids that became numbers": (
        [*groups("id VARCHAR", "id STRING"), "INSERT INTO activity_groups VALUES ('007', '', '')"],
        1, "table activity_groups", "ids are numbers", "make them text"),
    "a string to become a column": (
        groups("name VARCHAR", 'name CHECK (name <> "updated_at")'), 1, "table activity_groups",
        '"updated_at"', "single quotes"),
    "a string of an index": (
        ["CREATE INDEX x ON activity_instances (time_start) WHERE duration_seconds = \"data\""], 1,
        "table activity_instances", '"data"', "single quotes"),
    "links of other columns": (["DROP TABLE practice_session_goals",
                                "CREATE TABLE practice_session_goals (a, b)"], 1,
                               "table practice_session_goals", "no practice_session_id", "columns"),
    "an index of our name": (["CREATE TABLE mine (a)", "CREATE INDEX idx_goals_type ON mine (a)"],
                             1, "index idx_goals_type", "has a name", "rename it"),
    "a view of an index's name": (["CREATE VIEW idx_goals_root_id AS SELECT 1"], 1,
                                  "view idx_goals_root_id", "has a name", "rename it"),
    "a trigger of our name": (
        ["CREATE TRIGGER trg_goals_follow AFTER UPDATE ON goals BEGIN SELECT 1; END"], 1,
        "trigger trg_goals_follow", "has a name that the migration needs", "rename it"),
    "a migration_log of others": (["CREATE TABLE migration_log (mine)"], 1,
                                  "table migration_log", "has a name", "rename it"),
    "a schema that is no UTF-8": (
        ["CREATE VIEW odd AS SELECT 'x'", "PRAGMA writable_schema = ON",
         "UPDATE sqlite_master SET sql = CAST(replace(CAST(sql AS BLOB), x'27782722', x'27e927') "
         "AS TEXT) WHERE name = 'odd'", "UPDATE sqlite_master SET sql = "
         "CAST(x'435245415445205649455720206f64642041532053454c4543542027e927' AS TEXT) "
         "WHERE name = 'odd'"], 1, "view odd", "is not UTF-8", "write it anew"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_is_refused(database, what):
    if what == "strict" and sqlite3.sqlite_version_info < (3, 37):
        pytest.skip("STRICT came with SQLite 3.37")
    statements, status, *words = REFUSED[what]
    script(database, *statements)
    before = folder_state(database)
    for flags in (["--dry-run"], ["--yes"], ["--output", database + ".new"]):
        said = run(database, *flags, status=status).err
        assert said.count("\n") == 1 and "nothing was changed" in said
        assert all(word in said for word in words), said
        assert folder_state(database) == before


def test_a_text_that_disagrees_with_its_columns_is_refused(database):
    """Names that differ for SQLite, but not for Python: the nearest there is."""
    two = GROUPS.replace("name", "\xe4 TEXT, \xc4 TEXT, name")
    script(database, "DROP TABLE activity_groups", two)
    assert "text and its columns disagree" in run(database, "--dry-run", status=1).err


@pytest.mark.parametrize("statement", [
    'CREATE INDEX "data" ON activity_instances ("created_at")',
    'CREATE TABLE "notes" ("id" INTEGER PRIMARY KEY, "data" TEXT)',
    'CREATE VIEW "recent" AS SELECT "id", "created_at" AS "data" FROM activity_instances',
    'ALTER TABLE activity_instances ADD COLUMN note_id INTEGER REFERENCES "notes" ("id")',
    "CREATE TABLE sessions (id INTEGER PRIMARY KEY, session_id, data)"])
def test_what_looks_like_it_is_not_refused(database, statement):
    script(database, statement)
    run(database, "--yes", "--no-backup")
    run(database, "--verify")


def test_our_index_with_another_text_is_replaced(database):
    script(database, "CREATE UNIQUE INDEX idx_goals_type ON goals (type, id)")
    run(database, "--yes", "--no-backup")
    run(database, "--verify")


BAD_FILES = {
    "missing": (lambda path: None, 2, "no such database"),
    "folder": (lambda path: path.mkdir(), 2, "is no file"),
    "empty": (lambda path: path.write_bytes(b""), 2, "is empty"),
    "text": (lambda path: path.write_text("hello " * 999), 2,
             "is no SQLite database, or encrypted"),
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
    if kind in ("text", "other", "empty", "folder", "missing"):
        assert str(path) in said
    assert folder_state(path) == before


@pytest.mark.parametrize("flags", [
    ["--nonsense"], ["--phases", "x"], ["--skip-constraint", "x"], ["--skip-constraint",
     "chk_activity_groups_root_id"], ["--timeout", "-1"], ["--timeout", "soon"],
    ["--dry-run", "--verify"], ["a", "b"], ["--output", "x", "--backup", "y"],
    ["--verify", "--repair"], ["--backup", "x", "--no-backup"], ["--restore", "x", "--sql", "y"]])
def test_wrong_flags_end_in_2(database, flags):
    before = folder_state(database)
    said = run(database, *flags, status=2).err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert folder_state(database) == before


@pytest.mark.parametrize("flags", [
    ["--output", "{0}"], ["--output", "here.txt"], ["--output", "no/such/folder"], ["--output", ""],
    ["--backup", "{0}-wal"], ["--backup", "here.txt"], ["--backup", "."], ["--restore", ""],
    ["--report", "{0}"], ["--report", "here.txt"], ["--report", ""], ["--report", "{0}-journal"],
    ["--sql", "here.txt"], ["--sql", "{0}"], ["--sql", "-"], ["--sql", "{0}-shm", "--report", "r"],
    ["--backup", "stale.db"], ["--output", "stale.db"]])
def test_files_that_are_not_to_be_written_are_not(database, monkeypatch, tmp_path, flags):
    (tmp_path / "here.txt").write_text("#!/bin/sh\nmigrate_database_improvements.py --verify")
    (tmp_path / "stale.db-wal").write_bytes(b"stale")
    monkeypatch.chdir(tmp_path)
    before = folder_state(database)
    said = run(database, "--yes", *[flag.format(database) for flag in flags], status=2).err
    assert f"{flags[0]} " in said
    assert folder_state(database) == before


def test_an_empty_name_is_no_name_left_out(database, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run("", "--yes", status=2)


def test_a_report_and_a_script_of_this_script_are_replaced(database, tmp_path):
    for _ in range(2):
        run(database, "--dry-run", "--report", tmp_path / "r.json", "--sql", tmp_path / "r.sql")
    run(database, "--dry-run", "--report", "/dev/null")


def test_without_terminal_and_yes_nothing_happens(database):
    before = folder_state(database)
    assert "add --yes" in process(database, status=2).err
    assert folder_state(database) == before


def test_a_backup_is_not_migrated_by_mistake(database):
    name = database + ".backup-20260101T000000Z"
    os.rename(database, name)
    before = digest(name)
    assert "is a backup" in run(name, "--yes", status=2).err
    assert digest(name) == before
    run(name, "--dry-run")


def test_an_old_sqlite_is_told(database):
    code = ("import sqlite3, sys; sqlite3.sqlite_version_info = (3, 33, 0); "
            "sys.argv[0] = 'x'; import migrate_database_improvements as m; sys.exit(m.main())")
    done = subprocess.run([sys.executable, "-c", code, database, "--dry-run"], cwd=ROOT, text=True,
                          capture_output=True, env=environment())
    assert done.returncode == 2 and "3.34 or newer is needed" in done.stderr
