"""The migration runs, end to end, on every generation of the schema."""
import os
import pathlib
import re
import shutil
import sqlite3
import subprocess
import sys

import pytest
from databases import FIRST_SCRIPT, GENERATIONS, build, populate
from helpers import (
    ROOT,
    SAMPLE,
    SCRIPT,
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
)

import migrate_database_improvements as product


def target_columns(path):
    return {table: {row[1] for row in query(path, "PRAGMA table_info(%s)" % table)} for table in TABLES}


def test_dry_run_of_a_fresh_clone_rehearses_the_sample(tmp_path):
    clone = tmp_path / "clone"
    (clone / "fixtures").mkdir(parents=True)
    shutil.copy(str(SCRIPT), str(clone))
    shutil.copy(str(SAMPLE), str(clone / "fixtures"))
    before = digest(clone / "fixtures" / "sample.db")
    said = run("--dry-run", cwd=clone, script=clone / SCRIPT.name).stdout
    assert "bundled sample" in said
    assert re.findall(r"\[\d/5\]", said) == ["[1/5]", "[2/5]", "[3/5]", "[4/5]", "[5/5]"]
    assert re.search(r"activity_instances +120 backfilled", said) and "rows copied and proven" in said
    assert digest(clone / "fixtures" / "sample.db") == before
    assert os.listdir(str(clone / "fixtures")) == ["sample.db"]


def test_live_run_migrates_backs_up_and_a_second_run_changes_no_byte(database):
    before = content(database), schema(database)
    said = run(database, "--yes").stdout
    backups = [name for name in os.listdir(os.path.dirname(database)) if "backup" in name]
    assert len(backups) == 1 and backups[0] in said
    backup = os.path.join(os.path.dirname(database), backups[0])
    assert (content(backup), schema(backup)) == before
    after = digest(database)
    assert "Nothing to do" in run(database, "--yes").stdout
    assert digest(database) == after
    assert sorted(os.listdir(os.path.dirname(database))) == ["goals.db", backups[0]]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_generation_reaches_the_target(tmp_path, generation):
    path = build(tmp_path / "goals.db", generation)
    before, expected = content(path), derive(path)
    run(path, "--yes", "--no-backup")
    assert_kept(before, content(path))
    assert stored_roots(path) == {table: roots for table, roots in expected.items()}
    for table, columns in target_columns(path).items():
        assert set(product.TABLES[table]) <= columns
    names = {row[1] for row in schema(path)}
    assert set(product.INDEXES) | set(product.UNIQUE_NAMES) <= names
    ddl = " ".join(row[3] for row in schema(path) if row[0] == "table")
    assert all("CONSTRAINT %s CHECK" % check in ddl for check in product.CHECKS)
    assert ddl.count("NOT NULL ON CONFLICT REPLACE DEFAULT ''") == 8
    assert "STRING" not in ddl.upper().replace("STRINGS", "")
    assert "Nothing to do" in run(path, "--yes").stdout
    run(path, "--verify")


@pytest.mark.parametrize("steps", range(0, len(FIRST_SCRIPT) + 1, 3))
def test_half_migrated_anywhere_reaches_the_same_schema(tmp_path, steps):
    path = build(tmp_path / "goals.db", "half-migrated", steps=steps, instances=4)
    expected = derive(path)
    run(path, "--yes", "--no-backup")
    assert stored_roots(path) == expected
    for table, columns in target_columns(path).items():
        assert set(product.TABLES[table]) <= columns
    indexed = dict(query(path, "SELECT name, sql FROM sqlite_master WHERE type = 'index'"))
    assert indexed["idx_goals_type"] == "CREATE INDEX idx_goals_type ON goals (type)"


def test_columns_that_alter_table_left_before_a_comment_are_edited_right(tmp_path):
    path = build(tmp_path / "goals.db", fill=None)
    script(path, "DROP TABLE metric_values", """CREATE TABLE metric_values (
        id VARCHAR PRIMARY KEY, -- it's the key, (not "rowid")
        activity_instance_id VARCHAR NOT NULL, metric_definition_id VARCHAR NOT NULL
        /* CHECK (0), FOREIGN KEY */, value FLOAT DEFAULT (1, -- ) one
        ) NOT NULL -- the last, REFERENCES nothing
        )""".replace("(1, -- ) one\n        )", "(1 -- ) one\n        )"),
           "ALTER TABLE metric_values ADD COLUMN root_id STRING",
           "ALTER TABLE metric_values ADD COLUMN split_definition_id STRING")
    populate_db(path)
    run(path, "--yes", "--no-backup")
    ddl = dict(query(path, "SELECT name, sql FROM sqlite_master WHERE type = 'table'"))["metric_values"]
    for comment in ("-- it's the key, (not \"rowid\")", "/* CHECK (0), FOREIGN KEY */", "-- ) one",
                    "-- the last, REFERENCES nothing"):
        assert comment in ddl
    assert {row[3]: row[6] for row in query(path, "PRAGMA foreign_key_list(metric_values)")} == {
        "root_id": "CASCADE", "split_definition_id": "RESTRICT"}
    assert "Nothing to do" in run(path, "--yes").stdout


def populate_db(path):
    connection = sqlite3.connect(path)
    populate(connection, instances=5)
    connection.commit()
    connection.close()


def test_a_tree_of_100000_levels_is_no_problem(tmp_path):
    path = build(tmp_path / "goals.db", fill=None)
    connection = sqlite3.connect(path)
    connection.executemany("INSERT INTO goals (id, type, name, parent_id) VALUES (?, 'MidTermGoal', 'g', ?)",
                           [("g%d" % n, "g%d" % (n - 1) if n else None) for n in range(100000)])
    connection.commit()
    connection.close()
    run(path, "--yes", "--no-backup")
    assert query(path, "SELECT root_id, count(*) FROM goals GROUP BY 1") == [("g0", 100000)]


def test_sessions_follow_the_rules(tmp_path):
    path = build(tmp_path / "goals.db", fill=None)
    goal = "INSERT INTO goals (id, type, name, parent_id, root_id) VALUES (?, ?, 'n', ?, ?)"
    link = "INSERT INTO practice_session_goals VALUES (?, ?)"
    script(path, (goal, ("a", "UltimateGoal", None, "stale")), (goal, ("b", "UltimateGoal", None, None)),
           (goal, ("a1", "MidTermGoal", "a", "b")),
           (goal, ("s-linked", "PracticeSession", None, "s-linked")), (link, ("s-linked", "a1")),
           (goal, ("s-both", "PracticeSession", None, "b")), (link, ("s-both", "a1")), (link, ("s-both", "b")),
           (goal, ("s-stored", "PracticeSession", None, "gone")),
           (goal, ("s-bare", "PracticeSession", None, "")),
           (goal, ("s-child", "PracticeSession", "a1", None)),
           (goal, ("s-lost", "PracticeSession", "missing", "b")),
           (goal, ("under", "MidTermGoal", "s-linked", None)),
           (goal, ("s-far", "PracticeSession", None, None)), (link, ("s-far", "under")),
           (goal, ("lost", "MidTermGoal", "missing", "a")))
    run(path, "--yes", "--no-backup")
    assert dict(query(path, "SELECT id, root_id FROM goals")) == {
        "a": "a", "b": "b", "a1": "a", "s-linked": "a", "s-both": "b", "s-stored": "gone", "s-bare": "s-bare",
        "s-child": "a", "s-lost": "s-lost", "under": "a", "s-far": "a", "lost": "lost"}


def test_odd_ids_and_values_survive_as_they_are(tmp_path):
    path = build(tmp_path / "goals.db", instances=3)
    odd = ["007", "1e3", " 12 ", "\U0001f3af", "a\0b", "it's \"quoted\"; --\n", "x" * 10_000_000, ""]
    for number, value in enumerate(odd):
        identity = value or "empty-name"
        script(path, ("INSERT INTO goals (id, type, name, description) VALUES (?, 'MidTermGoal', ?, ?)",
                      (identity if len(identity) < 99 else "big", value, value)),
               ("INSERT INTO session_templates (id, root_id, name, template_data) VALUES (?, ?, ?, ?)",
                ("t%d" % number, "goal-0-00", "odd %d" % number, value.encode("utf-8"))))
    script(path, ("INSERT INTO goals (id, type, name, targets) VALUES ('blob', 'MidTermGoal', ?, ?)", (b"\0\xff", 5)),
           "INSERT INTO goals (id, type, name, description) VALUES ('nulls', 'MidTermGoal', 'n', NULL)")
    before = content(path)
    run(path, "--yes", "--no-backup")
    assert_kept(before, content(path))
    assert stored_roots(path) == derive(path)


def test_numbers_in_string_columns_become_the_text_that_reads_back(tmp_path):
    path = build(tmp_path / "goals.db", "development", instances=3)
    values = [7, 0.1 + 0.2, 1e300, 2.5, "text", b"\1", None, 2 ** 53 + 1]
    for number, value in enumerate(values):
        script(path, ("UPDATE activity_instances SET notes = ? WHERE rowid = ?", (value, number + 1)))
    run(path, "--yes", "--no-backup")
    found = [row[0] for row in query(path, "SELECT notes FROM activity_instances ORDER BY rowid LIMIT 8")]
    assert found[4:7] == ["text", b"\1", None] and all(isinstance(v, str) for v in found[:4])
    assert [float(v) for v in found[:4]] == values[:4] and found[7] == str(2 ** 53 + 1) and found[0] == "7"


BREAKS = {
    "root_id": ["DROP TRIGGER trg_metric_values_guard", "UPDATE metric_values SET root_id = 'goal-1-00' "
                "WHERE id = 'value-00001-0'"],
    "index idx_goals_root_type": ["DROP INDEX idx_goals_root_type"],
    "index uq_session_templates_root_name": ["DROP INDEX uq_session_templates_root_name"],
    "trigger trg_goals_move": ["DROP TRIGGER trg_goals_move"],
    "chk_metric_values_non_negative": [
        "PRAGMA writable_schema = ON", "UPDATE sqlite_master SET sql = replace(sql, 'CHECK (value >= 0)', 'CHECK (1)') "
        "WHERE name = 'metric_values'"],
    "activity_instance_id": ["DELETE FROM activity_instances WHERE id = 'instance-00001'"],
    "sort_order": ["PRAGMA writable_schema = ON", "UPDATE sqlite_master SET sql = "
                   "replace(sql, '\"sort_order\"', '\"sorted\"') WHERE name = 'goals'"],
}


@pytest.mark.parametrize("named", sorted(BREAKS))
def test_verify_names_what_is_broken(migrated, named):
    before = digest(migrated)
    run(migrated, "--verify")
    assert digest(migrated) == before
    script(migrated, *BREAKS[named])
    assert named in run(migrated, "--verify", status=1).stdout


def test_a_fault_in_verification_rolls_everything_back(database, tmp_path):
    """A copy that loses a value, by a copy of the script with one word changed."""
    broken = tmp_path / "broken.py"
    text = SCRIPT.read_text(encoding="utf-8")
    assert "source, where))\n" in text
    broken.write_text(text.replace("SELECT %s %s WHERE %s\" % (", "SELECT %s %s WHERE o.rowid > 1 AND %s\" % (", 1), encoding="utf-8")
    before = digest(database)
    done = run(database, "--yes", "--no-backup", status=1, script=broken)
    assert "differs" in done.stderr and "nothing was changed" in done.stderr
    assert digest(database) == before
    broken.write_text(text.replace('{c.name: "r.root" if', '{c.name: "COALESCE(NULLIF(r.stored, \'\'), r.root)" if'), encoding="utf-8")
    done = run(database, "--yes", "--no-backup", status=1, script=broken)
    assert "wrong or empty root_id" in done.stderr
    assert digest(database) == before


def test_the_sample_is_what_its_maker_makes(tmp_path):
    made = tmp_path / "sample.db"
    subprocess.run([sys.executable, str(ROOT / "tests" / "make_sample_db.py"), str(made)], check=True)
    assert schema(made) == schema(SAMPLE)
    assert content(made) == content(SAMPLE)
    counts = [query(made, "SELECT count(*) FROM " + t)[0][0] for t in ("goals", "activity_instances", "metric_values")]
    assert 55 <= counts[0] <= 70 and counts[1] == 120 and 290 <= counts[2] <= 310


def other_application(path):
    script(path, "CREATE TABLE notes (id INTEGER PRIMARY KEY, text)", "INSERT INTO notes VALUES (1, 'x')")


BAD = {
    "missing": (lambda path: None, 2, "no such database"),
    "folder": (lambda path: path.mkdir(), 2, "not a file"),
    "empty": (lambda path: path.write_bytes(b""), 2, "is empty"),
    "text": (lambda path: path.write_text("hello " * 999), 2, "not an SQLite database"),
    "other": (other_application, 2, "no Fractal Goals database"),
    "truncated": (lambda path: path.write_bytes(SAMPLE.read_bytes()[:40000]), 1, "damaged"),
    "corrupt": (lambda path: path.write_bytes(SAMPLE.read_bytes()[:100] + b"\xa5" * 40000 + SAMPLE.read_bytes()[40100:]),
                1, "damaged"),
}


@pytest.mark.parametrize("flags", [["--dry-run"], ["--yes"], ["--verify"]])
@pytest.mark.parametrize("kind", sorted(BAD))
def test_bad_input_gets_one_clear_line(tmp_path, kind, flags):
    make, status, words = BAD[kind]
    path = tmp_path / "in put.db"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    done = run(path, *flags, status=status)
    assert words in done.stderr and "nothing was changed" in done.stderr
    assert (path.read_bytes() if path.is_file() else None) == before
    assert os.listdir(str(tmp_path)) == ([] if kind == "missing" else ["in put.db"])


@pytest.mark.parametrize("flags", [["--nonsense"], ["--phases", "x"], ["--skip-constraint", "x"], ["--timeout", "-1"],
                                   ["--dry-run", "--verify"], ["--timeout", "soon"], ["a", "b"]])
def test_wrong_flags_exit_2(database, flags):
    before = digest(database)
    assert "error: " in run(database, *flags, status=2).stderr
    assert digest(database) == before


def test_no_terminal_and_no_yes_is_refused(database):
    before = digest(database)
    assert "--yes" in run(database, status=2).stderr
    assert digest(database) == before
    assert pathlib.Path(database).parent.joinpath("goals.db").exists()
