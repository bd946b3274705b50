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
    assert not status or err.startswith("error: ") or out.startswith("{"), err
    return Said(out, err)


def run(*arguments, status=0):
    """Call the script's main in this process; what it said."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            found = product.main([str(argument) for argument in arguments])
        except SystemExit as end:
            found = end.code
    return check_said(found, status, out.getvalue(), err.getvalue())


def environment(**extra):
    """The environment of a process, without what would change its output."""
    dropped = ("DATABASE_PATH", "NO_COLOR", "PYTHONUNBUFFERED")
    return {**{name: value for name, value in os.environ.items() if name not in dropped}, **extra}


def start(*arguments, python=sys.executable, script=SCRIPT, env=(), **options):
    """Start the script as an operator does."""
    return subprocess.Popen(
        [python, str(script), *map(str, arguments)], text=True, env=environment(**dict(env)),
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
           **options})


def process(*arguments, status=0, **options):
    """Run the script in a process of its own; what it said."""
    with start(*arguments, **options) as child:
        out, err = child.communicate(timeout=60)
    return check_said(child.returncode, status, out or "", err or "")


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


def text_of(path, name):
    """The CREATE statement of a table, index, view or trigger."""
    return query(path, "SELECT sql FROM sqlite_master WHERE name = ?", name)[0][0]


def rewrite(path, table, old, new):
    """Change the stored text of a table, as only writable_schema can."""
    assert old in text_of(path, table)
    script(path, "PRAGMA writable_schema = ON", (
        "UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE name = ?", (old, new, table)))


def content(source):
    """Every row of every table of a file or connection, as {table: {rowid: {column: value}}}."""
    if not isinstance(source, sqlite3.Connection):
        with contextlib.closing(sqlite3.connect(str(source))) as connection:
            connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
            return content(connection)
    found = {}
    for name, sql in source.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND rootpage > 0 "
            "AND name NOT LIKE 'sqlite_stat%'").fetchall():
        key = "row_number() OVER ()" if "WITHOUT ROWID" in sql.upper() else "rowid"
        quoted = name.replace('"', '""')
        cursor = source.execute(f'SELECT {key}, * FROM "{quoted}"')
        titles = [title[0].lower() for title in cursor.description][1:]
        found[name.lower()] = {key: dict(zip(titles, row)) for key, *row in cursor}
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
            for column in row.keys() - {*changed}:
                was, now = row[column], after[table][key][column]
                assert (now, type(now)) == (was, type(was)), (table, key, column)


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


PARENTS = {"metric_definitions": ["activity_id"], "split_definitions": ["activity_id"],
           "activity_instances": ["practice_session_id", "session_id"],
           "metric_values": ["activity_instance_id"], "session_metadata": ["session_id"]}
RESORTS = {"activity_instances": "activity_definition_id", "metric_values": "metric_definition_id"}


def derive(rows):
    """The root of every row by DESIGN.md section 4: {table: {rowid: root}}."""
    links = collections.defaultdict(list)
    for link in rows.get("practice_session_goals", {}).values():
        links[link["practice_session_id"]].append(link["short_term_goal_id"])
    known = goal_roots({row["id"]: row for row in rows["goals"].values()}, links)
    found = {"goals": {key: known.get(row["id"]) for key, row in rows["goals"].items()}}
    # Ids are unique over all tables here.
    known.update({row["id"]: row["root_id"] for row in rows.get("sessions", {}).values()})
    for table in [*TABLES[1:], "session_metadata"]:
        found[table] = {}
        for key, row in rows.get(table, {}).items():
            roots = [known.get(row.get(column)) for column in PARENTS.get(table, [])]
            roots += [row.get("root_id"), known.get(row.get(RESORTS.get(table)))]
            found[table][key] = known[row.get("id")] = next(filter(None, roots), None)
    return found


def stored_roots(rows):
    """What is stored: {table: {rowid: root}}."""
    return {table: {key: row["root_id"] for key, row in rows.get(table, {}).items()}
            for table in [*TABLES, "session_metadata"]}
