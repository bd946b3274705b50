"""What the migration is worth and what it costs, as ratios within one run.

python tests/benchmark.py [--values 10000,100000,1000000] [--inserts 10000]   (some 75 seconds by default)

Before and after: the queries of the README, on the old schema and on the new. Run: the
live migration against the least work that any rebuilding migration must do, which is
loading the same final rows once into the same final tables and building the same indexes
once, in one transaction on a new file, with the same page cache.
"""
import argparse
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time

from databases import statements
from helpers import ROOT, SCRIPT

CACHE, SORT_CACHE = "PRAGMA cache_size = -131072", "PRAGMA cache_size = -8192"  # as the script has them
TREE = ("WITH RECURSIVE tree(id) AS (SELECT '{r}' UNION ALL SELECT g.id FROM goals g JOIN tree ON g.parent_id = tree.id) ")
QUERIES = {
    "all activity instances of a fractal": (
        TREE + "SELECT i.* FROM activity_instances i WHERE i.practice_session_id IN (SELECT id FROM tree)",
        "SELECT * FROM activity_instances WHERE root_id = '{r}'"),
    "all values of a fractal": (
        TREE + "SELECT v.* FROM metric_values v JOIN activity_instances i ON i.id = v.activity_instance_id "
        "WHERE i.practice_session_id IN (SELECT id FROM tree)",
        "SELECT * FROM metric_values WHERE root_id = '{r}'"),
    "sum of a metric by fractal": (
        TREE + "SELECT sum(v.value) FROM metric_values v JOIN activity_instances i ON i.id = v.activity_instance_id "
        "WHERE i.practice_session_id IN (SELECT id FROM tree) AND v.metric_definition_id = '{m}'",
        "SELECT sum(value) FROM metric_values WHERE root_id = '{r}' AND metric_definition_id = '{m}'"),
    "sessions of a fractal in date order": (
        TREE + "SELECT * FROM goals WHERE id IN (SELECT id FROM tree) AND type = 'PracticeSession' ORDER BY created_at",
        "SELECT * FROM goals WHERE root_id = '{r}' AND type = 'PracticeSession' ORDER BY created_at"),
    "children of a goal": ("SELECT * FROM goals WHERE parent_id = '{r}'",) * 2,
}


def new_id():
    """A random UUID as text, as the app makes them, but in less time than the module uuid takes."""
    text = os.urandom(16).hex()
    return "-".join((text[:8], text[8:12], "4" + text[13:16], "a" + text[17:20], text[20:]))


def make(path, values):
    """`values` metric values, a third as many instances, in fractals of about 100 instances."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA synchronous = OFF")
    for sql in statements("production"):
        connection.execute(sql)
    names = iter(new_id, None)
    goals, instances, metrics = [], [], []
    fractals = max(2, values // 300)
    many = connection.executemany
    for f in range(fractals):
        root, definition, metric = next(names), next(names), [next(names) for _ in range(3)]
        goals.append((root, "UltimateGoal", "Fractal %d" % f, None, "2025-01-01"))
        connection.execute("INSERT INTO activity_definitions (id, root_id, name) VALUES (?, ?, 'Run')", (definition, root))
        many("INSERT INTO metric_definitions (id, activity_id, name) VALUES (?, ?, ?)",
             [(m, definition, "m%d" % i) for i, m in enumerate(metric)])
        for s in range(5):
            session = next(names)
            goals.append((session, "PracticeSession", "Session", root, "2025-01-%02d" % (s + 1)))
            for _ in range(values // fractals // 15):
                instances.append((next(names), session, definition, "2025-02-01", "2025-02-01 10:00", "2025-02-01 11:00"))
                metrics.append(metric)
    many("INSERT INTO goals (id, type, name, parent_id, created_at) VALUES (?, ?, ?, ?, ?)", goals)
    many("INSERT INTO activity_instances (id, practice_session_id, activity_definition_id, created_at, time_start, time_stop) "
         "VALUES (?, ?, ?, ?, ?, ?)", instances)
    many("INSERT INTO metric_values VALUES (?, ?, ?, ?)",
         ((next(names), i[0], m, float(n)) for i, metric in zip(instances, metrics) for n, m in enumerate(metric)))
    connection.commit()
    connection.close()


def flush():
    """Have the system write what it owes the disk, or the next to be measured pays for it."""
    if hasattr(os, "sync"):
        os.sync()


def best(connection, sql, seconds=0.2):
    """The shortest of several runs, in seconds."""
    times = []
    while not times or sum(times) < seconds and len(times) < 200:
        start = time.perf_counter()
        connection.execute(sql).fetchall()
        times.append(time.perf_counter() - start)
    return min(times)


def compare_queries(old, new):
    connections = [sqlite3.connect(path) for path in (old, new)]
    root, = connections[1].execute("SELECT root_id FROM activity_instances LIMIT 1").fetchone()
    metric, = connections[1].execute("SELECT metric_definition_id FROM metric_values WHERE root_id = ?", (root,)).fetchone()
    for title, texts in QUERIES.items():
        sqls = [text.format(r=root, m=metric) for text in texts]
        results = [sorted(map(str, c.execute(s.replace("*", "count(*)").replace("i.count", "count").replace("v.count", "count")
                                             .replace("ORDER BY created_at", "")).fetchall()))
                   for c, s in zip(connections, sqls)]
        assert results[0] == results[1], title
        times = [best(c, s) for c, s in zip(connections, sqls)]
        plans = [c.execute("EXPLAIN QUERY PLAN " + s).fetchall()[-1][3] for c, s in zip(connections, sqls)]
        print("| %s | %.3f ms | %.3f ms | %.0f times |" % (title, times[0] * 1e3, times[1] * 1e3, times[0] / times[1]))
        print("    before: %s\n    after:  %s" % tuple(plans), file=sys.stderr)
    for connection in connections:
        connection.close()


def least_work(migrated, path):
    """Seconds to load the final rows into the final tables and build the final indexes, once."""
    flush()
    start = time.perf_counter()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(CACHE)
    connection.execute("PRAGMA threads = 2")
    connection.execute("ATTACH ? AS old", (migrated,))
    connection.execute("BEGIN")
    ddl = connection.execute("SELECT type, name, sql FROM old.sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' "
                             "AND type IN ('table', 'index') ORDER BY type = 'index'").fetchall()
    for kind, name, sql in ddl:
        if kind == "index":
            connection.execute(SORT_CACHE)
        connection.execute(sql)
        if kind == "table":
            # WHERE keeps SQLite from copying pages as they are, which it can't where columns change.
            connection.execute('INSERT INTO main."%s" SELECT * FROM old."%s" WHERE 1' % (name, name))
    connection.execute("COMMIT")
    connection.close()
    return time.perf_counter() - start


def migrate(path, *flags):
    """Seconds and peak memory in MiB of a run as a process."""
    flush()
    code = ("import resource, subprocess, sys; s = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL); "
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024); sys.exit(s)")
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, sys.executable, str(SCRIPT), path] + list(flags),
                          check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    return time.perf_counter() - start, float(done.stdout)


EMPTY = "CREATE TRIGGER empty AFTER INSERT ON metric_values WHEN 0 BEGIN SELECT 1; END"
INTO = "INSERT INTO metric_values (id, activity_instance_id, metric_definition_id, root_id, value) "


WAYS = {"one statement": 1, "a statement each": 1, "a transaction each": 50}  # how many times fewer inserts


def insert_values(path, kept, root, way, inserts):
    """Seconds that inserting values takes with our triggers kept, an empty one in their place, or none."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(CACHE)
    connection.execute("CREATE TEMP TABLE new AS SELECT lower(hex(randomblob(16))) AS id, i.id AS i, m.id AS m, "
                       "i.root_id AS root FROM activity_instances i JOIN metric_definitions m "
                       "ON m.activity_id = i.activity_definition_id LIMIT %d" % inserts)
    rows = connection.execute("SELECT id, i, m, %s FROM new" % root).fetchall()
    if kept != "ours":
        for name, in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute("DROP TRIGGER " + name)
    if kept == "empty":
        connection.execute(EMPTY)
    start = time.perf_counter()
    if way != "a transaction each":
        connection.execute("BEGIN")
    if way == "one statement":
        connection.execute(INTO + "SELECT id, i, m, %s, 1 FROM new" % root)
    else:
        for row in rows:
            connection.execute(INTO + "VALUES (?, ?, ?, ?, 1)", row)
    if connection.in_transaction:
        connection.execute("COMMIT")
    took = time.perf_counter() - start
    connection.close()
    return took


def triggers(path, inserts):
    """What the triggers cost an insert. An empty trigger shows what of it is SQLite's statement journal."""
    print("\n| inserts of values | root_id given | root_id NULL | an empty trigger |\n|---|---|---|---|")
    for way, fewer in WAYS.items():
        seconds, rows = {}, inserts // fewer
        for kept, root in [("none", "root"), ("none", "NULL"), ("ours", "root"), ("ours", "NULL"), ("empty", "root")] * 3:
            copy = path + ".copy"
            shutil.copy(path, copy)
            took = insert_values(copy, kept, root, way, rows)
            seconds[kept, root] = min(took, seconds.get((kept, root), took))
            os.unlink(copy)
        print("| {:,} in {} | {:.2f} times | {:.2f} times | {:.2f} times |".format(rows, way, *(
            seconds[which] / seconds["none", which[1]] for which in (("ours", "root"), ("ours", "NULL"), ("empty", "root")))))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", default="10000,100000,1000000")
    parser.add_argument("--inserts", type=int, default=10000)
    options = parser.parse_args()
    for values in map(int, options.values.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            old, new = os.path.join(folder, "old.db"), os.path.join(folder, "goals.db")
            make(old, values)
            size = os.path.getsize(old)
            shutil.copy(old, new)
            run, memory = migrate(new, "--yes")
            least = least_work(new, os.path.join(folder, "least.db"))
            rehearsal, more = migrate(old, "--dry-run")
            print("\n### %s values, %s\n" % ("{:,}".format(values), ROOT.name and sqlite3.sqlite_version))
            print("| query | before | after | faster |\n|---|---|---|---|")
            compare_queries(old, new)
            grown = os.path.getsize(new)
            print("\nlive run %.1f s = %.2f times the least work (%.1f s); peak memory %.0f MiB; rehearsal %.1f s, %.0f MiB"
                  % (run, run / least, least, memory, rehearsal, more))
            connection = sqlite3.connect(new)
            connection.execute("VACUUM")
            connection.close()
            print("file %.1f MiB, migrated %.1f MiB, after VACUUM %.1f MiB" % (
                size / 2 ** 20, grown / 2 ** 20, os.path.getsize(new) / 2 ** 20))
            if values == 100000:
                triggers(new, options.inserts)


if __name__ == "__main__":
    main()
