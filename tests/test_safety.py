"""Whatever happens, the file holds the old database or the new one, whole, and there is a way back."""
import contextlib
import json
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
from helpers import (
    SAMPLE,
    SCRIPT,
    assert_kept,
    content,
    digest,
    environment,
    query,
    run,
    schema,
    script,
    without_log,
)

KILLER = """
import os, signal, sqlite3, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
import migrate_database_improvements as product
left = int(sys.argv[2])
class Connection(sqlite3.Connection):
    def execute(self, *arguments):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(*arguments)
real = sqlite3.connect
sqlite3.connect = lambda *a, **k: real(*a, **dict(k, factory=Connection))
status = product.main(sys.argv[3:])
print("statements", int(sys.argv[2]) - left)
sys.exit(status)
"""


def start(*arguments, **options):
    return subprocess.Popen([sys.executable, str(SCRIPT)] + [str(a) for a in arguments], stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), **options)


def killed_at(step, path):
    return subprocess.run([sys.executable, "-c", KILLER, str(SCRIPT), str(step), path, "--yes", "--no-backup", "-q"],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=60)


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_killed_at_any_statement_leaves_old_or_new(tmp_path, journal):
    """SIGKILL before every nth statement of a live run; FULL_KILL=1 tries each one (see README)."""
    original = build(tmp_path / "original.db", journal=journal, fractals=1, instances=5)
    old, old_schema = content(original), schema(original)
    path = str(tmp_path / "goals.db")
    total = int(killed_at(10 ** 6, shutil.copy(original, path)).stdout.split()[-1])
    new, new_schema = without_log(content(path)), schema(path)
    every = 1 if os.environ.get("FULL_KILL") else 25
    points = range(1, total, every)
    for step in points:
        for end in ("", "-wal", "-shm", "-journal"):
            if os.path.exists(path + end):
                os.unlink(path + end)
        shutil.copy(original, path)
        assert killed_at(step, path).returncode == -signal.SIGKILL
        assert query(path, "PRAGMA integrity_check") == [("ok",)]
        found = content(path)
        assert (found == old and schema(path) == old_schema) or (without_log(found) == new and schema(path) == new_schema)
    run(path, "--yes", "--no-backup")
    assert schema(path) == new_schema and without_log(content(path)) == new
    print("%d of %d kill points" % (len(points), total))


def test_killed_at_random_moments_leaves_old_or_new(tmp_path):
    original = build(tmp_path / "original.db", instances=3000)
    old = schema(original)
    rng = random.Random(5)
    path = str(tmp_path / "goals.db")
    for _ in range(5):
        for end in ("", "-journal"):
            if os.path.exists(path + end):
                os.unlink(path + end)
        shutil.copy(original, path)
        process = start(path, "--yes", "--no-backup")
        time.sleep(rng.uniform(0.1, 0.7))
        process.kill()
        process.communicate()
        assert query(path, "PRAGMA integrity_check") == [("ok",)]
        if schema(path) == old:
            assert content(path) == content(original)
        run(path, "--yes", "--no-backup")
        run(path, "--verify")


@pytest.mark.parametrize("kilobytes", [40, 90, 130, 150, 200, 260, 330])
def test_a_full_disk_anywhere_changes_nothing(tmp_path, kilobytes):
    """A limit on the size of any file the process writes, from within the backup to late in the run."""
    path = shutil.copy(str(SAMPLE), str(tmp_path / "goals.db"))
    before = content(path), schema(path)
    done = run(path, "--yes", status=1, preexec_fn=lambda: resource.setrlimit(
        resource.RLIMIT_FSIZE, (kilobytes * 1024, kilobytes * 1024)))
    assert "nothing was changed" in done.stderr
    assert (content(path), schema(path)) == before
    left = sorted(os.listdir(str(tmp_path)))
    assert not [name for name in left if "partial" in name]
    for name in left:
        if "backup" in name:
            assert content(str(tmp_path / name)) == before[0]


def test_not_enough_disk_is_said_with_numbers_before_anything(database, monkeypatch, capsys):
    import migrate_database_improvements as product
    monkeypatch.setattr(product.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))
    before = digest(database)
    assert product.main([database, "--yes"]) == 1
    assert "MiB needed, 0.0 MiB free" in capsys.readouterr().err
    assert digest(database) == before and os.listdir(os.path.dirname(database)) == ["goals.db"]


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_rolls_back_within_a_second(tmp_path, number, status):
    path = build(tmp_path / "goals.db", instances=20000)
    before = digest(path)
    for moment in (b"Plan", b"[3/5]", b"[4/5]"):
        process = start(path, "--yes")
        while moment not in process.stdout.readline():
            pass
        process.send_signal(number)
        sent = time.monotonic()
        said = process.communicate(timeout=30)[1].decode()
        assert process.returncode == status and time.monotonic() - sent < 2
        assert "interrupted" in said and "nothing was changed" in said and "Traceback" not in said
        assert digest(path) == before


def test_a_writer_that_holds_the_lock_ends_in_exit_4(database):
    holder = sqlite3.connect(database, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    assert "locked" in run(database, "--yes", "--timeout", "0.5", status=4).stderr
    holder.execute("ROLLBACK")
    holder.close()
    run(database, "--yes")


def test_a_reader_that_blocks_commit_is_waited_for_then_rolled_back(database):
    before = digest(database)
    reader = sqlite3.connect(database, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM goals").fetchall()
    assert "locked" in run(database, "--yes", "--timeout", "0.5", status=4).stderr
    assert digest(database) == before
    process = start(database, "--yes", "--timeout", "30")
    time.sleep(1.5)
    assert reader.execute("SELECT count(*) FROM goals").fetchone() == (63,)  # readers go on reading
    reader.execute("ROLLBACK")
    reader.close()
    process.communicate(timeout=30)
    assert process.returncode == 0


@pytest.mark.parametrize("journal", ["delete", "wal"])
@pytest.mark.parametrize("flags", [["--dry-run"], ["--output", "copy.db"]])
def test_rehearsals_let_the_app_read_and_write(tmp_path, journal, flags):
    path = build(tmp_path / "goals.db", journal=journal, instances=4000)
    process = start(path, *flags, cwd=str(tmp_path))
    app = sqlite3.connect(path, timeout=1, isolation_level=None)
    writes = 0
    while process.poll() is None:
        app.execute("UPDATE goals SET description = 'written' WHERE id = 'goal-0-00'")
        writes += 1
        time.sleep(0.02)
    assert process.returncode == 0, process.communicate()
    process.communicate()
    assert writes > 1
    app.close()


def test_two_runs_at_once(database):
    first, second = start(database, "--yes", "--no-backup"), start(database, "--yes", "--no-backup")
    said = first.communicate()[0] + second.communicate()[0]
    assert {first.returncode, second.returncode} <= {0, 4} and b"Traceback" not in said
    assert 0 in (first.returncode, second.returncode)
    run(database, "--verify")
    assert query(database, "SELECT count(*) FROM migration_log") == [(1,)]


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_dry_run_is_the_live_run_and_leaves_no_trace(tmp_path, journal):
    path = build(tmp_path / "goals.db", journal=journal)
    before = digest(path)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    rehearsed = run(path, "--dry-run", "--report", "dry.json", cwd=tmp_path, env={"TMPDIR": str(temporary)})
    assert digest(path) == before and os.listdir(str(temporary)) == []
    assert sorted(os.listdir(str(tmp_path))) == ["dry.json", "goals.db", "tmp"]
    live = run(path, "--yes", "--no-backup", "--report", "live.json", cwd=tmp_path)
    reports = [json.loads((tmp_path / name).read_text()) for name in ("dry.json", "live.json")]
    for one in reports:
        for phase in one["phases"]:
            del phase["seconds"]
    assert reports[0]["phases"] == reports[1]["phases"]
    assert [line for line in rehearsed.stdout.splitlines() if "backfilled" in line][:5] == [
        line for line in live.stdout.splitlines() if "backfilled" in line][:5]


def test_dry_run_sees_what_a_live_wal_holds(tmp_path):
    path = build(tmp_path / "goals.db", journal="wal")
    app = sqlite3.connect(path, isolation_level=None)
    app.execute("PRAGMA wal_autocheckpoint = 0")
    app.execute("INSERT INTO goals (id, type, name) VALUES ('fresh', 'UltimateGoal', 'n')")
    assert os.path.getsize(path + "-wal")
    before = digest(path), digest(path + "-wal")
    said = run(path, "--dry-run").stdout
    assert " 64 rows" in said
    assert (digest(path), digest(path + "-wal")) == before
    app.close()


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0 or not os.path.exists("/usr/bin/python3"),
                    reason="needs root to become another user, and a Python that this user may run")
def test_dry_run_works_for_a_user_who_may_only_read(tmp_path):
    folder = tmp_path / "app"
    folder.mkdir()
    for journal in ("delete", "wal"):
        path = build(folder / (journal + ".db"), journal=journal)
        os.chmod(path, 0o644)
    tool = tmp_path / "tool"
    tool.mkdir()
    shutil.copy(str(SCRIPT), str(tool))
    for part in [tmp_path] + list(tmp_path.parents)[:2]:
        os.chmod(str(part), 0o755)
    for journal in ("delete", "wal"):
        done = subprocess.run(["/usr/bin/python3", str(tool / SCRIPT.name), str(folder / (journal + ".db")), "--dry-run"],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/tmp",
                              env=environment(TMPDIR="/tmp", LD_LIBRARY_PATH=""), preexec_fn=lambda: (os.setgid(65534), os.setuid(65534)))
        assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(str(folder))) == ["delete.db", "wal.db"]


def test_backup_is_private_complete_and_never_overwrites(tmp_path):
    path = build(tmp_path / "goals.db", journal="wal")
    app = sqlite3.connect(path, isolation_level=None)
    app.execute("INSERT INTO goals (id, type, name) VALUES ('fresh', 'UltimateGoal', 'n')")
    app.execute("SELECT 1")
    before = content(path)
    said = run(path, "--yes", "--backup", tmp_path / "kept.db").stdout
    app.close()
    assert content(str(tmp_path / "kept.db")) == before
    assert os.stat(str(tmp_path / "kept.db")).st_mode & 0o777 == 0o600
    assert "--restore %s" % (tmp_path / "kept.db") in said
    again = build(tmp_path / "again.db")
    kept = digest(tmp_path / "kept.db")
    run(again, "--yes", "--backup", tmp_path / "kept.db", status=2)
    assert digest(tmp_path / "kept.db") == kept


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_restore_brings_the_backup_back_and_keeps_what_was_there(tmp_path, journal):
    path = build(tmp_path / "goals.db", journal=journal)
    before = content(path), schema(path)
    run(path, "--yes", "--backup", tmp_path / "kept.db")
    script(path, "INSERT INTO goals (id, type, name) VALUES ('written', 'UltimateGoal', 'since')")
    idle = sqlite3.connect(path)
    run(path, "--restore", tmp_path / "kept.db", "--yes", status=None)
    idle.close()
    run(path, "--restore", tmp_path / "kept.db", "--yes")
    assert (content(path), schema(path)) == before
    assert query(path, "PRAGMA journal_mode") == [(journal,)]
    aside = sorted(name for name in os.listdir(str(tmp_path)) if "replaced" in name)[0]
    assert query(tmp_path / aside, "SELECT name FROM goals WHERE id = 'written'") == [("since",)]
    run(path, "--yes", "--no-backup")


def test_restore_refuses_what_is_no_sound_database_of_this_app(migrated, tmp_path):
    before = digest(migrated)
    (tmp_path / "text").write_text("no database")
    script(tmp_path / "other", "CREATE TABLE x (y)")
    (tmp_path / "cut").write_bytes(SAMPLE.read_bytes()[:50000])
    for name, status in (("text", 2), ("other", 2), ("cut", 1), ("missing", 2)):
        run(migrated, "--restore", tmp_path / name, "--yes", status=status)
    assert digest(migrated) == before


@pytest.mark.parametrize("wreck", [None, b"", b"not a database at all" * 400])
def test_restore_over_a_lost_or_wrecked_database(tmp_path, wreck):
    path = build(tmp_path / "goals.db")
    before = content(path)
    shutil.copy(path, str(tmp_path / "kept.db"))
    os.unlink(path)
    if wreck is not None:
        (tmp_path / "goals.db").write_bytes(wreck)
    run(path, "--restore", tmp_path / "kept.db", "--yes")
    assert content(path) == before


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_output_equals_the_live_run_and_leaves_nothing_on_failure(tmp_path, journal):
    path = build(tmp_path / "goals.db", journal=journal)
    before = digest(path)
    run(path, "--output", tmp_path / "copy.db")
    assert digest(path) == before
    run(path, "--yes", "--no-backup")
    assert without_log(content(tmp_path / "copy.db")) == without_log(content(path))
    assert schema(tmp_path / "copy.db") == schema(path)
    kept = digest(tmp_path / "copy.db")
    run(path, "--output", tmp_path / "copy.db", status=2)
    assert digest(tmp_path / "copy.db") == kept
    script(build(tmp_path / "bad.db"), "UPDATE metric_values SET value = -1")
    run(tmp_path / "bad.db", "--output", tmp_path / "no.db", status=3)
    assert sorted(os.listdir(str(tmp_path))) == ["bad.db", "copy.db", "goals.db"]


@pytest.mark.skipif(not shutil.which("sqlite3"), reason="needs the sqlite3 shell")
def test_the_sql_script_replays_to_the_same_result(tmp_path):
    path = build(tmp_path / "goals.db", "half-migrated")
    script(path, "INSERT INTO session_templates (id, root_id, name) VALUES ('twin', 'goal-0-00', 'Template')")
    replayed = shutil.copy(path, str(tmp_path / "replayed.db"))
    run(path, "--yes", "--no-backup", "--repair", "--sql", tmp_path / "run.sql")
    text = (tmp_path / "run.sql").read_text()
    assert text.startswith("-- Made by") and ".bail on" in text and text.rstrip().endswith("COMMIT;")
    plain = environment(LD_LIBRARY_PATH="")  # the shell comes with a library of its own
    subprocess.run(["sqlite3", replayed], stdin=open(str(tmp_path / "run.sql")), check=True, stdout=subprocess.DEVNULL, env=plain)
    assert content(replayed) == content(path) and schema(replayed) == schema(path)
    run(replayed, "--verify")
    failed = subprocess.run(["sqlite3", str(tmp_path / "empty.db")], stdin=open(str(tmp_path / "run.sql")),
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=plain)
    assert failed.returncode and query(tmp_path / "empty.db", "SELECT count(*) FROM sqlite_master") == [(0,)]


@pytest.mark.skipif(not shutil.which("sqlite3"), reason="needs the sqlite3 shell")
def test_the_sql_script_of_a_run_that_looked_again_replays(database, tmp_path, monkeypatch):
    import migrate_database_improvements as product
    replayed, survey = str(tmp_path / "replayed.db"), product.Run.survey

    def survey_then_write(run):
        survey(run)
        if not os.path.exists(replayed):
            script(database, "UPDATE goals SET description = 'written meanwhile' WHERE id = 'goal-0-00'")
            shutil.copy(database, replayed)

    monkeypatch.setattr(product.Run, "survey", survey_then_write)
    assert product.main([database, "--yes", "--no-backup", "-q", "--sql", str(tmp_path / "run.sql")]) == 0
    subprocess.run(["sqlite3", replayed], stdin=open(str(tmp_path / "run.sql")), check=True, stdout=subprocess.DEVNULL,
                   env=environment(LD_LIBRARY_PATH=""))
    assert content(replayed) == content(database) and schema(replayed) == schema(database)


REPORT_KEYS = {"status", "exit_code", "message", "started", "seconds", "database", "versions", "options", "phases",
               "decisions", "warnings", "repairs", "verification", "references_to_missing_rows",
               "crossing_fractals", "not_compiling_before", "backup", "kept_aside"}


def test_the_report_has_its_shape_on_success_failure_and_decision(database, tmp_path):
    done = run(database, "--yes", "--report", "-")
    report = json.loads(done.stdout)
    assert set(report) == REPORT_KEYS and report["status"] == "done" and report["exit_code"] == 0
    assert [phase["phase"] for phase in report["phases"]] == ["columns", "backfill", "constraints", "indexes", "verify"]
    assert os.path.exists(report["backup"]) and "[5/5]" in done.stderr
    logged = json.loads(query(database, "SELECT report FROM migration_log")[0][0])
    assert set(logged) == REPORT_KEYS and logged["phases"] == report["phases"]
    script(build(tmp_path / "bad.db"), "UPDATE metric_values SET value = -1 WHERE rowid = 1")
    for path, status, word in ((tmp_path / "bad.db", 3, "decision"), (tmp_path / "none.db", 2, "usage")):
        failed = json.loads(run(path, "--yes", "--report", "-", status=status).stdout)
        assert set(failed) == REPORT_KEYS and failed["status"] == word and failed["exit_code"] == status
    assert len(failed["decisions"]) == 0


def test_a_report_or_script_never_overwrites_a_database(database):
    before = digest(database)
    for flag in ("--report", "--sql"):
        run(database, "--yes", flag, database, status=2)
    assert digest(database) == before


def mutated(data, rng):
    data = bytearray(data)
    kind = rng.randrange(4)
    if kind == 0:
        return bytes(data[:rng.randrange(1, len(data))])
    if kind == 1:
        data[rng.randrange(16, 100)] = rng.randrange(256)
        return bytes(data)
    for _ in range(rng.choice([1, 4, 30])):
        data[rng.randrange(100, len(data))] = rng.randrange(256)
    return bytes(data)


def test_hostile_files_never_crash_and_are_never_called_done(tmp_path):
    """A seeded loop; HOSTILE=1000 tries as many as the README states."""
    original = open(build(tmp_path / "original.db", fractals=1, instances=10), "rb").read()
    path = tmp_path / "goals.db"
    for seed in range(int(os.environ.get("HOSTILE", 30))):
        path.write_bytes(mutated(original, random.Random(seed)))
        before = digest(path)
        done = run(path, "--yes", "--no-backup", "-q", status=None)
        assert done.returncode in (0, 1, 2, 3), seed
        if done.returncode:
            assert digest(path) == before, seed
        else:
            assert query(path, "PRAGMA integrity_check") == [("ok",)], seed
        for name in os.listdir(str(tmp_path)):
            if name not in ("original.db", "goals.db"):
                os.unlink(str(tmp_path / name))


def test_names_and_values_are_data_nowhere_sql(tmp_path):
    path = build(tmp_path / "goals.db", instances=3)
    odd = "x\"]`'; DROP TABLE goals; --\n"
    script(path, 'CREATE TABLE "%s" ("%s" TEXT)' % (odd.replace('"', '""'), odd.replace('"', '""')),
           'ALTER TABLE goals ADD COLUMN "%s" TEXT' % odd.replace('"', '""'),
           ("UPDATE goals SET name = ?", (odd,)),
           ("INSERT INTO session_templates (id, root_id, name) VALUES (?, 'goal-0-00', ?)", (odd, odd)),
           ("INSERT INTO session_templates (id, root_id, name) VALUES (?, 'goal-0-00', ?)", (odd + "2", odd)))
    before = content(path)
    run(path, "--yes", "--no-backup", "--repair")
    assert_kept(before, content(path), ("root_id", "name"))
    run(path, "--verify")


@pytest.mark.parametrize("name", ["with space.db", "what?.db", "a#b.db", "100%25.db", "zi\u00e9l\U0001f3af.db", "file:x?mode=ro.db"])
def test_odd_paths_work(tmp_path, name):
    path = build(tmp_path / name, instances=2)
    run(path, "--dry-run")
    run(name, "--yes", cwd=tmp_path)
    run(path, "--verify")
    assert len(os.listdir(str(tmp_path))) == 2


def test_a_link_and_the_environment_name_the_database(tmp_path):
    (tmp_path / "data").mkdir()
    real = build(tmp_path / "data" / "real.db", instances=2)
    os.symlink(real, str(tmp_path / "link.db"))
    run("--yes", cwd=tmp_path, env={"DATABASE_PATH": str(tmp_path / "link.db")})
    assert os.path.islink(str(tmp_path / "link.db"))
    run(real, "--verify")
    assert len(os.listdir(str(tmp_path / "data"))) == 2


def test_restore_heeds_the_journal_of_a_backup_that_was_copied_while_in_use(tmp_path):
    path, backup = build(tmp_path / "goals.db"), build(tmp_path / "backup.db")
    before = content(backup)
    code = ("import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('PRAGMA cache_size = 1'); "
            "c.execute('BEGIN'); c.execute(\"UPDATE goals SET name = 'LOST'\"); c.execute('UPDATE activity_instances SET "
            "duration_seconds = 1'); c.execute(\"UPDATE metric_values SET value = 1\"); os._exit(0)")
    subprocess.run([sys.executable, "-c", code, backup], check=True)
    assert os.path.exists(backup + "-journal")
    run(path, "--restore", backup, "--yes")
    assert content(path) == before


def test_a_failed_restore_leaves_the_database_in_its_place(tmp_path):
    path, backup = tmp_path / "goals.db", build(tmp_path / "kept.db")
    path.write_bytes(b"garbage" * 999)
    before = path.read_bytes()
    run(path, "--restore", backup, "--yes", status=1, preexec_fn=lambda: resource.setrlimit(
        resource.RLIMIT_FSIZE, (65536, 65536)))
    assert path.read_bytes() == before and sorted(os.listdir(str(tmp_path))) == ["goals.db", "kept.db"]


def test_files_to_be_written_must_not_be_each_other(database, tmp_path):
    before = digest(database)
    for flags in (["--backup", "a", "--sql", "a"], ["--backup", "a", "--report", "a"], ["--output", "a", "--report", "a"],
                  ["--report", database + "-wal"], ["--backup", "no/such/folder"]):
        run(database, "--yes", *flags, cwd=tmp_path, status=2)
    assert digest(database) == before and os.listdir(str(tmp_path)) == ["goals.db"]


def test_a_script_that_can_not_be_written_rolls_back(database):
    before = digest(database)
    run(database, "--yes", "--sql", "/dev/full", status=1)
    assert digest(database) == before


@pytest.mark.parametrize("logged", [
    "{}", "[]", "null", "x", '{"options": {}}',
    '{"options": {"skip_constraint": [[1]]}, "not_compiling_before": [1], "references_to_missing_rows": [1]}'])
def test_an_odd_log_is_no_log(migrated, logged):
    script(migrated, ("INSERT INTO migration_log (run_at, script_version, sqlite_version, report) VALUES ('', '', '', ?)", (logged,)))
    run(migrated, "--verify")


def test_a_damaged_index_of_a_migrated_database_is_not_nothing_to_do(migrated):
    connection = sqlite3.connect(migrated)
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute("UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master WHERE name = 'idx_goals_type') "
                       "WHERE name = 'idx_goals_created_at'")
    connection.commit()
    connection.close()
    assert "damaged" in run(migrated, "--yes", status=1).stderr


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_no_write_can_fall_between_backup_and_migration(tmp_path, monkeypatch, journal):
    import migrate_database_improvements as product
    path = build(tmp_path / "goals.db", journal=journal)
    make_backup, refused = product.make_backup, []

    def write_meanwhile(*arguments):
        make_backup(*arguments)
        app = sqlite3.connect(path, timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            app.execute("UPDATE goals SET name = 'x'")
        refused.append(app.close())

    monkeypatch.setattr(product, "make_backup", write_meanwhile)
    assert product.main([path, "--yes", "-q"]) == 0 and refused


def test_in_wal_mode_a_reader_reads_the_old_state_throughout_and_blocks_nothing(tmp_path):
    path = build(tmp_path / "goals.db", journal="wal")
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM sqlite_master WHERE name LIKE 'uq_%'").fetchone() == (0,)
    run(path, "--yes", "--no-backup", "--timeout", "1")
    assert reader.execute("SELECT count(*) FROM sqlite_master WHERE name LIKE 'uq_%'").fetchone() == (0,)
    assert reader.execute("SELECT count(*) FROM metric_values").fetchone() == (301,)
    reader.execute("ROLLBACK")
    assert reader.execute("SELECT count(*) FROM sqlite_master WHERE name LIKE 'uq_%'").fetchone() == (5,)
    reader.close()


def test_a_restore_is_whole_wherever_a_signal_comes(migrated, tmp_path, monkeypatch):
    """At each moment that the script looks for signals, and once the copy is complete: all of it or nothing."""
    import migrate_database_improvements as product
    backup = str(tmp_path / "kept.db")
    shutil.copy(migrated, backup)
    script(migrated, "UPDATE goals SET description = 'since'")
    now, then, check = content(migrated), content(backup), product.check_interrupt
    for moment in range(1, 200):
        calls = []

        def interrupt(calls=calls, moment=moment):
            calls.append(1)
            if len(calls) == moment:
                product.SIGNALS.append(signal.SIGINT)
            check()

        monkeypatch.setattr(product, "check_interrupt", interrupt)
        status = product.main([migrated, "--restore", backup, "--yes", "-q"])
        monkeypatch.setattr(product, "check_interrupt", check)
        kept = [name for name in os.listdir(str(tmp_path)) if ".replaced-" in name]
        if status:
            assert status == 130 and content(migrated) == now and not kept
        else:
            assert content(migrated) == then and content(tmp_path / kept[0]) == now
            shutil.copy(str(tmp_path / kept[0]), migrated)
            os.unlink(str(tmp_path / kept[0]))
        if len(calls) < moment:
            break
    assert 20 < moment < 199


@pytest.mark.parametrize("arguments", [
    ["", "--yes"], ["goals.db", "--restore", "", "--yes"], ["goals.db", "--output", "", "--yes"],
    ["goals.db", "--backup", "", "--yes"], ["goals.db", "--yes", "--report", ""], ["goals.db", "--yes", "--sql", "-"]])
def test_an_empty_argument_is_no_argument_left_out(database, arguments):
    before = digest(database)
    run(*arguments, cwd=os.path.dirname(database), status=2)
    assert digest(database) == before and os.listdir(os.path.dirname(database)) == ["goals.db"]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
@pytest.mark.parametrize("handler, status", [(signal.SIG_DFL, 129), (signal.SIG_IGN, 0)])
def test_a_lost_connection_rolls_back_and_nohup_goes_on(tmp_path, handler, status):
    path = build(tmp_path / "goals.db", instances=3000)
    before = digest(path)
    process = subprocess.Popen([sys.executable, str(SCRIPT), path, "--yes", "--no-backup"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment(),
                               preexec_fn=lambda: signal.signal(signal.SIGHUP, handler))
    while b"[2/5]" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGHUP)
    process.communicate()
    assert process.returncode == status
    assert (digest(path) == before) == bool(status) and os.listdir(str(tmp_path)) == ["goals.db"]


def test_a_disk_that_fails_half_way_leaves_no_journal_to_trip_over(tmp_path):
    path = build(tmp_path / "goals.db", instances=40000)
    before, size = digest(path), os.path.getsize(path)
    said = run(path, "--yes", "--no-backup", status=1, preexec_fn=lambda: resource.setrlimit(
        resource.RLIMIT_FSIZE, (size * 3 // 2, size * 3 // 2))).stderr
    assert "nothing was changed" in said
    assert digest(path) == before and os.listdir(str(tmp_path)) == ["goals.db"]


def test_verify_of_what_is_not_migrated_says_just_that(database):
    done = run(database, "--verify", status=1)
    assert done.stdout == "" and "is not migrated" in done.stderr


def test_a_loss_can_be_accepted_as_the_readme_shows_and_the_next_is_found(migrated):
    readme = (SCRIPT.parent / "README.md").read_text(encoding="utf-8")
    accept = re.search(r'"(UPDATE migration_log SET report = json_patch.*?)"\n', readme, re.S).group(1).replace('\\"', '"')
    column = "metric_values.activity_instance_id"
    script(migrated, "DELETE FROM activity_instances WHERE id = 'instance-00001'")
    said = run(migrated, "--verify", status=1).stderr
    count, more, query_ = re.search(column + r": (\d+) rows refer .*?, (\d+) more than before \((.*?)\)", said).groups()
    assert len(query(migrated, query_)) == int(count) and int(more) > 0
    script(migrated, accept.replace(": 3}", ": %s}" % count))
    run(migrated, "--verify")
    script(migrated, "DELETE FROM activity_instances WHERE id = 'instance-00002'")
    assert column in run(migrated, "--verify", status=1).stderr


def test_phases_left_out_are_not_counted_as_done(database):
    said = run(database, "--yes", "--no-backup", "--phases", "columns").stdout
    assert "backfilled" not in said.split("Summary")[0] and "0 roots backfilled, 0 corrected" in said
    assert "as far as columns" in run(database, "--yes", "--no-backup", "--phases", "columns").stdout.splitlines()[-1]
    run(database, "--yes", "--no-backup")
    run(database, "--verify")


def test_the_report_names_the_corrected_roots(database):
    report = json.loads(run(database, "--yes", "--no-backup", "--report", "-").stdout)
    done, = [phase["done"]["goals"] for phase in report["phases"] if phase["phase"] == "backfill"]
    assert len(done["corrections"]) == done["corrected"] > 0
    for one in done["corrections"]:
        assert query(database, "SELECT root_id FROM goals WHERE id = ?", one["id"]) == [(one["after"],)]
        assert one["before"] != one["after"]


def test_verify_of_an_idle_wal_database_is_not_disturbed_by_a_writer(tmp_path):
    path = build(tmp_path / "goals.db", journal="wal", instances=3000)
    run(path, "--yes", "--no-backup")
    for number in range(4):
        verify = subprocess.Popen([sys.executable, str(SCRIPT), path, "--verify"], stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment())
        time.sleep(0.15 + 0.05 * number)
        script(path, *["INSERT INTO goals (id, type, name) VALUES ('g%d-%d', 'UltimateGoal', 'n')" % (number, n) for n in range(99)])
        said = verify.communicate()[0]
        assert verify.returncode == 0, said


@pytest.mark.parametrize("flag", ["--output", "--backup"])
@pytest.mark.parametrize("end", ["-wal", "-journal"])
def test_a_stale_wal_or_journal_beside_a_new_file_is_refused(database, tmp_path, flag, end):
    before = digest(database)
    (tmp_path / ("new.db" + end)).write_bytes(b"stale")
    assert "exists already" in run(database, "--yes", flag, tmp_path / "new.db", status=2).stderr
    assert digest(database) == before


def test_restore_in_place_of_a_folder_is_refused(migrated, tmp_path):
    (tmp_path / "folder").mkdir()
    assert "is not a file" in run(tmp_path / "folder", "--restore", migrated, "--yes", status=2).stderr
    assert os.path.isdir(str(tmp_path / "folder"))


def test_a_truncated_backup_is_what_is_damaged(migrated, tmp_path):
    backup = tmp_path / "kept.db"
    backup.write_bytes(open(migrated, "rb").read()[:9000])
    said = run(migrated, "--restore", backup, "--yes", status=1).stderr
    assert "kept.db is damaged" in said and "choose another backup" in said


def test_phases_one_by_one_end_as_one_run_does(tmp_path):
    path = str(tmp_path / "goals.db")
    shutil.copy(str(SAMPLE), path)
    for phases in ("columns", "columns,backfill", "indexes", "columns,backfill,indexes", "constraints"):
        run(path, "--yes", "--no-backup", "--phases", phases)
    run(path, "--verify")
    assert "Nothing to do" in run(path, "--yes").stdout


LOCK = "import fcntl, sys; f = open(sys.argv[1], 'rb+'); fcntl.lockf(f, %s, 1, %d); print('ready', flush=True); sys.stdin.read()"


@pytest.mark.parametrize("lock", [("fcntl.LOCK_EX", 0x40000001), ("fcntl.LOCK_SH", 0x40000002)])
def test_restore_waits_for_no_lock_where_sqlite_can_not_read_the_file(tmp_path, lock):
    """A schema for a newer SQLite, the app writing (RESERVED) or in WAL mode (SHARED): nothing may be renamed."""
    path, backup = build(tmp_path / "goals.db"), build(tmp_path / "kept.db", instances=1)
    script(path, "CREATE TABLE newer (a)", "PRAGMA writable_schema = ON",
           "UPDATE sqlite_master SET sql = 'CREATE TABLE newer (a) NEW_WORD' WHERE name = 'newer'")
    before = digest(path)
    app = subprocess.Popen([sys.executable, "-c", LOCK % lock, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    app.stdout.readline()
    report = json.loads(run(path, "--restore", backup, "--yes", "--report", "-", status=4).stdout)
    app.communicate()
    assert report["kept_aside"] is None and digest(path) == before and sorted(os.listdir(str(tmp_path))) == ["goals.db", "kept.db"]
    assert "can't read the schema" in run(path, "--verify", status=1).stderr
    report = json.loads(run(path, "--restore", backup, "--yes", "--report", "-").stdout)
    assert content(path) == content(backup) and digest(report["kept_aside"]) == before


@pytest.mark.parametrize("fails", ["link", "replace"])
def test_a_restore_that_can_not_rename_leaves_everything_in_its_place(tmp_path, monkeypatch, capsys, fails):
    import migrate_database_improvements as product
    path, backup = tmp_path / "goals.db", build(tmp_path / "kept.db")
    path.write_bytes(b"garbage" * 999)

    def refuse(*names):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(product.os, fails, refuse)
        status = product.main([str(path), "--restore", backup, "--yes"])
    names = set(os.listdir(str(tmp_path)))
    if fails == "link":  # copied instead, as on a file system without hard links
        assert status == 0 and content(path) == content(backup)
    else:
        assert status == 1 and "nothing was changed" in capsys.readouterr().err
        assert path.read_bytes() == b"garbage" * 999 and names == {"goals.db", "kept.db"}


def test_a_pipe_for_the_report_is_not_read(database, tmp_path):
    os.mkfifo(str(tmp_path / "pipe"))
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE)
    run(database, "--yes", "--no-backup", "--report", tmp_path / "pipe")
    assert json.loads(reader.communicate(timeout=20)[0].decode())["status"] == "done"
    run(database, "--dry-run", "--sql", tmp_path / "pipe", status=2)


def test_a_restore_leaves_no_journal_beside_a_wal_database(migrated, tmp_path):
    backup = str(tmp_path / "b.db")
    shutil.copy(str(SAMPLE), backup)
    for path, size in ((backup, 1024), (migrated, 4096)):
        script(path, "PRAGMA journal_mode = DELETE", "PRAGMA page_size = %d" % size, "VACUUM", "PRAGMA journal_mode = WAL")
    run(migrated, "--restore", backup, "--yes")
    assert not [name for name in os.listdir(str(tmp_path)) if name.endswith("-journal")]
    assert content(migrated) == content(backup)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_after_the_last_line_denies_nothing(tmp_path, number):
    path = build(tmp_path / "goals.db", instances=1)
    code = ("import atexit, os, runpy, sys; atexit.register(os.kill, os.getpid(), %d); sys.argv[0] = %r; "
            "runpy.run_path(sys.argv[0], run_name='__main__')" % (number, str(SCRIPT)))
    done = subprocess.run([sys.executable, "-c", code, path, "--yes", "-q"], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL,
                          env=environment())
    assert done.returncode == 0 and b"is migrated" in done.stdout


def test_a_folder_named_like_a_backup_holds_no_backup(tmp_path):
    folder = tmp_path / "srv.backup-20260101T000000Z"
    folder.mkdir()
    run(build(folder / "goals.db", instances=1), "--yes")


def test_a_snapshot_under_a_busy_writer_waits_as_long_as_the_timeout_says(database, tmp_path):
    """After a few restarts the copy takes a read lock, for which a writer may have to finish first."""
    import migrate_database_improvements as product

    class Restarted:
        calls = 0

        def __init__(self, real):
            self.real = real

        def __getattr__(self, name):
            return getattr(self.real, name)

        def backup(self, *arguments, **options):
            self.calls += 1
            if self.calls == 1:
                raise InterruptedError
            return self.real.backup(*arguments, **options)

    writer = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(0.7, writer.execute, ["COMMIT"])
    release.start()
    with product.Database(database, "ro", 10) as source, contextlib.closing(sqlite3.connect(str(tmp_path / "copy.db"))) as copy:
        source.connection = Restarted(source.connection)
        product.copy_pages(source, copy, source.out, "snapshot")
    release.join()
    writer.close()
    assert content(tmp_path / "copy.db") == content(database)
