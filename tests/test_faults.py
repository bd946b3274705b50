"""Whatever strikes, at whatever moment: the file holds the old database or the new one, whole."""
import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from databases import build
from helpers import content, digest, environment, process, query, run, start, whole
from test_rule import EXTRAS

EVERY = 1 if os.environ.get("FULL_KILL") else 25
KINDS = ["kill", "signal", "error", "disk", "writer"]


def clear(path):
    for file in pathlib.Path(path).parent.iterdir():
        if file.name.startswith(pathlib.Path(path).name):
            file.unlink()


@contextlib.contextmanager
def driver(kind, path, *arguments):
    """A function that runs the script with a fault at the nth statement: (status, statements)."""
    child = subprocess.Popen(
        [sys.executable, str(pathlib.Path(__file__).with_name("faults.py")), kind, str(path),
         *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment())

    def drive(at):
        child.stdin.write(f"{at}\n")
        child.stdin.flush()
        return tuple(map(int, child.stdout.readline().split()))

    with child:
        yield drive
        child.stdin.close()


def files_beside(path):
    """What a run has left, but for the driver's own files."""
    return {file.name for file in pathlib.Path(path).parent.iterdir()} - {
        path.name, path.name + ".said", path.name + ".statements", "original.db", "other.db"}


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
    path = tmp_path / "goals.db"
    old = state(original)
    with driver(kind, path, "--yes", "-q", "--timeout", "0.3", *flags) as drive:
        shutil.copy(original, path)
        status, total = drive(0)
        new, ends = state(path), set()
        assert status == 0 and total > 300
        for at in range(1 + random.Random(kind).randrange(EVERY), total, EVERY):
            clear(path)
            shutil.copy(original, path)
            status, _ = drive(at)
            ends.add(status)
            left = files_beside(path)
            assert state(path) == (new if status == 0 else old) or kind == "kill" and (
                state(path) == new), (at, status)
            for name in left:
                if ".backup-" in name and ".partial-" not in name:
                    assert state(tmp_path / name) == old
                assert kind in ("kill", "disk") or ".backup-" in name, (at, name)
            assert len(left) <= 1 or kind in ("kill", "disk") or journal == "wal", (at, left)
            said = (tmp_path / "goals.db.said").read_text()
            assert "Traceback" not in said, (at, said)
    expected = {"kill": {-9}, "signal": {143}, "error": {1}, "disk": {1}, "writer": {0}}[kind]
    assert expected <= ends <= expected | {0, 4}, ends


@pytest.mark.parametrize("journal", ["delete", "wal"])
@pytest.mark.parametrize("kind", ["kill", "signal", "error", "disk"])
def test_a_restore_is_whole_or_did_not_happen(tmp_path, kind, journal):
    original = build(tmp_path / "original.db", journal=journal, fractals=1, instances=3)
    backup = shutil.copy(original, tmp_path / "other.db")
    run(original, "--yes", "--no-backup")
    path = tmp_path / "goals.db"
    now, then = state(original), state(backup)
    with driver(kind, path, "--restore", backup, "--yes", "-q") as drive:
        shutil.copy(original, path)
        status, total = drive(0)
        assert status == 0 and state(path) == then and total > 60
        for at in range(1 + random.Random(kind).randrange(5), total, max(EVERY // 5, 1)):
            clear(path)
            shutil.copy(original, path)
            status, _ = drive(at)
            found = state(path)
            assert found == then or status and found == now, (at, status)
            assert kind != "signal" or (status == 0) == (found == then), (at, status)
            kept = [name for name in files_beside(path)
                    if ".replaced-" in name and ".partial-" not in name]
            for name in kept:
                assert state(tmp_path / name) == now
            assert kept or found == now
            assert "Traceback" not in (tmp_path / "goals.db.said").read_text()


def test_killed_at_random_moments_of_a_larger_run(tmp_path):
    original = build(tmp_path / "original.db", instances=2000)
    old, path = whole(original), tmp_path / "goals.db"
    rng = random.Random(5)
    for _ in range(4):
        clear(path)
        shutil.copy(original, path)
        child = start(path, "--yes")
        time.sleep(rng.uniform(0.1, 0.7))
        child.kill()
        child.communicate()
        assert query(path, "PRAGMA integrity_check") == [("ok",)]
        if len(query(path, "SELECT 1 FROM sqlite_master WHERE name = 'migration_log'")) == 0:
            assert whole(path) == old
        said = process(path, "--yes", "--no-backup").out
        partial = [name for name in os.listdir(tmp_path) if ".partial-" in name]
        assert all(f"rm -r {tmp_path / name}" in said for name in partial)
    run(path, "--verify")


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143),
                                            (signal.SIGHUP, 129)])
def test_a_signal_ends_a_long_statement_within_a_second(tmp_path, number, status):
    path = build(tmp_path / "goals.db", instances=8000)
    before = digest(path)
    for moment in ("Plan", "[2/5]", "[3/5]"):
        child = start(path, "--yes", "--no-backup")
        for line in child.stdout:
            if moment in line:
                break
        child.send_signal(number)
        sent = time.monotonic()
        said = child.communicate(timeout=30)[1]
        assert child.returncode == status and time.monotonic() - sent < 9
        assert f"interrupted by {signal.Signals(number).name}; nothing was changed" in said
        assert digest(path) == before and os.listdir(tmp_path) == ["goals.db"]


def test_nohup_goes_on(tmp_path):
    path = build(tmp_path / "goals.db", instances=3000)
    child = start(path, "--yes", "--no-backup",
                  preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    while "[1/5]" not in child.stdout.readline():
        pass
    child.send_signal(signal.SIGHUP)
    child.communicate()
    assert child.returncode == 0
    run(path, "--verify")


def mutated(data, rng):
    data, kind = bytearray(data), rng.randrange(4)
    if kind == 0:
        return bytes(data[:rng.randrange(1, len(data))])
    for _ in range(rng.choice([1, 4, 30])):
        place = rng.randrange(16, 100) if kind == 1 else rng.randrange(100, len(data))
        data[place] = rng.randrange(256)
    return bytes(data)


@pytest.mark.parametrize("flags", [["--yes"], ["--yes", "--no-backup"]])
def test_damaged_files_are_never_called_done(tmp_path, flags):
    """HOSTILE=1000 tries more."""
    original = pathlib.Path(build(tmp_path / "original.db", fractals=1, instances=10)).read_bytes()
    path = tmp_path / "goals.db"
    for seed in range(int(os.environ.get("HOSTILE", 40))):
        clear(path)
        path.write_bytes(mutated(original, random.Random(seed)))
        before = digest(path)
        said = run(path, *flags, "-q", status=None)
        if said.err:
            assert digest(path) == before, (seed, said)
        else:
            assert query(path, "PRAGMA integrity_check") == [("ok",)], seed
            assert content(path)["goals"]
