"""Whatever strikes, at whatever moment: the file holds the old database or the new one, whole."""
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
from databases import build
from helpers import content, digest, process, product, query, run, start, whole
from test_rule import EXTRAS

EVERY = 1 if os.environ.get("FULL_KILL") else 25
KINDS = ["kill", "signal", "error", "disk", "writer"]


def put(original, path):
    """A copy of the original at `path`, and nothing beside it of an earlier run."""
    for left in path.parent.glob(path.name + "*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    shutil.copy(original, path)


WRITE = """import sqlite3, sys
try:
    other = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
    other.execute("UPDATE goals SET description = 'written'")
except sqlite3.OperationalError as error:
    assert "locked" in str(error) or "no such" in str(error), error"""


def strike(kind, connection, path):
    if kind in ("kill", "signal"):
        os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGTERM)
    elif kind == "error":
        connection.interrupt()
    elif kind == "disk":
        size = os.path.getsize(path) if path.exists() else 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    elif kind == "writer":
        subprocess.run([sys.executable, "-S", "-E", "-c", WRITE, path], check=True)


def run_in_fork(kind, at, path, arguments):
    """Call the script's main and end: sqlite3.connect is wrapped, not the script."""
    connect, seen = sqlite3.connect, []

    def connect_and_count(*places, **options):
        connection = connect(*places, **options)

        def statement(sql):
            seen.append(sql)
            if len(seen) == at:
                strike(kind, connection, path)

        connection.set_trace_callback(statement)
        return connection

    status = 99
    try:
        sqlite3.connect = connect_and_count
        signal.signal(signal.SIGTERM, product.on_signal)
        with open(path.with_name("said"), "w") as sys.stdout:
            sys.stderr = sys.stdout
            status = product.main([str(path), *arguments])
        path.with_name("statements").write_text(str(len(seen)))
    finally:
        os._exit(status)


def drive(kind, at, original, path, *arguments):
    """Run on a copy in a forked process, a fault of that kind before the nth statement that SQLite
    executes (0: never): the exit status, and the copies that are left."""
    put(original, path)
    child = os.fork()
    if child == 0:
        run_in_fork(kind, at, path, arguments)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status != 99 and "Traceback" not in path.with_name("said").read_text(), at
    left = list(path.parent.glob("goals.db?*"))
    copies = [file for file in left if re.search(r"\.(backup|replaced)-\w+$", file.name)]
    assert left == copies or kind in ("kill", "disk") or "--restore" in arguments, (at, left)
    return status, copies


def state(path):
    """The content, after SQLite's own recovery, without what the writer may have written."""
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    rows, schema = whole(path)
    for row in rows["goals"].values():
        row["description"] = None
    return rows, schema


@pytest.mark.parametrize("kind, journal, flags", [
    *((kind, journal, []) for kind in KINDS for journal in ("delete", "wal")),
    ("kill", "delete", EXTRAS)])
def test_a_run_is_whole_or_did_not_happen(tmp_path, kind, journal, flags):
    """A fault before every 25th statement of a live run; FULL_KILL=1 tries each."""
    original = build(tmp_path / "original.db", journal=journal, fractals=1, instances=3)
    path, old, ends = tmp_path / "goals.db", state(original), set()
    arguments = [original, path, "--yes", "-q", "--timeout", "0.3", *flags]
    assert drive(kind, 0, *arguments)[0] == 0
    new, total = state(path), int((tmp_path / "statements").read_text())
    assert total > 300
    for at in range(1 + random.Random(kind).randrange(EVERY), total, EVERY):
        status, backups = drive(kind, at, *arguments)
        ends.add(status)
        found = state(path)
        assert found == (new if status == 0 else old) or kind == "kill" and found == new, at
        assert all(state(backup) == old for backup in backups) and len(backups) <= 1, at
    expected = {"kill": {-9}, "signal": {143}, "error": {1}, "disk": {1}, "writer": {0}}[kind]
    assert expected <= ends <= expected | {0, 4}, ends


@pytest.mark.parametrize("journal", ["delete", "wal"])
@pytest.mark.parametrize("kind", ["kill", "signal", "error", "disk"])
def test_a_restore_is_whole_or_did_not_happen(tmp_path, kind, journal):
    original = build(tmp_path / "original.db", journal=journal, fractals=1, instances=3)
    backup, path = shutil.copy(original, str(tmp_path / "other.db")), tmp_path / "goals.db"
    run(original, "--yes", "--no-backup")
    now, then = state(original), state(backup)
    arguments = [original, path, "--restore", backup, "--yes", "-q"]
    assert drive(kind, 0, *arguments)[0] == 0 and state(path) == then
    total = int((tmp_path / "statements").read_text())
    assert total > 60
    for at in range(1 + random.Random(kind).randrange(5), total, max(EVERY // 5, 1)):
        status, aside = drive(kind, at, *arguments)
        found = state(path)
        assert found == then or status and found == now, (at, status)
        assert kind != "signal" or (status == 0) == (found == then), (at, status)
        assert all(state(kept) == now for kept in aside) and (aside or found == now), at


def test_killed_at_random_moments_of_a_larger_run(tmp_path):
    original = build(tmp_path / "original.db", instances=2000)
    old, path, rng = whole(original), tmp_path / "goals.db", random.Random(5)
    for _ in range(4):
        put(original, path)
        child = start(path, "--yes")
        time.sleep(rng.uniform(0.1, 0.7))
        child.kill()
        child.communicate()
        assert query(path, "PRAGMA integrity_check") == [("ok",)]
        assert whole(path) == old or "migration_log" in content(path)
        said = process(path, "--yes", "--no-backup").out
        assert all(f"rm -r {partial}" in said for partial in tmp_path.glob("*.partial-*"))
    run(path, "--verify")


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143),
                                            (signal.SIGHUP, 129)])
def test_a_signal_ends_a_long_statement_within_a_second(tmp_path, number, status):
    path = build(tmp_path / "goals.db", instances=8000)
    before = digest(path)
    for moment in ("Plan", "[2/5]", "[3/5]"):
        child = start(path, "--yes", "--no-backup")
        while moment not in child.stdout.readline():
            pass
        child.send_signal(number)
        sent = time.monotonic()
        said = child.communicate(timeout=30)[1]
        assert child.returncode == status and time.monotonic() - sent < 9
        assert f"interrupted by {signal.Signals(number).name}; nothing was changed" in said
        assert digest(path) == before and os.listdir(tmp_path) == ["goals.db"]


def test_a_signal_ends_a_statement_that_goes_on_and_on():
    db = product.connect(":memory:", "memory")
    threading.Timer(0.2, product.SIGNALS.append, [signal.SIGINT]).start()
    try:
        with pytest.raises(product.Stop, match="interrupted by SIGINT"):
            db.execute("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n "
                       "LIMIT 100000000) SELECT count(*) FROM n").fetchall()
    finally:
        product.SIGNALS.clear()


def test_nohup_goes_on(tmp_path):
    path = build(tmp_path / "goals.db", instances=3000)
    child = start(path, "--yes", "--no-backup",
                  preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    while "[1/5]" not in child.stdout.readline():
        pass
    child.send_signal(signal.SIGHUP)
    child.communicate()
    assert child.returncode == 0


def mutated(data, rng):
    data, kind = bytearray(data), rng.randrange(4)
    if kind == 0:
        return data[:rng.randrange(1, len(data))]
    for _ in range(rng.choice([1, 4, 30])):
        place = rng.randrange(16, 100) if kind == 1 else rng.randrange(100, len(data))
        data[place] = rng.randrange(256)
    return data


@pytest.mark.parametrize("flags", [["--yes"], ["--yes", "--no-backup"]])
def test_damaged_files_are_never_called_done(tmp_path, flags):
    """HOSTILE=1000 tries more."""
    original = build(tmp_path / "original.db", fractals=1, instances=10)
    path = tmp_path / "goals.db"
    for seed in range(int(os.environ.get("HOSTILE", 40))):
        put(original, path)
        path.write_bytes(mutated(path.read_bytes(), random.Random(seed)))
        before = digest(path)
        said = run(path, *flags, "-q", status=None)
        if said.err:
            assert digest(path) == before, (seed, said)
        else:
            assert query(path, "PRAGMA integrity_check") == [("ok",)], seed
            assert content(path)["goals"]
