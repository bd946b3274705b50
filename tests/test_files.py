"""Backups, restores, locks, permissions, places: what happens to the files around a run."""
import contextlib
import json
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
import time

import pytest
from databases import build
from helpers import (SAMPLE, SCRIPT, digest, folder_state, process, product, query, run,
                     script, start, whole)

JOURNALS = pytest.mark.parametrize("journal", ["delete", "wal"])
GOAL = "INSERT INTO goals (id, type, name) VALUES ('new', 'UltimateGoal', 'n')"


def opened(path, *statements, timeout=5):
    """A connection of the app's, after some statements, for a with block."""
    connection = sqlite3.connect(str(path), isolation_level=None, timeout=timeout)
    for sql in statements:
        connection.execute(sql).fetchall()
    return contextlib.closing(connection)


@JOURNALS
def test_a_backup_is_complete_private_and_the_owners(tmp_path, journal):
    path = build(tmp_path / "goals.db", journal=journal)
    if os.getuid() == 0:
        os.chown(path, 12345, 54321)
    with opened(path, GOAL):
        before = whole(path)
        said = run(path, "--yes").out
    name, = {*os.listdir(tmp_path)} - {"goals.db"}
    assert re.fullmatch(r"goals\.db\.backup-\d{8}T\d{6}Z", name)
    assert f"{path} --restore {tmp_path / name}" in said
    stat = os.stat(tmp_path / name)
    assert stat.st_mode & 0o777 == 0o600
    assert os.getuid() or (stat.st_uid, stat.st_gid) == (12345, 54321)
    assert whole(tmp_path / name) == before
    assert query(path, "PRAGMA journal_mode") == [(journal,)]


def test_a_damaged_backup_stops_the_run(database, tmp_path):
    product.check_sound(product.connect(database))
    (tmp_path / "bad.db").write_bytes(SAMPLE.read_bytes()[:40000].ljust(90000, b"\xa5"))
    with pytest.raises(product.Stop, match="the database is damaged"):
        product.check_sound(product.connect(tmp_path / "bad.db"))


@JOURNALS
@pytest.mark.parametrize("flags", [["--dry-run"], ["--output", "copy.db"], ["--verify"],
                                   ["--yes", "--backup", "kept.db", "--timeout", "20"]])
def test_the_app_goes_on_writing_and_no_write_is_lost(tmp_path, journal, flags):
    """It waits for nothing but a live run, whose backup has exactly what was written before."""
    path = build(tmp_path / "goals.db", journal=journal, instances=3000)
    live, names = "--yes" in flags, "SELECT name FROM activity_groups"
    if "--verify" in flags:
        run(path, "--yes", "--no-backup", "-q")
    old = {*query(path, names)}
    child, written = start(path, *flags, cwd=tmp_path), set()
    with opened(path, timeout=30 if live else 2) as app:
        while child.poll() is None:
            written.add((f"w{len(written)}",))
            app.execute("INSERT INTO activity_groups (id, root_id, name) "
                        f"VALUES ('{len(written)}', 'goal-0-00', 'w{len(written) - 1}')")
            time.sleep(0.01)
    assert child.wait() == 0 and len(written) > 3, child.communicate()
    assert {*query(path, names)} == old | written
    if live:  # rows that come later have the default of a new column
        before = query(path, f"{names} WHERE updated_at IS NULL")
        assert {*query(tmp_path / "kept.db", names)} == {*before}
        run(path, "--verify")


# ---- rehearsal, verification and who may do what ------------------------------------------------

@JOURNALS
@pytest.mark.parametrize("flags", [["--dry-run"], ["--verify"]])
def test_what_only_looks_leaves_no_trace_and_sees_what_a_live_wal_holds(tmp_path, journal, flags):
    path = build(tmp_path / "goals.db", journal=journal)
    if flags == ["--verify"]:
        run(path, "--yes", "--no-backup")
    (tmp_path / "tmp").mkdir()
    before = folder_state(path)
    process(path, *flags, env={"TMPDIR": str(tmp_path / "tmp")})
    assert folder_state(path) == before and os.listdir(tmp_path / "tmp") == []
    with opened(path, GOAL):  # to read a file here would drop the locks on it

        def files():
            return {entry.name: entry.stat().st_mtime_ns for entry in os.scandir(tmp_path)
                    if not entry.name.endswith("-shm")}

        before = files()
        said = process(path, *flags).out
        assert files() == before and (f"{path}-wal" in map(str, tmp_path.iterdir())) == (
            journal == "wal")
        assert "--verify" in flags or re.search(r"goals +64 ", said)


CRASH = """import os, sqlite3, sys
c = sqlite3.connect(sys.argv[1], isolation_level=None)
c.execute("PRAGMA cache_size = 1"); c.execute("PRAGMA wal_autocheckpoint = 0"); c.execute("BEGIN")
c.execute("UPDATE goals SET description = 'late'"); c.execute("UPDATE goals SET name = name || 'x'")
c.execute("UPDATE metric_values SET value = 1"); c.execute("UPDATE metric_values SET value = 2")
if sys.argv[2] == "wal": c.execute("COMMIT")
os._exit(0)"""


def crash(path, journal):
    """Let the app die in a transaction, or with frames in the -wal; its side file."""
    subprocess.run([sys.executable, "-c", CRASH, str(path), journal], check=True)
    side = str(path) + ("-wal" if journal == "wal" else "-journal")
    assert os.path.getsize(side)
    return side


@JOURNALS
def test_what_a_crash_left_is_recovered(tmp_path, journal):
    """Beside the database, and beside a backup that was copied while it was in use."""
    path, backup = (build(tmp_path / name, journal=journal) for name in ("goals.db", "kept.db"))
    sides = [crash(path, journal), crash(backup, journal)]
    run(path, "--output", tmp_path / "copy.db")
    assert not os.path.exists(sides[0])
    run(path, "--restore", backup, "--yes")
    assert not os.path.exists(sides[1])
    for copy in (tmp_path / "copy.db", path):
        late = ("late",) in query(copy, "SELECT description FROM goals")
        assert late == (journal == "wal")


def as_nobody(path, *arguments, status=0):
    """Run with the system's Python as a user who owns nothing."""
    tool = os.path.join(os.path.dirname(path), "tool.py")
    shutil.copy(SCRIPT, tool)
    part = path
    while len(os.path.dirname(part)) > 4:
        part = os.path.dirname(part)
        os.chmod(part, 0o755)
    return process(path, *arguments, status=status, script=tool, python="/usr/bin/python3",
                   cwd="/tmp", env={"TMPDIR": "/tmp", "LD_LIBRARY_PATH": ""},
                   user=65534, group=65534)


def can_become_nobody():
    recent = ["/usr/bin/python3", "-c", "import sys; sys.exit(sys.version_info < (3, 9))"]
    return os.getuid() == 0 and os.path.exists(recent[0]) and subprocess.call(recent) == 0


@pytest.mark.skipif(not can_become_nobody(), reason="needs root, to become another user, and a "
                    "Python 3.9 that this user may run")
@JOURNALS
def test_who_may_only_read_can_rehearse_and_verify(tmp_path, journal):
    path = build(tmp_path / "goals.db", journal=journal)
    os.chmod(path, 0o444)
    before = digest(path)
    said = as_nobody(path, "--dry-run").out
    assert f"The live run would fail: no permission to write {path}" in said
    assert "no permission to write" in as_nobody(path, "--yes", status=1).err
    (tmp_path / "open").mkdir()
    os.chmod(tmp_path / "open", 0o777)
    as_nobody(path, "--output", tmp_path / "open" / "copy.db")
    assert os.stat(tmp_path / "open" / "copy.db").st_mode & 0o777 == 0o444
    assert digest(path) == before and {*os.listdir(tmp_path)} == {"goals.db", "tool.py", "open"}
    run(path, "--yes", "--no-backup")
    as_nobody(path, "--verify")


# ---- space and places -----------------------------------------------------------------------

@pytest.mark.parametrize("kilobytes", [40, 90, 130, 150, 200, 260, 330])
def test_a_full_disk_changes_nothing(tmp_path, kilobytes):
    """A limit on the size of any file, which is met within the backup or later."""
    path = shutil.copy(SAMPLE, tmp_path / "goals.db")
    before = whole(path)
    said = process(path, "--yes", status=1, preexec_fn=lambda: resource.setrlimit(
        resource.RLIMIT_FSIZE, (kilobytes * 1024, kilobytes * 1024))).err
    assert "the disk is full or failing" in said and "nothing was changed" in said
    assert whole(path) == before
    kept = {*os.listdir(tmp_path)} - {"goals.db"}
    assert all(".backup-" in name and name in said and ".partial" not in name for name in kept)


def test_too_little_space_is_said_with_numbers_before_anything(database, monkeypatch):
    """A live run needs seven times the database's size, a rehearsal six."""
    usage = shutil.disk_usage("/")._replace(free=os.path.getsize(database) * 13 // 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    before = folder_state(database)
    said = run(database, "--yes", status=1).err
    assert re.search(r"not enough free disk: \d\.\d MiB needed, \d\.\d MiB free in /", said)
    assert "The live run would fail: not enough free disk" in run(database, "--dry-run").out
    assert folder_state(database) == before


def test_a_copy_whose_wal_could_not_be_written_back_is_no_file(database, tmp_path):
    new = str(tmp_path / "new.db")
    with pytest.raises(product.Stop, match="the disk is full"):
        with product.private_file(new, database) as path:
            shutil.copy(database, path)
            open(path + "-wal", "w").close()
    assert os.listdir(tmp_path) == ["goals.db"]


@pytest.mark.parametrize("name", ["with space.db", "what?.db", "a#b.db", "100%25.db",
                                  "zi\u00e9l\U0001f3af.db", "file:x?mode=ro.db", "[a]*.db"])
def test_odd_paths_work(tmp_path, monkeypatch, name):
    path = build(tmp_path / name, instances=2)
    monkeypatch.chdir(tmp_path)
    run(name, "--yes")
    run(path, "--verify")
    assert len(os.listdir(tmp_path)) == 2


def test_a_link_and_the_environment_name_the_database(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    real = build(tmp_path / "data" / "real.db", instances=2)
    os.symlink(real, tmp_path / "link.db")
    monkeypatch.setenv("DATABASE_PATH", str(tmp_path / "link.db"))
    assert re.search(rf"^To migrate: .* {real}$", run("--dry-run").out, re.M)
    run("--yes")
    assert os.path.islink(tmp_path / "link.db") and len(os.listdir(tmp_path / "data")) == 2
    run(real, "--verify")


def test_what_killed_runs_left_is_named(database, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    left = ["tmp/fractal-goals.partial-abc", "goals.db.backup-1.partial-9", "new.db.partial-7"]
    for name in left:
        (tmp_path / name).mkdir(parents=True)
    said = run(database, "--output", tmp_path / "new.db").out
    for name in left:
        assert said.count(f"Left by a killed run, unless one goes on: rm -r {tmp_path / name}") == 1


# ---- locks ------------------------------------------------------------------------------------

@JOURNALS
def test_a_writer_that_holds_the_lock_ends_in_4(tmp_path, journal):
    path = build(tmp_path / "goals.db", journal=journal)
    with opened(path, "BEGIN IMMEDIATE"):
        said = run(path, "--yes", "--timeout", "0.3", status=4).err
        assert "locked" in said and f"fuser -v {path}" in said
        run(path, "--dry-run")
    assert not [name for name in os.listdir(tmp_path) if "backup" in name]


def test_a_reader_that_blocks_commit_is_waited_for_then_rolled_back(database):
    before = whole(database)
    with opened(database, "BEGIN", "SELECT count(*) FROM goals") as reader:
        run(database, "--yes", "--timeout", "0.3", status=4)
        assert whole(database) == before
        child = start(database, "--yes", "--timeout", "30")
        time.sleep(1)
        assert reader.execute("SELECT count(*) FROM goals").fetchone() == (63,)
        reader.execute("ROLLBACK")
    child.communicate(timeout=30)
    assert child.returncode == 0


def test_of_two_runs_one_finds_nothing_to_do(database):
    children = [start(database, "--yes", "--no-backup", "--timeout", "20") for _ in range(2)]
    said = [child.communicate()[0] for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    assert query(database, "SELECT count(*) FROM migration_log") == [(1,)]


# ---- restore ------------------------------------------------------------------------------------

@pytest.mark.parametrize("journal, other", [("delete", "wal"), ("wal", "delete"), ("wal", "wal")])
def test_a_restore_brings_the_backup_back_and_keeps_what_was_there(tmp_path, journal, other):
    """In another journal mode and page size, too."""
    path, backup, report = build(tmp_path / "goals.db"), tmp_path / "kept.db", tmp_path / "r.json"
    before = whole(path)
    run(path, "--yes", "--backup", backup)
    script(backup, f"PRAGMA journal_mode = {other}")
    script(path, "PRAGMA page_size = 1024", "VACUUM", f"PRAGMA journal_mode = {journal}", GOAL,
           "INSERT INTO practice_session_goals VALUES ('session-0-1', 'new')")
    with opened(path, "BEGIN", "SELECT 1 FROM goals"):
        run(path, "--restore", backup, "--yes", "--timeout", "0.2", status=4)
    assert {*os.listdir(tmp_path)} == {"goals.db", "kept.db"}
    said = run(path, "--restore", backup, "--yes", "--report", report).out
    assert re.search(r"goals +63 +64 +1\n", said) and "0.0 hours old, and not migrated" in said
    assert re.search(r"practice_session_goals +6 +7 +1\n", said)
    assert whole(path) == before and query(path, "PRAGMA journal_mode") == [(journal,)]
    aside = json.loads(report.read_text())["kept_aside"]
    assert aside in said and os.stat(aside).st_mode & 0o777 == 0o600
    assert query(aside, "SELECT name FROM goals WHERE id = 'new'") == [("n",)]
    assert {*os.listdir(tmp_path)} == {"goals.db", "kept.db", "r.json", os.path.basename(aside)}


@JOURNALS
@pytest.mark.parametrize("target", ["missing", "empty"])
def test_a_wal_or_journal_without_its_database_is_refused(tmp_path, journal, target):
    path, backup = (build(tmp_path / name, journal=journal) for name in ("goals.db", "kept.db"))
    side = crash(path, journal)
    os.rename(path, tmp_path / "broken.db")
    if target == "empty":
        (tmp_path / "goals.db").touch()
    before = folder_state(path)
    said = run(path, "--restore", backup, "--yes", status=1).err
    assert f"{side} lies there without its database" in said and "move it away" in said
    assert folder_state(path) == before
    os.rename(side, tmp_path / "away")
    run(path, "--restore", backup, "--yes")
    assert whole(path) == whole(backup)


def test_a_backup_that_does_not_suit_is_refused(database, tmp_path):
    """Of another database, of another app, not sound, none; or the target is not to be read."""
    other = build(tmp_path / "other.db")
    script(other, "UPDATE goals SET id = 'other-' || id")
    script(tmp_path / "games.db", "CREATE TABLE goals (id, score)")
    script(tmp_path / "shop.db", "CREATE TABLE customers (id)", "INSERT INTO customers VALUES (1)")
    (tmp_path / "text").write_text("no database")
    (tmp_path / "cut").write_bytes(SAMPLE.read_bytes()[:50000])
    before = folder_state(database)
    for there, backup, status, words in (
            (database, other, 2, "has no goal in common with"),
            ("shop.db", database, 2, "has no goal in common with"),
            (database, "games.db", 2, "is no Fractal Goals database"),
            (database, "text", 2, "text is no SQLite database"),
            (database, "missing", 2, "no such database"),
            (database, "cut", 1, "cut is damaged"),
            (database, database, 2, "two of the files are the same"),
            ("text", database, 2, "is no SQLite database"), (".", database, 2, "is no file")):
        said = run(tmp_path / there, "--restore", tmp_path / backup, "--yes", status=status).err
        assert words in said and ("move it away with" in said) == (
            "text" in (there, backup) or backup == "cut"), said
    assert folder_state(database) == before
    script(database, "DELETE FROM goals")
    run(database, "--restore", other, "--yes")
    assert whole(database) == whole(other)
