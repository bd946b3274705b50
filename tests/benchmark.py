"""What the migration is worth and what it costs: the tables of the README, as ratios of one run.

python tests/benchmark.py [--values 10000,100000] [--peers]    (a minute; 1000000 takes five)

The least work is what any migration that rebuilds must do: load the final rows once into the
final tables of a new file and build the indexes once, in one transaction with the same caches.
Version 1 is run where git has it. --peers runs the same migration as users of Alembic and of
sqlite-utils would write it (pip install alembic sqlite-utils).
"""
import argparse
import contextlib
import importlib.util
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time

from databases import statements
from helpers import ROOT, SCRIPT

VERSION_1 = "1cccd61:migrate_database_improvements.py"
TREE = ("WITH RECURSIVE tree(id) AS (SELECT '{r}' UNION ALL SELECT g.id FROM goals g "
        "JOIN tree ON g.parent_id = tree.id) ")
OF_TREE = ("FROM metric_values v JOIN activity_instances i ON i.id = v.activity_instance_id "
           "WHERE i.practice_session_id IN (SELECT id FROM tree)")
QUERIES = {
    "all activity instances of a fractal": (
        f"{TREE} SELECT i.id FROM activity_instances i "
        "WHERE i.practice_session_id IN (SELECT id FROM tree)",
        "SELECT id FROM activity_instances WHERE root_id = '{r}'"),
    "all values of a fractal": (
        f"{TREE} SELECT v.id {OF_TREE}", "SELECT id FROM metric_values WHERE root_id = '{r}'"),
    "sum of a metric by fractal": (
        f"{TREE} SELECT sum(v.value) {OF_TREE} AND v.metric_definition_id = '{{m}}'",
        "SELECT sum(value) FROM metric_values WHERE root_id = '{r}' "
        "AND metric_definition_id = '{m}'"),
    "sessions of a fractal in date order": (
        f"{TREE} SELECT id FROM goals WHERE id IN (SELECT id FROM tree) "
        "AND type = 'PracticeSession' ORDER BY created_at, id",
        "SELECT id FROM goals WHERE root_id = '{r}' AND type = 'PracticeSession' "
        "ORDER BY created_at, id"),
    "children of a goal": ("SELECT id FROM goals WHERE parent_id = '{r}'",) * 2,
}


def new_id():
    """A random UUID as text, as the app makes them, but in less time than the module uuid takes."""
    text = os.urandom(16).hex()
    return "-".join((text[:8], text[8:12], "4" + text[13:16], "a" + text[17:20], text[20:]))


def make(path, values):
    """`values` metric values, a third as many instances, in fractals of about 100 instances."""
    names, fractals = iter(new_id, None), max(2, values // 300)
    goals, definitions, metrics, instances = [], [], [], []
    for f in range(fractals):
        root, definition, metric = next(names), next(names), [next(names) for _ in range(3)]
        goals.append((root, "UltimateGoal", f"Fractal {f}", None, "2025-01-01"))
        definitions.append((definition, root, "Run"))
        metrics += [(one, definition, f"m{n}") for n, one in enumerate(metric)]
        for day in range(1, 6):
            session = next(names)
            goals.append((session, "PracticeSession", "Session", root, f"2025-01-{day:02}"))
            instances += [((next(names), session, definition, "2025-02-01", "2025-02-01 10:00",
                            "2025-02-01 11:00"), metric) for _ in range(values // fractals // 15)]
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for sql in ["PRAGMA synchronous = OFF", *statements("production")]:
            connection.execute(sql)
        for table, rows in (
                ("goals (id, type, name, parent_id, created_at)", goals),
                ("activity_definitions (id, root_id, name)", definitions),
                ("metric_definitions (id, activity_id, name)", metrics),
                ("activity_instances (id, practice_session_id, activity_definition_id, created_at, "
                 "time_start, time_stop)", [row for row, _ in instances]),
                ("metric_values", [(next(names), row[0], one, float(n)) for row, metric in instances
                                   for n, one in enumerate(metric)])):
            places = ", ".join("?" * len(rows[0]))
            connection.executemany(f"INSERT INTO {table} VALUES ({places})", rows)
        connection.commit()


def seconds(call, *arguments):
    """How long a call takes, and what it returns."""
    os.sync()  # or who is measured next pays for what the system owes the disk
    start = time.perf_counter()
    result = call(*arguments)
    return time.perf_counter() - start, result


def process(*command):
    """Run a command; its peak memory in MiB."""
    code = ("import resource, subprocess, sys; "
            "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)")
    return float(subprocess.run([sys.executable, "-c", code, sys.executable, *map(str, command)],
                                check=True, stdout=subprocess.PIPE).stdout)


def least_work(migrated, path):
    """Load the final rows into the final tables and build the final indexes, once."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = -98304")
        connection.execute("PRAGMA threads = 2")
        connection.execute("ATTACH ? AS old", (migrated,))
        connection.execute("BEGIN")
        for kind, name, sql in connection.execute(
                "SELECT type, name, sql FROM old.sqlite_master WHERE sql > '' AND type IN "
                "('table', 'index') AND name NOT LIKE 'sqlite_%' ORDER BY type DESC").fetchall():
            if kind == "index":
                connection.execute("PRAGMA cache_size = -8192")
            connection.execute(sql)
            if kind == "table":
                # WHERE keeps SQLite from copying pages as they are: here, columns change.
                connection.execute(f"INSERT INTO main.{name} SELECT * FROM old.{name} WHERE 1")
        connection.execute("COMMIT")


def contestants(folder, peers):
    """name -> how a file is migrated, by those who can be had here."""
    found = {"this script": lambda path: process(SCRIPT, path, "--yes")}
    text = subprocess.run(["git", "show", VERSION_1], cwd=ROOT, capture_output=True).stdout
    if text:
        first = os.path.join(folder, "version_1.py")
        with open(first, "wb") as file:
            file.write(text)
        found["version 1"] = lambda path: process(first, path, "--yes")
    for name in ("alembic", "sqlite_utils"):
        if peers and importlib.util.find_spec(name):
            found[name] = lambda path, name=name: process(ROOT / "tests" / "peers.py", name, path)
        elif peers:
            print(f"{name} is left out: pip install alembic sqlite-utils")
    return found


def compare_runs(old, folder, peers, rounds):
    """Print what each takes, the best of some interleaved runs; the path of a migrated file."""
    best, memory, new = {}, {}, os.path.join(folder, "new.db")
    for _ in range(rounds):
        for name, migrate in contestants(folder, peers).items():
            path = os.path.join(folder, "goals.db")
            shutil.copy(old, path)
            took, memory[name] = seconds(migrate, path)
            best[name] = min(took, best.get(name, took))
            if name == "this script":
                shutil.move(path, new)
            for left in os.listdir(folder):
                if left.startswith("goals.db"):
                    os.unlink(os.path.join(folder, left))
        least = os.path.join(folder, "least.db")
        took, _ = seconds(least_work, new, least)
        best["least work"] = min(took, best.get("least work", took))
        os.unlink(least)
    print("\n| run | seconds | times the least work | peak memory |\n|---|---|---|---|")
    for name, took in best.items():
        peak = f"{memory[name]:.0f} MiB" if name in memory else ""
        print(f"| {name} | {took:.2f} | {took / best['least work']:.2f} | {peak} |")
    took, peak = seconds(process, SCRIPT, old, "--dry-run")
    print(f"| rehearsal | {took:.2f} | | {peak:.0f} MiB |")
    sizes = [os.path.getsize(path) / 2 ** 20 for path in (old, new)]
    print("\nfile: {:.1f} MiB before, {:.1f} MiB migrated".format(*sizes))
    return new


def compare_queries(old, new):
    """Print what each query takes before and after; both must find the same."""
    before, after = (sqlite3.connect(path) for path in (old, new))
    root, metric = after.execute(
        "SELECT root_id, metric_definition_id FROM metric_values ORDER BY id LIMIT 1").fetchone()
    print("\n| query | before | after | times faster |\n|---|---|---|---|")
    for title, texts in QUERIES.items():
        times, results = [], []
        for connection, text in zip((before, after), texts):
            sql, runs = text.format(r=root, m=metric), []
            results.append(connection.execute(sql).fetchall())
            while sum(runs) < 0.2 and len(runs) < 200:
                start = time.perf_counter()
                connection.execute(sql).fetchall()
                runs.append(time.perf_counter() - start)
            times.append(min(runs))
        assert sorted(results[0]) == sorted(results[1]), title
        print("| {} | {:.2f} ms | {:.2f} ms | {:.0f} |".format(
            title, times[0] * 1e3, times[1] * 1e3, times[0] / times[1]))
    before.close()
    after.close()


KEPT = {  # what becomes of the triggers
    "none": "", "one that does nothing":
    "CREATE TRIGGER idle AFTER INSERT ON metric_values WHEN 0 BEGIN SELECT 1; END", "ours": None}


def insert(path, kept, root, each, rows):
    """Seconds that inserting values takes, in one transaction, or one each."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        new = connection.execute(
            f"SELECT lower(hex(randomblob(16))), i.id, m.id, {root} FROM activity_instances i "
            "JOIN metric_definitions m ON m.activity_id = i.activity_definition_id LIMIT ?",
            [rows]).fetchall()
        if KEPT[kept] is not None:
            for name, in connection.execute(
                    "SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                connection.execute(f"DROP TRIGGER {name}")
            connection.execute(KEPT[kept])
        start = time.perf_counter()
        if not each:
            connection.execute("BEGIN")
        for row in new:
            connection.execute("INSERT INTO metric_values (id, activity_instance_id, "
                               "metric_definition_id, root_id, value) VALUES (?, ?, ?, ?, 1)", row)
        if not each:
            connection.execute("COMMIT")
        return time.perf_counter() - start


def compare_inserts(path, audited):
    """Print what inserts of values cost through the triggers, against none."""
    titles = ["ours, root_id given", "ours, root_id NULL", "one that does nothing", "audit log"]
    print("\n| inserts of values | " + " | ".join(titles) + " |\n|---|---|---|---|---|")
    for rows, each in ((10000, False), (200, True)):
        best = {}
        for _ in range(3):
            for title, (source, kept, root) in {
                    "none": (path, "none", "i.root_id"), "none, NULL": (path, "none", "NULL"),
                    titles[0]: (path, "ours", "i.root_id"), titles[1]: (path, "ours", "NULL"),
                    titles[2]: (path, titles[2], "i.root_id"),
                    titles[3]: (audited, "ours", "i.root_id")}.items():
                shutil.copy(source, path + ".copy")
                took = insert(path + ".copy", kept, root, each, rows)
                best[title] = min(took, best.get(title, took))
                os.unlink(path + ".copy")
        of = {title: best["none, NULL" if "NULL" in title else "none"] for title in titles}
        cells = [f"{best[title] / of[title]:.2f} times" for title in titles]
        how = "a transaction each" if each else "one transaction"
        print(f"| {rows:,} in {how} | {' | '.join(cells)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--values", default="10000,100000", help="how many, after commas")
    parser.add_argument("--peers", action="store_true", help="run Alembic and sqlite-utils too")
    options = parser.parse_args()
    print(f"SQLite {sqlite3.sqlite_version}, Python {sys.version.split()[0]}, "
          f"{os.cpu_count()} cores; best of three")
    for values in map(int, options.values.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            print(f"\n### {values:,} values")
            old = os.path.join(folder, "old.db")
            make(old, values)
            new = compare_runs(old, folder, options.peers, 3)
            compare_queries(old, new)
            if values == 100000:
                audited = os.path.join(folder, "audited.db")
                shutil.copy(new, audited)
                process(SCRIPT, audited, "--yes", "--no-backup", "--extra", "audit-log")
                compare_inserts(new, audited)


if __name__ == "__main__":
    main()
