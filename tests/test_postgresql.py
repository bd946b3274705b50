"""Outgrowing SQLite: the README's way to PostgreSQL, against a real local server."""
import glob
import os
import shutil
import socket
import subprocess
import tempfile

import pytest
from helpers import ROOT, TABLES, query
from test_readme import blocks

PROGRAMS = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
OWNER = "postgres" if os.getuid() == 0 else None  # it runs as no root
PLAIN = dict(os.environ, LD_LIBRARY_PATH="")


pytestmark = pytest.mark.skipif(
    not (PROGRAMS and shutil.which("pgloader")), reason="needs pgloader and a PostgreSQL server")


@pytest.fixture
def server():
    """A PostgreSQL server of its own on a free port; yields the port."""
    folder = tempfile.mkdtemp(prefix="pg-", dir="/tmp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def control(program, *words):
        subprocess.run([os.path.join(PROGRAMS[-1], program), "-D", folder + "/data", *words],
                       check=True, cwd=folder, env=PLAIN, user=OWNER,
                       stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)

    if OWNER:
        shutil.chown(folder, OWNER)
    control("initdb", "-A", "trust", "-U", "postgres")
    control("pg_ctl", "-o", f"-p {port} -k {folder} -h 127.0.0.1", "-l", folder + "/log", "-w",
            "start")
    yield port
    control("pg_ctl", "-m", "immediate", "stop")
    shutil.rmtree(folder)


def ask(port, sql, user="postgres", status=0):
    done = subprocess.run(["psql", "-h", "127.0.0.1", "-p", str(port), "-U", user, "-d", "postgres",
                           "-Atqc", sql], capture_output=True, text=True, env=PLAIN)
    assert (done.returncode == 0) == (status == 0), done.stderr
    return done.stdout.strip() if status == 0 else done.stderr


def test_a_migrated_file_loads_into_postgresql_with_constraints_and_row_security(migrated, server):
    loaded = subprocess.run(
        ["pgloader", "--on-error-stop", ROOT / "tests" / "postgresql.load"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=os.path.dirname(migrated),
        env=dict(PLAIN, POSTGRES=f"postgresql://postgres@127.0.0.1:{server}/postgres",
                 SQLITE=migrated, HOME=os.path.dirname(migrated)))
    assert loaded.returncode == 0 and "ERROR" not in loaded.stdout, loaded.stdout
    for table in TABLES:
        counted = f"SELECT count(*) FROM {table}"
        assert int(ask(server, counted)) == query(migrated, counted)[0][0]
    names = ask(server, "SELECT conname FROM pg_constraint UNION "
                        "SELECT indexname FROM pg_indexes").split()
    assert {"chk_metric_values_non_negative", "uq_session_templates_root_name", "fk_goals_root",
            "chk_activity_groups_root_id"} <= set(names)
    assert "non_negative" in ask(server, "UPDATE metric_values SET value = -1", status=1)
    ask(server, "CREATE ROLE ada LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO ada; "
                "INSERT INTO fractal_users VALUES ('goal-1-00', 'ada')")
    for table in TABLES:
        own = query(migrated, f"SELECT count(*) FROM {table} WHERE root_id = 'goal-1-00'")[0][0]
        assert int(ask(server, f"SELECT count(*) FROM {table}", user="ada")) == own
        assert ask(server, f"SELECT DISTINCT root_id FROM {table}", user="ada") == "goal-1-00"
    ask(server, blocks("sql", "CREATE TABLE users")[0])
    assert ask(server, "SELECT count(*) FROM goals WHERE user_id IS NULL") != "0"
