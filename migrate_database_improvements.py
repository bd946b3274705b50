#!/usr/bin/env python3
# /// script
# requires-python = ">=3.8"
# dependencies = []
# ///
"""Migrate the SQLite database of Fractal Goals in one safe run.

What changes: every one of the eight tables of the app gets `root_id` (the goal
at the top of the row's tree, filled for old rows, kept right by triggers),
`deleted_at`, `updated_at` and whatever column this database lacks; constraints
that hold (foreign keys, named CHECKs, unique names among live rows); indexes.
Tables are recreated from their own text, so that what else they hold survives.

What is guaranteed: one transaction, so the outcome is the old database or the
new one, whole; a checked backup first; every old value proven equal before the
old table goes; verification before COMMIT; nothing at all under --dry-run.

    python migrate_database_improvements.py --dry-run goals.db   rehearse
    python migrate_database_improvements.py goals.db             migrate
    python migrate_database_improvements.py --verify goals.db    check, any time
    python migrate_database_improvements.py goals.db --restore goals.db.backup-...

Needs Python 3.8 and SQLite 3.28 or newer, nothing else. Exit status: 0 done or
nothing to do; 1 failed and rolled back, or --verify found a fault; 2 wrong usage
or no such database; 3 the data needs a decision; 4 locked; 130, 143 interrupted.
"""
from __future__ import annotations

import argparse
import contextlib
import datetime
import errno
import json
import os
import pathlib
import platform
import re
import shlex
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

VERSION = "1.0.0 (2026-11-22)"
OLDEST_SQLITE = (3, 28, 0)

# --------------------------------------------------------------------------
# 1. The target, as data (DESIGN.md section 4). Add a column, an index or a
#    check here, on one line; the phases below only walk over these tables.
# --------------------------------------------------------------------------

ROOT_ID = "VARCHAR NOT NULL ON CONFLICT REPLACE DEFAULT '' REFERENCES goals(id) ON DELETE CASCADE"
NOW = "DATETIME DEFAULT CURRENT_TIMESTAMP"

# table -> column -> declaration. Parents come before children: the order of the
# rebuild, and, as SQLite runs the cascades of the newest table first, the order
# that deletes metric_values before the split_definitions they RESTRICT.
TABLES: Dict[str, Dict[str, str]] = {
    "goals": {
        "id": "VARCHAR NOT NULL PRIMARY KEY", "type": "VARCHAR NOT NULL", "name": "VARCHAR NOT NULL",
        "description": "VARCHAR", "deadline": "DATETIME", "completed": "BOOLEAN DEFAULT 0",
        "created_at": NOW, "updated_at": NOW, "parent_id": "VARCHAR REFERENCES goals(id)",
        "root_id": ROOT_ID, "duration_minutes": "INTEGER", "session_start": "DATETIME",
        "session_end": "DATETIME", "total_duration_seconds": "INTEGER", "template_id": "VARCHAR",
        "attributes": "TEXT", "session_data": "TEXT", "targets": "TEXT",
        "deleted_at": "DATETIME", "sort_order": "INTEGER DEFAULT 0",
    },
    "activity_groups": {
        "id": "VARCHAR NOT NULL PRIMARY KEY", "root_id": ROOT_ID, "name": "VARCHAR NOT NULL",
        "description": "VARCHAR", "created_at": NOW, "sort_order": "INTEGER DEFAULT 0",
        "deleted_at": "DATETIME", "updated_at": NOW,
    },
    "activity_definitions": {
        "id": "VARCHAR NOT NULL PRIMARY KEY", "root_id": ROOT_ID, "name": "VARCHAR NOT NULL",
        "description": "VARCHAR", "created_at": NOW, "has_sets": "BOOLEAN DEFAULT 0",
        "has_metrics": "BOOLEAN DEFAULT 1", "metrics_multiplicative": "BOOLEAN DEFAULT 0",
        "has_splits": "BOOLEAN DEFAULT 0", "group_id": "VARCHAR REFERENCES activity_groups(id)",
        "deleted_at": "DATETIME", "updated_at": NOW,
    },
    "metric_definitions": {
        "id": "VARCHAR NOT NULL PRIMARY KEY",
        "activity_id": "VARCHAR NOT NULL REFERENCES activity_definitions(id) ON DELETE CASCADE",
        "root_id": ROOT_ID, "name": "VARCHAR NOT NULL", "unit": "VARCHAR", "created_at": NOW,
        "deleted_at": "DATETIME", "is_active": "BOOLEAN DEFAULT 1", "is_top_set_metric": "BOOLEAN DEFAULT 0",
        "is_multiplicative": "BOOLEAN DEFAULT 1", "updated_at": NOW, "sort_order": "INTEGER DEFAULT 0",
    },
    "split_definitions": {
        "id": "VARCHAR NOT NULL PRIMARY KEY",
        "activity_id": "VARCHAR NOT NULL REFERENCES activity_definitions(id) ON DELETE CASCADE",
        "root_id": ROOT_ID, "name": "VARCHAR NOT NULL", "order": "INTEGER", "created_at": NOW,
        "deleted_at": "DATETIME", "updated_at": NOW,
    },
    "session_templates": {
        "id": "VARCHAR NOT NULL PRIMARY KEY", "root_id": ROOT_ID, "name": "VARCHAR NOT NULL",
        "description": "VARCHAR", "created_at": NOW, "template_data": "TEXT",
        "deleted_at": "DATETIME", "updated_at": NOW,
    },
    "activity_instances": {
        "id": "VARCHAR NOT NULL PRIMARY KEY", "practice_session_id": "VARCHAR REFERENCES goals(id)",
        "activity_definition_id": "VARCHAR REFERENCES activity_definitions(id)",
        "root_id": ROOT_ID, "created_at": NOW, "time_start": "DATETIME", "time_stop": "DATETIME",
        "duration_seconds": "INTEGER", "completed": "BOOLEAN DEFAULT 0", "notes": "TEXT", "data": "TEXT",
        "deleted_at": "DATETIME", "updated_at": NOW, "sort_order": "INTEGER DEFAULT 0",
    },
    "metric_values": {
        "id": "VARCHAR NOT NULL PRIMARY KEY",
        "activity_instance_id": "VARCHAR REFERENCES activity_instances(id)",
        "metric_definition_id": "VARCHAR REFERENCES metric_definitions(id)",
        "split_definition_id": "VARCHAR REFERENCES split_definitions(id) ON DELETE RESTRICT",
        "root_id": ROOT_ID, "value": "FLOAT", "created_at": NOW, "updated_at": NOW,
    },
}
# References that an existing column must have as well, not only a new one.
MUST_REFERENCE = {("activity_definitions", "group_id"), ("metric_values", "split_definition_id")}

# table -> (its column, the parent table whose row gives the root), the first that
# exists wins; goals have rules of their own (derive_goals); no entry: as stored.
ROOT_SOURCES: Dict[str, List[Tuple[str, str]]] = {
    "metric_definitions": [("activity_id", "activity_definitions")],
    "split_definitions": [("activity_id", "activity_definitions")],
    "activity_instances": [("practice_session_id", "goals"), ("session_id", "sessions"),
                           ("activity_definition_id", "activity_definitions")],
    "metric_values": [("activity_instance_id", "activity_instances"),
                      ("metric_definition_id", "metric_definitions")],
}
SESSION = "PracticeSession"

# name -> table, expression, columns. julianday() and date() compare points in
# time, whatever the notation (https://sqlite.org/lang_datefunc.html).
CHECKS: Dict[str, Tuple[str, str, Sequence[str]]] = {
    "chk_goals_deadline_after_creation":
        ("goals", "date(deadline) >= date(created_at)", ("deadline", "created_at")),
    "chk_goals_session_time_order":
        ("goals", "julianday(session_end) >= julianday(session_start)", ("session_start", "session_end")),
    "chk_goals_duration_non_negative":
        ("goals", "total_duration_seconds >= 0", ("total_duration_seconds",)),
    "chk_activity_instances_time_order":
        ("activity_instances", "julianday(time_stop) >= julianday(time_start)", ("time_start", "time_stop")),
    "chk_activity_instances_duration_non_negative":
        ("activity_instances", "duration_seconds >= 0", ("duration_seconds",)),
    "chk_metric_values_non_negative":
        ("metric_values", "value >= 0", ("value",)),
}

# name -> table, columns that name a live row
UNIQUE_NAMES: Dict[str, Tuple[str, Tuple[str, str]]] = {
    "uq_activity_groups_root_name": ("activity_groups", ("root_id", "name")),
    "uq_activity_definitions_root_name": ("activity_definitions", ("root_id", "name")),
    "uq_session_templates_root_name": ("session_templates", ("root_id", "name")),
    "uq_metric_definitions_activity_name": ("metric_definitions", ("activity_id", "name")),
    "uq_split_definitions_activity_name": ("split_definitions", ("activity_id", "name")),
}

# name -> what follows ON
INDEXES: Dict[str, str] = {
    "idx_goals_parent_id": "goals (parent_id)",
    "idx_goals_root_id": "goals (root_id)",
    "idx_goals_type": "goals (type)",
    "idx_goals_created_at": "goals (created_at)",
    "idx_activity_instances_session": "activity_instances (practice_session_id)",
    "idx_activity_instances_definition": "activity_instances (activity_definition_id)",
    "idx_activity_instances_root": "activity_instances (root_id)",
    "idx_metric_values_instance": "metric_values (activity_instance_id)",
    "idx_metric_values_definition": "metric_values (metric_definition_id)",
    "idx_metric_values_root": "metric_values (root_id)",
    "idx_metric_values_split": "metric_values (split_definition_id)",
    "idx_metric_definitions_activity": "metric_definitions (activity_id)",
    "idx_metric_definitions_root": "metric_definitions (root_id)",
    "idx_split_definitions_activity": "split_definitions (activity_id)",
    "idx_split_definitions_root": "split_definitions (root_id)",
    "idx_activity_definitions_group": "activity_definitions (group_id)",
    "idx_activity_definitions_root": "activity_definitions (root_id)",
    "idx_activity_groups_root": "activity_groups (root_id)",
    "idx_session_templates_root": "session_templates (root_id)",
    "idx_activity_instances_root_date": "activity_instances (root_id, created_at DESC)",
    "idx_metric_values_root_metric": "metric_values (root_id, metric_definition_id)",
    "idx_activity_instances_session_created": "activity_instances (practice_session_id, created_at)",
    "idx_goals_parent_type": "goals (parent_id, type)",
    "idx_goals_root_type": "goals (root_id, type)",
    "idx_metric_definitions_active": "metric_definitions (activity_id) WHERE is_active = 1",
    "idx_goals_completed": "goals (root_id, type) WHERE completed = 1",
    "idx_goals_practice_sessions": "goals (root_id, created_at) WHERE type = 'PracticeSession'",
}

# The fractal-scoped queries of the README; each must be answerable by its index.
SCOPED_QUERIES = {
    "all activity instances of a fractal":
        "SELECT * FROM activity_instances INDEXED BY idx_activity_instances_root WHERE root_id = ''",
    "all values of a fractal": "SELECT * FROM metric_values INDEXED BY idx_metric_values_root WHERE root_id = ''",
    "sum of a metric by fractal":
        "SELECT sum(value) FROM metric_values INDEXED BY idx_metric_values_root_metric "
        "WHERE root_id = '' AND metric_definition_id = ''",
    "sessions of a fractal in date order":
        "SELECT * FROM goals INDEXED BY idx_goals_practice_sessions "
        "WHERE root_id = '' AND type = 'PracticeSession' ORDER BY created_at",
    "children of a goal": "SELECT * FROM goals INDEXED BY idx_goals_parent_id WHERE parent_id = ''",
}

# Further references, which give no root. The row that one names may be gone: reported, never altered.
OTHER_REFERENCES: Dict[str, List[Tuple[str, str]]] = {
    "goals": [("parent_id", "goals")],
    "activity_definitions": [("group_id", "activity_groups")],
    "metric_values": [("split_definition_id", "split_definitions")],
}

OWN_TABLES: Dict[str, Dict[str, str]] = {
    "migration_log": {
        "id": "INTEGER PRIMARY KEY", "run_at": "DATETIME NOT NULL", "script_version": "VARCHAR NOT NULL",
        "sqlite_version": "VARCHAR NOT NULL", "report": "TEXT NOT NULL",
    },
    "migration_quarantine": {
        "table": "VARCHAR NOT NULL", "rowid": "INTEGER", "id": "", "reason": "VARCHAR NOT NULL", "row": "TEXT NOT NULL",
        "time": "DATETIME NOT NULL",
    },
}
PHASES = ["columns", "backfill", "constraints", "indexes"]
PHASE_TITLES = ["Add columns", "Backfill root_id", "Recreate tables", "Create indexes", "Verify"]
CONSTRAINTS = list(UNIQUE_NAMES) + list(CHECKS)
STRICT_TYPES = {"VARCHAR": "TEXT", "DATETIME": "TEXT", "BOOLEAN": "INTEGER", "FLOAT": "REAL"}
CHUNK_ROWS = 50_000
CACHE_KIB = 128 * 1024  # random ids go into the index of a PRIMARY KEY: it should fit
SORT_KIB = 8 * 1024     # sorts of this size are the fastest, and each thread has several


class Stop(Exception):
    """The run ends here: `status` is the exit status, the text one line for the operator."""

    def __init__(self, message: str, status: int = 1, advice: str = "") -> None:
        super().__init__(message)
        self.status, self.advice = status, advice


# --------------------------------------------------------------------------
# 2. Reading and editing a schema
# --------------------------------------------------------------------------

def lower(name: str) -> str:
    """A name as SQLite compares names: ASCII letters alone have a case."""
    return re.sub("[A-Z]+", lambda letters: letters.group().lower(), name)


def quote(name: str) -> str:
    """A name as an SQL identifier, whatever characters it holds."""
    return '"' + name.replace('"', '""') + '"'


def is_utf8(text: str) -> bool:
    """Whether a text that was read is UTF-8; where not, its bytes stand as surrogates (see Database)."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def literal(value: Any) -> str:
    """A value as an SQL literal, so that --sql can replay what was run."""
    if value is None or isinstance(value, (int, float)):
        return "NULL" if value is None else repr(value).replace("inf", "9e999")
    if isinstance(value, bytes):
        return "x'%s'" % value.hex()
    if not is_utf8(value):
        return "CAST(x'%s' AS TEXT)" % value.encode("utf-8", "surrogateescape").hex()
    text = "'" + value.replace("'", "''").replace("\0", "' || char(0) || '") + "'"
    return "(%s)" % text if "\0" in value else text


class Token(NamedTuple):
    kind: str   # space, comment, string, quoted, word or op
    text: str
    start: int
    end: int

    @property
    def word(self) -> str:
        """The keyword this may be, in capitals; '' for a quoted name or a string."""
        return self.text.upper() if self.kind in ("word", "op") else ""

    @property
    def name(self) -> str:
        """The identifier this stands for (https://sqlite.org/lang_keywords.html)."""
        if self.kind not in ("quoted", "string"):
            return self.text
        mark = self.text[-1]
        return self.text[1:-1] if mark == "]" else self.text[1:-1].replace(mark * 2, mark)


TOKEN = re.compile(r"""
    (?P<space>[ \t\n\f\r]+) | (?P<comment>--[^\n]*|/\*.*?(?:\*/|\Z)) | (?P<string>'(?:[^']|'')*')
  | (?P<quoted>"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]) | (?P<word>[A-Za-z0-9_$\x80-\U0010ffff]+) | (?P<op>.)
    """, re.VERBOSE | re.DOTALL)


def tokenize(sql: str) -> List[Token]:
    """The significant tokens of `sql`: no white space, no comments."""
    found = (Token(str(m.lastgroup), m.group(), m.start(), m.end()) for m in TOKEN.finditer(sql))
    return [token for token in found if token.kind not in ("space", "comment")]


def same_sql(one: Optional[str], other: Optional[str]) -> bool:
    """Whether two statements differ only in white space, comments, case and quotes of names."""
    def normal(sql: Optional[str]) -> List[str]:
        return [t.text if t.kind == "string" else t.name.upper() for t in tokenize(sql or "")]
    return normal(one) == normal(other)


class Body(NamedTuple):
    """A CREATE TABLE text taken apart: where its name ends, its items, its closing bracket."""
    name_end: int
    items: List[List[Token]]
    close: int
    options: List[str]


TABLE_CONSTRAINT = {"CONSTRAINT", "PRIMARY", "UNIQUE", "CHECK", "FOREIGN"}


def parse_table(sql: str) -> Body:
    """Take a stored CREATE TABLE text apart. Raises Stop where it has no such shape."""
    tokens = tokenize(sql)
    if [t.word for t in tokens[:2]] != ["CREATE", "TABLE"] or len(tokens) < 6 or tokens[3].text != "(":
        raise Stop("its text is not that of a plain table")
    items: List[List[Token]] = [[]]
    depth = 0
    for position, token in enumerate(tokens[3:], 3):
        depth += {"(": 1, ")": -1}.get(token.text, 0)
        if depth == 0:
            rest = [t.word for t in tokens[position + 1:]]
            if not all(items):
                raise Stop("its text has an empty column definition")
            return Body(tokens[2].end, items, token.start, rest)
        if depth == 1 and token.text == ",":
            items.append([])
        elif position > 3:
            items[-1].append(token)
    raise Stop("the brackets of its text don't match")


CLAUSES = {"CONSTRAINT", "PRIMARY", "NOT", "NULL", "UNIQUE", "CHECK", "DEFAULT", "COLLATE",
           "REFERENCES", "GENERATED", "AS", "FOREIGN", "DEFERRABLE"}


def split_clauses(tokens: List[Token]) -> List[List[Token]]:
    """A column definition as [name and type], then one list a constraint of the column."""
    parts: List[List[Token]] = [[tokens[0]]]
    depth = 0
    previous = ""
    for token in tokens[1:]:
        inside = (previous in ("SET", "CONSTRAINT", "COLLATE", "REFERENCES")
                  or (token.word == "NULL" and previous in ("NOT", "DEFAULT"))
                  or (token.word == "DEFERRABLE" and previous == "NOT")
                  or (parts[-1][0].word == "CONSTRAINT" and len(parts[-1]) == 2))
        if depth == 0 and token.word in CLAUSES and not inside:
            parts.append([])
        parts[-1].append(token)
        depth += {"(": 1, ")": -1}.get(token.text, 0)
        previous = token.word
    return parts


def clause_kind(clause: List[Token]) -> str:
    """The keyword that says what a column constraint is, past a CONSTRAINT name."""
    words = [token.word for token in clause]
    if words[0] == "CONSTRAINT":
        words = words[2:] or words
    return "DEFERRABLE" if words[:2] == ["NOT", "DEFERRABLE"] else words[0]


class Column(NamedTuple):
    name: str
    type: str
    generated: bool
    boolean: bool  # text with DEFAULT TRUE or FALSE: old rows that ALTER TABLE gave it read as numbers


class Table(NamedTuple):
    """One of the eight tables, as it is in this database."""
    name: str                   # as the database spells it
    sql: str
    columns: Dict[str, Column]  # by lower-case name
    key: str                    # SQL for the row's key: a name of the rowid, or "id" WITHOUT ROWID
    rowid: bool
    strict: bool
    parents: Dict[str, str]     # the tables that its reference columns mean

    @property
    def quoted(self) -> str:
        return quote(self.name)

    def has(self, *columns: str) -> bool:
        return all(column.lower() in self.columns for column in columns)

    def text(self, alias: str, column: str) -> str:
        """SQL for a column as VARCHAR would hold it: '7' for the number 7 in a STRING column,
        or '007' where the column refers to that id and to no other that reads as 7."""
        name = "%s.%s" % (alias, quote(column))
        if not self.has(column):
            return "NULL"
        kind, boolean = self.columns[column.lower()].type.upper(), self.columns[column.lower()].boolean
        if not (is_string(kind) or is_numeric(kind) or boolean):
            return name
        parent = self.parents.get(column.lower())
        if not parent or not is_string(kind):
            return as_text(name)
        return ("CASE WHEN typeof({0}) IN ('integer', 'real') THEN COALESCE((SELECT CASE WHEN count(*) = 1 "
                "THEN min(p.id) END FROM main.{1} p WHERE p.id = {0}), {2}) ELSE {0} END"
                ).format(name, quote(parent), as_text(name))


def as_text(name: str) -> str:
    """SQL that turns a number into text that reads back as the same number, and nothing else.

    CAST keeps 15 digits of a REAL (https://sqlite.org/lang_expr.html#castexpr); where that
    is too few, 17 always do.
    """
    return ("CASE typeof({0}) WHEN 'integer' THEN CAST({0} AS TEXT) WHEN 'real' THEN "
            "CASE WHEN CAST(CAST({0} AS TEXT) AS REAL) = {0} THEN CAST({0} AS TEXT) "
            "ELSE printf('%!.17g', {0}) END ELSE {0} END").format(name)


def is_string(kind: str) -> bool:
    """Whether a declared type is the STRING that DESIGN.md section 4 turns into VARCHAR."""
    return re.fullmatch(r"\s*STRING\s*(\(.*\))?\s*", kind, re.IGNORECASE) is not None


def is_numeric(kind: str) -> bool:
    """Whether a declared type has an affinity that turns text into numbers (https://sqlite.org/datatype3.html)."""
    text = kind.upper()
    return not is_string(text) and ("INT" in text or not (
        text == "" or text == "ANY" or any(word in text for word in ("CHAR", "CLOB", "TEXT", "BLOB"))))


def read_table(db: "Database", name: str) -> Optional[Table]:
    """Table `name` of the database, whatever its case; None if there is none."""
    found = db.all("SELECT name, sql FROM main.sqlite_master WHERE type = 'table' AND lower(name) = %s"
                   % literal(name.lower()))
    if not found:
        return None
    actual, sql = found[0]
    columns = {lower(row[1]): Column(row[1], row[2], row[6] in (2, 3), str(row[4]).upper() in ("TRUE", "FALSE")
                                     and any(word in row[2].upper() for word in ("CHAR", "CLOB", "TEXT")))
               for row in db.all("PRAGMA main.table_xinfo(%s)" % quote(actual)) if row[6] != 1}
    options = set(parse_table(sql).options) if re.match(r"(?i)create\s+table\b", sql) else set()
    rowid = "WITHOUT" not in options
    free = [alias for alias in ("rowid", "_rowid_", "oid") if alias not in columns]
    key = "".join(free[:1]) if rowid else quote("id")
    parents = dict(ROOT_SOURCES.get(name, []) + OTHER_REFERENCES.get(name, []), root_id="goals")
    return Table(actual, sql, columns, key, rowid, "STRICT" in options, parents)


def read_schema(db: "Database") -> Dict[str, Table]:
    """The tables of the target that this database has, by their target names.

    Raises Stop (status 2) for a database that is not ours, and (status 1) for a table
    that could not be recreated without loss, saying which and why.
    """
    schema: Dict[str, Table] = {}
    goals = [row[0].lower() for row in db.all("SELECT p.name FROM main.sqlite_master m, pragma_table_xinfo(m.name) p "
                                              "WHERE m.type = 'table' AND lower(m.name) = 'goals'")]
    if not {"id", "type", "name", "parent_id"} <= set(goals):
        raise Stop("%s is no Fractal Goals database: it has no table goals with id, type, name, parent_id"
                   % db.path, 2, "name the app's own database")
    for name in list(TABLES) + ["sessions", "practice_session_goals"]:
        try:
            if name in TABLES and db.all("SELECT 1 FROM main.sqlite_master WHERE lower(name) = '%s' "
                                         "AND type = 'view'" % name):
                raise Stop("it is a view")
            table = read_table(db, name)
            if table and (name in TABLES or re.match(r"(?i)create\s+table\b", table.sql)):
                schema[name] = table
            if table and name in TABLES:
                check_shape(db, table, name)
            if name == "sessions" in schema and schema[name].has("id") and db.all(
                    "SELECT 1 FROM main.sessions WHERE id IS NOT NULL GROUP BY id HAVING count(*) > 1 LIMIT 1"):
                raise Stop("an id occurs twice")
            if (name == "practice_session_goals" in schema and not link_columns(schema)
                    and db.all("SELECT 1 FROM main.%s LIMIT 1" % quote(name))):
                raise Stop("no telling which of its columns name a session and a goal")
        except Stop as stop:
            check_interrupt()
            raise Stop("table %s can't be migrated: %s" % (name, stop),
                       advice="give it a shape that the README's section on limits allows") from None
    check_ids(db, schema)
    return schema


def check_ids(db: "Database", schema: Dict[str, Table]) -> None:
    """Raise Stop where a root_id, which is text, could not be the id of a goal."""
    for name, table in schema.items():
        kind = table.columns["root_id"].type.upper() if name in TABLES and table.has("root_id") else "TEXT"
        if is_numeric(kind):
            raise Stop("table %s can't be migrated: its root_id %s would turn text into numbers" % (name, kind),
                       advice="declare it VARCHAR first")
    kind = schema["goals"].columns["id"].type
    if "INT" in kind.upper() or (not is_string(kind) and db.all(
            "SELECT 1 FROM main.%s WHERE typeof(id) IN ('integer', 'real') LIMIT 1" % schema["goals"].quoted)):
        raise Stop("table goals can't be migrated: its ids are numbers, a root_id is text",
                   advice="make them text, in all references as well")


def check_shape(db: "Database", table: Table, name: str) -> None:
    """Raise Stop if the table is of a kind that a rebuild could not carry over whole."""
    body = parse_table(table.sql)
    listed = [lower(item[0].name) for item in body.items if item[0].word not in TABLE_CONSTRAINT]
    if listed != list(table.columns):
        raise Stop("its text and its columns disagree")
    if "id" not in table.columns or (name in ROOT_SOURCES and not table.has(ROOT_SOURCES[name][-1][0])):
        raise Stop("it lacks a column that says what its rows belong to")
    unique = [row[1] for row in db.all("PRAGMA main.index_list(%s)" % table.quoted) if row[2] and not row[4]]
    keys = [[row[2] for row in db.all("PRAGMA main.index_info(%s)" % quote(index))] for index in unique]
    primary = [(row[1].lower(), row[2].upper()) for row in db.all("PRAGMA main.table_info(%s)" % table.quoted)
               if row[5]]
    if not table.rowid and [column for column, _ in primary] != ["id"]:
        raise Stop("it is WITHOUT ROWID and its PRIMARY KEY is not its id")
    if primary != [("id", "INTEGER")] and not any([str(c).lower() for c in key] == ["id"] for key in keys):
        raise Stop("its id is not unique (no PRIMARY KEY and no UNIQUE on it alone)")
    generated = [column for column in table.parents if table.has(column) and table.columns[column].generated]
    if generated:  # a trigger does not see it change
        raise Stop("its %s is a generated column" % generated[0])
    if not table.key:
        raise Stop("columns hide every name of its rowid")


def declaration(name: str, column: str, table: Table) -> str:
    """What ALTER TABLE ADD COLUMN can say of a target column now; edit_table says the rest later.

    ALTER refuses CURRENT_TIMESTAMP (https://sqlite.org/lang_altertable.html), so the place is
    kept by DEFAULT (+NULL), which nobody else writes.
    """
    text = re.sub("NOT NULL(?! ON CONFLICT)", "", TABLES[name][column].replace("CURRENT_TIMESTAMP", "(+NULL)"))
    first, _, rest = text.partition(" ")
    return "%s %s %s" % (quote(column), STRICT_TYPES.get(first, first) if table.strict else first, rest)


def strings_like(sql: str, names: Sequence[str]) -> List[Token]:
    """The tokens in double quotes that are no column of today's, but will be one of these new names: SQLite takes
    them for strings (https://sqlite.org/quirks.html#dblquote)."""
    tokens = tokenize(sql)
    columns = [item[0] for item in parse_table(sql).items] if tokens[1].word == "TABLE" else []
    return [token for before, token in zip(tokens, tokens[1:]) if token.text[0] == '"' and lower(token.name) in names
            and before.word not in (".", "REFERENCES", "CONSTRAINT", "COLLATE", "INDEX") and token not in columns]


def requoted(sql: str, names: Sequence[str]) -> str:
    """A statement in which such strings are in single quotes, to stay what they are."""
    for token in reversed(strings_like(sql, names)):
        sql = sql[:token.start] + literal(token.name) + sql[token.end:]
    return sql


def edit_table(name: str, table: Table, skip: Sequence[str]) -> Optional[str]:
    """The text of `table` after its name, brought to the target; None if it is there already.

    Edits the text itself: what PRAGMAs don't tell (CHECKs, collations, comments, conflict
    clauses) stays as it stands. Editing the result again changes nothing.
    """
    body = parse_table(table.sql)
    edits: List[Tuple[int, int, str]] = []
    keys = [key for item in body.items for key in foreign_keys(item)]
    for item in body.items:
        if item[0].word not in TABLE_CONSTRAINT:
            edit_column(name, item, keys, edits)
    missing = ["CONSTRAINT %s CHECK (%s)" % (check, CHECKS[check][1]) for check in missing_checks(name, table, skip)]
    if missing:
        edits.append((body.close, body.close, "".join(",\n    " + text for text in missing) + "\n"))
    sql = table.sql
    for start, end, text in sorted(edits, reverse=True):
        before = sql[:start] if text or sql[end] not in " ,)\n" else sql[:start].rstrip(" ")
        sql = before + text + (" " if text and sql[end] not in " \t\r\n,)" else "") + sql[end:]
    return None if same_sql(sql, table.sql) else sql[body.name_end:]


def missing_checks(name: str, table: Table, skip: Sequence[str]) -> List[str]:
    """The checks of the target, by name, that a table's text has not got and that its columns allow."""
    texts = [table.sql[item[0].start:item[-1].end] for item in parse_table(table.sql).items]
    return [check for check, (owner, expression, columns) in CHECKS.items()
            if owner == name and check not in skip and table.has(*columns)
            and not any(same_sql(text, "CONSTRAINT %s CHECK (%s)" % (check, expression)) for text in texts)]


def foreign_keys(item: List[Token]) -> Iterator[Tuple[str, List[Token]]]:
    """The column of each one-column foreign key that an item of a table declares, and what follows REFERENCES."""
    clauses = split_clauses(item)
    for before, clause in zip(clauses, clauses[1:]):
        if clause_kind(clause) == "REFERENCES":
            target = clause[[token.word for token in clause].index("REFERENCES") + 1:]
            if item[0].word not in TABLE_CONSTRAINT:
                yield item[0].name.lower(), target
            elif [token.word for token in before[-5:-2]] == ["FOREIGN", "KEY", "("]:
                yield before[-2].name.lower(), target


def edit_action(target: List[Token], action: str, edits: List[Tuple[int, int, str]]) -> None:
    """Make `action` the ON DELETE of what follows REFERENCES; all else that it says stays."""
    words = [token.word for token in target]
    end = words.index(")") if words[1:2] == ["("] else 0
    present = [i for i in range(end, len(words) - 2) if words[i:i + 2] == ["ON", "DELETE"]]
    if present and all(words[i + 2] == action for i in present):
        return
    for i in present:
        size = 4 if words[i + 2] in ("SET", "NO") else 3
        edits += [(token.start, token.end, "") for token in target[i:i + size]]
    edits.append((target[end].end, target[end].end, " ON DELETE " + action))


def edit_column(name: str, item: List[Token], keys: List[Tuple[str, List[Token]]],
                edits: List[Tuple[int, int, str]]) -> None:
    """Bring one column to the target: its type, its default, its reference; token by token, so that comments stay."""
    column = item[0].name.lower()
    head, *clauses = split_clauses(item)
    wanted, _, reference = TABLES[name].get(column, "").partition(" REFERENCES ")
    dropped: List[List[Token]] = []
    added: List[str] = []
    if len(head) > 1 and is_string(" ".join(token.name for token in head[1:])):
        edits.append((head[1].start, head[1].end, "VARCHAR"))
    if column == "root_id":
        dropped = [c for c in clauses if clause_kind(c) in ("NOT", "NULL", "DEFAULT")]
        added.append(wanted.partition(" ")[2])
    elif "CURRENT_TIMESTAMP" in wanted:
        dropped = [c for c in clauses if [token.word for token in c] == ["DEFAULT", "(", "+", "NULL", ")"]]
        added += ["DEFAULT CURRENT_TIMESTAMP"] * len(dropped)
    if column == "root_id" or (name, column) in MUST_REFERENCE:
        parent, action = reference.partition("(")[0], reference.partition(" ON DELETE ")[2]
        present = [target for owner, target in keys if owner == column and target[0].name.lower() == parent]
        for target in present:
            if action:
                edit_action(target, action, edits)
        if not present:
            added.append("REFERENCES " + reference)
    edits += [(token.start, token.end, "") for clause in dropped for token in clause]
    if added:
        edits.append((head[-1].end, head[-1].end, " " + " ".join(added)))


# --------------------------------------------------------------------------
# 3. A connection that records, waits for locks and can be interrupted
# --------------------------------------------------------------------------

SIGNALS: List[int] = []
CHANGED: List[str] = []  # what has been done for good: no signal may deny it any more


def check_interrupt() -> None:
    """Raise Stop with 129, 130 or 143 once a signal has come, unless the work is done for good."""
    if SIGNALS and not CHANGED:
        name = signal.Signals(SIGNALS[0]).name
        raise Stop("interrupted by %s" % name, 128 + SIGNALS[0], "run it again when it suits")


@contextlib.contextmanager
def on_signal(handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """Have SIGINT, SIGTERM and SIGHUP call `handler`, then again what they called before."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class Database:
    """A connection in autocommit mode: BEGIN and COMMIT are said by this script alone.

    `run` executes a statement that changes something, keeps it for --sql and shows it under
    -v; `all` and `value` read. Each waits up to `timeout` seconds for a lock, in short
    turns, since SQLite's own waiting can't be interrupted; then sqlite3.OperationalError.
    """

    def __init__(self, path: str, mode: str = "rw", timeout: float = 5.0, out: Optional["Output"] = None) -> None:
        self.path, self.timeout, self.out = path, timeout, out or Output(None, True, False)
        self.script: List[str] = []
        uri = "%s?mode=%s" % (pathlib.Path(os.path.abspath(path)).as_uri(), mode)
        self.connection = sqlite3.connect(uri, uri=True, timeout=0.1, isolation_level=None)
        self.connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
        # Python runs a signal's handler between its own instructions. A long statement has none but
        # this callback's, and ends when it says so (https://sqlite.org/c3ref/progress_handler.html).
        self.connection.set_progress_handler(self.go_on, 10_000)

    def go_on(self) -> bool:
        """Called within long statements: whether to end this one."""
        self.out.tick()
        return bool(SIGNALS and not CHANGED)

    def all(self, sql: str) -> List[Tuple[Any, ...]]:
        deadline = time.monotonic() + self.timeout
        while True:
            check_interrupt()
            try:
                return self.connection.execute(sql).fetchall()
            except sqlite3.OperationalError as error:
                check_interrupt()
                if not is_locked(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def value(self, sql: str) -> Any:
        return self.all(sql)[0][0]

    def run(self, sql: str) -> int:
        """Execute one statement; how many rows it changed."""
        self.out.statement(sql)
        before = self.connection.total_changes
        self.all(sql)
        self.script.append(sql)
        return self.connection.total_changes - before

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *error: Any) -> None:
        self.connection.close()


def is_locked(error: BaseException) -> bool:
    """Whether SQLite reports SQLITE_BUSY or SQLITE_LOCKED (no error codes before Python 3.11)."""
    return isinstance(error, sqlite3.OperationalError) and " is locked" in str(error)


# --------------------------------------------------------------------------
# 4. Where a row belongs: the derivation of root_id (DESIGN.md section 4)
# --------------------------------------------------------------------------

def link_columns(schema: Dict[str, Table]) -> Optional[Tuple[str, str, str]]:
    """The table practice_session_goals, its session column and its goal column, quoted; None if there are none."""
    table = schema.get("practice_session_goals")
    names = [column.name for column in table.columns.values()] if table else []
    sessions = [name for name in names if name.lower().endswith("session_id")]
    goals = [name for name in names if name.lower().endswith("goal_id") and "session" not in name.lower()]
    if not table or not sessions or not goals:
        return None
    return table.quoted, quote(sessions[0]), quote(goals[0])


def link_order(schema: Dict[str, Table]) -> str:
    """What says which of a session's links came first."""
    table, links = schema["practice_session_goals"], link_columns(schema)
    return table.key if table.rowid or not links else links[2]


def sources(schema: Dict[str, Table], name: str) -> List[Tuple[str, Table]]:
    """The columns and parent tables that give rows of a table their root, as far as they exist."""
    return [(column, schema[parent]) for column, parent in ROOT_SOURCES.get(name, [])
            if name in schema and schema[name].has(column) and parent in schema
            and (parent in TABLES or schema[parent].has("id", "root_id"))]


def references(schema: Dict[str, Table], name: str) -> List[Tuple[str, Table]]:
    """The columns of a table that refer to another, and that table: its sources first."""
    return sources(schema, name) + [(column, schema[parent]) for column, parent in OTHER_REFERENCES.get(name, [])
                                    if schema[name].has(column) and parent in schema]


def key_type(table: Table) -> str:
    return "INTEGER PRIMARY KEY" if table.rowid else "PRIMARY KEY"


def find_goal_edges(db: Database, schema: Dict[str, Table]) -> None:
    """Fill temp.goal_parent (child, parent) and temp.goal_link (session, goal, position, stored root):
    who takes the root from whom, by key, with indexes."""
    goals = schema["goals"]
    table, key = goals.quoted, goals.key
    db.run("CREATE TEMP TABLE goal_parent AS SELECT g.%s AS child, p.%s AS parent FROM main.%s g JOIN main.%s p "
           "ON p.id = %s" % (key, key, table, table, goals.text("g", "parent_id")))
    db.run("CREATE INDEX temp.goal_parent_index ON goal_parent (parent, child)")
    db.run("CREATE INDEX temp.goal_child_index ON goal_parent (child)")
    db.run("CREATE TEMP TABLE goal_link (session, goal, position, stored)")
    links = link_columns(schema)
    if links:
        db.run("INSERT INTO goal_link SELECT s.{key}, g.{key}, {position}, {stored} FROM main.{0} k "
               "JOIN main.{goals} s ON s.id = k.{1} JOIN main.{goals} g ON g.id = k.{2} "
               "WHERE s.type = '{3}' AND s.parent_id IS NULL"
               .format(*links, SESSION, key=key, goals=table, stored=goals.text("s", "root_id"),
                       position="k." + link_order(schema)))
    db.run("CREATE INDEX temp.goal_link_index ON goal_link (session, goal)")


# Roots spread from the tops over the keys of an indexed edge table: linear in the number of goals at any depth.
SPREAD = """
    WITH RECURSIVE tree(key, root, doubt) AS (
        SELECT * FROM ({tops})
        UNION ALL
        SELECT e.child, t.root, 0 FROM tree t JOIN goal_parent e ON e.parent = t.key)
    INSERT INTO root_goals
    SELECT t.key, NULLIF(t.root, ''), {stored}, t.doubt FROM tree t JOIN main.{table} g ON g.{key} = t.key"""
# Goals without a parent row: a session has the root that is stored, any other goal is its own.
TOPS = """
    SELECT g.{key} AS key, CASE WHEN g.type = '{session}' AND g.parent_id IS NULL
                                THEN COALESCE(NULLIF({stored}, ''), {id}) ELSE {id} END AS root, 0 AS doubt
    FROM main.{table} g
    WHERE g.{key} NOT IN (SELECT child FROM goal_parent) AND g.{key} """
NOT_LINKED = "NOT IN (SELECT session FROM goal_link)"
LEFT = "session NOT IN (SELECT key FROM root_goals)"
# Linked sessions: the stored root if a linked goal has it, else that of the first link.
LINKED = """
    SELECT session, root, doubt FROM (
        SELECT k.session, r.root, row_number() OVER (all_links ORDER BY r.root = k.stored DESC, k.position) AS n,
               min(r.root) OVER all_links <> max(r.root) OVER all_links
               AND NOT COALESCE(max(r.root = k.stored) OVER all_links, 0) AS doubt
        FROM goal_link k JOIN root_goals r ON r.key = k.goal
        WHERE k.""" + LEFT + """ {which}
        WINDOW all_links AS (PARTITION BY k.session))
    WHERE n = 1"""
ALL_KNOWN = "AND k.session NOT IN (SELECT session FROM goal_link WHERE goal NOT IN (SELECT key FROM root_goals))"
ONE_OF_A_RING = """IN (
    WITH RECURSIVE
        edge(a, b) AS (SELECT child, parent FROM goal_parent UNION ALL SELECT session, goal FROM goal_link),
        reach(session, at) AS (SELECT session, goal FROM goal_link WHERE """ + LEFT + """
                               UNION SELECT reach.session, edge.b FROM reach JOIN edge ON edge.a = reach.at)
    SELECT COALESCE(min(CASE WHEN at = session THEN session END), min(session)) FROM reach)"""


def derive_goals(db: Database, schema: Dict[str, Table]) -> None:
    """Fill temp.root_goals (key, root, stored, doubt): rules 1 to 4 for goals.

    Goals in a cycle get no row; a session whose links leave a choice gets doubt = 1.
    """
    find_goal_edges(db, schema)
    goals = schema["goals"]
    names = {"table": goals.quoted, "key": goals.key, "session": SESSION,
             "id": goals.text("g", "id"), "stored": goals.text("g", "root_id")}
    db.run("CREATE TEMP TABLE root_goals (key %s, root TEXT, stored TEXT, doubt)" % key_type(goals))
    tops = TOPS.format(**names)
    db.run(SPREAD.format(tops=tops + NOT_LINKED, **names))
    # A linked goal may itself hang below a linked session: those whose goals are all
    # known first, then those with one known, then, for a ring of links, one as it stands.
    steps = [LINKED.format(which=ALL_KNOWN), LINKED.format(which=""), tops + ONE_OF_A_RING]
    while db.value("SELECT count(*) FROM goal_link WHERE " + LEFT):
        if not any(db.run(SPREAD.format(tops=step, **names)) for step in steps):
            break


def derive(db: Database, schema: Dict[str, Table]) -> None:
    """Fill a temporary root_<table> for each table: key, root (NULL: none), stored; and lost0, lost1, ...,
    true where the row that the first, the second, ... of its references names is gone.

    One pass a table; the phases, the decisions and the report read these.
    """
    for old, in db.all("SELECT name FROM temp.sqlite_master WHERE type = 'table' AND "
                       "(name GLOB 'root_*' OR name GLOB 'goal_*')"):
        db.run("DROP TABLE temp." + quote(old))
    derive_goals(db, schema)
    for name in TABLES:
        if name == "goals" or name not in schema:
            continue
        table, giving = schema[name], len(sources(schema, name))
        roots, joins, lost = [], [], []
        for at, (column, parent) in enumerate(references(schema, name)):
            joins.append("LEFT JOIN main.%s p%d ON p%d.id = %s" % (
                parent.quoted, at, at, table.text("c", column)))
            lost.append("c.%s IS NOT NULL AND p%d.id IS NULL" % (quote(column), at))
            target = next((n for n in TABLES if schema.get(n) is parent), None)
            if at < giving and target:
                joins.append("LEFT JOIN temp.root_%s m%d ON m%d.key = p%d.%s" % (target, at, at, at, parent.key))
                roots.append("m%d.root" % at)
            elif at < giving:
                roots.append("NULLIF(p%d.root_id, '')" % at)
        stored = table.text("c", "root_id")
        db.run("CREATE TEMP TABLE root_%s (key %s, root TEXT, stored TEXT%s)" % (
            name, key_type(table), "".join(", lost%d" % at for at in range(len(lost)))))
        db.run("INSERT INTO temp.root_%s SELECT %s FROM main.%s c %s" % (
            name, ", ".join(["c." + table.key, "COALESCE(%s, NULLIF(%s, ''))" % (", ".join(roots + ["NULL"]), stored),
                             stored] + lost), table.quoted, " ".join(joins)))


def count_true(db: Database, source: str, tests: Dict[Any, str]) -> Dict[Any, int]:
    """For how many rows of `source` (what follows FROM) each test holds, by its name, in one pass; none: left out."""
    row = db.all("SELECT %s FROM %s" % (", ".join("sum(%s)" % test for test in tests.values()), source))[0]
    return {name: count for name, count in zip(tests, row) if count}


# --------------------------------------------------------------------------
# 5. Triggers: fill, guard, move (DESIGN.md section 4)
# --------------------------------------------------------------------------

# NULL as well as '': without the phase constraints the column may be a plain one.
EMPTY = "COALESCE(NEW.root_id, '') = ''"


class Trigger(NamedTuple):
    name: str
    table: str
    sql: str


def trigger(name: str, event: str, table: str, when: str, *statements: str) -> Trigger:
    """One CREATE TRIGGER; `event` is its time and cause, '' for `when` means always."""
    return Trigger(name, table, "CREATE TRIGGER %s %s ON %s%s BEGIN\n  %s;\nEND" % (
        name, event, quote(table), "\n  WHEN " + when if when else "", ";\n  ".join(statements)))


def refuse(message: str) -> str:
    return "SELECT RAISE(ABORT, %s)" % literal(message)


def derived(schema: Dict[str, Table], name: str, row: str) -> str:
    """SQL for the root that a row of a table other than goals takes from its parents; NULL: none."""
    looked_up = ["(SELECT NULLIF(root_id, '') FROM %s WHERE id = %s.%s)" % (parent.quoted, row, column)
                 for column, parent in sources(schema, name)]
    return "COALESCE(%s, NULL)" % ", ".join(looked_up) if looked_up else "NULL"


def derived_goal(schema: Dict[str, Table], row: str) -> str:
    """SQL for the root of a row of goals, by the rules of DESIGN.md section 4."""
    stored = "NULLIF(%s.root_id, '')" % row
    links = link_columns(schema)
    if links:
        roots = ("SELECT l.root_id FROM {0} k JOIN goals l ON l.id = k.{2} WHERE k.{1} = {row}.id "
                 "AND l.id <> {row}.id").format(*links, row=row)
        stored = ("COALESCE(CASE WHEN {0}.root_id IN ({1}) THEN {0}.root_id END, ({1} ORDER BY k.{2} LIMIT 1), {3})"
                  .format(row, roots, link_order(schema), stored))
    return ("COALESCE((SELECT p.root_id FROM goals p WHERE p.id = {0}.parent_id), CASE WHEN {0}.type = '{1}' "
            "AND {0}.parent_id IS NULL THEN {2} END, {0}.id)").format(row, SESSION, stored)


def reroot_sessions(schema: Dict[str, Table], which: str) -> str:
    """The statement that gives those of some sessions that have no parent their root again."""
    return ("UPDATE goals SET root_id = {0} WHERE {1} AND type = '{2}' AND parent_id IS NULL AND root_id <> {0}"
            .format(derived_goal(schema, "goals"), which, SESSION))


def follow(schema: Dict[str, Table], parent: str, row: str) -> List[str]:
    """Statements that bring the children of a row of `parent` (not goals' own) to their root again."""
    found = []
    for name, links in ROOT_SOURCES.items():
        for column, source in links:
            if source == parent and name in schema and schema[name].has(column):
                table = schema[name].quoted
                root = derived(schema, name, table)
                found.append("UPDATE %s SET root_id = %s WHERE %s = %s.id AND root_id <> %s" % (
                    table, root, column, row, root))
    return found


def not_done(table: Table, when: str) -> str:
    """The statement after one that gives NEW its root: OR IGNORE in the app's statement may have skipped that one,
    if another row has the same values under an owner's UNIQUE (https://sqlite.org/lang_createtrigger.html)."""
    old = "''" if when == EMPTY else "OLD.root_id"
    return refuse("root_id of %s can't be set: UNIQUE values of another row" % table.name) + (
        " WHERE {0} AND (SELECT root_id FROM {1} WHERE {2} = NEW.{2}) = {3}".format(when, table.quoted, table.key, old))


def child_triggers(schema: Dict[str, Table], name: str) -> List[Trigger]:
    """Fill, guard and move for a table whose rows take their root from a parent row."""
    table, root = schema[name].name, derived(schema, name, "NEW")
    parents = sources(schema, name)
    # Where there is no root, fill writes '' once more, which guard refuses: the lookup is made once
    # a row, and OR IGNORE in the app's statement can't skip it, as it would a NULL.
    fill = "UPDATE {0} SET root_id = COALESCE({1}, '') WHERE {2} = NEW.{2} AND {3}".format(
        quote(table), root, schema[name].key, EMPTY)
    unfilled, unmoved = (not_done(schema[name], when) for when in (EMPTY, "OLD.root_id <> " + root))
    if not parents:
        missing = refuse("%s.root_id is missing: name the fractal" % name)
        return [trigger("trg_%s_fill" % name, "AFTER INSERT", table, EMPTY, missing),
                trigger("trg_%s_guard" % name, "AFTER UPDATE OF root_id", table, EMPTY, missing)]
    columns = [column for column, _ in parents]
    mismatch = refuse("root_id does not match: this row of %s belongs to the fractal of its %s" % (
        name, " or ".join(columns))) + " WHERE NEW.root_id <> '' AND NEW.root_id <> %s" % root
    orphan = refuse("%s.root_id cannot be derived: no row that %s refers to has one" % (
        name, ", ".join(columns))) + " WHERE %s AND %s IS NULL" % (EMPTY, root)
    return [
        trigger("trg_%s_fill" % name, "AFTER INSERT", table, "", mismatch, fill, unfilled),
        trigger("trg_%s_guard" % name, "AFTER UPDATE OF root_id", table,
                EMPTY + " OR (NEW.root_id <> OLD.root_id AND OLD.root_id <> '')", mismatch, orphan, fill),
        trigger("trg_%s_move" % name, "AFTER UPDATE OF " + ", ".join(columns), table,
                "NEW.root_id = OLD.root_id AND NEW.root_id <> %s" % root,
                "UPDATE {0} SET root_id = {1} WHERE {2} = NEW.{2}".format(quote(table), root, schema[name].key),
                unmoved)]


def parent_triggers(schema: Dict[str, Table], name: str) -> List[Trigger]:
    """Keep the children's roots when a parent row comes, changes its root, or goes."""
    table = schema[name].name
    moved, gone = follow(schema, name, "NEW"), follow(schema, name, "OLD")
    if not moved:
        return []
    # In our tables '' lasts no longer than the statement.
    lasting = " AND NEW.root_id IS NOT ''" if name in TABLES else ""
    return [trigger("trg_%s_adopt" % name, "AFTER INSERT", table, "NEW.root_id <> ''", *moved),
            trigger("trg_%s_follow" % name, "AFTER UPDATE OF root_id", table,
                    "NEW.root_id IS NOT OLD.root_id" + lasting, *moved),
            trigger("trg_%s_orphan" % name, "AFTER DELETE", table, "", *gone)]


SUBTREE = ("(WITH RECURSIVE sub(id) AS (SELECT id FROM goals WHERE parent_id = {row}.id "
           "UNION SELECT g.id FROM sub JOIN goals g ON g.parent_id = sub.id) SELECT id FROM sub)")
ANCESTORS = ("(WITH RECURSIVE up(id) AS (SELECT NEW.parent_id UNION SELECT g.parent_id FROM up "
             "JOIN goals g ON g.id = up.id WHERE g.parent_id IS NOT NULL) SELECT id FROM up)")
# The walk stops at the first ancestor that has the new root: while a subtree moves, the
# order in which its rows are updated is SQLite's own.
ANCESTOR_HAS_ROOT = ("EXISTS (WITH RECURSIVE up(parent_id, root_id) AS (SELECT parent_id, root_id FROM goals "
                     "WHERE id = NEW.parent_id UNION ALL SELECT g.parent_id, g.root_id FROM up JOIN goals g "
                     "ON g.id = up.parent_id WHERE up.root_id <> NEW.root_id) "
                     "SELECT 1 FROM up WHERE root_id = NEW.root_id)")


def goal_triggers(schema: Dict[str, Table]) -> List[Trigger]:
    """Fill, guard and move for goals: as for other tables, and no goal below itself."""
    table, root = schema["goals"].name, derived_goal(schema, "NEW")
    own = "UPDATE goals SET root_id = {0} WHERE {1} = NEW.{1}".format(root, schema["goals"].key)
    below = "UPDATE goals SET root_id = {0} WHERE id IN {1} AND root_id <> {0}".format(root, SUBTREE.format(row="NEW"))
    mismatch = refuse("root_id does not match: this row of goals belongs to the fractal of its parent_id, "
                      "its linked goals or itself")
    nameless = refuse("goals.root_id cannot be derived: the row has no id") + " WHERE COALESCE(NEW.id, '') = ''"
    cycle = refuse("goals.parent_id: a goal cannot be moved under itself or its own descendant")
    return [
        trigger("trg_goals_fill", "AFTER INSERT", table, "", own + " AND " + EMPTY,
                not_done(schema["goals"], EMPTY), below,
                *linked_sessions(schema, "NEW"), *follow(schema, "goals", "NEW")),
        trigger("trg_goals_refill", "AFTER UPDATE OF root_id", table, EMPTY, nameless, own),
        trigger("trg_goals_guard_insert", "BEFORE INSERT", table,
                "NEW.root_id <> '' AND NEW.root_id <> %s" % root, mismatch),
        trigger("trg_goals_guard_update", "BEFORE UPDATE OF root_id", table,
                "NEW.root_id <> '' AND NEW.root_id <> OLD.root_id AND NEW.root_id <> %s AND NOT %s"
                % (root, ANCESTOR_HAS_ROOT), mismatch),
        trigger("trg_goals_cycle_insert", "BEFORE INSERT", table,
                "NEW.parent_id = NEW.id OR (EXISTS (SELECT 1 FROM goals WHERE parent_id = NEW.id) AND NEW.id IN %s)"
                % ANCESTORS, cycle),
        trigger("trg_goals_cycle_update", "BEFORE UPDATE OF parent_id", table,
                "NEW.parent_id IS NOT OLD.parent_id AND NEW.id IN " + ANCESTORS, cycle),
        trigger("trg_goals_move", "AFTER UPDATE OF parent_id, type", table,
                # Not where ON DELETE SET NULL frees the children of a fractal that is being deleted.
                "NEW.type IS NOT OLD.type OR (NEW.parent_id IS NOT OLD.parent_id AND (NEW.parent_id IS NOT NULL "
                "OR EXISTS (SELECT 1 FROM goals WHERE id IN (OLD.root_id, OLD.parent_id))))",
                own + " AND root_id <> " + root, not_done(schema["goals"], "OLD.root_id <> " + root), below),
        # Not for what is deleted with its fractal, parent first: re-rooting that would be cubic in the depth.
        trigger("trg_goals_orphan", "AFTER DELETE", table,
                "OLD.root_id = OLD.id OR OLD.parent_id IS NULL "
                "OR EXISTS (SELECT 1 FROM goals WHERE id IN (OLD.parent_id, OLD.root_id))",
                "UPDATE goals SET root_id = id WHERE parent_id = OLD.id AND root_id <> id",
                *linked_sessions(schema, "OLD"), *follow(schema, "goals", "OLD"))]


def linked_sessions(schema: Dict[str, Table], row: str) -> List[str]:
    """A session follows its linked goals while none of them is left in its own fractal."""
    links = link_columns(schema)
    return [reroot_sessions(schema, "id IN (SELECT {1} FROM {0} WHERE {2} = {row}.id)".format(*links, row=row))
            ] if links else []


def subtree_triggers(schema: Dict[str, Table]) -> List[Trigger]:
    """What follows a goal that has changed its root: its instances, the goals below it, the sessions linked to it.

    A subtree is one statement over a recursive subquery, not a trigger that fires itself: that would
    need recursive_triggers and end at SQLite's depth limit. There are two of them, as a subtree may hold
    goals whose linked sessions follow, and those may have subtrees of their own.
    """
    changed = "NEW.root_id <> OLD.root_id AND NEW.root_id <> ''"
    top = changed + " AND NOT EXISTS (SELECT 1 FROM goals WHERE id = NEW.parent_id)"
    session = "(NEW.type = '%s' AND NEW.parent_id IS NULL)" % SESSION
    below = "UPDATE goals SET root_id = NEW.root_id WHERE id IN %s AND root_id <> NEW.root_id" % (
        SUBTREE.format(row="NEW"))
    wanted = [("follow", changed, follow(schema, "goals", "NEW")),
              ("subtree", "%s AND NOT %s" % (top, session), [below]),
              ("session_subtree", "%s AND %s" % (top, session), [below]),
              ("sessions", changed, linked_sessions(schema, "NEW"))]
    return [trigger("trg_goals_" + kind, "AFTER UPDATE OF root_id", schema["goals"].name, when, *statements)
            for kind, when, statements in wanted if statements]


def link_triggers(db: Database, schema: Dict[str, Table]) -> List[Trigger]:
    """A session's root follows its links; the links of a deleted fractal go with it."""
    links = link_columns(schema)
    if not links:
        return []
    table = schema["practice_session_goals"].name
    new, old = (reroot_sessions(schema, "id = %s.%s" % (row, links[1])) for row in ("NEW", "OLD"))
    found = [trigger("trg_practice_session_goals_insert", "AFTER INSERT", table, "", new),
             trigger("trg_practice_session_goals_update", "AFTER UPDATE", table, "", new, old),
             trigger("trg_practice_session_goals_delete", "AFTER DELETE", table, "", old)]
    actions = [row[6] for row in db.all("PRAGMA main.foreign_key_list(%s)" % quote(table))
               if row[2].lower() == "goals"]
    if any(action in ("NO ACTION", "RESTRICT") for action in actions):
        # Without this the links would forbid deleting a fractal with foreign keys on.
        found.append(trigger("trg_goals_unlink", "BEFORE DELETE", schema["goals"].name,
                             "OLD.id = OLD.root_id OR NOT EXISTS (SELECT 1 FROM goals WHERE id = OLD.root_id)",
                             "DELETE FROM %s WHERE %s = OLD.id OR %s = OLD.id" % links))
    return found


def session_triggers(schema: Dict[str, Table]) -> List[Trigger]:
    """Instances follow their row of `sessions`, in databases that have that table."""
    if not any(parent is schema.get("sessions") for _, parent in sources(schema, "activity_instances")):
        return []
    return parent_triggers(schema, "sessions")


def wanted_triggers(db: Database, schema: Dict[str, Table]) -> Dict[str, Trigger]:
    """Every trigger of the target for this database, by name."""
    found = goal_triggers(schema) + subtree_triggers(schema) + link_triggers(db, schema) + session_triggers(schema)
    for name in TABLES:
        if name != "goals" and name in schema:
            found += child_triggers(schema, name) + parent_triggers(schema, name)
    return {one.name: one for one in found}


# --------------------------------------------------------------------------
# 6. Findings: what needs a decision (DESIGN.md section 7), and --repair
# --------------------------------------------------------------------------

class Finding(NamedTuple):
    """Rows that stand in the way, and the way out."""
    kind: str
    name: str       # the constraint, or the table's root_id
    table: str
    rows: int
    ids: List[Any]
    query: str
    resolve: str
    repairable: bool


def count_and_first(db: Database, query: str) -> Tuple[int, List[Any]]:
    """How many rows a query has, and the first column of the first few; never all at once in memory."""
    count = db.value("SELECT count(*) FROM (%s)" % query)
    return count, [row[0] for row in db.all(query + " LIMIT 20")] if count else []


def live(table: Table, alias: str = "") -> str:
    return alias + "deleted_at IS NULL" if table.has("deleted_at") else "1"


def duplicate_rows(schema: Dict[str, Table], name: str) -> str:
    """SQL for the live rows of a unique constraint: key, id, name, scope, position among equals, how many."""
    owner, (scope, _) = UNIQUE_NAMES[name]
    table = schema[owner]
    place = "r.root" if scope == "root_id" else table.text("c", scope)
    oldest = "c.created_at IS NULL, c.created_at, " if table.has("created_at") else ""
    return """
        SELECT c.{key} AS key, c.id AS id, c.name AS name, {place} AS scope,
               row_number() OVER (PARTITION BY {place}, c.name ORDER BY {oldest}c.{key}) AS position,
               count(*) OVER (PARTITION BY {place}, c.name) AS size
        FROM main.{table} c JOIN temp.root_{owner} r ON r.key = c.{key}
        WHERE {live} AND c.name IS NOT NULL AND {place} IS NOT NULL
        """.format(key=table.key, place=place, oldest=oldest, table=table.quoted, owner=owner,
                   live=live(table, "c."))


def find_duplicates(db: Database, schema: Dict[str, Table], skip: Sequence[str]) -> Iterator[Finding]:
    for name, (owner, (scope, _)) in UNIQUE_NAMES.items():
        if name in skip or owner not in schema or not schema[owner].has("name"):
            continue
        count, ids = count_and_first(db, "SELECT id FROM (%s) WHERE size > 1 ORDER BY name, scope, position"
                                     % duplicate_rows(schema, name))
        if count:
            table, where = schema[owner].quoted, live(schema[owner])
            place = scope if schema[owner].has(scope) else "NULL"
            yield Finding(
                "duplicate name", name, owner, count, ids,
                "SELECT id, {0}, name FROM {1} WHERE {2} AND ({0}, name) IN (SELECT {0}, name FROM {1} WHERE {2} "
                "GROUP BY {0}, name HAVING count(*) > 1) ORDER BY {0}, name".format(place, table, where),
                "--repair (the oldest keeps its name, newer ones become 'Name (2)'), "
                "or --skip-constraint " + name, True)


def find_check_violations(db: Database, schema: Dict[str, Table], skip: Sequence[str]) -> Iterator[Finding]:
    for name, (owner, expression, columns) in CHECKS.items():
        if name in skip or owner not in schema or not schema[owner].has(*columns):
            continue
        # A CHECK refuses the one time value that changes by itself (https://sqlite.org/deterministic.html).
        now = "".join(" OR lower(%s) IN ('now', 'subsec', 'subsecond')" % column for column in columns
                      if "(%s)" % column in expression)
        query = "SELECT id, %s FROM %s WHERE NOT (%s)%s" % (
            ", ".join(columns), schema[owner].quoted, expression, now)
        count, ids = count_and_first(db, query)
        if count:
            yield Finding("check violated", name, owner, count, ids, query,
                          "correct the rows, or --skip-constraint " + name, False)


def rootless(schema: Dict[str, Table], name: str, row: str) -> str:
    """SQL, for the operator to run, that is true for a row whose fractal can't be derived."""
    tests = ["COALESCE(%s.root_id, '') = ''" % row] if schema[name].has("root_id") else []
    for column, parent in sources(schema, name):
        inner = row + "_" + column
        kind = next((n for n in TABLES if schema.get(n) is parent), "")
        lost = ("0" if kind == "goals" else rootless(schema, kind, inner) if kind
                else "COALESCE(%s.root_id, '') = ''" % inner)
        tests.append("NOT EXISTS (SELECT 1 FROM %s %s WHERE %s.id = %s.%s AND NOT (%s))"
                     % (parent.quoted, inner, inner, row, column, lost))
    return " AND ".join(tests) or "1"


def find_rootless(db: Database, schema: Dict[str, Table]) -> Iterator[Finding]:
    for name in TABLES:
        if name in schema:
            table = schema[name]
            count, ids = count_and_first(db, "SELECT c.id FROM temp.root_%s r JOIN main.%s c ON c.%s = r.key "
                                         "WHERE r.root IS NULL" % (name, table.quoted, table.key))
            condition = "COALESCE(c.id, '') = ''" if name == "goals" else rootless(schema, name, "c")
            if count:
                yield Finding("no fractal", name + ".root_id", name, count, ids,
                              "SELECT * FROM %s c WHERE %s" % (table.quoted, condition),
                              "--repair (moves them whole to migration_quarantine), or give them a parent"
                              + (" or root_id" if table.has("root_id") else ""),
                              True)


def find_doubtful_sessions(db: Database, schema: Dict[str, Table]) -> Iterator[Finding]:
    """Sessions linked to several fractals, none of which is the stored one."""
    links, goals = link_columns(schema), schema["goals"]
    ids = [row[0] for row in db.all("SELECT g.id FROM temp.root_goals r JOIN main.%s g ON g.%s = r.key WHERE r.doubt"
                                    % (goals.quoted, goals.key))]
    if links and ids:
        yield Finding(
            "several fractals", "goals.root_id", "goals", len(ids), ids[:20],
            "SELECT {1}, group_concat({2}) FROM (SELECT * FROM {0} ORDER BY {4}) WHERE {1} IN ({3}) GROUP BY {1}"
            .format(*links, ", ".join(map(literal, ids)), link_order(schema)),
            "--repair (the first listed wins), or delete the links that are wrong", True)


def find_cycles(db: Database, schema: Dict[str, Table]) -> Iterator[Finding]:
    """The cycles of goals.parent_id, each with the number of goals in it and below it; of very many, the first."""
    table, key = schema["goals"].quoted, schema["goals"].key
    edges = dict(db.all("SELECT child, parent FROM temp.goal_parent "
                        "WHERE child NOT IN (SELECT key FROM temp.root_goals) ORDER BY child"))
    seen: Dict[Any, Any] = {}  # goal -> the one from which the walk came there
    cycles = 0
    for start in edges:
        at = start
        while at not in seen:  # the parent of a goal without root has none either
            seen[at] = start
            at = edges[at]
        if seen[at] == start and cycles < 20:
            cycles += 1
            cycle = [at]
            while edges[cycle[-1]] != at:
                cycle.append(edges[cycle[-1]])
            ids = [db.value("SELECT id FROM main.%s WHERE %s = %s" % (table, key, literal(member)))
                   for member in cycle[:20]]
            query = ("WITH RECURSIVE tree(id) AS (SELECT {1} UNION SELECT g.id FROM {0} g JOIN tree ON g.parent_id = "
                     "tree.id) SELECT id, parent_id FROM {0} WHERE id IN (SELECT id FROM tree)"
                     .format(table, literal(ids[0])))
            yield Finding(
                "cycle", "goals.parent_id", "goals", count_and_first(db, query)[0], ids, query,
                "UPDATE %s SET parent_id = NULL WHERE id = %s (it becomes a fractal of its own), or name the right "
                "parent of one of these; the query also shows what hangs below" % (table, literal(ids[0])), False)


def find_decisions(db: Database, schema: Dict[str, Table], skip: Sequence[str], phases: Sequence[str]) -> List[Finding]:
    """Everything of DESIGN.md section 7 at once. `derive` must have run on this connection."""
    found: List[Finding] = []
    if "constraints" in phases:
        found += find_duplicates(db, schema, skip)
        found += find_check_violations(db, schema, skip)
    if "backfill" in phases:
        found += find_rootless(db, schema)
        found += find_doubtful_sessions(db, schema)
        found += find_cycles(db, schema)
    return found


def as_json(value: Any) -> Any:
    """A value of SQLite as JSON can hold it; blobs as {"blob": hex}, odd text as {"text": hex}."""
    if isinstance(value, bytes):
        return {"blob": value.hex()}
    if isinstance(value, str) and not is_utf8(value):
        return {"text": value.encode("utf-8", "surrogateescape").hex()}
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return {"real": "9e999" if value > 0 else "-9e999"}
    return value


def repair(db: Database, schema: Dict[str, Table], findings: List[Finding], now: str) -> List[Dict[str, Any]]:
    """Apply the lossless repairs; what each did, before and after."""
    done: List[Dict[str, Any]] = []
    for finding in findings:
        with triggers_put_aside(db, schema[finding.table]):
            if finding.kind == "duplicate name":
                done += rename_duplicates(db, schema, finding)
            elif finding.kind == "no fractal":
                done += quarantine(db, schema[finding.table], finding, now)
            elif finding.kind == "several fractals":
                done += [{"kind": "first link wins", "table": "goals", "id": as_json(row[0]), "before": as_json(row[1]),
                          "after": as_json(row[2])} for row in db.all(
                    "SELECT g.id, r.stored, r.root FROM temp.root_goals r JOIN main.%s g ON g.%s = r.key WHERE r.doubt"
                    % (schema["goals"].quoted, schema["goals"].key))]
    return done


@contextlib.contextmanager
def triggers_put_aside(db: Database, table: Table) -> Iterator[None]:
    """Keep a table's triggers from firing: backfill and repairs are no changes that they were made for."""
    kept = db.all("SELECT name, sql FROM main.sqlite_master WHERE type = 'trigger' AND lower(tbl_name) = %s "
                  "ORDER BY rowid" % literal(table.name.lower()))
    for name, _ in kept:
        db.run("DROP TRIGGER main." + quote(name))
    yield
    for _, sql in kept:
        db.run(sql)


def rename_duplicates(db: Database, schema: Dict[str, Table], finding: Finding) -> List[Dict[str, Any]]:
    """Give all but the oldest of equal names the next number that is free among the live rows of their scope."""
    table, done = schema[finding.table], []
    db.run("CREATE TEMP TABLE equal_names AS " + duplicate_rows(schema, finding.name))
    db.run("CREATE INDEX temp.equal_names_key ON equal_names (key)")
    db.run("CREATE INDEX temp.equal_names_name ON equal_names (scope, rtrim(name) COLLATE NOCASE)")
    # The index finds what may be equal; whether it is, the column's own collation says.
    taken = ("SELECT 1 FROM temp.equal_names e JOIN main.{0} c ON c.{1} = e.key AND c.name = {{name}} "
             "WHERE e.scope = (SELECT scope FROM temp.equal_names WHERE key = {{key}}) "
             "AND rtrim(e.name) = rtrim({{name}}) COLLATE NOCASE".format(table.quoted, table.key))
    number, group = 1, None
    for key, identity, name, scope in db.all("SELECT key, id, name, scope FROM temp.equal_names WHERE position > 1 "
                                             "ORDER BY scope, name, position"):
        number, group = (number if group == (scope, name) else 1) + 1, (scope, name)
        while db.all(taken.format(name="%s || ' (%d)'" % (literal(name), number), key=literal(key))):
            number += 1
        db.run("UPDATE main.%s SET name = name || ' (%d)' WHERE %s = %s" % (
            table.quoted, number, table.key, literal(key)))
        after = db.value("SELECT name FROM main.%s WHERE %s = %s" % (table.quoted, table.key, literal(key)))
        db.run("UPDATE temp.equal_names SET name = %s WHERE key = %s" % (literal(after), literal(key)))
        done.append({"kind": "renamed", "table": finding.table, "id": as_json(identity),
                     "before": as_json(name), "after": as_json(after)})
    db.run("DROP TABLE temp.equal_names")
    return done


def quarantine(db: Database, table: Table, finding: Finding, now: str) -> List[Dict[str, Any]]:
    """Move rows whose fractal can't be derived to migration_quarantine, whole."""
    db.run(table_text("migration_quarantine", OWN_TABLES["migration_quarantine"]))
    columns = [c.name for c in table.columns.values() if not c.generated]
    done = []
    lost = "r.root IS NULL" + " AND COALESCE(c.id, '') = ''" * (finding.table == "goals")  # not what is below it
    for row in db.all("SELECT c.%s, %s FROM temp.root_%s r JOIN main.%s c ON c.%s = r.key WHERE %s" % (
            table.key, ", ".join("c." + quote(c) for c in columns), finding.table, table.quoted, table.key, lost)):
        values = dict(zip(columns, row[1:]))
        identity = next(value for column, value in values.items() if column.lower() == "id")
        text = json.dumps({column: as_json(value) for column, value in values.items()})
        db.run("INSERT INTO main.migration_quarantine VALUES (%s)" % ", ".join(map(literal, (
            finding.table, row[0] if table.rowid else None, identity, "its fractal can't be derived", text, now))))
        db.run("DELETE FROM main.%s WHERE %s = %s" % (table.quoted, table.key, literal(row[0])))
        done.append({"kind": "quarantined", "table": finding.table, "id": as_json(identity),
                     "before": json.loads(text), "after": None})
    return done


# --------------------------------------------------------------------------
# 7. The plan and the phases, in running order
# --------------------------------------------------------------------------

class Run:
    """One run over one file: its connection, its options, what it found and what it did."""

    def __init__(self, db: Database, options: argparse.Namespace, out: "Output", report: Dict[str, Any]) -> None:
        self.db, self.options, self.out, self.report = db, options, out, report
        self.schema: Dict[str, Table] = {}
        self.findings: List[Finding] = []
        self.missing: Dict[str, List[str]] = {}
        self.edited: List[str] = []
        self.counts: Dict[str, Tuple[int, int]] = {}
        self.rows: Dict[str, int] = {}
        self.before: Dict[str, int] = {}  # references to rows that no longer exist
        self.replaced: Dict[str, str] = {}  # indexes of the target's names and another definition

    def survey(self) -> None:
        """Compare schema and data with the target; fills everything the plan shows."""
        db, options = self.db, self.options
        self.schema = read_schema(db)
        derive(db, self.schema)
        self.findings = find_decisions(db, self.schema, options.skip_constraint, options.phases)
        self.missing = {name: [c for c in columns if name not in self.schema or not self.schema[name].has(c)]
                        for name, columns in TABLES.items()}
        self.edited = self.to_recreate()
        self.count()
        self.check_preconditions()
        self.check_names()
        self.check_texts()
        self.check_quotes()
        self.check_spellings()
        self.report["not_compiling_before"] = not_compiling(db)
        stored = dict(db.all("SELECT lower(name), sql FROM main.sqlite_master WHERE type = 'index'"))
        self.replaced = {name: stored[name] for name in self.to_index() if name in stored}

    def count(self) -> None:
        """Count rows, roots to backfill and to correct, references to missing rows."""
        goals = self.schema["goals"]
        self.before = {"goals.parent_id": self.db.value(
            "SELECT count(*) FROM main.{0} WHERE parent_id IS NOT NULL AND {1} NOT IN "
            "(SELECT child FROM temp.goal_parent)".format(goals.quoted, goals.key))}
        for name in [name for name in TABLES if name in self.schema]:
            tests = {"filled": "COALESCE(stored, '') = '' AND root IS NOT NULL",
                     "corrected": "stored <> '' AND stored <> root"}
            if name != "goals":
                tests.update(("%s.%s" % (name, column), "lost%d" % at)
                             for at, (column, _) in enumerate(references(self.schema, name)))
            found = count_true(self.db, "temp.root_" + name, tests)
            self.counts[name] = (found.pop("filled", 0), found.pop("corrected", 0))
            self.before.update(found)
            lost = {"%s.%s" % (name, column): quote(column) + " IS NOT NULL"
                    for column, parent in ROOT_SOURCES.get(name, []) + OTHER_REFERENCES.get(name, [])
                    if parent in TABLES and parent not in self.schema and self.schema[name].has(column)}
            if lost:  # to a table that is yet to be created
                self.before.update(count_true(self.db, "main." + self.schema[name].quoted, lost))
        self.before.update({name: one[0] for name, one in other_violations(self.db, self.schema).items()})
        self.report["references_to_missing_rows"] = dict(self.before)  # for the log of phases that do not audit
        self.rows = {name: self.db.value("SELECT count(*) FROM main." + table.quoted)
                     for name, table in self.schema.items() if name in TABLES}

    def to_recreate(self) -> List[str]:
        """The tables whose text must change; metric_values with its split_definitions, so that
        it stays the newer of the two (see TABLES)."""
        if "constraints" not in self.options.phases:
            return []
        found = {name for name, table in self.schema.items() if name in TABLES and (
            edit_table(name, table, self.options.skip_constraint) is not None
            or any("CURRENT_TIMESTAMP" in TABLES[name][column] for column in self.missing[name])
            or any(check not in self.options.skip_constraint and owner == name and not table.has(*columns)
                   for check, (owner, _, columns) in CHECKS.items()))}
        if "split_definitions" in found or "split_definitions" not in self.schema:
            found.add("metric_values")
        return [name for name in TABLES if name in found and name in self.schema]

    def check_preconditions(self) -> None:
        """Raise Stop for --phases that leave out what the chosen ones need."""
        phases = self.options.phases
        lacking = [name for name, columns in self.missing.items() if columns]
        if lacking and "columns" not in phases:
            raise Stop("--phases %s: columns are missing in %s" % (",".join(phases), ", ".join(lacking)), 2,
                       "add columns to --phases")
        if "backfill" not in phases and "constraints" in phases and any(sum(c) for c in self.counts.values()):
            raise Stop("--phases %s: rows have no right root_id yet" % ",".join(phases), 2, "add backfill to --phases")

    def check_names(self) -> None:
        """Raise Stop where something else has a name that the migration needs."""
        triggers, migrated = self.to_trigger(), read_table(self.db, "migration_log")
        owners = {("trigger", one.name): one.table.lower() for one in wanted_triggers(self.db, self.schema).values()}
        owners.update({("index", name): on.partition(" ")[0] for name, on in INDEXES.items()})
        owners.update({("index", name): table for name, (table, _) in UNIQUE_NAMES.items()})
        for kind, name, table in self.db.all("SELECT type, name, tbl_name FROM main.sqlite_master"):
            owner = owners.get(("trigger" if kind == "trigger" else "index", name.lower()), table.lower())
            ours = OWN_TABLES.get(name.lower()) if kind != "trigger" else None
            found = read_table(self.db, name) if ours and kind == "table" else None
            not_ours = kind == "trigger" and name.lower() in triggers and not migrated
            if table.lower() != owner or not_ours or (ours and (not found or list(found.columns) != list(ours))):
                raise Stop("the %s %s%s has a name that the migration needs" % (
                    kind, name, " of %s" % table if table != name else ""), advice="rename it")

    def check_texts(self) -> None:
        """Raise Stop where a statement that is to be run again can't be: sqlite3 takes UTF-8 alone."""
        for kind, name, table, sql in self.db.all("SELECT type, name, lower(tbl_name), sql FROM main.sqlite_master"):
            if not is_utf8(name + (sql or "")) and (table in self.edited or (kind == "trigger" and table in TABLES)):
                raise Stop("the CREATE statement of the %s %s holds bytes that are not UTF-8, perhaps in a comment" % (
                    kind, name), advice="write it anew in UTF-8")

    def check_quotes(self) -> None:
        """Raise Stop where a string in double quotes would become a new column; `rebuild` mends what it recreates."""
        added = {column for columns in self.missing.values() for column in columns}
        for kind, name, owner, sql in self.db.all("SELECT type, name, lower(tbl_name), sql FROM main.sqlite_master "
                                                  "WHERE type IN ('table', 'index', 'view', 'trigger') AND sql > ''"):
            if kind in ("table", "index"):
                strings = strings_like(sql, self.missing.get(owner, [])) if owner not in self.edited else []
            else:
                strings = [token for token in tokenize(sql) if token.text[0] == '"' and lower(token.name) in added
                           and is_utf8(sql) and is_string_there(self.db, sql, owner, token)]
            if strings:
                raise Stop("the %s %s says %s for a text, and the migration adds a column of that name" % (
                    kind, name, strings[0].text), advice="write it in single quotes")

    def check_spellings(self) -> None:
        """Raise Stop where a STRING column holds an id as a number that others refer to in another spelling."""
        for table, column, parent in [(self.schema[name], column, parent) for name in TABLES if name in self.schema
                                      for column, parent in references(self.schema, name)]:
            if (is_string(parent.columns["id"].type) and not is_string(table.columns[column].type) and self.db.all(
                    "SELECT 1 FROM main.{0} c JOIN main.{1} p ON p.id = c.{2} WHERE typeof(p.id) <> 'text' AND "
                    "c.{2} IS NOT {3} LIMIT 1".format(table.quoted, parent.quoted, quote(column), as_text("p.id")))):
                raise Stop("%s.id is a STRING that has made numbers of ids, which %s.%s spells otherwise"
                           % (parent.name, table.name, column), advice="make it VARCHAR, with the ids so spelled")

    def to_index(self) -> Dict[str, str]:
        """CREATE statements of the wanted indexes that aren't there in that form, by name."""
        return self.differing("index", wanted_indexes(self.options))

    def to_trigger(self) -> Dict[str, str]:
        """The same for triggers; none before every row has its root."""
        if "backfill" not in self.options.phases and any(sum(c) for c in self.counts.values()):
            return {}
        wanted = wanted_triggers(self.db, self.schema)
        return self.differing("trigger", {name: one.sql for name, one in wanted.items()})

    def differing(self, kind: str, wanted: Dict[str, str]) -> Dict[str, str]:
        stored = dict(self.db.all("SELECT lower(name), sql FROM main.sqlite_master WHERE type = '%s'" % kind))
        return {name: sql for name, sql in wanted.items() if not same_sql(stored.get(name), sql)}

    def nothing_to_do(self) -> bool:
        return not (any(self.missing.values()) or self.edited or any(map(sum, self.to_backfill().values()))
                    or self.findings or self.to_index() or self.to_trigger())

    def to_backfill(self) -> Dict[str, Tuple[int, int]]:
        """How many roots the run fills and corrects, by table."""
        return self.counts if "backfill" in self.options.phases else {}


def is_string_there(db: Database, sql: str, owner: str, token: Token) -> bool:
    """Whether a token in double quotes of a view or trigger is a string: in brackets it would be no column."""
    bracketed = "%s[%s]%s" % (sql[:token.start], token.name, sql[token.end:])
    return "no such column: " + token.name in compile_error(db, bracketed, owner) and not compile_error(db, sql, owner)


def compile_error(db: Database, sql: str, owner: str) -> str:
    """What SQLite says of the text of a view, or of a trigger on `owner` when it fires; '' if nothing."""
    tokens = tokenize(sql)
    try:
        if tokens[1].word == "VIEW":
            statements = [sql[next(token.end for token in tokens if token.word == "AS"):]]
        else:
            start = next(token.start for token in tokens[2:] if token.word in (
                "BEFORE", "AFTER", "INSTEAD", "INSERT", "UPDATE", "DELETE"))
            db.all("CREATE TEMP TRIGGER text_to_check " + sql[start:])
            statements = list(statements_on(db, owner, True).values())
        return next(filter(None, (statement_error(db, statement) for statement in statements)), "")
    except sqlite3.OperationalError as error:
        return str(error)
    finally:
        db.all("DROP TRIGGER IF EXISTS temp.text_to_check")


def statement_error(db: Database, sql: str) -> str:
    """What SQLite says of a statement when it compiles it; '' if nothing, or that a view takes no such statement."""
    try:
        db.all("EXPLAIN " + sql)
    except sqlite3.OperationalError as error:
        return "" if str(error).startswith("cannot modify") else str(error)
    return ""


def wanted_indexes(options: argparse.Namespace) -> Dict[str, str]:
    """CREATE statements of the indexes that the chosen phases make, by name."""
    found = {}
    if "indexes" in options.phases:
        found.update({name: "CREATE INDEX %s ON %s" % (name, on) for name, on in INDEXES.items()})
    if "constraints" in options.phases:
        found.update({name: "CREATE UNIQUE INDEX %s ON %s (%s) WHERE deleted_at IS NULL" % (name, table, ", ".join(on))
                      for name, (table, on) in UNIQUE_NAMES.items() if name not in options.skip_constraint})
    return found


def add_columns(run: Run) -> Dict[str, Any]:
    """[1/5] Create missing tables and add missing columns."""
    created, added = [], {}
    for name, columns in run.missing.items():
        table = run.schema.get(name)
        if not table:
            checks = ["CONSTRAINT %s CHECK (%s)" % (check, expression)
                      for check, (owner, expression, _) in CHECKS.items()
                      if owner == name and check not in run.options.skip_constraint]
            run.db.run(table_text(name, TABLES[name], checks))
            created.append(name)
            run.out.line("  created   %s" % name)
        elif columns:
            added[name] = columns
            for column in columns:
                run.db.run("ALTER TABLE main.%s ADD COLUMN %s" % (table.quoted, declaration(name, column, table)))
            run.out.line("  %-21s + %s" % (name, ", ".join(columns)))
    run.schema = read_schema(run.db)
    return {"tables": created, "columns": added}


def table_text(name: str, columns: Dict[str, str], checks: Sequence[str] = ()) -> str:
    lines = [("%s %s" % (quote(column), kind)).rstrip() for column, kind in columns.items()] + list(checks)
    return "CREATE TABLE IF NOT EXISTS main.%s (\n    %s\n)" % (quote(name), ",\n    ".join(lines))


def backfill(run: Run) -> Dict[str, Any]:
    """[2/5] Give rows their root: here, or on the way into a table that is recreated anyway."""
    for name, (filled, corrected) in run.counts.items():
        if filled or corrected:
            if name not in run.edited:
                update_roots(run.db, name, run.schema[name])
            run.out.line("  {:21} {:9,} backfilled {:7,} corrected".format(name, filled, corrected))
    return {name: {"backfilled": filled, "corrected": corrected, "corrections": corrections(run, name)}
            for name, (filled, corrected) in run.counts.items()}


def corrections(run: Run, name: str) -> List[Dict[str, Any]]:
    """The stored roots of a table that were wrong, at most a thousand of them, and the right ones."""
    if not run.counts[name][1]:
        return []
    return [{"id": as_json(row[0]), "before": as_json(row[1]), "after": as_json(row[2])} for row in run.db.all(
        "SELECT c.id, r.stored, r.root FROM temp.root_{0} r JOIN main.{1} c ON c.{2} = r.key "
        "WHERE r.stored <> '' AND r.stored <> r.root LIMIT 1000".format(
            name, run.schema[name].quoted, run.schema[name].key))]


def update_roots(db: Database, name: str, table: Table) -> None:
    """Give the rows of a table their root."""
    with triggers_put_aside(db, table):
        db.run("UPDATE main.{0} SET root_id = (SELECT r.root FROM temp.root_{1} r WHERE r.key = {0}.{2}) "
               "WHERE {2} IN (SELECT key FROM temp.root_{1} WHERE stored IS NOT root AND root IS NOT NULL)"
               .format(table.quoted, name, table.key))


def recreate_tables(run: Run) -> Dict[str, Any]:
    """[3/5] Rebuild each table whose text changes; its rows are copied and proven equal."""
    done = {}
    for name in run.edited:
        table = run.schema[name]
        table = table._replace(sql=requoted(table.sql, run.missing[name]))
        text = edit_table(name, table, run.options.skip_constraint)
        done[name] = rebuild(run, name, table, text or table.sql[parse_table(table.sql).name_end:])
        run.out.line("  %-21s %9s rows copied and proven" % (name, "{:,}".format(done[name])))
    run.schema = read_schema(run.db)
    return {"tables": done}


def rebuild(run: Run, name: str, table: Table, text: str) -> int:
    """Put a table with the new text in place of the old one (https://sqlite.org/lang_altertable.html, section 7).

    With legacy_alter_table on and foreign_keys off the rename touches neither views nor the
    references of other tables. Its own indexes and triggers go with the old table and are
    created again from their texts. Returns the number of rows; raises Stop if one differs.
    """
    db, old = run.db, table.quoted
    taken = {row[0].lower() for row in db.all("SELECT name FROM main.sqlite_master")}
    new_name = "new_" + table.name
    while new_name.lower() in taken:
        new_name += "_"
    new = quote(new_name)
    ours = {*wanted_indexes(run.options), *wanted_triggers(db, run.schema)}
    kept = [requoted(sql, run.missing[name]) if kind == "index" else sql for kind, own_name, sql in db.all(
        "SELECT type, name, sql FROM main.sqlite_master WHERE type IN ('index', 'trigger') AND sql IS NOT NULL "
        "AND lower(tbl_name) = %s ORDER BY rowid" % literal(table.name.lower())) if own_name.lower() not in ours]
    sequence = (db.all("SELECT seq FROM main.sqlite_sequence WHERE name = " + literal(table.name))
                if "sqlite_sequence" in taken else [])
    db.run("CREATE TABLE main.%s%s" % (new, unqualified(text, table.name)))
    rows = copy_rows(run, name, table, old, new)
    db.run("DROP TABLE main." + old)
    db.run("ALTER TABLE main.%s RENAME TO %s" % (new, old))
    for seq, in sequence[:1]:
        db.run("DELETE FROM main.sqlite_sequence WHERE name = " + literal(table.name))
        db.run("INSERT INTO main.sqlite_sequence (name, seq) VALUES (%s, %s)" % (literal(table.name), literal(seq)))
    for sql in kept:
        db.run(sql)
    return rows


def unqualified(text: str, name: str) -> str:
    """A table's text without its own name before its columns, which a CHECK may say and a new name would belie."""
    tokens = tokenize(text)
    for at in reversed(range(len(tokens) - 2)):
        owner, dot, column = tokens[at:at + 3]
        if dot.text == "." and not owner.text[0].isdigit() and lower(owner.name) == lower(name):
            schema = at > 1 and tokens[at - 1].text == "."
            text = text[:tokens[at - 2 * schema].start] + quote(column.name) + text[column.end:]
    return text


def copy_rows(run: Run, name: str, table: Table, old: str, new: str) -> int:
    """Copy and prove a table in ranges of its key, each proven while it is in the cache."""
    db, key = run.db, table.key
    columns = [c for c in table.columns.values() if not c.generated]
    values = {c.name: "r.root" if c.name.lower() == "root_id"
              else table.text("o", c.name) if is_string(c.type) or c.boolean
              else "o." + quote(c.name) for c in columns}
    names = ([key] if table.rowid else []) + [quote(c) for c in values]
    source = "FROM main.%s o LEFT JOIN temp.root_%s r ON r.key = o.%s" % (old, name, key)
    tests = ["n.%s IS NOT %s COLLATE BINARY" % (quote(c), value) for c, value in values.items()]
    # In brackets by the hundred: an expression may be 1,000 deep (https://sqlite.org/limits.html).
    differs = " OR ".join("(%s)" % " OR ".join(tests[at:at + 100]) for at in range(0, len(tests), 100))
    copied = 0
    for where in key_ranges(db, table, old):
        # FAIL, that no conflict clause of the table may drop a row in silence; unlike ABORT it keeps
        # no journal of the statement, and what fails here is rolled back as a whole.
        copied += db.run("INSERT OR FAIL INTO main.%s (%s) SELECT %s %s WHERE %s" % (
            new, ", ".join(names), ", ".join((["o." + key] if table.rowid else []) + list(values.values())),
            source, where))
        lost = db.value("SELECT count(*) %s LEFT JOIN main.%s n ON n.%s = o.%s WHERE %s AND (n.%s IS NULL OR %s)" % (
            source, new, key, key, where, key, differs))
        if lost:
            raise Stop("the copy of %s differs from the original in %d rows" % (table.name, lost),
                       advice="please report this with the output of -v")
        run.out.progress("  %s" % name, copied, run.rows[name])
    if copied != run.rows[name]:
        raise Stop("the copy of %s has %d rows instead of %d" % (table.name, copied, run.rows[name]),
                   advice="please report this")
    return copied


def key_ranges(db: Database, table: Table, old: str) -> Iterator[str]:
    """WHERE clauses that cut a table into ranges of CHUNK_ROWS rows, however sparse its rowids."""
    if not table.rowid:
        yield "1"
        return
    first = db.value("SELECT min(%s) FROM main.%s" % (table.key, old))
    while first is not None:
        after = db.value("SELECT (SELECT {0} FROM main.{1} WHERE {0} >= {2} ORDER BY {0} LIMIT 1 OFFSET {3})".format(
            table.key, old, first, CHUNK_ROWS))
        yield "o.%s >= %d" % (table.key, first) + ("" if after is None else " AND o.%s < %d" % (table.key, after))
        first = after


def create_indexes(run: Run) -> Dict[str, Any]:
    """[4/5] Create or replace indexes and triggers, then refresh the planner's statistics."""
    db = run.db
    db.all("PRAGMA main.cache_size = -%d" % SORT_KIB)
    wanted = run.to_index()
    for at, (name, sql) in enumerate(wanted.items()):
        run.out.progress("  indexes", at, len(wanted), "")
        db.run("DROP INDEX IF EXISTS main." + quote(name))
        db.run(sql)
    db.all("PRAGMA main.cache_size = -%d" % CACHE_KIB)
    triggers = run.to_trigger()
    # SQLite fires the newest trigger first. What others do on an insert must come before the
    # UPDATE by which ours fills the root, or they would see the update of a row they don't know.
    ours = wanted_triggers(db, run.schema)
    others = {name: sql for name, sql, table in db.all(
        "SELECT name, sql, lower(tbl_name) FROM main.sqlite_master WHERE type = 'trigger' ORDER BY rowid")
        if name.lower() not in ours and table in run.schema and triggers}
    for name in [*others, *triggers]:
        db.run("DROP TRIGGER IF EXISTS main." + quote(name))
    for sql in [*triggers.values(), *others.values()]:
        db.run(sql)
    db.run("PRAGMA analysis_limit = 1000")
    for name, table in run.schema.items():
        if name in TABLES:
            db.run("ANALYZE main." + table.quoted)
    run.out.line("  %d indexes and %d triggers created" % (len(wanted), len(triggers)))
    return {"indexes": list(wanted), "replaced": run.replaced, "triggers": list(triggers)}


# --------------------------------------------------------------------------
# 8. Verification
# --------------------------------------------------------------------------

Fault = Tuple[str, str]  # its kind ("wrong", "missing" or "crossing") and where it is


def row_faults(schema: Dict[str, Table], name: str) -> Tuple[str, Dict[Fault, str]]:
    """What follows FROM, and SQL that is true for a row `c` with a fault: "wrong", its root_id is not what its
    parents say; "missing", the column names a row that does not exist; "crossing", a row of another fractal.

    A derivation apart from `derive`: this joins each row with its parents' stored roots, that one walks from the top.
    """
    parents = references(schema, name)
    source = "main.%s c" % schema[name].quoted + "".join(
        " LEFT JOIN main.%s p%d ON p%d.id = c.%s" % (parent.quoted, at, at, quote(column))
        for at, (column, parent) in enumerate(parents))
    roots = ["NULLIF(p%d.root_id, '')" % at for at in range(len(sources(schema, name)))] + ["c.root_id", "NULL"]
    wrong = goal_fault(schema) if name == "goals" else "c.root_id IS NOT COALESCE(%s)" % ", ".join(roots)
    faults = {("wrong", name): "COALESCE(c.root_id, '') = '' OR " + wrong}
    for at, (column, _) in enumerate(parents):
        where = "%s.%s" % (name, column)
        faults["missing", where] = "c.%s IS NOT NULL AND p%d.id IS NULL" % (quote(column), at)
        if name != "goals":
            faults["crossing", where] = "p%d.root_id <> c.root_id" % at
    return source, faults


def goal_fault(schema: Dict[str, Table]) -> str:
    """SQL that is true for a goal `c`, its parent being `p0`, whose root_id breaks the rules of DESIGN.md section 4."""
    links = link_columns(schema)
    roots = ("SELECT g.root_id FROM main.{0} k JOIN main.goals g ON g.id = k.{2} WHERE k.{1} = c.id".format(*links)
             if links else "SELECT 0 WHERE 0")
    return """CASE WHEN p0.id IS NOT NULL THEN c.root_id IS NOT p0.root_id
                   WHEN c.type = '{0}' AND c.parent_id IS NULL THEN EXISTS ({1}) AND c.root_id NOT IN ({1})
                   ELSE c.root_id IS NOT c.id END""".format(SESSION, roots)


def other_violations(db: Database, schema: Dict[str, Table]) -> Dict[str, Tuple[int, List[Any], str]]:
    """For each table with rows that violate a foreign key of which `references` knows nothing: how many, the first
    rowids, a statement that shows them."""
    found = {}
    for name, in db.all("SELECT name FROM main.sqlite_master WHERE type = 'table' AND rootpage > 0"):
        known = schema[name.lower()].parents if name.lower() in TABLES else {}
        keys: Dict[int, List[Tuple[str, str]]] = {}
        for number, _, parent, column, *_ in db.all("PRAGMA main.foreign_key_list(%s)" % quote(name)):
            keys.setdefault(number, []).append((lower(column), lower(parent)))
        others = [number for number, key in keys.items() if len(key) > 1 or known.get(key[0][0]) != key[0][1]]
        check = "PRAGMA main.foreign_key_check(%s)" % quote(name)
        with contextlib.suppress(sqlite3.OperationalError):  # foreign key mismatch: not even SQLite can tell
            rows = [row[1] for row in db.all(check) if row[3] in others] if others else []
            found[name] = len(rows), rows[:20], check
    return {name: one for name, one in found.items() if one[0]}


def audit(db: Database, schema: Dict[str, Table]) -> Dict[Fault, Tuple[int, List[Any], str]]:
    """For each fault that rows have: how many, the ids of the first, a query for all. One pass a table without any."""
    queries = {}
    for name in TABLES:
        source, faults = row_faults(schema, name)
        anyone = " OR ".join("(%s)" % test for test in faults.values())
        for fault in count_true(db, "%s WHERE %s" % (source, anyone), faults):
            queries[fault] = "SELECT c.id FROM %s WHERE %s" % (source, faults[fault])
        queries["missing", name + ".root_id"] = (
            "SELECT c.id FROM main.{0} c WHERE c.root_id <> '' AND c.root_id IN (SELECT root_id FROM main.{0} "
            "EXCEPT SELECT id FROM main.goals)".format(schema[name].quoted))
    links = link_columns(schema)
    if links:
        queries["crossing", "practice_session_goals"] = (
            "SELECT c.id FROM main.{0} k JOIN main.goals c ON c.id = k.{1} JOIN main.goals g ON g.id = k.{2} "
            "WHERE c.root_id <> g.root_id".format(*links))
    found = {fault: count_and_first(db, query) + (query,) for fault, query in queries.items()}
    found.update({("missing", name): one for name, one in other_violations(db, schema).items()})
    return {fault: found[fault] for fault in found if found[fault][0]}


# What SQLite says of functions, modules and collations that only the app has.
APP_BRINGS = "no such (function|module|collation)|unknown function"


def damage(db: Database, check: str = "quick_check") -> str:
    """What quick_check or integrity_check says of the file's structure; '' if nothing.

    That a value breaks its column's declaration is no damage, and SQLite 3.40 says it of sound ones
    (of tables WITHOUT ROWID, of columns that ALTER TABLE added). A table that needs what only the app brings can't
    be checked; the others can, one by one, since SQLite 3.33.
    """
    try:
        said = [row[0] for row in db.all("PRAGMA main." + check)]
    except sqlite3.OperationalError as error:
        if not re.search(APP_BRINGS, str(error)):
            raise
        if "(" in check or sqlite3.sqlite_version_info < (3, 33):
            return ""
        names = db.all("SELECT name FROM main.sqlite_master WHERE type = 'table' AND rootpage > 0")
        return "; ".join(filter(None, (damage(db, "%s(%s)" % (check, quote(row[0]))) for row in names)))
    return "; ".join([text for text in said if text != "ok" and not re.match(
        r"(NULL|NUMERIC|TEXT|non-\w+) value in |CHECK constraint failed in ", text)][:3])


def sound(db: Database, recreated: Sequence[str]) -> str:
    """What quick_check says, and integrity_check for the tables that no rebuild has renewed; '' if nothing.

    Per table since SQLite 3.33 (https://sqlite.org/pragma.html#pragma_integrity_check).
    """
    names = [row[0] for row in db.all("SELECT name FROM main.sqlite_master WHERE type = 'table' AND rootpage > 0 "
                                      "AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'")]
    others = [name for name in names if name.lower() not in recreated]
    checks = ["quick_check"] + (["integrity_check(%s)" % quote(name) for name in others]
                                if sqlite3.sqlite_version_info >= (3, 33) else ["integrity_check"] * bool(others))
    return next(filter(None, (damage(db, check) for check in checks)), "")


def not_compiling(db: Database) -> Dict[str, str]:
    """Statements on views, and on tables with the triggers that they fire, that SQLite can't compile, and why."""
    found = {}
    for name, written in db.all(
            "SELECT name, type = 'table' OR lower(name) IN (SELECT lower(tbl_name) FROM main.sqlite_master WHERE "
            "type = 'trigger') FROM main.sqlite_master WHERE type = 'view' OR (type = 'table' "
            "AND rootpage > 0 AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\')"):
        for verb, sql in statements_on(db, name, written).items():
            error = statement_error(db, sql)
            if error and not re.search(APP_BRINGS, error):
                found["%s %s" % (verb, name)] = error
    return found


def statements_on(db: Database, name: str, written: bool) -> Dict[str, str]:
    """A statement of each kind on a table or view, to be compiled with the triggers that it fires."""
    table, same = "main." + quote(name), "rowid = rowid"
    with contextlib.suppress(sqlite3.OperationalError):  # of a view that does not compile
        same = ", ".join("{0} = {0}".format(quote(row[1]))
                         for row in db.all("PRAGMA main.table_xinfo(%s)" % quote(name)) if not row[6])
    statements = {"SELECT": "SELECT * FROM " + table}
    if written:
        statements.update({"INSERT": "INSERT INTO %s DEFAULT VALUES" % table, "DELETE": "DELETE FROM " + table,
                           "UPDATE": "UPDATE %s SET %s" % (table, same)})
    return statements


def newly_broken(db: Database, before: Dict[str, str]) -> List[str]:
    """What compiled before and does no more; with the triggers of its table, one of which it is."""
    found = []
    for statement, reason in not_compiling(db).items():
        verb, _, name = statement.partition(" ")
        # Our triggers fire those of other tables: what was broken there is broken now in more statements.
        if statement in before or (verb != "SELECT" and reason in before.values()):
            continue
        triggers = db.all("SELECT name FROM main.sqlite_master WHERE type = 'trigger' AND name NOT GLOB 'trg_*' "
                          "AND tbl_name = %s AND %d" % (literal(name), verb != "SELECT"))
        found.append("%s does not compile any more: %s%s" % (statement, reason, ", in one of the triggers " + ", ".join(
            row[0] for row in triggers) if triggers else ""))
    return found


class Check(NamedTuple):
    name: str
    faults: List[str]
    note: str


def schema_faults(run: Run) -> Iterator[Check]:
    """What of the target's schema is missing, by kind."""
    schema, options, skip = run.schema, run.options, run.options.skip_constraint
    yield Check("columns", ["%s.%s is missing" % (name, column) for name, columns in TABLES.items()
                            for column in columns if name not in schema or not schema[name].has(column)], "")
    if "constraints" in options.phases:
        incomplete = [name for name in TABLES if name in schema and edit_table(name, schema[name], skip) is not None]
        yield Check("constraints", ["%s lacks %s" % (
            name, ", ".join(missing_checks(name, schema[name], skip)) or "a constraint or reference of its columns")
            for name in incomplete], "left out on purpose: " + ", ".join(skip) if skip else "")
    yield Check("indexes", ["index %s is missing or differs" % name for name in run.to_index()], "")
    if "backfill" in options.phases:
        broken = run.report["not_compiling_before"]
        yield Check("triggers", ["trigger %s is missing or differs" % name for name in run.to_trigger()]
                    + newly_broken(run.db, broken), "; ".join(map(": ".join, broken.items())))


def verify(run: Run, before: Optional[Dict[str, int]], standalone: bool) -> List[Check]:
    """[5/5] Every promise of the run, looked at afresh. `before`: references to missing rows, to compare with."""
    db, schema = run.db, run.schema
    checks = list(schema_faults(run))
    if "backfill" in run.options.phases and not checks[0].faults:
        checks += row_checks(run, before, standalone)
    if not standalone:
        quarantined = sum(one["kind"] == "quarantined" for one in run.report["repairs"])
        after = {name: db.value("SELECT count(*) FROM main." + schema[name].quoted) for name in run.rows}
        checks.append(Check("rows", ["%s had %d rows and has %d" % (name, run.rows[name], count)
                                     for name, count in after.items() if count != run.rows[name]], "counts as before"
                            + (", less %d in migration_quarantine" % quarantined if quarantined else "")))
    said = sound(db, [] if standalone else [run.schema[name].name.lower() for name in run.edited])
    checks.append(Check("integrity", [said] if said else [], ""))
    if "indexes" in run.options.phases and not any(check.faults for check in checks):
        checks.append(query_check(db))
    return checks


def row_checks(run: Run, before: Optional[Dict[str, int]], standalone: bool) -> Iterator[Check]:
    """What `audit` says of the rows: roots, references to missing rows, rows that link two fractals."""
    found = audit(run.db, run.schema)
    wrong = ["%s: %d rows have a wrong or empty root_id, id %s" % (where, count, ", ".join(map(repr, ids[:3])))
             for (kind, where), (count, ids, _) in found.items() if kind == "wrong"]
    if standalone:
        derive(run.db, run.schema)
        wrong += ["goals: %s are in a cycle of parent_id" % ", ".join(map(repr, finding.ids))
                  for finding in find_cycles(run.db, run.schema)]
    yield Check("root_id", wrong, "every one equals the derived one")
    missing = {where: (count, query) for (kind, where), (count, _, query) in found.items() if kind == "missing"}
    run.report["references_to_missing_rows"] = {where: count for where, (count, _) in missing.items()}
    more = ["%s: %d rows refer to rows that no longer exist, %d more than before (%s)" % (
            where, count, count - before.get(where, 0), query) for where, (count, query) in missing.items()
            if before is not None and count > before.get(where, 0) and not where.endswith(".root_id")
            and not (standalone and "." not in where)]  # the app's own tables are the app's affair
    yield Check("references", more, "%d to rows that no longer exist, %s" % (
        sum(count for count, _ in missing.values()),
        "no more than before" if before is not None else "no earlier count to compare with") if missing else "")
    crossing = {where: one for (kind, where), one in found.items() if kind == "crossing"}
    run.report["crossing_fractals"] = {where: {"count": count, "ids": [as_json(i) for i in ids], "query": query}
                                       for where, (count, ids, query) in crossing.items()}
    yield Check("isolation", [], "%d rows link two fractals, listed by --report"
                % sum(one[0] for one in crossing.values()) if crossing else "")


def query_check(db: Database) -> Check:
    """INDEXED BY makes a statement fail that could not use the index (https://sqlite.org/lang_indexedby.html)."""
    faults = []
    for name, sql in SCOPED_QUERIES.items():
        try:
            db.all("EXPLAIN QUERY PLAN " + sql)
        except sqlite3.OperationalError as error:
            faults.append("query '%s' can't use its index: %s" % (name, error))
    return Check("queries", faults, "%d use their index" % len(SCOPED_QUERIES))


# --------------------------------------------------------------------------
# 9. Safety: preflight, snapshot, backup, disk space, restore
# --------------------------------------------------------------------------

def check_file(path: str, what: str = "database") -> None:
    """Raise Stop unless `path` is a file that begins as a database does (https://sqlite.org/fileformat.html)."""
    if not os.path.exists(path):
        raise Stop("no such %s: %s" % (what, path), 2,
                   "name one, or set DATABASE_PATH" if what == "database" else "name a file like goals.db.backup-...")
    if not os.path.isfile(path):
        raise Stop("%s is not a file" % path, 2, "name a database file")
    with open(path, "rb") as file:
        head = file.read(100)
    if not head:
        raise Stop("%s is empty" % path, 2, "name the app's own " + what)
    if head[:16] != b"SQLite format 3\0":
        raise Stop("%s is not an SQLite database, or it is encrypted" % path, 2, "name the app's own " + what)


def is_wal(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(20)[18:20] == b"\2\2"


def size_of(path: str) -> int:
    """Bytes of a database with its -wal."""
    return sum(os.path.getsize(path + end) for end in ("", "-wal") if os.path.exists(path + end))


def file_size(size: float) -> str:
    return "%.1f MiB" % (size / 2 ** 20) if size < 2 ** 30 else "%.1f GiB" % (size / 2 ** 30)


def check_space(needs: Sequence[Tuple[str, float]]) -> str:
    """Raise Stop where a file system has less free than the sum of its (folder, bytes); else say the numbers."""
    by_device: Dict[int, List[Any]] = {}
    for folder, size in needs:
        by_device.setdefault(os.stat(folder).st_dev, [folder, 0.0])[1] += size
    said = []
    for folder, size in by_device.values():
        free = shutil.disk_usage(folder).free
        if free < size:
            raise Stop("not enough free disk in %s: %s needed, %s free" % (folder, file_size(size), file_size(free)),
                       advice="make room, or point --backup or TMPDIR elsewhere")
        said.append("%s needed, %s free in %s" % (file_size(size), file_size(free), folder))
    return "; ".join(said)


def copy_pages(source: Database, target: sqlite3.Connection, out: "Output", label: str) -> None:
    """Copy a database with the backup API, in steps, so that it can be interrupted.

    The API starts again when another process writes in between
    (https://sqlite.org/backup.html); after three restarts a read lock makes writers wait.
    Raises sqlite3.OperationalError when locked for longer than the source's timeout.
    """
    state = {"left": 0, "restarts": 0, "deadline": time.monotonic() + source.timeout}

    def progress(status: int, left: int, total: int) -> None:
        if status == 101:  # SQLITE_DONE: the copy is committed, no signal may deny it
            return
        check_interrupt()
        if status in (5, 6):  # SQLITE_BUSY, SQLITE_LOCKED
            if time.monotonic() > state["deadline"]:
                raise sqlite3.OperationalError("database is locked")
            return
        state["restarts"] += left > state["left"] > 0
        state.update(left=left, deadline=time.monotonic() + source.timeout)
        if state["restarts"] > 3 and not source.connection.in_transaction:
            raise InterruptedError
        out.progress(label, total - left, total, " pages")

    try:
        source.connection.backup(target, pages=1000, progress=progress, sleep=0.02)
    except InterruptedError:
        source.all("BEGIN")
        source.all("SELECT count(*) FROM main.sqlite_master")
        copy_pages(source, target, out, label)
    finally:
        if source.connection.in_transaction:
            source.connection.execute("ROLLBACK")


def give_new_name(path: str, name: str) -> None:
    """Rename a file without overwriting: a link fails where the name is taken, as a rename would not."""
    try:
        os.link(path, name)
    except OSError:  # the name is taken, or the file system has no hard links
        if os.path.lexists(name):
            raise Stop("%s exists already" % name, 2, "name a new file") from None
        os.rename(path, name)


@contextlib.contextmanager
def private_file(final: str, give_name: Callable[[str, str], Any] = give_new_name) -> Iterator[str]:
    """A new 0600 file beside `final`, given that name at the end; removed if that is not reached."""
    partial = "%s.partial-%d" % (final, os.getpid())
    if os.path.lexists(partial):
        raise Stop("%s exists, perhaps of a run that was killed" % partial, 2, "delete it, and run again")
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    try:
        yield partial
        if any(os.path.exists(partial + end) and os.path.getsize(partial + end) for end in ("-wal", "-journal")):
            raise Stop("%s could not be completed: a part of it is still in its journal" % final,
                       advice="look at the disk")
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        give_name(partial, final)
        sync_folder(final)
    finally:
        for end in ("", "-wal", "-shm", "-journal"):
            with contextlib.suppress(OSError):
                os.unlink(partial + end)


def give_to(path: str, like: os.stat_result) -> None:
    """Give a file to the owner of another, where root runs this for the app."""
    with contextlib.suppress(AttributeError, OSError):
        os.chown(path, like.st_uid, like.st_gid)


def sync_folder(path: str) -> None:
    """Make a new name in a folder last through a power cut, where folders can be synced."""
    with contextlib.suppress(OSError):
        folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def snapshot(path: str, target: str, timeout: float, out: "Output") -> None:
    """Copy the database at `path`, opened read-only, into the existing empty file `target`.

    A read-only connection to a WAL database would leave -wal and -shm behind, and can't roll
    back a journal that a crash left. Where no process has the file open (no -shm), the files
    are copied instead, and again if they changed meanwhile.
    """
    if is_wal(path) and not os.path.exists(path + "-shm") and copy_files(path, target):
        return
    try:
        with Database(path, "ro", timeout) as source, contextlib.closing(sqlite3.connect(target)) as copy:
            if is_wal(path):
                source.all("BEGIN")
                source.all("SELECT count(*) FROM main.sqlite_master")
            copy_pages(source, copy, out, "  snapshot")
    except sqlite3.OperationalError as error:
        if not ("readonly" in str(error) or "unable to open" in str(error)) or not copy_files(path, target):
            raise


def copy_files(path: str, target: str) -> bool:
    """Copy a database that nobody has open, with its -wal and -journal; False if it changed meanwhile."""
    def state() -> List[Any]:
        found = [(os.stat(path + end) if os.path.exists(path + end) else None) for end in ("", "-wal", "-journal")]
        return [(s.st_mtime_ns, s.st_size, s.st_ino) if s else None for s in found]

    before = state()
    try:
        for end, present in zip(("", "-wal", "-journal"), before):
            if present:
                check_interrupt()
                os.close(os.open(target + end, os.O_CREAT | os.O_RDWR, 0o600))
                shutil.copyfile(path + end, target + end)
        with contextlib.closing(sqlite3.connect(target)) as copied:  # recovers what a crash left
            copied.execute("SELECT count(*) FROM sqlite_master").fetchall()
    except (FileNotFoundError, sqlite3.DatabaseError):
        if before == state():
            raise
    if before == state():
        return True
    for end in ("-wal", "-shm", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target + end)
    os.truncate(target, 0)
    return False


@contextlib.contextmanager
def private_snapshot(path: str, timeout: float, out: "Output") -> Iterator[str]:
    """The path of a snapshot in a folder of its own, both gone in the end."""
    with tempfile.TemporaryDirectory(prefix="fractal-goals-") as folder:
        copy = os.path.join(folder, "snapshot.db")
        snapshot(path, copy, timeout, out)
        yield copy


@contextlib.contextmanager
def reading(path: str, options: argparse.Namespace, out: "Output") -> Iterator[Database]:
    """A connection that reads a database in one state and leaves no file beside it.

    Of one in WAL mode that nobody has open, and where a crash, or a copy made by hand while in use, left a -wal
    or -journal, it reads a snapshot, with the recovery that SQLite would make.
    """
    alone = not os.path.exists(path + "-shm")
    with contextlib.ExitStack() as stack:
        mode = "ro"
        if os.path.exists(path + "-journal") or (alone and (is_wal(path) or os.path.exists(path + "-wal"))):
            path, mode = stack.enter_context(private_snapshot(path, options.timeout, out)), "rw"
        db = stack.enter_context(Database(path, mode, options.timeout, out))
        db.all("BEGIN")
        yield db


def row_counts(db: Database) -> Dict[str, int]:
    """Rows of every ordinary table, by name."""
    names = [row[0] for row in db.all("SELECT name FROM main.sqlite_master WHERE type = 'table' AND rootpage > 0")]
    return {name: db.value("SELECT count(*) FROM main." + quote(name)) for name in names}


def copy_checked(source: Database, target: str, out: "Output", label: str) -> None:
    """Copy a database into a file, and look at the copy."""
    with contextlib.closing(sqlite3.connect(target)) as copy:
        copy_pages(source, copy, out, label)
    with Database(target) as copied:
        check_equal(copied, source)


def check_equal(copy: Database, source: Database) -> None:
    if damage(copy) or row_counts(copy) != row_counts(source):
        raise Stop("%s does not equal %s" % (copy.path, source.path), advice="look at the disk and run again")


def make_backup(db: Database, final: str, out: "Output") -> None:
    """Back up `db` under its own write lock, from a second connection, and check the copy before it gets its name."""
    with private_file(final) as partial, Database(db.path, "ro", db.timeout) as source:
        copy_checked(source, partial, out, "  backup")
        give_to(partial, os.stat(db.path))


def free_name(path: str, word: str) -> str:
    """`path` with a word and the time in UTC; a name that no file has."""
    name = "%s.%s-%s" % (path, word, datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ"))
    names = [name] + ["%s-%d" % (name, number) for number in range(2, 100)]
    return next((n for n in names if not os.path.lexists(n)), name)


def restore(options: argparse.Namespace, out: "Output", report: Dict[str, Any]) -> int:
    """Put a backup in place of DATABASE under an exclusive lock; what is there now is kept aside."""
    path, backup = options.path, options.restore
    check_file(backup, "backup")
    if os.path.exists(path) and os.path.samefile(path, backup):
        raise Stop("the backup and the database are one file", 2, "name the backup")
    if os.path.exists(path) and not os.path.isfile(path):
        raise Stop("%s is not a file" % path, 2, "name a database file")
    with reading(backup, options, out) as source:
        try:
            said = damage(source)
        except sqlite3.DatabaseError as error:
            if is_locked(error) or SIGNALS:
                raise
            said = str(error)
        if said:
            raise Stop("%s is damaged: %s" % (backup, said), advice="choose another backup")
        read_schema(source)
        usable = os.path.exists(path) and readable(path, options.timeout)
        out.line("Restore %s (%s, %d goals) in place of %s (%s)" % (
            backup, file_size(size_of(backup)), source.value("SELECT count(*) FROM goals"), path,
            file_size(size_of(path)) if os.path.exists(path) else "which does not exist and will be created"))
        confirm(options, out, "restore", path)
        aside = free_name(path, "replaced")
        report.update(backup=os.path.abspath(backup))
        (replace_content if usable else put_in_place)(source, path, aside, out)
    if os.path.exists(aside):
        report.update(kept_aside=aside)
        out.line("The content before is kept in %s" % aside)
    out.write("Done: %s is as %s was." % (path, backup))
    return 0


def readable(path: str, timeout: float) -> bool:
    """Whether SQLite can read the file at all. Raises sqlite3.OperationalError if it is locked or can't be opened."""
    try:
        with Database(path, "rw", timeout) as db:
            return bool(db.all("SELECT count(*) FROM main.sqlite_master"))
    except sqlite3.DatabaseError as error:
        if is_locked(error) or "unable to open" in str(error) or "readonly" in str(error):
            raise
        return False


@contextlib.contextmanager
def file_lock(path: str) -> Iterator[None]:
    """Hold the lock of a process that writes `path`, where SQLite itself can't read the file. Not for Windows.

    Raises sqlite3.OperationalError where another process has it open in WAL mode, reads or writes. The bytes are
    those of https://sqlite.org/fileformat.html#the_lock_byte_page; Windows renames no file that is open.
    """
    with open(path, "rb+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 512, 0x40000000)
        except OSError:
            raise sqlite3.OperationalError("database is locked") from None
        yield


def put_in_place(source: Database, path: str, aside: str, out: "Output") -> None:
    """Restore where there is no database that SQLite could write into: the file there, if any, is kept aside
    with the -wal and -journal that belong to it, when the new one is complete."""
    like = os.stat(path if os.path.exists(path) else os.path.dirname(path))

    def take_its_place(partial: str, final: str) -> None:
        if not os.path.exists(final):
            return give_new_name(partial, final)
        moved = []
        try:
            give_link(final, aside)
            for end in ("-wal", "-journal"):
                if os.path.exists(final + end):
                    os.rename(final + end, aside + end)
                    moved.append(end)
            os.replace(partial, final)
        except OSError:
            for end in moved:
                os.rename(aside + end, final + end)
            with contextlib.suppress(OSError):
                os.unlink(aside)
            raise

    with contextlib.ExitStack() as stack:
        if os.path.exists(path) and fcntl:
            stack.enter_context(file_lock(path))
        partial = stack.enter_context(private_file(path, take_its_place))
        copy_checked(source, partial, out, "  restore")
        if os.path.exists(path):
            os.chmod(partial, like.st_mode & 0o777)
        give_to(partial, like)
        with contextlib.suppress(OSError):
            os.unlink(path + "-shm")
    CHANGED.append("the backup is restored")


def give_link(path: str, name: str) -> None:
    """Give a file a second name; a copy, where the file system has no hard links."""
    try:
        os.link(path, name)
    except OSError:
        shutil.copyfile(path, name)


def replace_content(source: Database, path: str, aside: str, out: "Output") -> None:
    """Keep the content of a database aside, then overwrite it, under one exclusive lock."""
    with Database(path, "rw", source.timeout) as db:
        journal_mode = db.value("PRAGMA main.journal_mode")
        db.all("PRAGMA locking_mode = EXCLUSIVE")
        db.all("BEGIN EXCLUSIVE")
        db.all("COMMIT")  # the lock stays (https://sqlite.org/pragma.html#pragma_locking_mode)
        # Unchecked: what is there may be damaged, or why restore?
        with private_file(aside) as partial, contextlib.closing(sqlite3.connect(partial)) as copy:
            copy_pages(db, copy, out, "  keep aside")
        try:
            if db.value("PRAGMA page_size") != source.value("PRAGMA page_size"):
                db.all("PRAGMA journal_mode = DELETE")  # the page size of a WAL database can't change
            copy_pages(source, db.connection, out, "  restore")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):
                db.connection.execute("PRAGMA main.journal_mode = " + journal_mode)
            if isinstance(error, Stop) or is_locked(error):
                os.unlink(aside)
                raise
            raise Stop("%s; the content is also in %s" % (explain(error), aside), explain(error).status,
                       explain(error).advice) from error
        CHANGED.append("the backup is restored; the content before is in %s" % aside)
        if db.value("PRAGMA main.journal_mode = " + journal_mode) == "wal":
            with contextlib.suppress(OSError):  # the exclusive mode keeps it, and no one needs it now
                os.unlink(path + "-journal")
        db.all("PRAGMA locking_mode = NORMAL")
        check_equal(db, source)


# --------------------------------------------------------------------------
# 10. Progress and reports
# --------------------------------------------------------------------------

class Output:
    """What people see. On a terminal long steps have a live line; elsewhere lines are plain."""

    def __init__(self, stream: Any, quiet: bool, verbose: bool) -> None:
        self.stream, self.quiet, self.verbose = stream, quiet, verbose
        self.live = bool(stream and stream.isatty()) and not quiet
        self.colour = self.live and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self.started: Dict[str, float] = {}
        self.step, self.shown, self.width = "  look at the data", time.monotonic(), 0

    def write(self, text: str, end: str = "\n") -> None:
        """Print; a reader that went away (`| head`) must not stop a migration."""
        with contextlib.suppress(AttributeError, OSError, ValueError):
            if self.width:
                self.stream.write("\r" + " " * self.width + "\r")
                self.width = 0
            self.stream.write(text + end)
            self.stream.flush()

    def line(self, text: str = "") -> None:
        if not self.quiet:
            self.write(text)

    def title(self, text: str) -> None:
        self.line("\033[1m%s\033[0m" % text if self.colour else text)
        self.started.pop(self.step, None)
        self.step = "  " + text

    def statement(self, sql: str) -> None:
        if self.verbose:
            self.line("    sql> " + " ".join(sql.split()))

    def progress(self, label: str, done: int, total: int, unit: str = " rows") -> None:
        """Say how far a long step is: ten times a second on a terminal, every ten seconds in a log."""
        start = self.started.setdefault(label, time.monotonic())
        taken = time.monotonic() - start
        text = "{}: {:,} of {:,}{}, {:.0f} s".format(label, done, total, unit, taken)
        if done:
            text += ", about %d s left" % (taken / done * (total - done))
        if done >= total:
            self.started.pop(label, None)
        if total:
            self.show(text, start, 0.1)

    def tick(self) -> None:
        """Say for how long a step has gone on that counts no rows, or none for a while."""
        start = self.started.setdefault(self.step, time.monotonic())
        self.show("%s: %.0f s" % (self.step, time.monotonic() - start), start, 1)

    def show(self, text: str, start: float, pause: float) -> None:
        """Put `text` on the live line if that has been still for `pause` seconds, in a log for ten."""
        now = time.monotonic()
        if self.quiet or now - max(start, self.shown) < (pause if self.live else 10):
            return
        self.shown = now
        if self.live:
            text = text[:shutil.get_terminal_size().columns - 1]
            self.write(text, end="")
            self.width = len(text)
        else:
            self.write(text)


def show_plan(run: Run, space: str, backup: Optional[str]) -> None:
    """What the run would do, before anything happens."""
    out = run.out
    out.title("Plan")
    for name in TABLES:
        missing, (filled, corrected) = run.missing.get(name, []), run.to_backfill().get(name, (0, 0))
        words = ["create the table"] if name not in run.schema else [
            "%d columns" % len(missing) if missing else "", "{:,} roots to backfill".format(filled) if filled else "",
            "{:,} to correct".format(corrected) if corrected else "", "recreate" if name in run.edited else ""]
        out.line("  %-21s %9s rows   %s" % (name, "{:,}".format(run.rows.get(name, 0)),
                                            ", ".join(filter(None, words)) or "nothing"))
    out.line("  %d indexes, %d triggers to create%s" % (len(run.to_index()), len(run.to_trigger()),
                                                        ", and those of recreated tables again" if run.edited else ""))
    for name, sql in run.replaced.items():
        out.line("  %s replaces one that was: %s" % (name, " ".join(sql.split())))
    out.line("  backup  %s" % (backup and "%s, %s" % (backup, file_size(size_of(run.db.path))) or "none"))
    out.line("  disk    %s" % space)
    if not run.options.dry_run:
        out.line("  time    %s" % rehearsal_time(run.options))
    for text in refusing_triggers(run):
        out.line("  note    trigger %s may refuse the update that gives a new row its root_id: "
                 "name its columns (UPDATE OF ...)" % text)


def refusing_triggers(run: Run) -> Iterator[str]:
    """The owner's triggers that may refuse the UPDATE by which an insert gets its root_id."""
    ours = wanted_triggers(run.db, run.schema)
    for name, table, sql in run.db.all("SELECT name, tbl_name, sql FROM main.sqlite_master WHERE type = 'trigger'"):
        words = [token.word or token.name.upper() for token in tokenize(sql)]
        head = words[:words.index("ON")]
        watched = head[head.index("OF"):] if "OF" in head else ["ROOT_ID"]
        if ("UPDATE" in head and "ROOT_ID" in watched and "RAISE" in words and name not in ours
                and table.lower() in TABLES):
            yield "%s on %s" % (name, table)


def rehearsal_time(options: argparse.Namespace) -> str:
    """How long a rehearsal of this database took, where --report names its report."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if os.path.isfile(options.report):  # a pipe would wait for ever
            with open(options.report, encoding="utf-8") as file:
                earlier = json.load(file)
            if (earlier["status"], earlier["database"]["path"]) == ("rehearsed", options.path):
                return "%.1f s in the rehearsal of %s" % (earlier["seconds"], earlier["started"])
    return "as --dry-run takes; told here if both are given the same --report FILE"


def show_findings(run: Run) -> None:
    """The decisions that the data needs, all at once."""
    out = run.out
    out.title("Decisions")
    for finding in run.findings:
        out.write("  %s: %s, %d rows, id %s%s" % (
            finding.name, finding.kind, finding.rows, ", ".join(map(repr, finding.ids[:5])),
            ", ..." if finding.rows > 5 else ""))
        few = (finding.rows <= len(finding.ids) and None not in finding.ids
               and finding.kind not in ("cycle", "several fractals"))
        out.write("    show    %s" % ("SELECT * FROM %s WHERE id IN (%s)" % (
            quote(finding.table), ", ".join(map(literal, finding.ids))) if few else finding.query))
        repaired = run.options.repair and finding.repairable
        out.write("    resolve %s" % ("--repair does" if repaired else finding.resolve))


def with_semicolon(sql: str) -> str:
    """A statement and its semicolon, which must not become part of a comment; SQLite keeps those that have no end."""
    last = [match.group() for match in TOKEN.finditer(sql) if match.lastgroup == "comment" and match.end() == len(sql)]
    if last and last[0].startswith("--"):
        return sql + "\n;"
    return sql + (" */;" if last and not last[0].endswith("*/") else ";")


def script_text(run: Run, source: str) -> str:
    """The statements of a run as a script for the sqlite3 shell."""
    header = ["-- Made by migrate_database_improvements.py %s with SQLite %s on %s" % (
                  VERSION, sqlite3.sqlite_version, run.report["started"]),
              "-- from %s. It fits an unmigrated copy of that database and no other." % " ".join(source.split()),
              ".bail on", "PRAGMA foreign_keys = OFF;", "PRAGMA legacy_alter_table = ON;", "BEGIN IMMEDIATE;"]
    return "\n".join(header + [with_semicolon(sql.strip()) for sql in run.db.script] + ["COMMIT;", ""])


def write_file(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        file.write(text)


# --------------------------------------------------------------------------
# 11. A run, and the command line
# --------------------------------------------------------------------------

def confirm(options: argparse.Namespace, out: Output, verb: str, path: str) -> None:
    """Raise Stop unless the operator says yes: on a terminal by typing it, else by --yes."""
    if options.yes:
        return
    if not sys.stdin or not sys.stdin.isatty():
        raise Stop("no terminal to ask on", 2, "add --yes")

    def leave(number: int, frame: Any) -> None:
        SIGNALS.append(number)
        raise KeyboardInterrupt  # a handler that returns would have readline go on

    answer = ""
    with contextlib.suppress(KeyboardInterrupt), on_signal(leave):
        check_interrupt()
        out.write("Type 'yes' to %s %s: " % (verb, os.path.basename(path)), end="")
        answer = sys.stdin.readline()
    if not answer.endswith("\n"):
        out.write("")
    check_interrupt()
    if answer.strip() != "yes":
        raise Stop("cancelled, as the answer was not the word yes", 0)


def migrate(options: argparse.Namespace, out: Output, report: Dict[str, Any]) -> int:
    """The main job, live, as a rehearsal (--dry-run) or into a new file (--output)."""
    path = options.path
    check_file(path)
    size, folder, temporary = size_of(path), os.path.dirname(path), tempfile.gettempdir()
    if options.dry_run:
        space = check_space([(temporary, 5 * size)])
        with private_snapshot(path, options.timeout, out) as copy:
            return work(options, out, report, copy, space, None)
    if options.output:
        target = os.path.abspath(options.output)
        space = check_space([(os.path.dirname(target), 4 * size), (temporary, size)])
        with private_file(target) as partial:
            snapshot(path, partial, options.timeout, out)
            os.chmod(partial, os.stat(path).st_mode & 0o777)
            give_to(partial, os.stat(path))
            status = work(options, out, report, partial, space, None)
        if report["status"] == "done":
            out.write("Done: the migrated copy is %s; %s is untouched." % (target, path))
        return status
    backup = None if options.no_backup else os.path.abspath(options.backup or free_name(path, "backup"))
    space = check_space([(folder, 3 * size), (temporary, size)] + ([(os.path.dirname(backup), size)] if backup else []))
    if not (os.access(path, os.W_OK) and os.access(folder, os.W_OK)):
        raise Stop("%s or its folder can't be written" % path, advice="check owner, permissions and mount")
    try:
        return work(options, out, report, path, space, backup)
    except BaseException:
        play_journal_back(path, report)
        raise


def play_journal_back(path: str, report: Dict[str, Any]) -> None:
    """Have SQLite undo, from the journal, what a failing disk kept the run from rolling back."""
    journal = path + "-journal"
    if not os.path.exists(journal):
        return
    with contextlib.suppress(sqlite3.Error), Database(path) as db:
        db.connection.execute("SELECT count(*) FROM main.sqlite_master")
    with contextlib.suppress(FileNotFoundError), open(journal, "rb") as file:
        if file.read(8) == b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7":  # https://sqlite.org/fileformat.html
            report["warnings"].append("%s holds what was there before: keep it beside the database, at whose next "
                                      "opening SQLite plays it back" % journal)


def work(options: argparse.Namespace, out: Output, report: Dict[str, Any], path: str, space: str,
         backup: Optional[str]) -> int:
    """Survey, plan, ask, migrate the file at `path`; the exit status."""
    with Database(path, "rw", options.timeout, out) as db:
        run = Run(db, options, out, report)
        db.all("PRAGMA main.cache_size = -%d" % CACHE_KIB)
        version = db.value("PRAGMA main.data_version")
        mode = db.value("PRAGMA main.journal_mode")
        report["database"].update(journal_mode=mode, page_size=db.value("PRAGMA main.page_size"))
        said = sound(db, list(TABLES))
        if said:
            raise Stop("%s is damaged: %s" % (options.path, said),
                       advice="restore a backup of it, or see sqlite3's .recover")
        run.survey()
        out.title("Fractal Goals: %s" % ("rehearsal" if options.dry_run else "migration"))
        out.line("  database %s, %s, journal mode %s" % (options.path, file_size(size_of(options.path)), mode))
        out.line("  script %s, Python %s, SQLite %s" % (VERSION, platform.python_version(), sqlite3.sqlite_version))
        if run.nothing_to_do():
            said = sound(db, [])  # nothing is rebuilt, so nothing renews a damaged index
            if said:
                raise Stop("%s is damaged: %s" % (options.path, said), advice="try REINDEX in the sqlite3 shell")
            return say_nothing_to_do(options, out, report)
        show_plan(run, space, backup)
        check_decisions(run)
        if not (options.dry_run or options.output):
            confirm(options, out, "migrate", path)
        started = time.monotonic()
        if not transact(run, version, backup):
            return say_nothing_to_do(options, out, report)
        summary(run, time.monotonic() - started)
    return 0


def say_nothing_to_do(options: argparse.Namespace, out: Output, report: Dict[str, Any]) -> int:
    report["status"] = "nothing to do"
    out.write("Nothing to do: %s is migrated%s%s." % (
        options.path, "" if options.phases == PHASES else " as far as " + ",".join(options.phases),
        "; %s is a copy of it" % options.output if options.output else ""))
    return 0


def check_decisions(run: Run) -> None:
    """Raise Stop with status 3 if rows need a decision that --repair was not asked for or can't make."""
    run.report["decisions"] = [dict(f._asdict(), ids=[as_json(i) for i in f.ids]) for f in run.findings]
    if not run.findings:
        return
    show_findings(run)
    left = [f for f in run.findings if not (f.repairable and run.options.repair)]
    if left:
        raise Stop("the data needs %d decision%s" % (len(left), "s" * (len(left) > 1)), 3,
                   "decide as listed above and run again")


def transact(run: Run, version: int, backup: Optional[str]) -> bool:
    """Everything that changes the file, in one transaction; rolled back under --dry-run and on any failure.

    False if another run has migrated the database while this one waited for the lock.
    """
    db, options, report = run.db, run.options, run.report
    for pragma in ("foreign_keys = OFF", "legacy_alter_table = ON", "threads = 2", "secure_delete = FAST"):
        db.all("PRAGMA " + pragma)
    db.all("BEGIN IMMEDIATE")
    try:
        if db.value("PRAGMA main.data_version") != version:
            run.survey()  # someone wrote since: look again, now under the lock
            if run.nothing_to_do():
                db.all("ROLLBACK")
                return False
            check_decisions(run)
        if backup:
            if not options.backup and os.path.lexists(backup):
                backup = free_name(db.path, "backup")
            make_backup(db, backup, run.out)
            report["backup"] = backup
        if run.findings:
            make_repairs(run)
        run_phases(run)
        write_log(run)
        if options.sql:
            write_file(options.sql, script_text(run, options.path))
        check_interrupt()
        db.all("ROLLBACK" if options.dry_run else "COMMIT")
        if not (options.dry_run or options.output):
            CHANGED.append("the migration is committed")
    except BaseException as error:
        if db.connection.in_transaction:
            db.connection.execute("ROLLBACK")
        forget_backup(report, error)
        raise
    return True


def forget_backup(report: Dict[str, Any], error: BaseException) -> None:
    """After a rollback the database is what its backup is: delete that, or name it where the disk may be at fault."""
    if not report["backup"]:
        return
    if isinstance(error, Stop) or is_locked(error):
        os.unlink(report["backup"])
        report["backup"] = None
    else:
        report["warnings"].append("a complete backup is left in %s" % report["backup"])


def make_repairs(run: Run) -> None:
    """--repair, until nothing repairable is left: a quarantined parent may leave a child without root."""
    now = run.report["started"]
    repairs = run.report["repairs"]
    findings, expected, violations = run.findings, run.rows, run.before
    while findings:
        lost = [f for f in findings if f.kind == "no fractal"]  # first: a row that goes needs no new name
        repairs += repair(run.db, run.schema, lost or findings, now)
        run.survey()
        findings = [f for f in run.findings if lost or f.kind != "several fractals"]
    run.findings = []
    run.before.update({name: violations.get(name, 0) for name in run.before if "." not in name})
    moved = [one["table"] for one in repairs if one["kind"] == "quarantined"]
    if run.rows != {name: count - moved.count(name) for name, count in expected.items()}:
        raise Stop("the repairs changed more rows than they name", advice="please report this")
    run.out.title("Repairs")
    for one in repairs:
        before, after = (json.dumps(one[when], ensure_ascii=False)[:60] for when in ("before", "after"))
        run.out.line("  %-21s %s %r: %s -> %s" % (one["table"], one["kind"], one["id"], before, after))


def run_phases(run: Run) -> None:
    """The five phases in order, timed; raises Stop if verification finds a fault."""
    steps = [add_columns, backfill, recreate_tables, create_indexes, verify_run]
    for number, (phase, title, step) in enumerate(zip(PHASES + ["verify"], PHASE_TITLES, steps), 1):
        started = time.monotonic()
        chosen = phase in run.options.phases + ["verify"] or (
            phase == "indexes" and bool(run.to_index() or run.to_trigger()))
        run.out.title("[%d/5] %s%s" % (number, title, "" if chosen else " (left out by --phases)"))
        done = step(run) if chosen else {}
        run.report["phases"].append({"phase": phase, "title": title, "skipped": not chosen,
                                     "seconds": round(time.monotonic() - started, 3), "done": done})


def refill_search(run: Run) -> None:
    """Fill full-text tables anew whose content is a table of ours and in whose columns the run has changed values.

    The owner's triggers, which keep them, are put aside meanwhile, and an index that does not fit its
    content is called malformed (https://sqlite.org/fts5.html#external_content_tables).
    """
    for name, sql in run.db.all("SELECT name, sql FROM main.sqlite_master WHERE sql LIKE 'CREATE VIRTUAL TABLE%'"):
        tokens = tokenize(sql)
        content = [lower(after.name) for word, sign, after in zip(tokens, tokens[1:], tokens[2:])
                   if word.word == "CONTENT" and sign.text == "="]
        if not re.search(r"(?i)\busing\s+fts[345]\b", sql) or not content or content[-1] not in run.rows:
            continue
        repaired = {one["kind"] for one in run.report["repairs"] if one["table"] == content[-1]}
        changed = [column for column, so in (("name", "renamed" in repaired), (
            "root_id", any(run.to_backfill().get(content[-1], ())))) if so]
        indexed = {lower(token.name) for token in tokens}
        if "quarantined" in repaired or indexed & set(changed):
            try:
                run.db.run("INSERT INTO main.{0} ({0}) VALUES ('rebuild')".format(quote(name)))
            except sqlite3.DatabaseError as error:  # of columns that its content has not got, of an app's tokenizer
                check_interrupt()
                note = "full-text table %s may not fit any more, and can't be filled anew here: %s" % (name, error)
                run.report["warnings"].append(note)
                run.out.line("  note         " + note)


def verify_run(run: Run) -> Dict[str, Any]:
    """[5/5] Verify what the phases before have made; raises Stop for a fault."""
    refill_search(run)
    faults = show_checks(run, verify(run, run.before, False))
    if faults:
        raise Stop("verification found a fault: " + "; ".join(faults),
                   advice="change the view, trigger or foreign key that it names, if any, else please report this")
    return {"checks": run.report["verification"]}


def show_checks(run: Run, checks: List[Check]) -> List[str]:
    """Print and report the checks; their faults."""
    plain = [check.name for check in checks if not check.faults and not check.note]
    if plain:
        run.out.line("  ok           " + ", ".join(plain))
    for check in checks:
        if check.faults or check.note:
            run.out.line("  %-12s %s" % (check.name, "FAULT" if check.faults else "ok  " + check.note))
        for fault in check.faults:
            run.out.line("      %s" % fault)
    run.report["verification"] = [check._asdict() for check in checks]
    return [fault for check in checks for fault in check.faults]


def missing_constraints(run: Run) -> List[str]:
    """The constraints of the target, by name, that the database has not got."""
    indexes = {row[0] for row in run.db.all("SELECT lower(name) FROM main.sqlite_master WHERE type = 'index'")}
    return [name for name in UNIQUE_NAMES if name not in indexes] + [
        check for name in TABLES if name in run.schema for check in missing_checks(name, run.schema[name], ())]


def write_log(run: Run) -> None:
    """Keep the report in migration_log, in the transaction of the run itself."""
    db, report = run.db, run.report
    db.run(table_text("migration_log", OWN_TABLES["migration_log"]))
    missing = missing_constraints(run)
    left_out = [name for name in run.options.skip_constraint if name in missing]
    text = json.dumps(dict(report, status="done", exit_code=0, options=dict(
        report["options"], skip_constraint=left_out)))
    db.run("INSERT INTO main.migration_log (run_at, script_version, sqlite_version, report) VALUES (%s)" % ", ".join(
        map(literal, (report["started"], VERSION, sqlite3.sqlite_version, text))))


def summary(run: Run, seconds: float) -> None:
    options, out, backup = run.options, run.out, run.report["backup"]
    run.report["status"] = "rehearsed" if options.dry_run else "done"
    out.title("Summary")
    numbers = [sum(run.rows[name] for name in run.edited)] + [
        sum(counts[which] for counts in run.to_backfill().values()) for which in (0, 1)]
    out.line("  {} tables recreated, {:,} rows copied and proven, {:,} roots backfilled, {:,} corrected, {:.1f} s"
             .format(len(run.edited), *numbers, seconds))
    if options.dry_run:
        out.line("  The live run takes about as long, and makes a backup.")
        out.write("Done: rehearsed and rolled back; %s is untouched. To migrate, %s." % (
            options.path, "name your database" if options.sample else "run the same without --dry-run"))
    elif not options.output:
        if any(one["kind"] == "quarantined" for one in run.report["repairs"]):
            out.line("  rows in migration_quarantine: the README says how to put them back")
        if backup:
            out.line("  backup  %s" % backup)
            undo = [sys.executable, os.path.abspath(sys.argv[0]), options.path, "--restore", backup]
            out.line("  undo    " + (subprocess.list2cmdline(undo) if os.name == "nt" else shlex.join(undo)))
        out.line("  next    start the app; run with --verify now and then")
        rest = "" if options.phases == PHASES else (
            " as far as %s; --verify asks for the rest, which a run without --phases does" % ",".join(options.phases))
        out.write("Done: %s is migrated%s%s." % (
            options.path, rest, "; backup " + backup if backup and options.quiet else ""))


def verify_database(options: argparse.Namespace, out: Output, report: Dict[str, Any]) -> int:
    """--verify: every check of a run on DATABASE as it is, read-only; 1 if one finds a fault."""
    check_file(options.path)
    with reading(options.path, options, out) as db:
        run = Run(db, options, out, report)
        run.schema = read_schema(db)
        if not db.all("SELECT 1 FROM main.sqlite_master WHERE name = 'migration_log' OR name GLOB 'trg_goals_*'"):
            return say_fault(report, "%s is not migrated, never or no longer; to migrate it, run without --verify"
                             % options.path)
        skipped, report["not_compiling_before"], before = last_log(db)
        options.skip_constraint = [name for name in CONSTRAINTS if name in options.skip_constraint + skipped]
        out.title("Verify %s" % options.path)
        faults = show_checks(run, verify(run, before, True))
        if faults:
            more = ["and %d more" % len(faults[5:])] if faults[5:] else []
            return say_fault(report, "; ".join(
                faults[:5] + more + ["a run without --verify puts schema and roots right, the README tells the rest"]))
        left_out = ", ".join(options.skip_constraint)
        out.write("Done: %s is %s." % (options.path, "migrated and consistent, without " + left_out if left_out
                                       else "fully migrated and consistent"))
    return 0


def say_fault(report: Dict[str, Any], text: str) -> int:
    report.update(status="fault", message=text)
    complain("Fault: " + text)
    return 1


def last_log(db: Database) -> Tuple[List[str], Dict[str, str], Optional[Dict[str, int]]]:
    """Of the last run: what was left out on purpose, did not compile, refers to missing rows (None: not noted)."""
    try:
        logged = json.loads(db.value("SELECT report FROM main.migration_log ORDER BY id DESC LIMIT 1"))
        missing = logged.get("references_to_missing_rows")
        return (list(logged["options"]["skip_constraint"]), dict(logged["not_compiling_before"]),
                missing if isinstance(missing, dict) else None)
    except (sqlite3.OperationalError, LookupError, ValueError, TypeError, AttributeError):
        return [], {}, None


def comma_list(text: str) -> List[str]:
    chosen = [word.strip() for word in text.split(",") if word.strip()]
    unknown = [word for word in chosen if word not in PHASES]
    if unknown or not chosen:
        raise argparse.ArgumentTypeError("unknown phase '%s'; known: %s" % (", ".join(unknown), ",".join(PHASES)))
    return [phase for phase in PHASES if phase in chosen]


def seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError("seconds from 0 to 999999, not %s" % text)
    return value


class Parser(argparse.ArgumentParser):
    """argparse, whose errors are one line here like any other."""

    def error(self, message: str) -> Any:
        raise Stop(" ".join(message.split()), 2, "see --help")


def make_parser() -> Parser:
    parser = Parser(
        prog="migrate_database_improvements.py", allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [DATABASE] [options]\n"
              "         [--dry-run | --output FILE | --verify | --restore BACKUP]",
        description="Migrate the Fractal Goals database in one transaction: root_id, constraints, indexes.",
        epilog="""examples:
  %(prog)s --dry-run goals.db          rehearse; goals.db stays as it is
  %(prog)s goals.db                    migrate, with a backup beside it
  %(prog)s goals.db --restore goals.db.backup-20260101T155103Z

exit status: 0 done, nothing to do, or not confirmed; 1 failed and rolled back, or --verify found a
fault; 2 wrong usage or no such database; 3 the data needs a decision; 4 locked;
130 (Ctrl-C), 143 (SIGTERM), 129 (SIGHUP) interrupted and rolled back""")
    parser.add_argument("database", nargs="?", metavar="DATABASE", help="default: $DATABASE_PATH, else goals.db here")
    mode = parser.add_argument_group("what to do (default: migrate)").add_mutually_exclusive_group()
    mode.add_argument("--dry-run", action="store_true", help="the real thing on a private snapshot, rolled back")
    mode.add_argument("--output", metavar="FILE", help="migrate a snapshot into FILE, a new file")
    mode.add_argument("--verify", action="store_true", help="check that DATABASE is migrated and consistent")
    mode.add_argument("--restore", metavar="BACKUP", help="put a backup back; the content now is kept aside")
    how = parser.add_argument_group("how")
    how.add_argument("-y", "--yes", action="store_true", help="don't ask")
    keep = how.add_mutually_exclusive_group()
    keep.add_argument("--backup", metavar="FILE", help="where the backup goes (default: beside DATABASE)")
    keep.add_argument("--no-backup", action="store_true", help="make none")
    how.add_argument("--repair", action="store_true", help="apply the lossless repairs")
    how.add_argument("--skip-constraint", metavar="NAME", action="append", default=[], choices=CONSTRAINTS,
                     help="leave out one constraint; repeatable")
    how.add_argument("--phases", metavar="LIST", type=comma_list, default=PHASES,
                     help="only these of " + ",".join(PHASES))
    how.add_argument("--timeout", metavar="SECONDS", type=seconds, default=5.0, help="how long to wait for a lock (5)")
    what = parser.add_argument_group("what to say")
    what.add_argument("--report", metavar="FILE", help="the run as JSON; '-' for standard output")
    what.add_argument("--sql", metavar="FILE", help="the statements of the run, for the sqlite3 shell")
    what.add_argument("-q", "--quiet", action="store_true", help="errors and the last line only")
    what.add_argument("-v", "--verbose", action="store_true", help="each statement")
    what.add_argument("--version", action="version", version=VERSION)
    return parser


def find_database(options: argparse.Namespace, out: Output) -> str:
    """The real path of the database that is meant."""
    if options.database == "":
        raise Stop("DATABASE is an empty name", 2, "name one, or leave it out")
    path = options.database or os.environ.get("DATABASE_PATH") or "goals.db"
    sample = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures", "sample.db")
    if options.dry_run and not options.database and not os.path.exists(path) and os.path.exists(sample):
        options.sample = True
        out.line("No %s here: this rehearses the bundled sample, %s" % (path, sample))
        path = sample
    return os.path.realpath(path)


def check_targets(options: argparse.Namespace) -> None:
    """Raise Stop where a file to be written has no place, or is also another file of the run."""
    taken = {options.path + end: "DATABASE" for end in ("", "-wal", "-shm", "-journal")}
    for flag in ("--report", "--restore", "--backup", "--output", "--sql"):
        path = getattr(options, flag[2:])
        options.report_allowed = flag != "--report"  # whose own place was looked at first
        if path is None or (flag == "--report" and path == "-"):
            continue
        if path in ("", "-"):
            raise Stop("%s '%s' names no file" % (flag, path), 2, "name one")
        real = os.path.realpath(path)
        if real in taken:
            options.report_allowed &= taken[real] != "--report"
            raise Stop("%s %s: that is %s" % (flag, path, taken[real]), 2, "name another file")
        taken[real] = flag
        if os.path.isdir(real) or not os.path.isdir(os.path.dirname(real)):
            raise Stop("%s %s: no such place for a file" % (flag, path), 2, "name a file in an existing folder")
        if flag != "--restore" and not os.access(real if os.path.exists(real) else os.path.dirname(real), os.W_OK):
            raise Stop("%s %s: no permission to write there" % (flag, path), 2, "name another place")
        for end in ("", "-wal", "-shm", "-journal") if flag in ("--backup", "--output") else ():
            if os.path.lexists(path + end):  # SQLite would take a stale -wal for a part of the new file
                raise Stop("%s %s: %s exists already" % (flag, path, path + end), 2, "name a new file")
        if flag in ("--report", "--sql") and os.path.isfile(real):
            with open(real, "rb") as file:
                if file.read(15) == b"SQLite format 3":
                    raise Stop("%s %s is a database" % (flag, path), 2, "name another file")
        if flag == "--sql" and os.path.exists(real) and stat.S_ISFIFO(os.stat(real).st_mode):
            raise Stop("--sql %s is a pipe, for whose reader the transaction would wait" % path, 2, "name a file")


def explain(error: BaseException) -> Stop:
    """An error of SQLite or the system as one line for the operator, with its exit status."""
    text = " ".join(str(error).split()) or type(error).__name__
    if is_locked(error):
        return Stop("the database is locked by another process", 4, "stop the app, or give a longer --timeout")
    if isinstance(error, PermissionError):
        return Stop("no permission: %s" % text, 1, "check owner and mode of the file and its folder")
    if "readonly" in text or "unable to open" in text:
        return Stop("the database or its folder can't be written: %s" % text, 1, "check owner, permissions and mount")
    full = getattr(error, "errno", 0) in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    if full or "disk is full" in text or "disk I/O error" in text:
        return Stop("the disk is full, over quota or failing: %s" % text, 1, "make room, look at the disk, run again")
    if isinstance(error, UnicodeEncodeError) or "SQL is of wrong type" in text:  # so Python 3.10 has it
        return Stop("a CREATE statement of the schema holds bytes that are not UTF-8, perhaps in a comment", 1,
                    "write it anew in UTF-8, and run again")
    if isinstance(error, sqlite3.IntegrityError):
        return Stop("a constraint that the database had does not hold for its rows, or not with right roots or names: "
                    + text, 3, "change those rows or that constraint, and run again")
    if re.search(APP_BRINGS, text):
        return Stop("an index or constraint needs what only the app brings: %s" % text, 1,
                    "drop it, and create it again afterwards")
    if "malformed database schema" in text:
        return Stop("SQLite %s can't read the schema, which is damaged or needs a newer one: %s" % (
            sqlite3.sqlite_version, text), 1, "run this with the Python that the app runs on")
    if "not a database" in text or "malformed" in text or "corrupt" in text:
        return Stop("the database is damaged or encrypted: %s" % text, 1,
                    "restore a backup of it, or see sqlite3's .recover")
    return Stop(text, 1, "run with -v to see the statement" if isinstance(error, sqlite3.Error)
                else "look at that file, its disk and TMPDIR")


def new_report(options: argparse.Namespace) -> Dict[str, Any]:
    """The report's shape; the README documents it."""
    inner = ("path", "database", "report_allowed", "sample")
    chosen = {key: value for key, value in vars(options).items() if key not in inner}
    return {"status": "failed", "exit_code": 1, "message": "",
            "started": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"), "seconds": 0.0,
            "database": {"path": None, "bytes_before": None, "bytes_after": None},
            "versions": {"script": VERSION, "python": platform.python_version(), "sqlite": sqlite3.sqlite_version},
            "options": chosen, "phases": [], "decisions": [], "warnings": [], "repairs": [], "verification": [],
            "references_to_missing_rows": {}, "crossing_fractals": {}, "not_compiling_before": {},
            "backup": None, "kept_aside": None}


def dispatch(options: argparse.Namespace, out: Output, report: Dict[str, Any]) -> int:
    """Do what the options say; raises Stop with the exit status otherwise."""
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise Stop("SQLite %s is too old" % sqlite3.sqlite_version, 2, "needs 3.28 or newer")
    for one, others in (("verify", ("repair", "sql")), ("restore", ("repair", "sql")), ("output", ("backup",))):
        for other in others:
            if getattr(options, one) and getattr(options, other):
                raise Stop("--%s and --%s don't go together" % (one, other), 2, "see --help")
    options.path = find_database(options, out)
    reads = options.dry_run or options.output or options.verify
    if re.search(r"\.backup-\d{8}T\d{6}Z", os.path.basename(options.path)) and not reads:
        raise Stop("%s is a backup" % options.path, 2, "name the database, or a copy of the backup")
    report["database"].update(path=options.path)
    check_targets(options)
    if os.path.isfile(options.path):
        report["database"].update(bytes_before=size_of(options.path))
    if options.restore:
        status = restore(options, out, report)
    elif options.verify:
        status = verify_database(options, out, report)
    else:
        status = migrate(options, out, report)
    if report["status"] == "failed" and not status:
        report["status"] = "done"
    return status


STATUSES = {0: "cancelled", 2: "usage", 3: "decision", 4: "locked",
            129: "interrupted", 130: "interrupted", 143: "interrupted"}


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Parse, run, report; the exit status of DESIGN.md section 5."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    del SIGNALS[:], CHANGED[:]
    with on_signal(lambda number, frame: SIGNALS.append(number)):
        try:
            options = make_parser().parse_args(arguments)
        except Stop as error:
            complain("error: %s; nothing was changed; %s" % (error, error.advice))
            return error.status
        return run_and_report(options)


def run_and_report(options: argparse.Namespace) -> int:
    """Do what the options say, explain what goes wrong, write the report; the exit status."""
    options.report_allowed = options.sample = False
    out = Output(sys.stderr if options.report == "-" else sys.stdout, options.quiet, options.verbose)
    report, started = new_report(options), time.monotonic()
    try:
        status = dispatch(options, out, report)
    except (Exception, KeyboardInterrupt) as error:  # whatever it is, the operator gets one line
        stop = error if isinstance(error, Stop) else explain(error)
        status = stop.status
        report.update(status=STATUSES.get(status, "failed"), message=str(stop))
        said = " ".join("; ".join([str(stop), CHANGED[0] if CHANGED else "nothing was changed", *report["warnings"],
                                   stop.advice]).rstrip("; ").split())
        out.write("", end="")
        if status:
            complain("error: " + said)
        else:
            out.write(said[0].upper() + said[1:])
    report.update(exit_code=status, seconds=round(time.monotonic() - started, 3))
    finish_report(options, report)
    return status


def complain(text: str) -> None:
    with contextlib.suppress(AttributeError, OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def finish_report(options: argparse.Namespace, report: Dict[str, Any]) -> None:
    """Write the report; by now a failure to do so is no more than a warning."""
    path = getattr(options, "path", None)
    if path and os.path.isfile(path):
        report["database"].update(bytes_after=size_of(path))
    text = json.dumps(report, indent=2) + "\n"
    try:
        if options.report == "-":
            sys.stdout.write(text)
            sys.stdout.flush()
        elif options.report and options.report_allowed and report["status"] != "cancelled":
            write_file(options.report, text)
    except (AttributeError, OSError, ValueError) as error:
        complain("warning: the report could not be written: %s" % error)


if __name__ == "__main__":
    exit_status = main()
    for late in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(late, signal.SIG_IGN)  # what was done and said stands
    sys.exit(exit_status)
