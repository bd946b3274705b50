"""The fault driver: python tests/faults.py KIND DATABASE ARGUMENTS...

Reads numbers from standard input. For each it forks a process that calls the script's main, in
which a fault of that KIND comes before the nth statement that SQLite executes (0: never), and
prints how that ended and how many statements there were. It wraps sqlite3.connect, not the script.
"""
import os
import resource
import signal
import sqlite3
import subprocess
import sys

from helpers import product

WRITE = """import sqlite3, sys
try:
    other = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
    other.execute("UPDATE goals SET description = 'written'")
except sqlite3.OperationalError as error:
    assert "locked" in str(error) or "no such" in str(error), error"""


def strike(kind, connection, path):
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "signal":
        os.kill(os.getpid(), signal.SIGTERM)
    elif kind == "error":
        connection.interrupt()
    elif kind == "disk":
        size = os.path.getsize(path) if os.path.exists(path) else 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    elif kind == "writer":
        subprocess.run([sys.executable, "-S", "-E", "-c", WRITE, path], check=True)


def run_once(kind, at, path, arguments):
    """In a forked process: the exit status, and the number of statements in a file."""
    connect, seen = sqlite3.connect, []

    def connect_and_count(*places, **options):
        connection = connect(*places, **options)

        def statement(sql):
            seen.append(1)
            if len(seen) == at:
                strike(kind, connection, path)

        connection.set_trace_callback(statement)
        return connection

    sqlite3.connect = connect_and_count
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, product.on_signal)
    status = product.main(arguments)
    with open(path + ".statements", "w", encoding="utf-8") as file:
        file.write(str(len(seen)))
    os._exit(status)


def main(kind, path, *arguments):
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            for stream in (1, 2):
                os.dup2(os.open(path + ".said", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
            run_once(kind, int(line), path, [path, *arguments])
        _, status = os.waitpid(child, 0)
        code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        statements = 0
        if os.path.exists(path + ".statements"):
            with open(path + ".statements", encoding="utf-8") as file:
                statements = int(file.read())
        print(code, statements, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
