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
from helpers import (
    SAMPLE,
    SCRIPT,
    content,
    digest,
    folder_state,
    process,
    product,
    query,
    run,
    script,
    start,
    whole,
)

JOURNALS = pytest.mark.parametrize("journal", ["delete", "wal"])


def opened(path, *statements):
    """A connection of the app's, after some statements, for a with block."""
    connection = sqlite3.connect(str(path), isolation_level=None)
    for sql in statements:
        connection.execute(sql).fetchall()
    return contextlib.closing(connection)


APP = """import sqlite3, sys
app = sqlite3.connect(sys.argv[1], isolation_level=None)
for sql in sys.argv[2:]: app.execute(sql).fetchall()
print("ready", flush=True); sys.stdin.read()"""


@contextlib.contextmanager
def app_process(path, *statements):
    """The app in a process of its own: to read a file here would drop the locks it holds here."""
    with subprocess.Popen([sys.executable, "-c", APP, path, *statements], text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as app:
        app.stdout.readline()
        yield
        app.stdin.close()


# ---- backup ---------------------------------------------------------------------------------

@JOURNALS
def test_a_backup_is_complete_private_and_the_owners(tmp_path, journal):
    path = build(tmp_path / "goals.db", journal=journal)
    if os.getuid() == 0:
        os.chown(path, 12345, 54321)
    with opened(path, "INSERT INTO goals (id, type, name) VALUES ('fresh', 'UltimateGoal', 'n')"):
        before = whole(path)
        said = run(path, "--yes", "--backup", tmp_path / "kept.db").out
    assert whole(tmp_path / "kept.db") == before
    stat = os.stat(tmp_path / "kept.db")
    assert stat.st_mode & 0o777 == 0o600
    assert os.getuid() or (stat.st_uid, stat.st_gid) == (12345, 54321)
    assert f"{path} --restore {tmp_path}/kept.db" in said
    assert query(path, "PRAGMA journal_mode") == [(journal,)]
    assert sorted(os.listdir(tmp_path)) == ["goals.db", "kept.db"]


def test_a_run_leaves_the_database_and_one_backup(database):
    before = whole(database)
    said = run(database, "--yes").out
    name, = {*os.listdir(os.path.dirname(database))} - {"goals.db"}
    assert re.fullmatch(r"goals\.db\.backup-\d{8}T\d{6}Z", name) and name in said
    assert whole(os.path.join(os.path.dirname(database), name)) == before


def test_a_backup_that_is_damaged_or_lacks_rows_stops_the_run(database, tmp_path):
    sizes = {name: len(rows) for name, rows in content(database).items()}
    product.check_backup(database, sizes)
    with pytest.raises(product.Stop, match="backup is damaged.*rows are missing"):
        product.check_backup(database, {**sizes, "goals": 64})
    data = bytearray(SAMPLE.read_bytes())
    data[9000:40000] = b"\xa5" * 31000
    (tmp_path / "bad.db").write_bytes(data)
    with pytest.raises(product.Stop, match="the backup is damaged, and so may the database be"):
        product.check_backup(tmp_path / "bad.db", sizes)


@JOURNALS
def test_no_write_falls_between_backup_and_migration(tmp_path, journal):
    """The app writes as fast as it can; what it wrote before the lock is in both, or in neither."""
    path = build(tmp_path / "goals.db", journal=journal, instances=1000)
    child = start(path, "--yes", "--backup", tmp_path / "kept.db", "--timeout", "20")
    written = 0
    with opened(path) as app:
        while child.poll() is None:
            with contextlib.suppress(sqlite3.OperationalError):
                app.execute("INSERT INTO goals (id, type, name) VALUES (?, 'UltimateGoal', 'n')",
                            [f"w{written}"])
                written += 1
            time.sleep(0.005)
    assert child.wait() == 0, child.communicate()
    kept = {row["id"] for row in content(tmp_path / "kept.db")["goals"].values()}
    assert written > 1 and query(path, "SELECT count(*) FROM goals")[0][0] >= len(kept)
    assert kept <= {row["id"] for row in content(path)["goals"].values()}
    run(path, "--verify")


# ---- rehearsal, verification and who may do what ------------------------------------------------

@JOURNALS
@pytest.mark.parametrize("flags", [["--dry-run"], ["--verify"]])
def test_what_only_looks_leaves_no_trace(tmp_path, journal, flags):
    path = build(tmp_path / "goals.db", journal=journal)
    if flags == ["--verify"]:
        run(path, "--yes", "--no-backup")
    (tmp_path / "tmp").mkdir()
    before = folder_state(path)
    process(path, *flags, env={"TMPDIR": str(tmp_path / "tmp")})
    assert folder_state(path) == before and os.listdir(tmp_path / "tmp") == []
    with app_process(path, "UPDATE goals SET description = 'new' WHERE id = 'goal-0-00'"):
        before = {name: state for name, state in folder_state(path).items() if "-shm" not in name}
        process(path, *flags)
        assert before.items() <= folder_state(path).items()


def test_a_rehearsal_sees_what_a_live_wal_holds(tmp_path):
    path = build(tmp_path / "goals.db", journal="wal")
    with opened(path, "INSERT INTO goals (id, type, name) VALUES ('new', 'UltimateGoal', 'n')"):
        assert os.path.getsize(path + "-wal")
        assert re.search(r"goals +64 ", run(path, "--dry-run").out)


@JOURNALS
@pytest.mark.parametrize("flags", [["--dry-run"], ["--output", "copy.db"], ["--verify"]])
def test_the_app_goes_on_writing_meanwhile(tmp_path, journal, flags):
    path = build(tmp_path / "goals.db", journal=journal, instances=3000)
    if flags == ["--verify"]:
        run(path, "--yes", "--no-backup", "-q")
    child, writes = start(path, *flags, cwd=tmp_path), 0
    with contextlib.closing(sqlite3.connect(path, timeout=2, isolation_level=None)) as app:
        while child.poll() is None:
            app.execute("UPDATE goals SET description = 'written' WHERE id = 'goal-0-00'")
            writes += 1
            time.sleep(0.02)
    assert child.wait() == 0 and writes > 3, child.communicate()


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
    path = build(tmp_path / "goals.db", journal=journal)
    crash(path, journal)
    run(path, "--output", tmp_path / "copy.db")
    found = {row["description"] for row in content(tmp_path / "copy.db")["goals"].values()}
    assert (found == {"late"}) == (journal == "wal")
    assert not os.path.exists(path + "-journal") and not os.path.exists(path + "-wal")


def as_nobody(path, *arguments, status=0):
    """Run with the system's Python as a user who owns nothing."""
    tool = os.path.join(os.path.dirname(path), "tool")
    os.makedirs(tool, exist_ok=True)
    shutil.copy(SCRIPT, tool)
    part = path
    while len(os.path.dirname(part)) > 4:
        part = os.path.dirname(part)
        os.chmod(part, 0o755)
    return process(path, *arguments, status=status, script=os.path.join(tool, SCRIPT.name),
                   python="/usr/bin/python3", cwd="/tmp",
                   env={"TMPDIR": "/tmp", "LD_LIBRARY_PATH": ""},
                   preexec_fn=lambda: (os.setgid(65534), os.setuid(65534)))


def can_become_nobody():
    recent = ["/usr/bin/python3", "-c", "import sys; sys.exit(sys.version_info < (3, 9))"]
    return (os.getuid() == 0 and os.path.exists(recent[0])
            and subprocess.run(recent).returncode == 0)


NOBODY = pytest.mark.skipif(not can_become_nobody(), reason="needs root, to become another user, "
                            "and a Python 3.9 that this user may run")


@NOBODY
@JOURNALS
def test_who_may_only_read_can_rehearse_and_verify(tmp_path, journal):
    folder = tmp_path / "app"
    folder.mkdir()
    path = build(folder / "goals.db", journal=journal)
    os.chmod(path, 0o444)
    before = folder_state(path)
    said = as_nobody(path, "--dry-run").out
    assert f"The live run would fail: no permission to write {path}" in said
    assert "no permission to write" in as_nobody(path, "--yes", status=1).err
    open_folder = tmp_path / "open"
    open_folder.mkdir(mode=0o777)
    os.chmod(open_folder, 0o777)
    as_nobody(path, "--output", open_folder / "copy.db")
    assert os.stat(open_folder / "copy.db").st_mode & 0o777 == 0o444
    assert folder_state(path) == before
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
    usage = shutil.disk_usage(os.path.dirname(database))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=300_000))
    before = folder_state(database)
    said = run(database, "--yes", status=1).err
    assert re.search(r"not enough free disk: 0\.\d MiB needed, 0\.3 MiB free in /", said)
    assert folder_state(database) == before
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(
        free=300_000 if folder == os.path.dirname(database) else 10 ** 9))
    monkeypatch.setattr(os, "stat", lambda place, real=os.stat: fake_device(real(place), place))
    assert "The live run would fail: not enough free disk" in run(database, "--dry-run").out


def fake_device(stat, place):
    """Have each folder on a device of its own."""
    return os.stat_result([*stat[:2], hash(str(place)), *stat[3:]])


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


def test_what_a_killed_rehearsal_left_is_named(database, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    left = [tmp_path / "fractal-goals-999999999-abc", tmp_path / "goals.db.backup-1.partial-9",
            tmp_path / "elsewhere" / "new.db.partial-7"]
    (tmp_path / "elsewhere").mkdir()
    for path in left:
        path.mkdir()
    said = run(database, "--output", tmp_path / "elsewhere" / "new.db").out
    for path in left:
        assert said.count(f"Left by a killed run, unless one goes on: rm -r {path}") == 1


# ---- locks ------------------------------------------------------------------------------------

@JOURNALS
def test_a_writer_that_holds_the_lock_ends_in_4(tmp_path, journal):
    path = build(tmp_path / "goals.db", journal=journal)
    with opened(path, "BEGIN IMMEDIATE"):
        said = run(path, "--yes", "--timeout", "0.3", status=4).err
        assert "locked" in said and f"fuser -v {path}" in said
        run(path, "--dry-run")
    assert [name for name in os.listdir(tmp_path) if "backup" in name] == []
    run(path, "--yes")


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


def test_in_wal_mode_a_reader_reads_on_and_blocks_nothing(tmp_path):
    path = build(tmp_path / "goals.db", journal="wal")
    unique = "SELECT count(*) FROM sqlite_master WHERE name LIKE 'uq_%'"
    with opened(path, "BEGIN", unique) as reader:
        run(path, "--yes", "--no-backup", "--timeout", "1")
        assert reader.execute(unique).fetchone() == (0,)
        reader.execute("ROLLBACK")
        assert reader.execute(unique).fetchone() == (5,)


def test_of_two_runs_one_finds_nothing_to_do(database):
    children = [start(database, "--yes", "--no-backup", "--timeout", "20") for _ in range(2)]
    said = [child.communicate()[0] for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    assert query(database, "SELECT count(*) FROM migration_log") == [(1,)]
    run(database, "--verify")


# ---- restore ------------------------------------------------------------------------------------

@JOURNALS
def test_a_restore_brings_the_backup_back_and_keeps_what_was_there(tmp_path, journal):
    path = build(tmp_path / "goals.db", journal=journal)
    before = whole(path)
    run(path, "--yes", "--backup", tmp_path / "kept.db")
    script(path, "INSERT INTO goals (id, type, name) VALUES ('written', 'UltimateGoal', 'since')",
           "INSERT INTO practice_session_goals VALUES ('session-0-1', 'written')")
    if journal == "wal":
        with opened(path, "SELECT 1 FROM goals"):
            run(path, "--restore", tmp_path / "kept.db", "--yes", "--timeout", "0.2", status=4)
    assert [name for name in os.listdir(tmp_path) if "replaced" in name] == []
    report = tmp_path / "r.json"
    said = run(path, "--restore", tmp_path / "kept.db", "--yes", "--report", report).out
    assert re.search(r"goals +63 +64 +1\n", said) and "0.0 hours old, and not migrated" in said
    assert re.search(r"practice_session_goals +6 +7 +1\n", said)
    assert whole(path) == before and query(path, "PRAGMA journal_mode") == [(journal,)]
    aside = json.loads(report.read_text())["kept_aside"]
    assert aside in said and os.stat(aside).st_mode & 0o777 == 0o600
    assert query(aside, "SELECT name FROM goals WHERE id = 'written'") == [("since",)]
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["goals.db", "kept.db", "r.json", os.path.basename(aside)])


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


@JOURNALS
def test_a_backup_that_was_copied_while_in_use_is_recovered(tmp_path, journal):
    path, backup = (build(tmp_path / name, journal=journal) for name in ("goals.db", "kept.db"))
    crash(backup, journal)
    run(path, "--restore", backup, "--yes")
    assert whole(path) == whole(backup)


def test_a_backup_of_another_database_is_refused(tmp_path):
    path, other = build(tmp_path / "goals.db"), build(tmp_path / "other.db")
    script(other, "UPDATE goals SET id = 'other-' || id")
    before = folder_state(path)
    assert "no goal in common" in run(path, "--restore", other, "--yes", status=2).err
    assert folder_state(path) == before
    for table in ("goals", "metric_values"):
        script(path, f"DELETE FROM {table}")
    run(path, "--restore", other, "--yes")
    assert content(path) == content(other)


def test_a_restore_wants_the_app_on_both_sides(database, tmp_path):
    script(tmp_path / "shop.db", "CREATE TABLE goals (id, x)", "CREATE TABLE customers (id)",
           "INSERT INTO customers VALUES (1)")
    before = folder_state(database)
    for there, backup, words in ((database, "shop.db", "is no Fractal Goals database"),
                                 (tmp_path / "shop.db", database, "has no goal in common with")):
        assert words in run(there, "--restore", tmp_path / backup, "--yes", status=2).err
        script(tmp_path / "shop.db", "DROP TABLE IF EXISTS goals")
        before["shop.db"] = digest(tmp_path / "shop.db")
        assert folder_state(database) == before


def test_what_is_no_sound_backup_is_refused(migrated, tmp_path):
    before = digest(migrated)
    (tmp_path / "text").write_text("no database")
    script(tmp_path / "other", "CREATE TABLE x (y)")
    (tmp_path / "cut").write_bytes(SAMPLE.read_bytes()[:50000])
    for name, status, words in (
            ("text", 2, "text is no SQLite database"), ("missing", 2, "no such"),
            ("other", 2, "no Fractal Goals"), ("cut", 1, "another backup")):
        said = run(migrated, "--restore", tmp_path / name, "--yes", status=status).err
        assert words in said and str(tmp_path / name) in said
    for there, backup in ((migrated, migrated), (tmp_path, migrated)):
        run(there, "--restore", backup, "--yes", status=2)
    assert digest(migrated) == before


@pytest.mark.parametrize("wreck", [None, b"", b"not a database at all" * 400])
def test_over_a_lost_or_unreadable_database(tmp_path, wreck):
    path, backup = build(tmp_path / "goals.db"), tmp_path / "kept.db"
    before = whole(path)
    os.rename(path, backup)
    if wreck is not None:
        (tmp_path / "goals.db").write_bytes(wreck)
    if wreck:
        said = run(path, "--restore", backup, "--yes", status=1).err
        assert "can't be read" in said and "move it away with its -wal and -journal" in said
        os.rename(path, tmp_path / "away")
    run(path, "--restore", backup, "--yes")
    assert whole(path) == before
    assert not [name for name in os.listdir(tmp_path) if "partial" in name]


@pytest.mark.parametrize("modes", [("WAL", "DELETE"), ("DELETE", "WAL"), ("WAL", "WAL")])
def test_journal_modes_and_page_sizes_may_differ(migrated, tmp_path, modes):
    backup = shutil.copy(SAMPLE, tmp_path / "b.db")
    script(migrated, "PRAGMA page_size = 1024", "VACUUM")
    for path, mode in zip((backup, migrated), modes):
        script(path, f"PRAGMA journal_mode = {mode}")
    run(migrated, "--restore", backup, "--yes")
    assert [name for name in os.listdir(tmp_path) if name.endswith(("-journal", "-wal"))] == []
    assert content(migrated) == content(backup)
