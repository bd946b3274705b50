"""What the tests share: running the script, reading databases, the rule of root_id in Python."""
import collections
import contextlib
import hashlib
import io
import os
import pathlib
import sqlite3
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "migrate_database_improvements.py"
SAMPLE = ROOT / "fixtures" / "sample.db"
sys.path.insert(0, str(ROOT))

import migrate_database_improvements as product  # noqa: E402

TABLES = list(product.TABLES)
SESSION = "PracticeSession"
Said = collections.namedtuple("Said", "out err")


def check_said(status, wanted, out, err):
    """No traceback, one line of error at most, and the exit status that was wanted."""
    assert "Traceback" not in out + err, out + err
    assert wanted is None or status == wanted, f"{status} instead of {wanted}: {out}{err}"
    first = err.splitlines()[0] if err and status else ""
    assert not status or first.startswith("error: ") or out.startswith("{"), err


def run(*arguments, status=0):
    """Call the script's main in this process; what it said."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            found = product.main([str(argument) for argument in arguments])
        except SystemExit as end:
            found = end.code
    check_said(found, status, out.getvalue(), err.getvalue())
    return Said(out.getvalue(), err.getvalue())


def environment(**extra):
    """The environment of a process, without what would change its output."""
    dropped = ("DATABASE_PATH", "NO_COLOR", "PYTHONUNBUFFERED")
    return {**{name: value for name, value in os.environ.items() if name not in dropped}, **extra}


def start(*arguments, **options):
    """Start the script as an operator does."""
    return subprocess.Popen(
        [options.pop("python", sys.executable), str(options.pop("script", SCRIPT)),
         *map(str, arguments)], text=True, env=environment(**options.pop("env", {})),
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
           **options})


def process(*arguments, status=0, **options):
    """Run the script in a process of its own; what it said."""
    with start(*arguments, **options) as child:
        out, err = child.communicate(timeout=60)
    check_said(child.returncode, status, out or "", err or "")
    return Said(out, err)


def digest(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def folder_state(path):
    """Name and content of every file beside `path`."""
    folder = pathlib.Path(path).parent
    return {file.name: digest(file) for file in folder.iterdir() if file.is_file()}


def query(path, sql, *values):
    with contextlib.closing(sqlite3.connect(str(path))) as connection:
        return connection.execute(sql, values).fetchall()


def script(path, *statements, foreign_keys=False):
    """Run statements on a database file; a tuple is a statement with its values."""
    with contextlib.closing(sqlite3.connect(str(path), isolation_level=None)) as connection:
        connection.execute(f"PRAGMA foreign_keys = {foreign_keys}")
        for sql in statements:
            connection.execute(*(sql if isinstance(sql, tuple) else (sql,)))


def rewrite(path, table, old, new):
    """Change the stored text of a table, as only writable_schema can."""
    assert old in query(path, "SELECT sql FROM sqlite_master WHERE name = ?", table)[0][0]
    script(path, "PRAGMA writable_schema = ON", (
        "UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE name = ?", (old, new, table)))


def content(path):
    """Every row of every table with its rowid, as {table: {rowid: {column: value}}}."""
    with contextlib.closing(sqlite3.connect(str(path))) as connection:
        connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
        found = {}
        for name, sql in connection.execute(
                "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND rootpage > 0 "
                "AND name NOT LIKE 'sqlite_stat%'").fetchall():
            key = "NULL" if "WITHOUT ROWID" in sql.upper() else "rowid"
            quoted = name.replace('"', '""')
            cursor = connection.execute(f'SELECT {key}, * FROM "{quoted}"')
            titles = [title[0].lower() for title in cursor.description][1:]
            found[name.lower()] = {
                at if row[0] is None else row[0]: dict(zip(titles, row[1:]))
                for at, row in enumerate(cursor)}
        return found


def schema(path):
    return sorted(query(path, "SELECT type, name, tbl_name, sql FROM sqlite_master "
                        "WHERE name NOT LIKE 'sqlite_%'"), key=str)


def whole(path):
    """What must be equal between two databases that are the same."""
    rows = content(path)
    rows.pop("migration_log", None)
    return rows, schema(path)


def assert_kept(before, after, changed=("root_id",)):
    """Every old value of every row is as it was, type and all."""
    for table, rows in before.items():
        assert rows.keys() == after[table].keys(), table
        for key, row in rows.items():
            for column, value in row.items():
                if column not in changed:
                    now = after[table][key][column]
                    assert (now, type(now)) == (value, type(value)), (table, key, column)


# ---- the rule of root_id, in plain Python ----------------------------------------------------

def goal_roots(goals, links):
    """{id: root} by DESIGN.md section 4; `goals` are {id: row}, `links` {session: [goal]} in their
    order. Goals that no rule reaches are left out."""
    known = {}
    size = -1
    while size != len(known):
        size = len(known)
        for identity, row in goals.items():
            parent, stored = row["parent_id"] or None, row.get("root_id") or None
            linked = [goal for goal in links.get(identity, []) if goal in goals
                      and goal != identity] if row["type"] == SESSION else []
            waits = linked if not parent or not stored else []
            if identity in known or parent in goals and parent not in known:
                continue
            if parent in goals:
                known[identity] = known[parent]
            elif all(goal in known for goal in waits):
                roots = [known[goal] for goal in waits]
                known[identity] = (
                    stored if parent and stored or stored in roots else roots[0] if roots else
                    identity if row["type"] != SESSION and not parent else stored or identity)
    return known


LOOKUPS = {"metric_definitions": ["activity_id"], "split_definitions": ["activity_id"],
           "activity_instances": ["practice_session_id", "session_id"],
           "metric_values": ["activity_instance_id"]}
RESORTS = {"activity_instances": "activity_definition_id", "metric_values": "metric_definition_id"}


def derive(path):
    """The root of every row by DESIGN.md section 4: {table: {rowid: root}}."""
    rows = content(path)
    links = collections.defaultdict(list)
    for link in rows.get("practice_session_goals", {}).values():
        links[link["practice_session_id"]].append(link["short_term_goal_id"])
    goals = goal_roots({row["id"]: row for row in rows["goals"].values()}, links)
    known = dict(goals)  # ids are unique over all tables here
    known.update({row["id"]: row["root_id"] for row in rows.get("sessions", {}).values()})
    found = {"goals": {key: goals.get(row["id"]) for key, row in rows["goals"].items()}}
    for table in TABLES[1:]:
        found[table] = {}
        for key, row in rows.get(table, {}).items():
            roots = [known.get(row.get(column)) for column in LOOKUPS.get(table, [])]
            roots += [row.get("root_id"), known.get(row.get(RESORTS.get(table)))]
            found[table][key] = known[row["id"]] = next(filter(None, roots), None)
    return found


def stored_roots(path):
    rows = content(path)
    return {table: {key: row["root_id"] for key, row in rows[table].items()} for table in TABLES}
