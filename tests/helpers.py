"""What the tests share: running the script, reading databases, deriving roots in plain Python."""
import hashlib
import os
import pathlib
import sqlite3
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "migrate_database_improvements.py"
SAMPLE = ROOT / "fixtures" / "sample.db"
TABLES = ["goals", "activity_groups", "activity_definitions", "metric_definitions", "split_definitions",
          "session_templates", "activity_instances", "metric_values"]
sys.path.insert(0, str(ROOT))


def environment(**extra):
    kept = {k: v for k, v in os.environ.items() if k not in ("DATABASE_PATH", "NO_COLOR")}
    return dict(kept, PYTHONIOENCODING="utf-8", **extra)


def run(*arguments, cwd=None, status=0, script=SCRIPT, env=None, **options):
    """Run the script as an operator does; asserts its exit status and that no traceback is shown."""
    done = subprocess.run([sys.executable, str(script)] + [str(a) for a in arguments], cwd=cwd and str(cwd),
                          env=environment(**(env or {})), stdin=options.pop("stdin", subprocess.DEVNULL),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
                          encoding="utf-8", timeout=120, **options)
    said = done.stdout + done.stderr
    assert "Traceback" not in said, said
    assert status is None or done.returncode == status, said
    if done.returncode and "-" not in arguments:
        lines = done.stderr.strip().splitlines()
        assert len(lines) <= 1 if done.returncode == 1 else len(lines) == 1, said
    return done


def digest(path):
    return hashlib.sha256(pathlib.Path(str(path)).read_bytes()).hexdigest()


def query(path, sql, *values):
    connection = sqlite3.connect(str(path))
    try:
        return connection.execute(sql, values).fetchall()
    finally:
        connection.close()


def script(path, *statements, foreign_keys=None):
    """Run statements on a database file and commit."""
    connection = sqlite3.connect(str(path), isolation_level=None)
    try:
        if foreign_keys is not None:
            connection.execute("PRAGMA foreign_keys = %d" % foreign_keys)
        for sql in statements:
            if isinstance(sql, tuple):
                connection.execute(*sql)
            else:
                connection.execute(sql)
    finally:
        connection.close()


def content(path, names=None):
    """Every row of every table with its rowid and storage classes: {table: {key: {column: value}}}."""
    connection = sqlite3.connect(str(path))
    connection.text_factory = lambda b: b.decode("utf-8", "surrogateescape")
    try:
        tables = [row[0] for row in connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_stat%' AND rootpage > 0")]
        found = {}
        for table in tables:
            if names is None or table.lower() in names:
                name = table.replace('"', '""')
                try:
                    cursor = connection.execute('SELECT rowid, * FROM "%s"' % name)
                except sqlite3.OperationalError:  # WITHOUT ROWID
                    key = connection.execute('SELECT group_concat(name, \' || "/" || \') FROM pragma_table_info(?) WHERE pk',
                                             (table,)).fetchone()[0].replace('"/"', "'/'")
                    cursor = connection.execute('SELECT %s, * FROM "%s"' % (key, name))
                titles = [d[0].lower() for d in cursor.description][1:]
                found[table.lower()] = {row[0]: dict(zip(titles, row[1:])) for row in cursor}
        return found
    finally:
        connection.close()


def schema(path):
    return sorted(query(path, "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"),
                  key=str)


def without_log(rows):
    return {table: values for table, values in rows.items() if table != "migration_log"}


def assert_kept(before, after, changed=("root_id",)):
    """Every old value of every row is as it was, root_id aside."""
    for table, rows in before.items():
        assert set(rows) == set(after[table]), table
        for key, row in rows.items():
            for column, value in row.items():
                if column not in changed:
                    now = after[table][key][column]
                    assert (now, type(now)) == (value, type(value)), (table, key, column)


def derive(path):
    """root_id of every row by DESIGN.md section 4, in plain Python: {table: {rowid: root or None}}."""
    rows = content(path)
    goals = rows["goals"]
    by_id = {row["id"]: row for row in goals.values()}
    links = {}
    for link in rows.get("practice_session_goals", {}).values():
        goal = next(v for k, v in link.items() if k.endswith("goal_id"))
        if goal in by_id:
            links.setdefault(link["practice_session_id"], []).append(goal)

    def top(identity):
        seen = set()
        while by_id[identity]["parent_id"] in by_id:
            if identity in seen:
                return None
            seen.add(identity)
            identity = by_id[identity]["parent_id"]
        return identity

    def goal_root(identity, trail=()):
        head = top(identity)
        if head is None or head in trail:
            return None
        row = by_id[head]
        if row["type"] == "PracticeSession" and row["parent_id"] is None:
            linked = [goal_root(goal, trail + (head,)) for goal in links.get(head, [])]
            linked = [root for root in linked if root]
            if row.get("root_id") in linked:
                return row["root_id"]
            if linked:
                return linked[0]
            return row.get("root_id") or head
        return head

    roots = {"goals": {key: goal_root(row["id"]) for key, row in goals.items()}}
    root_of = {("goals", row["id"]): roots["goals"][key] for key, row in goals.items()}
    for row in rows.get("sessions", {}).values():
        root_of["sessions", row["id"]] = row["root_id"]
    sources = {"metric_definitions": [("activity_id", "activity_definitions")],
               "split_definitions": [("activity_id", "activity_definitions")],
               "activity_instances": [("practice_session_id", "goals"), ("session_id", "sessions"),
                                      ("activity_definition_id", "activity_definitions")],
               "metric_values": [("activity_instance_id", "activity_instances"),
                                 ("metric_definition_id", "metric_definitions")]}
    for table in TABLES[1:]:
        roots[table] = {}
        for key, row in rows.get(table, {}).items():
            candidates = [root_of.get((parent, row.get(column))) for column, parent in sources.get(table, [])]
            root = next((c for c in candidates if c), None) or row.get("root_id") or None
            roots[table][key] = root_of[table, row["id"]] = root
    return roots


def stored_roots(path):
    return {table: {key: row["root_id"] for key, row in rows.items()}
            for table, rows in content(path).items() if table in TABLES}
