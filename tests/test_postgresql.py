"""Outgrowing SQLite: the README's way to PostgreSQL, against a real local server."""
import glob
import os
import pathlib
import pwd
import shutil
import socket
import subprocess
import tempfile

import pytest
from databases import build
from helpers import ROOT, TABLES, query, run

PROGRAMS = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
PLAIN = dict(os.environ, LD_LIBRARY_PATH="")


def missing():
    if not shutil.which("pgloader"):
        return "pgloader is not installed"
    if not PROGRAMS:
        return "no PostgreSQL server is installed"
    if os.getuid() == 0 and "postgres" not in [entry.pw_name for entry in pwd.getpwall()]:
        return "PostgreSQL runs as no root, and there is no user postgres"


pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture
def server():
    """A PostgreSQL server of its own on a free port; yields the port."""
    folder = tempfile.mkdtemp(prefix="pg-", dir="/tmp")
    become = None
    if os.getuid() == 0:
        owner = pwd.getpwnam("postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        become = lambda: (os.setgid(owner.pw_gid), os.setuid(owner.pw_uid))  # noqa: E731
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def control(*words):
        subprocess.run([os.path.join(PROGRAMS[-1], words[0])] + list(words[1:]), check=True, cwd=folder, env=PLAIN,
                       stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, preexec_fn=become)

    control("initdb", "-D", folder + "/data", "-A", "trust", "-U", "postgres")
    control("pg_ctl", "-D", folder + "/data", "-o", "-p %d -k %s -h 127.0.0.1" % (port, folder), "-l", folder + "/log", "-w", "start")
    yield port
    control("pg_ctl", "-D", folder + "/data", "-m", "immediate", "stop")
    shutil.rmtree(folder)


def ask(port, sql, user="postgres", status=0):
    done = subprocess.run(["psql", "-h", "127.0.0.1", "-p", str(port), "-U", user, "-d", "postgres", "-Atqc", sql],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, env=PLAIN)
    assert (done.returncode == 0) == (status == 0), done.stderr
    return done.stdout.strip() if status == 0 else done.stderr


def test_a_migrated_file_loads_into_postgresql_with_constraints_and_row_security(tmp_path, server):
    path = build(tmp_path / "goals.db")
    run(path, "--yes", "--no-backup")
    loaded = subprocess.run(["pgloader", "--on-error-stop", str(pathlib.Path(ROOT) / "tests" / "postgresql.load")],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, cwd=str(tmp_path),
                            env=dict(PLAIN, SQLITE=path, POSTGRES="postgresql://postgres@127.0.0.1:%d/postgres" % server,
                                     HOME=str(tmp_path), TMPDIR=str(tmp_path)))
    assert loaded.returncode == 0 and "ERROR" not in loaded.stdout, loaded.stdout
    for table in TABLES:
        assert int(ask(server, "SELECT count(*) FROM " + table)) == query(path, "SELECT count(*) FROM " + table)[0][0]
    names = ask(server, "SELECT conname FROM pg_constraint UNION SELECT indexname FROM pg_indexes").split()
    assert "chk_metric_values_non_negative" in names and "uq_session_templates_root_name" in names and "fk_goals_root" in names
    assert "chk_metric_values_non_negative" in ask(server, "UPDATE metric_values SET value = -1", status=1)
    ask(server, "CREATE ROLE ada LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO ada; "
        "INSERT INTO fractal_users VALUES ('goal-1-00', 'ada')")
    for table in TABLES:
        own = query(path, "SELECT count(*) FROM %s WHERE root_id = 'goal-1-00'" % table)[0][0]
        assert int(ask(server, "SELECT count(*) FROM " + table, user="ada")) == own
        assert ask(server, "SELECT DISTINCT root_id FROM " + table, user="ada") == "goal-1-00"
