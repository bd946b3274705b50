#!/usr/bin/env python3
"""Migrate the SQLite database of Fractal Goals in one safe run.

A *fractal* is one goal tree, named by its root goal. Each row of the app's eight tables gets
a `root_id`, the goal at the top of its tree: filled for old rows, kept right by triggers.
Soft-delete and audit columns, constraints that hold and indexes are added.

    python3 migrate_database_improvements.py --dry-run goals.db    rehearse
    python3 migrate_database_improvements.py goals.db              migrate
    python3 migrate_database_improvements.py --verify goals.db     check, any time
    python3 migrate_database_improvements.py goals.db --restore goals.db.backup-...

One transaction: the outcome is the old database or the new one, whole. Section 1 is the target
as data, section 2 the rule of root_id as SQL; `migrate_in_transaction` is the run.
"""
from __future__ import annotations

import argparse
import glob
import json
import os
import re
import select
import shlex
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import urllib.parse
from collections import namedtuple
from contextlib import closing, contextmanager, nullcontext, suppress
from os.path import abspath, dirname, exists, getsize, isdir, isfile, lexists, realpath
from typing import Any, Callable, Iterable, Iterator, NoReturn, Sequence

VERSION = "2.0.0 (2026-11-26)"

# ==== 1. The target, as data (DESIGN.md section 3) =====================================

# NULL and a column left out become '', for a trigger to fill or a check to refuse.
NOT_EMPTY = "NOT NULL ON CONFLICT REPLACE DEFAULT ''"
IN_GOALS = "REFERENCES goals(id) ON DELETE CASCADE"
NOW = "DATETIME DEFAULT CURRENT_TIMESTAMP"
NAME, ZERO = "VARCHAR NOT NULL", "INTEGER DEFAULT 0"
OF_ACTIVITY = "VARCHAR NOT NULL REFERENCES activity_definitions(id) ON DELETE CASCADE"
COMMON = {"id": "VARCHAR NOT NULL PRIMARY KEY", "root_id": f"VARCHAR {NOT_EMPTY} {IN_GOALS}",
          "created_at": NOW, "updated_at": NOW}

# table -> column -> declaration, in the order of the rebuild: parents before children. SQLite
# runs the cascades of the newest table first: of metric_values before split_definitions.
TABLES: dict[str, dict[str, str]] = {
    "goals": {
        **COMMON, "type": NAME, "name": NAME, "description": "VARCHAR", "deadline": "DATETIME",
        "completed": "BOOLEAN DEFAULT 0", "parent_id": "VARCHAR REFERENCES goals(id)",
        "duration_minutes": "INTEGER", "session_start": "DATETIME", "session_end": "DATETIME",
        "total_duration_seconds": "INTEGER", "template_id": "VARCHAR", "attributes": "TEXT",
        "session_data": "TEXT", "targets": "TEXT", "deleted_at": "DATETIME", "sort_order": ZERO,
    },
    "activity_groups": {
        **COMMON, "name": NAME, "description": "VARCHAR", "sort_order": ZERO,
        "deleted_at": "DATETIME",
    },
    "activity_definitions": {
        **COMMON, "name": NAME, "description": "VARCHAR", "has_sets": "BOOLEAN DEFAULT 0",
        "has_metrics": "BOOLEAN DEFAULT 1", "metrics_multiplicative": "BOOLEAN DEFAULT 0",
        "has_splits": "BOOLEAN DEFAULT 0", "group_id": "VARCHAR REFERENCES activity_groups(id)",
        "deleted_at": "DATETIME",
    },
    "metric_definitions": {
        **COMMON, "activity_id": OF_ACTIVITY, "name": NAME, "unit": "VARCHAR",
        "deleted_at": "DATETIME", "is_active": "BOOLEAN DEFAULT 1",
        "is_top_set_metric": "BOOLEAN DEFAULT 0", "is_multiplicative": "BOOLEAN DEFAULT 1",
        "sort_order": ZERO,
    },
    "split_definitions": {
        **COMMON, "activity_id": OF_ACTIVITY, "name": NAME, "order": "INTEGER",
        "deleted_at": "DATETIME",
    },
    "session_templates": {
        **COMMON, "name": NAME, "description": "VARCHAR", "template_data": "TEXT",
        "deleted_at": "DATETIME",
    },
    "activity_instances": {
        **COMMON, "practice_session_id": "VARCHAR REFERENCES goals(id)",
        "activity_definition_id": "VARCHAR REFERENCES activity_definitions(id)",
        "time_start": "DATETIME", "time_stop": "DATETIME", "duration_seconds": "INTEGER",
        "completed": "BOOLEAN DEFAULT 0", "notes": "TEXT", "data": "TEXT",
        "deleted_at": "DATETIME", "sort_order": ZERO,
    },
    "metric_values": {
        **COMMON, "activity_instance_id": "VARCHAR REFERENCES activity_instances(id)",
        "metric_definition_id": "VARCHAR REFERENCES metric_definitions(id)",
        "split_definition_id": "VARCHAR REFERENCES split_definitions(id) ON DELETE RESTRICT",
        "value": "FLOAT",
    },
}
MIGRATION_LOG = """CREATE TABLE IF NOT EXISTS migration_log (
    id INTEGER PRIMARY KEY, run_at DATETIME NOT NULL, script_version VARCHAR NOT NULL,
    sqlite_version VARCHAR NOT NULL, report TEXT NOT NULL
)"""
REFERENCES = [(table, column, declared.partition("REFERENCES ")[2].partition("(")[0])
              for table, columns in TABLES.items() for column, declared in columns.items()
              if "REFERENCES" in declared]
# A column that exists keeps its references; only these two get ours, where they have none.
ADDED_REFERENCES = {("activity_definitions", "group_id"), ("metric_values", "split_definition_id")}

# Whose root a row has: the first of these (column, table) that names a row. Other tables keep
# what is stored. Where nothing is stored, the LAST_RESORTS give it.
PARENTS: dict[str, list[tuple[str, str]]] = {
    "goals": [("parent_id", "goals")],
    "metric_definitions": [("activity_id", "activity_definitions")],
    "split_definitions": [("activity_id", "activity_definitions")],
    "activity_instances": [("practice_session_id", "goals"), ("session_id", "sessions")],
    "metric_values": [("activity_instance_id", "activity_instances")],
    "session_metadata": [("session_id", "sessions"), ("session_id", "goals")],  # an extra
}
LAST_RESORTS: dict[str, list[tuple[str, str]]] = {
    "activity_instances": [("activity_definition_id", "activity_definitions")],
    "metric_values": [("metric_definition_id", "metric_definitions")],
}
PARENT_TABLES = {parent for pairs in [*PARENTS.values(), *LAST_RESORTS.values()]
                 for _, parent in pairs}
LINKS = "practice_session_goals"  # of sessions to goals: practice_session_id, short_term_goal_id
# The tables with a root_id to keep right -> the column that names a row of theirs.
ROOTED = {**dict.fromkeys(TABLES, "id"), "session_metadata": "session_id"}
RECOVERED = "recovered-by-migration"  # the goal that --repair makes for rows without any root

# name -> table, expression. julianday() and date() compare times in any notation. A deadline is a
# local date, created_at UTC: west of Greenwich, in the evening, today's lies a day before.
DEADLINE = "chk_goals_deadline_after_creation"
CHECKS: dict[str, tuple[str, str]] = {
    DEADLINE: ("goals", "date(deadline, '+1 day') >= date(created_at)"),
    "chk_goals_session_time_order":
        ("goals", "julianday(session_end) >= julianday(session_start)"),
    "chk_goals_duration_non_negative": ("goals", "total_duration_seconds >= 0"),
    "chk_activity_instances_time_order":
        ("activity_instances", "julianday(time_stop) >= julianday(time_start)"),
    "chk_activity_instances_duration_non_negative":
        ("activity_instances", "duration_seconds >= 0"),
    "chk_metric_values_non_negative": ("metric_values", "value >= 0"),
}
# The app names the fractal of groups, definitions and templates itself: no trigger fills it.
ALL_CHECKS = {**CHECKS, **{f"chk_{table}_root_id": (table, "root_id <> ''")
                           for table in TABLES if table not in PARENTS}}

# name -> table, columns that name a live row (one with deleted_at IS NULL)
UNIQUE_NAMES: dict[str, tuple[str, str]] = {
    "uq_activity_groups_root_name": ("activity_groups", "root_id, name"),
    "uq_activity_definitions_root_name": ("activity_definitions", "root_id, name"),
    "uq_session_templates_root_name": ("session_templates", "root_id, name"),
    "uq_metric_definitions_activity_name": ("metric_definitions", "activity_id, name"),
    "uq_split_definitions_activity_name": ("split_definitions", "activity_id, name"),
}

# name -> what follows ON, in the order of creation. The plain index of a column comes after the
# composite one that begins with it: between equals SQLite's planner takes the newer, and lists
# without ORDER BY keep the order that their users know.
INDEXES: dict[str, str] = {
    "idx_goals_parent_type": "goals (parent_id, type)",
    "idx_goals_root_type": "goals (root_id, type)",
    "idx_goals_completed": "goals (root_id, type) WHERE completed = 1",
    "idx_goals_practice_sessions": "goals (root_id, created_at) WHERE type = 'PracticeSession'",
    "idx_goals_parent_id": "goals (parent_id)",
    "idx_goals_root_id": "goals (root_id)",
    "idx_goals_type": "goals (type)",
    "idx_goals_created_at": "goals (created_at)",
    "idx_activity_groups_root": "activity_groups (root_id)",
    "idx_activity_definitions_root": "activity_definitions (root_id)",
    "idx_activity_definitions_group": "activity_definitions (group_id)",
    "idx_metric_definitions_active": "metric_definitions (activity_id) WHERE is_active = 1",
    "idx_metric_definitions_activity": "metric_definitions (activity_id)",
    "idx_metric_definitions_root": "metric_definitions (root_id)",
    "idx_split_definitions_activity": "split_definitions (activity_id)",
    "idx_split_definitions_root": "split_definitions (root_id)",
    "idx_session_templates_root": "session_templates (root_id)",
    "idx_activity_instances_root_date": "activity_instances (root_id, created_at DESC)",
    "idx_activity_instances_session_created":
        "activity_instances (practice_session_id, created_at)",
    "idx_activity_instances_session": "activity_instances (practice_session_id)",
    "idx_activity_instances_definition": "activity_instances (activity_definition_id)",
    "idx_activity_instances_root": "activity_instances (root_id)",
    "idx_metric_values_root_metric": "metric_values (root_id, metric_definition_id)",
    "idx_metric_values_instance": "metric_values (activity_instance_id)",
    "idx_metric_values_definition": "metric_values (metric_definition_id)",
    "idx_metric_values_split": "metric_values (split_definition_id)",
    "idx_metric_values_root": "metric_values (root_id)",
}
INDEXED_TABLE = {**{name: table for name, (table, _) in UNIQUE_NAMES.items()},
                 **{name: on.split()[0] for name, on in INDEXES.items()}}

# What version 1 left, to be replaced: exactly these triggers and this check.
VERSION_1_TRIGGERS = {f"trg_{table}_{kind}" for table, kinds in [
    *((table, "fill guard move adopt follow orphan") for table in TABLES),
    ("sessions", "adopt follow orphan"), ("practice_session_goals", "insert update delete"),
    ("goals", "refill guard_insert guard_update cycle_insert cycle_update subtree session_subtree"
     " sessions unlink")] for kind in kinds.split()}
VERSION_1_DEADLINE = f"CONSTRAINT {DEADLINE} CHECK (date(deadline) >= date(created_at))"


# ==== 2. The rule of root_id (DESIGN.md section 4), once, as SQL: `rule` ===============

KNOWN = "migration_known_"  # before a table's name: what `derive` knows of it (id, root_id)
FOUND = "migration_found_"  # the rows whose root it changes (key, root, stored), as numbers


def number_of(root: str) -> str:
    """SQL for the number that stands for a root meanwhile: it takes a third of the memory."""
    return f"(SELECT rowid FROM migration_roots WHERE id = {root})"


def root_of(number: str) -> str:
    return f"(SELECT id FROM migration_roots WHERE rowid = {number})"


def rule(schema: Schema, name: str, row: str, stored: str = "", known: str = "") -> str:
    """SQL for the root that a row should have; NULL where there is none. `stored` is SQL for its
    stored root; other rows' roots are the stored or (KNOWN) derived."""
    stored = f"NULLIF({stored or row + '.root_id'}, '')"
    # +: the NUMERIC affinity of a STRING column would forbid the index on p.id.
    parents, resorts = (
        [f"(SELECT NULLIF(p.root_id, '') FROM {known}{parent} p WHERE p.id = +{row}.{column})"
         for column, parent in schema.pairs(pairs, name)] for pairs in (PARENTS, LAST_RESORTS))
    if name != "goals":
        return f"COALESCE({', '.join([*parents, stored, *resorts, 'NULL'])})"
    top, linked = f"COALESCE({row}.parent_id, '') = ''", "NULL"
    if LINKS in schema:
        links = (f"SELECT l.root_id FROM {known}{LINKS} k"
                 f" JOIN {known}goals l ON l.id = k.short_term_goal_id AND l.id <> {row}.id"
                 f" WHERE k.practice_session_id = {row}.id AND l.root_id <> ''")
        order = "rowid" if known else schema.link_order
        linked = (f"CASE WHEN {stored} IN ({links}) THEN {stored}"
                  f" ELSE ({links} ORDER BY k.{order} LIMIT 1) END")
    return f"""COALESCE({parents[0]}, CASE
        WHEN {row}.type IS NOT 'PracticeSession' THEN CASE WHEN {top} THEN {row}.id END
        WHEN {top} OR {stored} IS NULL THEN {linked} END, {stored}, {row}.id)"""


# ---- derivation -------------------------------------------------------------------------

def temp_table(db: Database, name: str, columns: str, select: str) -> None:
    """Make a temporary table anew; of rows with one key the first stays."""
    db.change(f"DROP TABLE IF EXISTS temp.{name}")
    db.change(f"CREATE TEMP TABLE {name} {columns}")
    db.change(f"INSERT OR IGNORE INTO {name} {select}")


def derive(db: Database, schema: Schema, otherwise: str = "NULL") -> None:
    """Fill the FOUND tables. Tables are scanned, as an index might lie. Rows without any root get
    the SQL `otherwise`; but a goal that no rule reaches has none."""
    derive_goals(db, schema)
    names = schema.having(["sessions", *ROOTED])
    rooted = [name for name in names if schema.has(name, "root_id")]
    roots = [f"UNION SELECT CAST(root_id AS TEXT) FROM {name} NOT INDEXED" for name in rooted]
    temp_table(db, "migration_roots", "(id TEXT UNIQUE CHECK (id <> ''))",
               f"SELECT id FROM {KNOWN}goals UNION SELECT '{RECOVERED}' {' '.join(roots)}")
    db.change(f"UPDATE {KNOWN}goals SET root_id = {number_of('root_id')}")
    for name in names:
        stored = number_of("CAST(c.root_id AS TEXT)") if name in rooted else "NULL"
        if name == "goals":
            root = f"(SELECT root_id FROM {KNOWN}goals q WHERE q.id = c.id)"
        else:
            resort = otherwise if name in ROOTED else "NULL"
            root = f"COALESCE({rule(schema, name, 'c', stored, KNOWN)}, {resort})"
        # LIMIT keeps SQLite from looking the root up again for each mention of it.
        temp_table(db, FOUND + name, "(key INTEGER PRIMARY KEY, root, stored)", f"""
            SELECT * FROM (SELECT c.rowid, {root} AS root, {stored} AS stored
                           FROM {name} c NOT INDEXED LIMIT -1)
            WHERE root IS NULL OR root IS NOT stored""")
        if name in PARENT_TABLES - {"goals"}:
            temp_table(db, KNOWN + name, "(id TEXT PRIMARY KEY, root_id) WITHOUT ROWID", f"""
                SELECT c.id, COALESCE(f.root, {stored})
                FROM {name} c NOT INDEXED LEFT JOIN {FOUND}{name} f ON f.key = c.rowid
                WHERE c.id <> '' ORDER BY c.id""")  # in order is faster


# The links of the session `g` whose goals have no known root yet.
UNKNOWN_LINKS = f"""
    SELECT l.id FROM {KNOWN}{LINKS} k JOIN {KNOWN}goals l ON l.id = k.short_term_goal_id
    WHERE k.practice_session_id = g.id AND l.id <> g.id AND l.root_id IS NULL"""


def derive_goals(db: Database, schema: Schema) -> None:
    """Fill the KNOWN table of goals, with NULL where no rule reaches: roots spread from the tops
    down; a linked session is a top that waits for the roots of its links."""
    stored = "root_id" if schema.has("goals", "root_id") else "''"
    temp_table(db, KNOWN + "goals", """
        (id TEXT PRIMARY KEY, parent_id TEXT, type, stored TEXT, root_id) WITHOUT ROWID""", f"""
        SELECT id, COALESCE(parent_id, ''), type, COALESCE({stored}, ''), NULL
        FROM goals NOT INDEXED WHERE id <> ''""")
    db.change(f"CREATE INDEX migration_parents ON {KNOWN}goals (parent_id)")
    links = "SELECT NULL, NULL"
    if LINKS in schema:
        links = f"""SELECT practice_session_id, short_term_goal_id
                    FROM {LINKS} NOT INDEXED ORDER BY {schema.link_order}"""
    temp_table(db, KNOWN + LINKS, "(practice_session_id, short_term_goal_id)", links)
    db.change(f"CREATE INDEX migration_links ON {KNOWN}{LINKS} (practice_session_id)")
    spread = f"""
        UPDATE {KNOWN}goals SET root_id = found.root FROM (
            WITH RECURSIVE tree(id, root) AS (
                SELECT g.id, {rule(schema, "goals", "g", "g.stored", KNOWN)} FROM {KNOWN}goals g
                WHERE g.root_id IS NULL
                  AND NOT EXISTS (SELECT 1 FROM {KNOWN}goals p WHERE p.id = g.parent_id)
                  AND NOT (g.type = 'PracticeSession' AND '' IN (g.parent_id, g.stored)
                           AND EXISTS ({UNKNOWN_LINKS}))
                UNION ALL
                SELECT g.id, tree.root FROM tree JOIN {KNOWN}goals g ON g.parent_id = tree.id)
            SELECT id, root FROM tree) found
        WHERE {KNOWN}goals.id = found.id"""
    while db.change(spread):
        pass


def audit(db: Database) -> Iterator[str]:
    """A line for each table with rows whose stored root the rule contradicts: read from what is
    stored, not from what `derive` found."""
    schema = read_schema(db)
    for name in schema.having(ROOTED):
        join, root = "", "NULL"
        for column, parent in schema.pairs(PARENTS, name)[:1]:  # what most have, in less time
            join, root = f"LEFT JOIN {parent} q ON q.id = +c.{column}", "NULLIF(q.root_id, '')"
        wrong = (f"FROM {name} c {join} WHERE COALESCE(c.root_id, '') = '' "
                 f"OR c.root_id IS NOT COALESCE({root}, {rule(schema, name, 'c')})")
        if ids := db.column(f"SELECT c.{ROOTED[name]} {wrong} LIMIT 4"):
            rows = count(db.value(f"SELECT count(*) {wrong}"), "row")
            yield f"{name}: {rows} with a wrong or empty root_id, id {shorten(ids)}"


# ---- triggers: they keep the rule, and take NULL for '' ---------------------------------------

SUBTREE = """(
        WITH RECURSIVE sub(id) AS (
            SELECT NEW.id UNION SELECT g.id FROM sub JOIN goals g ON g.parent_id = sub.id)
        SELECT id FROM sub)"""
BELOW_ITSELF = f"""SELECT RAISE(ABORT, 'goals.parent_id: a goal cannot be below itself')
    WHERE NEW.parent_id IN {SUBTREE}"""
# SQLite updates a subtree in any order: an ancestor that has the new root proves it right.
ANCESTOR_HAS_ROOT = """EXISTS (
    WITH RECURSIVE up(parent_id, root_id) AS (
        SELECT parent_id, root_id FROM goals WHERE id = NEW.parent_id
        UNION SELECT g.parent_id, g.root_id FROM up JOIN goals g ON g.id = up.parent_id
        WHERE up.root_id <> NEW.root_id)
    SELECT 1 FROM up WHERE root_id = NEW.root_id AND root_id <> '')"""
CHANGED = "NEW.root_id IS NOT OLD.root_id AND NEW.root_id <> ''"
# Any other goal changes its root with its subtree, by trg_goals_move, or when it is filled.
TOP_CHANGED = (f"{CHANGED} AND (COALESCE(OLD.root_id, '') = ''"
               " OR NOT EXISTS (SELECT 1 FROM goals WHERE id = NEW.parent_id))")


def triggers(schema: Schema) -> dict[str, str]:
    """{name: CREATE statement} of every trigger of the target."""
    found = {}
    for table, kind, event, when, statements in [*own_roots(schema), *roots_below(schema)]:
        name, body = f"trg_{table}_{kind}", ";\n    ".join(statements)
        found[name] = (f"CREATE TRIGGER {name} AFTER {event} ON {table} WHEN {when}\n"
                       f"BEGIN\n    {body};\nEND")
    return found


def own_roots(schema: Schema) -> Iterator[tuple[Any, ...]]:
    """What keeps a row's own root right: fill, guard and move."""
    for name in schema.having(PARENTS):
        columns = ", ".join(column for column, _ in schema.pairs(PARENTS, name))
        want, before = rule(schema, name, "NEW"), rule(schema, name, "NEW", "OLD.root_id")
        wrong = f"COALESCE(NEW.root_id, '') IS NOT {want}"
        missing = f"RAISE(ABORT, '{name}.root_id is missing: no row that {columns} names has one')"
        guarded = f"OLD.root_id <> '' AND NEW.root_id IS NOT OLD.root_id AND {wrong}"
        if name == "goals":
            guarded += f" AND NOT {ANCESTOR_HAS_ROOT}"
        for kind, event, when, root in (
                ("fill", "INSERT", wrong, f"COALESCE({want}, {missing})"),
                ("guard", "UPDATE OF root_id", guarded, before)):
            yield name, kind, event, when, [f"""UPDATE {name} SET root_id =
        CASE WHEN NEW.root_id <> '' THEN RAISE(ABORT,
            'root_id does not match: a row of {name} belongs where its {columns} says')
        ELSE {root} END WHERE rowid = NEW.rowid"""]
        if name != "goals":
            yield (name, "move", f"UPDATE OF {columns}", f"{wrong} AND {want} IS NOT NULL",
                   [f"UPDATE {name} SET root_id = {want} WHERE rowid = NEW.rowid"])


def set_root(name: str, root: str, where: str) -> str:
    """The statement that gives some rows of a table a root, where they have another."""
    return f"UPDATE {name} SET root_id = {root} WHERE {where} AND COALESCE(root_id, '') <> {root}"


def roots_below(schema: Schema) -> Iterator[tuple[Any, ...]]:
    """What carries a root on: to children, subtrees and linked sessions."""
    def sessions(which: str) -> str:
        return set_root("goals", rule(schema, "goals", "goals"),
                        f"id IN ({which}) AND type = 'PracticeSession'")

    # In one statement: a trigger that fires itself would end at SQLite's depth limit.
    subtree, linked = set_root("goals", "NEW.root_id", f"id IN {SUBTREE}"), []
    if LINKS in schema:
        linked = [sessions(f"SELECT practice_session_id FROM {LINKS}"
                           " WHERE short_term_goal_id = NEW.id")]
    for parent in [*TABLES, "sessions"]:
        if below := [set_root(name, rule(schema, name, name), f"{column} = NEW.id")
                     for name in PARENTS if name != "goals"
                     for column, source in schema.pairs(PARENTS, name) if source == parent]:
            yield parent, "follow", "UPDATE OF root_id", CHANGED, below
            if parent == "goals":
                below = [*below, subtree, *linked]
            yield parent, "adopt", "INSERT", "NEW.root_id <> ''", below
    yield "goals", "subtree", "UPDATE OF root_id", TOP_CHANGED, [subtree]
    yield ("goals", "move", "UPDATE OF parent_id, type",
           "NEW.parent_id IS NOT OLD.parent_id OR NEW.type IS NOT OLD.type",
           [BELOW_ITSELF, set_root("goals", rule(schema, "goals", "NEW"), f"id IN {SUBTREE}")])
    yield "goals", "insert", "INSERT", "1", [
        "SELECT RAISE(ABORT, 'goals.id is missing') WHERE COALESCE(NEW.id, '') = ''", BELOW_ITSELF]
    if LINKS in schema:
        # Apart from `subtree`: while that runs, the rows below it fire all triggers but it.
        yield "goals", "sessions", "UPDATE OF root_id", CHANGED, linked
        for event, rows in (("INSERT", ["NEW"]), ("UPDATE", ["NEW", "OLD"]), ("DELETE", ["OLD"])):
            yield (LINKS, event.lower(), event, "1",
                   [sessions(f"{row}.practice_session_id") for row in rows])
        # Or foreign keys would forbid deleting a fractal. AFTER: within its cascade, what follows
        # its sessions is gone already.
        yield "goals", "unlink", "DELETE", "1", [
            f"DELETE FROM {LINKS} "
            "WHERE practice_session_id = OLD.id OR short_term_goal_id = OLD.id"]


# ---- extras: what --extra asks for; JSON as in https://sqlite.org/json1.html ------------------

TARGETS = """json_each(CASE WHEN typeof(g.targets) = 'text' AND json_valid(g.targets)
                               THEN g.targets END) t"""
STAYS = "BEGIN SELECT RAISE(ABORT, 'an entry of audit_log cannot be changed'); END"
EXTRA_OBJECTS = {
    "targets": {
        "goal_targets": f"""CREATE VIEW goal_targets AS
    SELECT g.id AS goal_id, g.root_id, json_extract(t.value, '$.id') AS target_id,
           json_extract(t.value, '$.activity_id') AS activity_id,
           json_extract(t.value, '$.name') AS name,
           json_extract(t.value, '$.description') AS description, t.key AS position
    FROM goals g, {TARGETS}
    WHERE g.targets IS NOT NULL AND t.type = 'object'""",
        "goal_target_metrics": f"""CREATE VIEW goal_target_metrics AS
    SELECT g.id AS goal_id, g.root_id, json_extract(t.value, '$.id') AS target_id,
           json_extract(m.value, '$.metric_id') AS metric_id,
           json_extract(m.value, '$.value') AS value
    FROM goals g, {TARGETS},
         json_each(CASE t.type WHEN 'object' THEN t.value END, '$.metrics') m
    WHERE g.targets IS NOT NULL AND m.type = 'object'""",
        "idx_goals_targets":
            "CREATE INDEX idx_goals_targets ON goals (root_id) WHERE targets IS NOT NULL"},
    "session-metadata": {"session_metadata": f"""CREATE TABLE session_metadata (
    session_id VARCHAR NOT NULL REFERENCES goals(id) ON DELETE CASCADE,
    key VARCHAR NOT NULL, value TEXT, root_id VARCHAR {NOT_EMPTY} {IN_GOALS},
    created_at {NOW}, updated_at {NOW}, PRIMARY KEY (session_id, key)
)"""},
    "audit-log": {
        "audit_log": """CREATE TABLE audit_log (
    id INTEGER PRIMARY KEY, at DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    table_name VARCHAR NOT NULL, row_id VARCHAR, root_id VARCHAR, action VARCHAR NOT NULL,
    old_values TEXT, new_values TEXT
)""",
        "trg_audit_log_update":
            f"CREATE TRIGGER trg_audit_log_update BEFORE UPDATE ON audit_log {STAYS}",
        "trg_audit_log_insert": f"""CREATE TRIGGER trg_audit_log_insert BEFORE INSERT ON audit_log
WHEN NEW.id IN (SELECT id FROM audit_log) {STAYS}"""},
}


def extra_objects(schema: Schema, extras: Sequence[str]) -> dict[str, str]:
    """{name: CREATE statement} of every object of these extras."""
    found = {name: sql for extra in extras for name, sql in EXTRA_OBJECTS[extra].items()}
    if "session_metadata" in found and "sessions" in schema:
        text = found["session_metadata"]
        found["session_metadata"] = text.replace("goals(id)", "sessions(id)", 1)
    if "audit-log" in extras:
        found.update((f"trg_{name}_audit_{action}", audit_trigger(schema, name, action))
                     for name in schema.having(TABLES) for action in ("insert", "update", "delete"))
    return found


def audit_trigger(schema: Schema, name: str, action: str) -> str:
    """The trigger that logs what one action changes: root_id only where no trigger keeps it."""
    old, new = action != "insert", action != "delete"  # which rows there are
    row = "NEW" if new else "OLD"
    names = [column.name for key, column in schema[name].columns.items()
             if not (column.hidden or key == "root_id" and name in PARENTS)]
    changes = ",\n            ".join(
        f"({literal(one)}, {'OLD.' + quote(one) if old else 'NULL'}, "
        f"{'NEW.' + quote(one) if new else 'NULL'})" for one in names)
    old_values, new_values = (
        f"json_group_object(name, CASE typeof({value}) WHEN 'blob' THEN hex({value}) ELSE {value} "
        "END)" if there else "NULL" for value, there in (("old", old), ("new", new)))
    return f"""CREATE TRIGGER trg_{name}_audit_{action} AFTER {action.upper()} ON {name} BEGIN
    INSERT INTO audit_log (table_name, row_id, root_id, action, old_values, new_values)
    SELECT '{name}', {row}.id, {rule(schema, name, row)}, '{action}', old_values, new_values
    FROM (
        WITH changes(name, old, new) AS (VALUES
            {changes})
        SELECT count(*) AS n, {old_values} AS old_values, {new_values} AS new_values
        FROM changes WHERE old IS NOT new COLLATE BINARY)
    WHERE n > 0;
END"""


# ==== 3. A connection; reading, refusing and editing a schema ==========================

class Stop(Exception):
    """The run ends here: a line for the operator, the exit status, what to do next."""
    def __init__(self, message: str, status: int = 1, advice: str = "", more: str = "") -> None:
        super().__init__(message)
        self.status, self.advice, self.more = status, advice, more  # more: the lines below


SIGNALS: list[int] = []  # those that came; heard between statements and within long ones


def interrupted() -> Stop:
    return Stop(f"interrupted by {signal.Signals(SIGNALS[0]).name}", 128 + SIGNALS[0],
                "run it again when it suits")


def check_interrupt() -> None:
    if SIGNALS:
        raise interrupted()


class Database(sqlite3.Connection):
    """A connection in autocommit mode: BEGIN and COMMIT are said by this script alone."""
    patience = 5.0      # seconds to wait for a lock
    script: list[str]   # the statements that changed something, for --sql
    uri: str            # what it was opened by

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        """Wait for a lock in short turns: SQLite's own waiting can't be interrupted."""
        deadline = time.monotonic() + self.patience
        while True:
            check_interrupt()
            try:
                return super().execute(sql, parameters)
            except sqlite3.OperationalError as error:
                check_interrupt()
                if " is locked" not in str(error) or time.monotonic() > deadline:
                    raise
            OUT.tick("waiting for a lock")
            time.sleep(0.02)

    def rows(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        return self.execute(sql, parameters).fetchall()

    def column(self, sql: str, parameters: Any = ()) -> list[Any]:
        return [row[0] for row in self.execute(sql, parameters)]

    def value(self, sql: str) -> Any:
        return self.execute(sql).fetchone()[0]

    def change(self, sql: str) -> int:
        """Execute a statement that changes something; how many rows it changed."""
        if OUT.verbose:
            OUT.say(f"    sql> {' '.join(sql.split())}")
        before = self.total_changes
        self.execute(sql)
        self.script.append(sql)
        return self.total_changes - before


def connect(path: str, mode: str = "rw", patience: float = 5.0) -> Database:
    """Open a database file; `mode` as in https://sqlite.org/uri.html."""
    uri = f"file:{urllib.parse.quote(abspath(path))}?mode={mode}"
    # No cache of statements: a cached EXPLAIN would show the schema as it was.
    db = sqlite3.connect(uri, uri=True, timeout=0.1, isolation_level=None, cached_statements=0,
                         factory=Database)
    db.patience, db.script, db.uri = patience, [], uri
    db.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
    # Here Python runs a signal's handler within a long statement.
    db.set_progress_handler(OUT.tick, 10_000)
    return db


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


class Token(namedtuple("Token", "text start end depth")):
    @property
    def name(self) -> str:
        """The identifier it stands for (https://sqlite.org/lang_keywords.html)."""
        quoted = self.text[0] in "\"`'[" and len(self.text) > 1
        return str(self.text[1:-1].replace('""', '"') if quoted else self.text).lower()


TOKEN = re.compile(r"""
    (?P<skip>[ \t\n\f\r]+ | --[^\n]* | /\*.*?(?:\*/|\Z))
  | "(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\] | '(?:[^']|'')*'
  | [A-Za-z0-9_$\x80-\U0010ffff]+ | .""", re.VERBOSE | re.DOTALL)


def tokenize(sql: str) -> list[Token]:
    """The tokens of a statement; `depth` is in how many brackets each is."""
    tokens, depth = [], 0
    for match in TOKEN.finditer(sql):
        if not match["skip"]:
            depth -= match[0] == ")"
            tokens.append(Token(match[0], *match.span(), depth))
            depth += match[0] == "("
    return tokens


def closing_bracket(tokens: list[Token], at: int) -> int:
    """Where the bracket closes that opens at `at`."""
    return next(end for end in range(at + 1, len(tokens)) if tokens[end].depth == tokens[at].depth)


# A row of PRAGMA table_xinfo, and whether it is declared STRING, which means NUMERIC.
Column = namedtuple("Column", "name type not_null default key hidden is_string")
# Name as spelled, text, {lower-case name: Column}, the tokens of each column and constraint, the
# closing bracket, the words after it, {(column, table, ON DELETE)}.
Table = namedtuple("Table", "name sql columns items close options references")


class Schema(dict[str, Table]):
    @property
    def link_order(self) -> str:
        """What says which of a session's links came first."""
        return "short_term_goal_id" if "WITHOUT" in self[LINKS].options else "rowid"

    def has(self, name: str, *columns: str) -> bool:
        return name in self and {*columns} <= self[name].columns.keys()

    def having(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name in self]

    def pairs(self, pairs: dict[str, list[tuple[str, str]]], name: str) -> list[tuple[str, str]]:
        """Of PARENTS or LAST_RESORTS those of a table whose column and parent table there are."""
        return [(column, parent) for column, parent in pairs.get(name, [])
                if self.has(name, column) and parent in self]


def read_table(db: Database, name: str) -> Table | None:
    """Take a table's text apart; None if there is no such plain table."""
    for actual, sql in db.rows("SELECT name, sql FROM sqlite_master WHERE type = 'table' AND "
                               "lower(name) = ? AND sql NOT LIKE 'CREATE VIRTUAL%'", [name]):
        tokens = tokenize(sql)
        close = closing_bracket(tokens, 3)
        commas = [at for at in range(3, close) if (tokens[at].text, tokens[at].depth) == (",", 1)]
        items = [tokens[start + 1:end] for start, end in zip([3, *commas], [*commas, close])]
        columns = {row[1].lower(): Column._make([*row[1:], re.match("(?i)STRING\\b", row[2])])
                   for row in db.rows(f"PRAGMA table_xinfo({quote(actual)})")}
        options = " ".join(token.text.upper() for token in tokens[close + 1:])
        references = {(row[3].lower(), row[2].lower(), row[6])
                      for row in db.rows(f"PRAGMA foreign_key_list({quote(actual)})")}
        return Table(actual, sql, columns, items, tokens[close], options, references)
    return None


def is_ours(db: Database) -> bool:
    goals = read_table(db, "goals")
    return bool(goals and {"id", "type", "name", "parent_id"} <= goals.columns.keys())


def read_schema(db: Database) -> Schema:
    """The app's tables. Raises Stop for a database that is not ours or is refused (DESIGN.md 2)."""
    names = [*TABLES, "sessions", LINKS, "session_metadata"]
    schema = Schema({name: table for name in names if (table := read_table(db, name))})
    if not is_ours(db):
        raise Stop(f"{OUT.database} is no Fractal Goals database: it has no table goals with id, "
                   "type, name and parent_id", 2, "name the app's own database")
    for name in db.column("SELECT lower(name) FROM sqlite_master WHERE type IN ('table', 'view')"):
        if name in TABLES and name not in schema:
            refuse(name, "it is a view or a virtual table", "rename it")
    for name in schema.having(TABLES):
        refuse_shape(db, name, schema[name])
        refuse_new_names(db, name, schema[name])
    if LINKS in schema and not schema.has(LINKS, "practice_session_id", "short_term_goal_id"):
        refuse(LINKS, "it has no practice_session_id and short_term_goal_id", "name its columns so")
    if not schema.has("sessions", "id", "root_id"):
        schema.pop("sessions", None)  # another's
    ours = extra_objects(schema, ["session-metadata"])
    if "session_metadata" in schema and schema["session_metadata"].sql not in ours.values():
        del schema["session_metadata"]
    return schema


def refuse(name: str, why: str, way_out: str) -> NoReturn:
    raise Stop(f"table {name} can't be migrated: {why}", 1, way_out)


def refuse_shape(db: Database, name: str, table: Table) -> None:
    """Raise Stop for a table of a shape that neither the app nor an ordinary owner makes."""
    columns, tokens = table.columns, tokenize(table.sql)[3:]
    wrong = [
        (table.options, f"it is {table.options}", "make it anew without that"),
        ([item[0].name for item in table.items][:len(columns)] != [*columns],
         "its text and its columns disagree", "compare its CREATE with its table_xinfo"),
        ("id" not in columns, "it has no id", "add one"),
        ("rowid" in columns, "it has a column named rowid", "rename that column"),
        (any(one.name == name and dot.text == "." for one, dot in zip(tokens, tokens[1:])),
         "a constraint in its text names the table itself", "leave the name out there")]
    for column in filter(columns.__contains__, ["id", "root_id", *dict(PARENTS.get(name, []))]):
        declared = columns[column].type
        wrong += [(columns[column].hidden, f"its {column} is a generated column", "make it plain"),
                  (re.search("INT|REAL|FLOA|DOUB", declared, re.I),
                   f"its {column} is declared {declared}",
                   "make it VARCHAR, in all references too")]
    wrong += [(True, f"its root_id REFERENCES {parent} ON DELETE {action}",
               "let it refer to goals(id) with ON DELETE CASCADE")
              for column, parent, action in table.references if column == "root_id"
              and (parent, action) not in (("goals", "NO ACTION"), ("goals", "CASCADE"))]
    wrong.append((not db.rows("""
        SELECT 1 FROM pragma_index_list(?) i WHERE i."unique" AND NOT i.partial AND
        (SELECT group_concat(lower(name)) FROM pragma_index_info(i.name)) = 'id'""", [table.name]),
        "its id is not unique", f"CREATE UNIQUE INDEX {name}_id ON {name}(id)"))
    for found, why, way_out in wrong:
        if found:
            refuse(name, why, way_out)
    if db.value(f"SELECT typeof(min(id)) IN ('integer', 'real') FROM {name}"):
        refuse(name, "its ids are numbers", "make them text, in all references too")


def refuse_new_names(db: Database, name: str, table: Table) -> None:
    """Raise Stop where a string in double quotes would become a new column's name
    (https://sqlite.org/quirks.html#dblquote)."""
    new = TABLES[name].keys() - table.columns
    for sql in db.column("SELECT sql FROM sqlite_master WHERE lower(tbl_name) = ? "
                         "AND type IN ('table', 'index') AND sql > ''", [name]):
        tokens = tokenize(sql[sql.find("("):])
        for word, token in zip([one.text.upper() for one in tokens], tokens[1:]):
            if token.text[0] == '"' and token.name in new and (
                    word not in (".", "REFERENCES", "CONSTRAINT", "COLLATE")):
                refuse(name, f"the string {token.text} would become the new column",
                       "write it in single quotes")


# ALTER TABLE refuses CURRENT_TIMESTAMP; this keeps its place until the table is recreated.
NO_TIME_YET = "DEFAULT (+NULL)"


def new_text(name: str, table: Table, checks: Sequence[str] = ()) -> str:
    """A table's text brought to the target, with these checks. Clauses are appended, as of two
    SQLite takes the last; nothing of the owner's is removed."""
    edits = []
    for (key, column), item in zip(table.columns.items(), table.items):
        end = item[-1].end
        if column.is_string:
            edits.append((item[1].start, item[1].end, "VARCHAR"))
        if key == "root_id" and NOT_EMPTY not in table.sql[item[0].start:end]:
            edits.append((end, end, f" {NOT_EMPTY}"))
        if (name, key) in ADDED_REFERENCES and key not in [of for of, _, _ in table.references]:
            edits.append((end, end, TABLES[name][key].replace("VARCHAR", "")))
    added = [f"CONSTRAINT {check} CHECK ({ALL_CHECKS[check][1]})" for check in checks]
    if ("root_id", "goals", "CASCADE") not in table.references:
        # The last key of a table acts first: before one of parent_id frees or takes what is below.
        added.insert(0, f"FOREIGN KEY (root_id) {IN_GOALS}")
    edits.append((table.close.start, table.close.start, "".join(f",\n    {a}" for a in added)))
    sql = str(table.sql)
    for start, end, text in reversed(edits):
        sql = sql[:start] + text + sql[end:]
    deadline = f"CONSTRAINT {DEADLINE} CHECK ({CHECKS[DEADLINE][1]})"
    return sql.replace(VERSION_1_DEADLINE, deadline).replace(
        NO_TIME_YET, "DEFAULT CURRENT_TIMESTAMP")


def declared_checks(sql: str) -> dict[str, str]:
    """The expression of every CHECK of a table's text, by its name or else by itself."""
    found, tokens = {}, tokenize(sql)
    for at, token in enumerate(tokens):
        if token.text.upper() == "CHECK":
            expression = sql[tokens[at + 1].end:tokens[closing_bracket(tokens, at + 1)].start]
            named = tokens[at - 2].text.upper() == "CONSTRAINT"
            unnamed = f"CHECK ({' '.join(expression.split())})"
            found[tokens[at - 1].name if named else unnamed] = expression
    return found


# ==== 4. What there is to do, and the decisions that the data needs ====================

# Rows in the way: what is wrong, where, how many, first ids, a query for all, the ways out.
Finding = namedtuple("Finding", "kind name rows ids query resolve repairable")


class Run:
    """What is to change: `compare_schema` finds it in the schema, `survey` in the rows."""
    def __init__(self, db: Database, options: argparse.Namespace) -> None:
        self.db, self.options = db, options
        self.schema, self.log = read_schema(db), last_log(db)
        self.extras = [*dict.fromkeys([*self.log.get("extras", []), *options.extra])]
        self.differences: list[str] = []          # between schema and target, a line each
        self.missing: dict[str, list[str]] = {}   # table -> columns
        self.checks: dict[str, list[str]] = {}    # table -> checks to add
        self.recreate: list[str] = []             # tables
        self.indexes: dict[str, str] = {}         # name -> CREATE statement
        self.others: dict[str, str] = {}          # triggers, and what extras are made of
        self.owners: dict[str, list[str]] = {"index": [], "trigger": []}  # texts put aside
        self.sizes: dict[str, int] = {}           # the rows of every table, the owner's too
        self.roots: dict[str, list[int]] = {}     # table -> how many to fill, to correct
        self.findings: list[Finding] = []
        self.renames: list[dict[str, Any]] = []   # what --repair does to equal names
        self.recovers = False                     # whether the recovered goal is to be made

    def nothing_to_do(self) -> bool:
        return not (self.differences or self.findings or any(map(any, self.roots.values())))


def last_log(db: Database) -> dict[str, Any]:
    """The report of the last run, from migration_log; {} if there is none that can be read."""
    with suppress(sqlite3.OperationalError, TypeError, ValueError):
        return dict(json.loads(db.value(
            "SELECT report FROM migration_log ORDER BY id DESC LIMIT 1")))
    return {}


def compare_schema(db: Database, options: argparse.Namespace) -> Run:
    """A Run with what the schema lacks of the target. Raises Stop for a refused database."""
    run, lacks = Run(db, options), []
    made = run.log.get("checks", [])  # by earlier runs
    for name, columns in TABLES.items():
        sql = run.schema[name].sql if name in run.schema else ""
        declared = declared_checks(sql)
        run.missing[name] = [column for column in columns if not run.schema.has(name, column)]
        run.differences += [f"{name}.{column} is missing" for column in run.missing[name]]
        # A check of our name is ours, unless a run made it and its text is another now.
        run.checks[name] = [
            check for check, (owner, expression) in ALL_CHECKS.items()
            if owner == name and check not in options.skip_constraint
            and (check not in declared or check in made and declared[check] != expression)]
        if run.missing[name] or new_text(name, run.schema[name], run.checks[name]) != sql:
            lacks.append(f"{name} lacks {', '.join(run.checks[name]) or 'a constraint'}")
    if lacks and not options.without_constraints:
        run.differences += lacks
        run.recreate = [*TABLES]  # all: their order of creation matters
    compare_objects(run)
    return run


def compare_objects(run: Run) -> None:
    """Compare indexes (all are made anew or none: their order matters), triggers and extras."""
    left_out = UNIQUE_NAMES if run.options.without_constraints else run.options.skip_constraint
    wanted = {name: f"CREATE UNIQUE INDEX {name} ON {table} ({columns}) WHERE deleted_at IS NULL"
              for name, (table, columns) in UNIQUE_NAMES.items() if name not in left_out}
    wanted.update({name: f"CREATE INDEX {name} ON {on}" for name, on in INDEXES.items()})
    run.others = {**extra_objects(run.schema, run.extras), **triggers(run.schema)}
    stored = dict(run.db.rows("SELECT lower(name), sql FROM sqlite_master ORDER BY rowid"))
    if run.recreate or [*wanted.items()] != [one for one in stored.items() if one[0] in wanted]:
        run.indexes = wanted
    run.differences += [f"{name} is missing or differs" for name, sql
                        in {**wanted, **run.others}.items() if stored.get(name) != sql]
    if run.indexes and not run.differences:
        run.differences = ["the indexes are out of order"]
    if {"targets", "audit-log"} & {*run.extras}:
        run.db.execute("EXPLAIN SELECT json('[]')")  # may not be built in


def refuse_names(run: Run) -> None:
    """Raise Stop where another's object has a name of ours, or a text that is not UTF-8."""
    made = extra_objects(run.schema, run.log.get("extras", []))
    reserved = extra_objects(run.schema, run.extras).keys() - made.keys()
    log = read_table(run.db, "migration_log")
    if not (log and "report" in log.columns):  # never migrated
        reserved |= {"migration_log", *VERSION_1_TRIGGERS, *triggers(run.schema)}
    for kind, name, table, sql in run.db.rows(
            "SELECT type, lower(name), lower(tbl_name), sql FROM sqlite_master"):
        of_index = name in INDEXED_TABLE and (kind, table) != ("index", INDEXED_TABLE[name])
        if of_index or name in reserved and sql != run.others.get(name):
            raise Stop(f"the {kind} {name} has a name that the migration needs", 1, "rename it")
        if re.search("[\ud800-\udfff]", f"{name}{sql}"):
            raise Stop(f"the CREATE statement of the {kind} {name} is not UTF-8", 1,
                       "write it anew in UTF-8")


def survey(db: Database, options: argparse.Namespace) -> Run:
    """Compare schema and rows with the target, derive all roots, find what to decide."""
    run = compare_schema(db, options)
    refuse_names(run)
    run.differences += [] if run.log else ["migration_log has no report"]
    run.sizes = row_counts(db)
    derive(db, run.schema)
    find_goals_without_root(run)
    find_rows_without_root(run)
    if options.repair and any(one.kind == "no root" for one in run.findings):
        run.recovers = not db.rows(f"SELECT 1 FROM goals WHERE id = '{RECOVERED}'")
        derive(db, run.schema, number_of(literal(RECOVERED)))
    if not options.without_constraints:
        for constraint in UNIQUE_NAMES:
            find_equal_names(run, constraint)
        for name in run.schema.having(run.recreate):
            find_broken_rows(run, name)
    if run.findings:
        check_sound(db, "integrity_check")  # nothing is decided on the word of a damaged index
    for name in run.schema.having(ROOTED):
        run.roots[name] = [*db.rows(
            f"SELECT count(*) - count(stored), count(stored) FROM {FOUND}{name}")[0]]
    return run


def find(run: Run, kind: str, name: str, query: str, *ways: str) -> None:
    """Add a finding if its query has rows; their first column is an id."""
    if ids := run.db.column(query):
        repairable = "--repair" in ways[0]
        run.findings.append(Finding(kind, name, len(ids), ids[:20], query, ways, repairable))


def find_goals_without_root(run: Run) -> None:
    """Goals without an id, cycles of parents, rings of links; not what hangs below them."""
    no_id = "WHERE COALESCE(id, '') = ''"
    find(run, "a goal without an id", "goals.id", f"SELECT rowid, * FROM goals {no_id}",
         f"UPDATE goals SET id = lower(hex(randomblob(16))) {no_id}")
    # Each waits for its parent, else for one of its links: followed, that leads into a loop.
    waits_for = {goal: (other, is_link) for goal, other, is_link in run.db.rows(f"""
        SELECT g.id, COALESCE(p.id, ({UNKNOWN_LINKS} LIMIT 1)), p.id IS NULL
        FROM {KNOWN}goals g LEFT JOIN {KNOWN}goals p ON p.id = g.parent_id
        WHERE g.root_id IS NULL""")}
    seen: set[str] = set()
    for start in waits_for:
        walk = [start]
        while walk[-1] not in seen:
            seen.add(walk[-1])
            walk.append(waits_for[walk[-1]][0])
        if loop := walk[walk.index(walk[-1]):-1]:
            goal = max(loop, key=lambda goal: bool(waits_for[goal][1]))
            other, is_link = waits_for[goal]
            find(run, "a ring of links" if is_link else "a cycle of parents", "goals.root_id",
                 "SELECT id, parent_id, type, name FROM goals "
                 f"WHERE id IN ({', '.join(map(literal, loop))})",
                 f"DELETE FROM {LINKS} WHERE practice_session_id = {literal(goal)} "
                 f"AND short_term_goal_id = {literal(other)}" if is_link else
                 f"UPDATE goals SET parent_id = NULL WHERE id = {literal(goal)}")


def find_rows_without_root(run: Run) -> None:
    """Rows that no rule gives a root; not those below them, which get it from them."""
    for name in run.schema.having(TABLES)[1:]:
        above = run.schema.pairs(PARENTS, name) + run.schema.pairs(LAST_RESORTS, name)
        tests = [f"NOT EXISTS (SELECT 1 FROM {parent} p WHERE p.id = c.{column})"
                 for column, parent in above]
        if run.schema.has(name, "root_id"):
            tests.append("COALESCE(c.root_id, '') = ''")
        if run.db.rows(f"SELECT 1 FROM {FOUND}{name} WHERE root IS NULL LIMIT 1"):
            find(run, "no root", f"{name}.root_id",
                 f"SELECT c.id, c.* FROM {name} c WHERE {' AND '.join(tests)}",
                 "--repair: they get a fractal, 'Recovered by the migration'",
                 "give them a root_id")


def find_broken_rows(run: Run, name: str) -> None:
    """Rows that break a check to come, or a NOT NULL or CHECK that the owner had."""
    table = run.schema[name]
    # Not IS NULL, which SQLite takes for false where a column is NOT NULL.
    tests = {f"{name}.{key}": f"typeof({quote(key)}) = 'null'"
             for key, column in table.columns.items() if column.not_null and key != "root_id"}
    tests.update({f"{name}: {check}": f"NOT ({expression})" for check, expression
                  in declared_checks(table.sql).items() if check not in ALL_CHECKS})
    tests.update({check: f"NOT ({CHECKS[check][1]})" for check in run.checks[name]
                  if check in CHECKS and not {*re.findall(r"\w+", CHECKS[check][1])}
                  & {*run.missing[name]}})
    if tests and run.db.rows(f"SELECT 1 FROM {name} WHERE {' OR '.join(tests.values())} LIMIT 1"):
        for what, test in tests.items():
            skip = [f"--skip-constraint {what}"] if what in CHECKS else []
            find(run, "broken", what, f"SELECT id, * FROM {name} WHERE {test}",
                 f"UPDATE {name} SET ... WHERE {test}", *skip)


def find_equal_names(run: Run, constraint: str) -> None:
    """Live rows with equal names; with --repair, a free name for each but the oldest."""
    table, columns = UNIQUE_NAMES[constraint]
    column = columns.split(",")[0]
    if constraint in run.options.skip_constraint or not run.schema.has(table, column):
        return
    live = "name IS NOT NULL"
    if run.schema.has(table, "deleted_at"):
        live += " AND deleted_at IS NULL"
    find(run, "equal names", constraint,
         f"SELECT id, {column}, name FROM {table} WHERE {live} AND ({column}, name) IN "
         f"(SELECT {column}, name FROM {table} WHERE {live} AND {column} <> '' "
         "GROUP BY 1, 2 HAVING count(*) > 1)",
         "--repair: newer ones become 'Name (2)'", f"--skip-constraint {constraint}")
    if not run.options.repair:
        return
    scope = f"COALESCE(NULLIF(root_id, ''), '{RECOVERED}')" if column == "root_id" else column
    rows = run.db.rows(f"""
        SELECT id, rowid, {scope}, CAST(name AS TEXT), row_number() OVER (
            PARTITION BY {scope}, name ORDER BY created_at IS NULL, created_at, rowid) AS position
        FROM {table} WHERE {live} AND {scope} <> '' ORDER BY position, rowid""")
    # Equal for what any collation finds equal.
    taken = {(scope, name.lower().rstrip(" ")) for _, _, scope, name, _ in rows}
    for identity, key, scope, name, number in rows:
        if number > 1:  # names up to this number are taken: by the equals before
            while (scope, f"{name} ({number})".lower()) in taken:
                number += 1
            after = f"{name} ({number})"
            taken.add((scope, after.lower()))
            run.renames.append(
                {"table": table, "id": identity, "key": key, "before": name, "after": after})


def damage(db: Database, check: str = "quick_check") -> str:
    """What a check of the file says first; "" if nothing."""
    # SQLite 3.40 says these of columns that ALTER TABLE added.
    harmless = r"ok$|(NULL|NUMERIC|TEXT|non-\w+) value in |CHECK constraint failed in "
    try:
        said = [text for text in db.column(f"PRAGMA main.{check}(9999)")
                if not re.match(harmless, text)]
    except sqlite3.DatabaseError as error:
        if "malformed" not in str(error):
            raise
        said = [str(error)]
    return " ".join(said[0].split()) if said else ""


def check_sound(db: Database, check: str = "quick_check") -> None:
    """Raise Stop if the database is damaged, with what mends it."""
    if said := damage(db, check):
        index = re.search(r"(missing from|entries in) index", said)
        raise Stop(f"{'an index' if index else 'the database'} is damaged: {said}", 1,
                   "REINDEX in the sqlite3 shell, and run again" if index
                   else "restore a backup, or use .recover of sqlite3")


# ==== 5. One transaction, five phases ==================================================

CHUNK_ROWS = 50_000
NEW = "migration_new_"  # before the name of a table while it is recreated
CACHE_KIB = 96 * 1024  # random ids go into the index of a PRIMARY KEY: it should fit
SORT_KIB = 8 * 1024    # more makes sorts no faster, and several are in memory at once
REPORT_THIS = "please report this with the output of -v"


def migrate_in_transaction(run: Run, data_version: int, backup: str | None) -> Run:
    """Everything that changes the file; rolled back under --dry-run and on any failure. Returns
    the run that was carried out: a new one if someone wrote since `data_version`."""
    db, options = run.db, run.options
    for pragma in ("foreign_keys = OFF", "legacy_alter_table = ON", "threads = 2",
                   "secure_delete = FAST", "analysis_limit = 1000"):
        db.execute(f"PRAGMA {pragma}")
    db.execute("BEGIN IMMEDIATE")
    try:
        if db.value("PRAGMA main.data_version") != data_version:
            shown, run = run.renames, survey(db, options)
            check_decisions(run)
            if run.renames != shown and not options.yes:
                raise Stop("others have written names that are to be repaired", 1, "run it again")
        if run.nothing_to_do():
            return run
        wait_for_check = back_up(run, backup)
        OUT.report["not_compiling"] = not_compiling(db)
        put_aside(run)
        repair_names(run)
        for title, phase in (
                ("[1/5] Add columns", add_columns), ("[2/5] Backfill root_id", backfill),
                ("[3/5] Recreate tables", recreate_tables),
                ("[4/5] Create indexes", create_indexes), ("[5/5] Verify", verify)):
            OUT.begin(title)
            OUT.end(phase(run))
        write_log(run)
        wait_for_check()
        if options.sql:
            write_file(options.sql, script_text(run))
        db.execute("ROLLBACK" if options.dry_run else "COMMIT")
        if not (options.dry_run or options.output):
            commit()
    finally:
        if db.in_transaction:
            sqlite3.Connection.execute(db, "ROLLBACK")
    return run


def put_aside(run: Run) -> None:
    """Drop all triggers; keep as text the owner's, and the owner's indexes of recreated tables."""
    ours = {*VERSION_1_TRIGGERS, *run.others, *INDEXED_TABLE}
    for kind, name, table, sql in run.db.rows(
            "SELECT type, name, lower(tbl_name), sql FROM sqlite_master "
            "WHERE type IN ('index', 'trigger') AND sql > '' ORDER BY rowid"):
        if name.lower() not in ours and (kind == "trigger" or table in run.recreate):
            run.owners[kind].append(sql)
        if kind == "trigger":
            run.db.change(f"DROP TRIGGER {quote(name)}")


def repair_names(run: Run) -> None:
    """Give equal names their new ones; name the full-text tables to be filled anew."""
    if not run.renames:
        return
    broken = run.db.rows("PRAGMA foreign_key_check")
    for one in run.renames:
        run.db.change(f"UPDATE {one['table']} SET name = {literal(one['after'])} WHERE "
                      f"rowid = {one['key']} AND CAST(name AS TEXT) = {literal(one['before'])}")
    if newly := {*run.db.rows("PRAGMA foreign_key_check")} - {*broken}:
        raise Stop(f"a row of {newly.pop()[0]} refers to a name that is to be repaired", 1,
                   "rename by hand")
    for table in sorted({one["table"] for one in run.renames}):
        for name in run.db.column("SELECT name FROM sqlite_master WHERE sql LIKE "
                                  f"'CREATE VIRTUAL TABLE%content%{table}%'"):
            OUT.say(f"Names that {name} indexes have changed; afterwards, in the sqlite3 shell:\n"
                    f"  INSERT INTO {name}({name}) VALUES('rebuild')")


def add_columns(run: Run) -> str:
    """[1/5] Create missing tables, add missing columns, make the recovered goal."""
    for name, columns in run.missing.items():
        declared = [f"{quote(column)} {TABLES[name][column]}" for column in columns]
        if name not in run.schema:  # [3/5] adds its checks
            run.db.change(f"CREATE TABLE {name} (\n    " + ",\n    ".join(declared) + ")")
            continue
        for text in declared:
            text = text.replace("DEFAULT CURRENT_TIMESTAMP", NO_TIME_YET)
            text = text.replace(IN_GOALS, "")  # the table gets it as its last key
            run.db.change(f"ALTER TABLE {name} ADD COLUMN {text}")
    for sql in run.others.values():
        if sql.startswith("CREATE TABLE"):
            run.db.change(sql.replace("TABLE", "TABLE IF NOT EXISTS", 1))
    if run.recovers:
        run.db.change(f"""
            INSERT INTO goals (id, type, name, root_id, created_at) VALUES ('{RECOVERED}',
            'UltimateGoal', 'Recovered by the migration', '{RECOVERED}', CURRENT_TIMESTAMP)""")
    return f"{count(sum(map(len, run.missing.values())), 'column')} added"


def backfill(run: Run) -> str:
    """[2/5] Give rows their root: here, or on the way into a table that is recreated."""
    for name in run.roots:
        if name not in run.recreate:
            run.db.change(f"UPDATE OR FAIL {name} SET root_id = {root_of('r.root')} "
                          f"FROM {FOUND}{name} r WHERE r.key = {name}.rowid")
        OUT.report["corrections"][name] = run.db.rows(
            f"SELECT c.{ROOTED[name]}, {root_of('f.stored')}, {root_of('f.root')} FROM "
            f"{FOUND}{name} f JOIN {name} c ON c.rowid = f.key WHERE f.stored > 0 LIMIT 1000")
    filled, corrected = map(sum, zip(*run.roots.values()))
    return f"{count(filled, 'root')} filled, {corrected:,} corrected"


def recreate_tables(run: Run) -> str:
    """[3/5] Rebuild tables, as https://sqlite.org/lang_altertable.html#otheralter says. With
    legacy_alter_table on and foreign_keys off, DROP deletes no rows elsewhere, and RENAME leaves
    views and references. All are copied first: what is dropped is written over slowly."""
    schema, rows = read_schema(run.db), 0
    for name in run.recreate:
        for copied in copy_table(run, name, schema[name]):
            rows += copied
            OUT.progress("row", rows, sum(run.sizes[name] for name in run.schema.having(TABLES)))
    for name in run.recreate:
        old = quote(schema[name].name)
        run.db.change(f"DROP TABLE {old}")
        run.db.change(f"ALTER TABLE {NEW}{name} RENAME TO {old}")
    return f"{count(len(run.recreate), 'table')}, {count(rows, 'row')} copied and proven"


def copy_table(run: Run, name: str, table: Table) -> Iterator[int]:
    """Create the new table, copy rows in ranges, prove each equal; how many a range has."""
    db, new = run.db, NEW + name
    text = new_text(name, table, run.checks[name])
    db.change(f"CREATE TABLE {new} {text[tokenize(text)[2].end:]}")
    if "autoincrement" in [token.name for token in tokenize(text)]:
        # The row with the highest key ever given may be gone.
        db.change(f"UPDATE sqlite_sequence SET name = '{new}' WHERE name = {literal(table.name)}")
    made = read_table(db, new)
    if not made or [*made.columns] != [*table.columns] or not table.references <= made.references:
        raise Stop(f"the new text of table {name} does not mean what it should", 1, REPORT_THIS)
    values = {quote(column.name): new_value(column) for column in table.columns.values()
              if not column.hidden}
    old = {column: value for column, value in values.items()
           if column[1:-1].lower() not in run.missing[name]}
    new_row = ", ".join(f"n.{column} COLLATE BINARY" for column in old)
    source, start = f"{name} o LEFT JOIN {FOUND}{name} r ON r.key = o.rowid", -2 ** 63
    while (last := db.value(f"SELECT max(rowid) FROM (SELECT rowid FROM {name} WHERE "
                            f"rowid >= {start} ORDER BY rowid LIMIT {CHUNK_ROWS})")) is not None:
        chunk = f"o.rowid BETWEEN {start} AND {last}"
        # FAIL: no conflict clause of the table drops a row in silence; no journal of the statement.
        yield db.change(f"INSERT OR FAIL INTO {new} (rowid, {', '.join(values)}) "
                        f"SELECT o.rowid, {', '.join(values.values())} FROM {source} WHERE {chunk}")
        if lost := db.value(f"""
                SELECT count(*) FROM {source} LEFT JOIN {new} n ON n.rowid = o.rowid
                WHERE {chunk} AND ({new_row}) IS NOT ({', '.join(old.values())})"""):
            raise Stop(f"the copy of {name} differs in {count(lost, 'row')}", 1, REPORT_THIS)
        start = last + 1
    db.script.append("INSERT INTO migration_guard SELECT "
                     f"(SELECT count(*) FROM {new}) = (SELECT count(*) FROM {name})")


def new_value(column: Column) -> str:
    """SQL for a column of the old row `o`; SQLite's text of a number may lack its last digits."""
    value = f"o.{quote(column.name)}"
    if column.name.lower() == "root_id":
        return f"COALESCE({root_of('r.root')}, {value})"
    return f"""iif(typeof({value}) = 'real' AND CAST({value} AS TEXT) + 0.0 <> {value},
                   printf('%!.17g', {value}), {value})""" if column.is_string else value


def create_indexes(run: Run) -> str:
    """[4/5] Create indexes and triggers, the owner's triggers last: the newest fires first, so
    they see an insert before ours fill its root."""
    db, now = run.db, compare_schema(run.db, run.options)
    db.execute(f"PRAGMA cache_size = -{SORT_KIB}")
    for sql in run.owners["index"]:
        db.change(sql)
    objects = {**now.indexes, **now.others}
    for number, (name, sql) in enumerate(objects.items()):
        OUT.progress("object", number, len(objects))
        kind = sql.split(name)[0].split()[-1]
        if kind != "TABLE":
            db.change(f"DROP {kind} IF EXISTS {name}")
            db.change(sql)
    for sql in run.owners["trigger"]:
        db.change(sql)
    db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    for name in TABLES:
        db.change(f"ANALYZE {name}")
    made = sum(name.startswith("trg_") for name in now.others)
    return f"{count(len(now.indexes), 'index', 'indexes')}, {count(made, 'trigger')}"


def write_log(run: Run) -> None:
    """Keep the report in migration_log, in the transaction of the run itself."""
    run.db.change(MIGRATION_LOG)
    report = json.dumps(dict(OUT.report, status="done", exit_code=0), default=repr)
    values = map(literal, (OUT.report["started"], VERSION, sqlite3.sqlite_version, report))
    run.db.change("INSERT INTO migration_log (run_at, script_version, sqlite_version, report) "
                  f"VALUES ({', '.join(values)})")


# ==== 6. Verification ==================================================================

def verify(run: Run) -> str:
    """[5/5] Look at every promise of the run afresh; raises Stop where one is broken."""
    db, sizes = run.db, row_counts(run.db)
    sizes["goals"] -= run.recovers
    faults = [*schema_faults(compare_schema(db, run.options), OUT.report["not_compiling"])]
    faults += [f"{name} has {sizes.get(name)} rows, not {rows}"
               for name, rows in run.sizes.items() if sizes.get(name) != rows]
    for name in () if faults else TABLES:
        faults += [f"no row had the root {root!r} before, as {name} does" for root in db.column(
            f"SELECT CAST(root_id AS TEXT) FROM (SELECT DISTINCT root_id FROM {name}) "
            "EXCEPT SELECT id FROM migration_roots")]
    faults = faults or [*audit(db)]
    if faults:
        db.execute("ROLLBACK")
        check_sound(db, "integrity_check")  # as found, an index may have lied
        raise Stop("verification found a fault: " + "; ".join(faults[:5]), 1,
                   "mend the view, trigger or foreign key it names; else " + REPORT_THIS)
    check_sound(db, "quick_check" if run.recreate else "integrity_check")  # old indexes may lie
    note_references(run)
    return "schema, roots, rows, integrity are right"


def schema_faults(run: Run, before: dict[str, str]) -> Iterator[str]:
    """What the schema lacks of the target; what compiled before and does no more."""
    OUT.report["extras"], texts = run.extras, " ".join(one.sql for one in run.schema.values())
    OUT.report["checks"] = [check for check, (_, expression) in ALL_CHECKS.items()
                            if f"CONSTRAINT {check} CHECK ({expression})" in texts]
    yield from run.differences
    broken: dict[str, str] = {}
    for statement, why in not_compiling(run.db).items():
        # Our triggers fire those of other tables: what was broken there is so in more statements.
        if statement not in before and (statement[:6] == "SELECT" or why not in before.values()):
            broken.setdefault(statement.split(" ", 1)[1],
                              f"{statement} does not compile any more: {why}")
    yield from broken.values()
    for name, on in {} if run.differences else INDEXES.items():
        # A query for one fractal or one parent finds its index; else SQLite refuses to compile it.
        table, column, where = re.split(r" \((\w+).*?\)", on)
        run.db.execute(f"EXPLAIN SELECT * FROM {table} INDEXED BY {name} WHERE {column} = '' "
                       + where.replace("WHERE", "AND"))


def row_counts(db: Database) -> dict[str, int]:
    """{lower-case table: number of rows}, of the owner's tables too."""
    return {name: db.value(f"SELECT count(*) FROM main.{quote(name)}") for name in db.column(
        "SELECT lower(name) FROM sqlite_master WHERE type = 'table' AND rootpage > 0 "
        "AND name NOT GLOB 'sqlite_*'")}


def not_compiling(db: Database) -> dict[str, str]:
    """{statement: error} for views, and tables with their triggers, that don't compile."""
    found = {}
    for name in db.column("SELECT name FROM sqlite_master WHERE type = 'view' OR type = 'table' "
                          "AND rootpage > 0 AND name NOT GLOB 'sqlite_*'"):
        table, columns = f"main.{quote(name)}", ["rowid"]
        with suppress(sqlite3.OperationalError):
            columns = [quote(row[1]) for row in db.rows(f"PRAGMA table_info({quote(name)})")]
        same = ", ".join(f"{column} = {column}" for column in columns)
        for sql in (f"SELECT * FROM {table}", f"INSERT INTO {table} DEFAULT VALUES",
                    f"DELETE FROM {table}", f"UPDATE {table} SET {same}"):
            try:
                db.execute(f"EXPLAIN {sql}")
            except sqlite3.OperationalError as error:
                if not str(error).startswith("cannot modify"):  # a view
                    found[f"{sql.split()[0]} {name}"] = str(error)
    return found


def note_references(run: Run) -> None:
    """Count, by column, references to missing rows and rows that link two fractals: no faults,
    as an app without foreign keys makes them daily."""
    lost, crossing = OUT.report["references_to_missing_rows"], OUT.report["crossing_fractals"]
    OUT.report["quarantined_by_version_1"] = run.sizes.get("migration_quarantine", 0)
    queries = {}
    if LINKS in run.schema:
        queries[LINKS] = (
            f"SELECT c.id FROM goals c JOIN {LINKS} k ON k.practice_session_id = c.id "
            "JOIN goals p ON p.id = k.short_term_goal_id WHERE p.root_id <> c.root_id")
    for name, column, parent in REFERENCES:
        if missing := run.db.value(f"""
                SELECT sum(n) FROM (SELECT {column} AS id, count(*) AS n FROM {name}
                                    WHERE {column} > '' GROUP BY 1) k
                WHERE NOT EXISTS (SELECT 1 FROM {parent} p WHERE p.id = k.id)"""):
            lost[f"{name}.{column}"] = missing
        if column != "root_id" and (column, parent) not in PARENTS.get(name, []):
            # DISTINCT: by fractal and parent these are few, from the index.
            queries[f"{name}.{column}"] = (
                f"SELECT id FROM {name} WHERE (root_id, {column}) IN (SELECT k.root_id, p.id FROM "
                f"(SELECT DISTINCT root_id, {column} AS id FROM {name}) k "
                f"JOIN {parent} p ON p.id = k.id WHERE p.root_id <> k.root_id)")
    for where, query in queries.items():
        if ids := run.db.column(query):
            crossing[where] = {"count": len(ids), "ids": ids[:20], "query": query}
    if lost or crossing:
        linking = sum(one["count"] for one in crossing.values())
        OUT.say(f"  {count(sum(lost.values()), 'reference')} to missing rows, "
                f"{count(linking, 'row')} that link two fractals\n"
                "  (listed in the --report; the app makes them: it uses no foreign keys)")


# ==== 7. Files: copies, backup, restore ================================================
# While this process has a connection to a file, it opens that file by no other way: closing any
# descriptor drops its locks (https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled).

SNAPSHOT, PARTIAL = "fractal-goals", ".partial-"  # in the names of what a killed run leaves
SIDE_FILES = ("-wal", "-shm", "-journal")


def read_head(path: str) -> bytes:
    """How a file begins; raises Stop unless it is a database."""
    if not isfile(path) or not getsize(path):
        raise Stop(f"{path} is no file, or empty: no such database", 2,
                   "name the app's own, or a backup of it")
    with open(path, "rb") as file:
        head = file.read(100)
    if not head.startswith(b"SQLite format 3\0"):
        raise Stop(f"{path} is no SQLite database, or encrypted", 2,
                   f"name the app's own, or {AWAY}")
    return head


def size_of(path: str) -> int:
    """Bytes of a database with its -wal."""
    return sum(getsize(path + end) for end in ("", "-wal") if exists(path + end))


def mebibytes(size: int) -> str:
    return f"{size / 2 ** 20:,.1f} MiB"


@contextmanager
def reading(path: str, patience: float) -> Iterator[Database]:
    """A connection that reads one state, after SQLite's own recovery, and leaves no file."""
    writable = all(os.access(place, os.W_OK) for place in (path, dirname(path)))
    in_wal_mode = read_head(path)[18] == 2
    immutable = in_wal_mode and not writable and not exists(path + "-wal")
    with closing(connect(path, "ro&immutable=1" if immutable else "rw", patience)) as db:
        db.execute("BEGIN")
        db.execute("SELECT count(*) FROM sqlite_master")
        yield db


def copy_pages(source: Database, target: Database, what: str) -> None:
    """Copy, hearing signals. `source` is in a transaction, or a writer would make it begin anew."""
    def progress(status: int, left: int, total: int) -> None:
        if status != 101:  # SQLITE_DONE: what is complete no signal may deny
            check_interrupt()
            OUT.progress(what, total - left, total)
    source.backup(target, pages=1000, progress=progress)


def copy_to_file(source: Database, path: str, what: str) -> None:
    with closing(connect(path, "rwc")) as target:
        copy_pages(source, target, what)
    os.chmod(path, 0o600)


@contextmanager
def private_file(final: str, like: str) -> Iterator[str]:
    """The path of a file in a private folder, gone in the end; or with `like`, named `final` and
    owned like that."""
    folder, name = os.path.split(final)
    with tempfile.TemporaryDirectory(prefix=name + PARTIAL, dir=folder) as private:
        path = os.path.join(private, "copy.db")
        yield path
        if like:
            if exists(path + "-wal"):  # SQLite keeps quiet where it can't write this back
                raise Stop(f"{final} is not written: the disk is full", 1, "make room")
            with suppress(PermissionError):  # where root runs this for the app
                os.chown(path, os.stat(like).st_uid, os.stat(like).st_gid)
            if lexists(final):
                raise Stop(f"{final} exists already", 2, "name a new file")
            os.rename(path, final)


@contextmanager
def snapshot(options: argparse.Namespace) -> Iterator[str]:
    """The path of a private copy of DATABASE, gone in the end, or kept as --output."""
    final = options.output or os.path.join(tempfile.gettempdir(), SNAPSHOT)
    with private_file(final, options.output and options.path) as path:
        with reading(options.path, options.timeout) as source:
            copy_to_file(source, path, "snapshot")
        yield path
        os.chmod(path, os.stat(options.path).st_mode & 0o777)


def back_up(run: Run, final: str | None) -> Callable[[], None]:
    """Back up under the run's lock, from a second connection; nothing if `final` is None. Returns a
    function that waits for the check, which goes on in a thread, and raises Stop for damage."""
    if not final:
        return lambda: None
    from concurrent.futures import ThreadPoolExecutor
    OUT.begin("Back up")
    path = run.options.path
    with closing(connect(path, "ro")) as db, private_file(final, path) as partial:
        db.execute("BEGIN")
        copy_to_file(db, partial, "backup")
    OUT.report["backup"] = final
    OUT.end(f"{mebibytes(getsize(final))}, is checked during what follows")
    return ThreadPoolExecutor(1).submit(check_backup, final).result


def check_backup(path: str) -> None:
    """Raise Stop if a backup is damaged: so is the database, of which it is a copy."""
    with closing(connect(path, "ro&immutable=1")) as db:
        db.set_progress_handler(lambda: bool(SIGNALS), 10_000)
        check_sound(db)


def check_places(options: argparse.Namespace, backup: str | None, copy: bool) -> str:
    """Raise Stop where a run could not write what it must; else say the disk it needs."""
    path, temporary = options.path, os.path.join(tempfile.gettempdir(), SNAPSHOT)
    needs = [(path, 5), (temporary, 1), (backup or path, 1 if backup else 0)]
    if copy:
        needs = [(options.output or temporary, 6)]
    folders = [dirname(file) for file, _ in needs]
    for place in folders if copy else [path, *folders]:
        if not os.access(place, os.W_OK):
            raise Stop(f"no permission to write {place}", 1, "run this as the app's own user")
    folder = folders[0]
    times = sum(n for place, (_, n) in zip(folders, needs)
                if os.stat(place).st_dev == os.stat(folder).st_dev)
    need, free = times * size_of(path), shutil.disk_usage(folder).free
    said = f"{mebibytes(need)} needed, {mebibytes(free)} free in {folder}"
    if free < need:
        raise Stop(f"not enough free disk: {said}", 1,
                   "make room; TMPDIR names the folder for temporary files")
    return said


def free_name(path: str, word: str) -> str:
    """`path` with a word and the time in UTC: of the next second, where that name is taken."""
    while lexists(name := f"{path}.{word}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"):
        time.sleep(0.1)
    return name


def restore(options: argparse.Namespace) -> None:
    """Put a backup in place of DATABASE, whose content is kept aside."""
    path, backup, OUT.database = options.path, options.restore, options.restore
    there = exists(path) and getsize(path)
    for end in ("-wal", "-journal"):
        if exists(path + end) and not there:
            raise Stop(f"{path}{end} lies there without its database", 1,
                       "move it away, and run again")
    with reading(backup, options.timeout) as source:
        if said := damage(source):
            raise Stop(f"{backup} is damaged: {said}", 1, "choose another backup")
        if not is_ours(source):
            raise Stop(f"{backup} is no Fractal Goals database", 2, "choose another backup")
        OUT.database = path
        hours = (time.time() - os.stat(backup).st_mtime) / 3600
        OUT.say(f"Restore {backup}\nin place of {path}\n  the backup's file is {hours:,.1f} hours "
                f"old, and {'migrated' if last_log(source) else 'not migrated'}")
        if there:
            say_what_is_lost(source, options)
        confirm(options, "restore")
        if exists(path):
            put_back(source, options)
        else:
            with private_file(path, dirname(path)) as partial:
                copy_to_file(source, partial, "restore")
            commit()
        rows = row_counts(source)
    with reading(path, options.timeout) as restored:
        if damage(restored) or row_counts(restored) != rows:
            raise Stop(f"{path} does not equal {backup}", 1, "look at the disk, and restore again")
    OUT.report["status"] = "done"
    OUT.say(f"Done: {path} is as {backup} was.", always=True)


def say_what_is_lost(source: Database, options: argparse.Namespace) -> None:
    """Say how many rows a restore replaces; raises Stop for another database."""
    OUT.say(f"{'rows of':24}{'the backup':>14}{'now':>14}{'only now':>14}")
    before = row_counts(source)
    with reading(options.path, options.timeout) as db:
        db.execute("ATTACH ? AS backup", [source.uri])
        now_there, strange = row_counts(db), not is_ours(db)
        for name, now in now_there.items():
            lost = max(now - before.get(name, 0), 0)
            with suppress(sqlite3.OperationalError):  # it has no id
                lost = db.value(f"SELECT count(*) FROM (SELECT n.id FROM main.{quote(name)} n "
                                f"EXCEPT SELECT b.id FROM backup.{quote(name)} b)")
            OUT.say(f"  {name:22.22}{before.get(name, 0):14,}{now:14,}{lost:14,}")
            strange = strange or name == "goals" and 0 < now == lost
    if strange and any(now_there.values()):
        raise Stop(f"{options.path} has no goal in common with {options.restore}", 2,
                   "name a backup of this database")


def put_back(source: Database, options: argparse.Namespace) -> None:
    """Keep the content of DATABASE aside, then overwrite it, under one lock."""
    with closing(connect(options.path, "rw", options.timeout)) as db:
        mode = db.value("PRAGMA journal_mode")
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("BEGIN EXCLUSIVE")
        db.execute("COMMIT")  # the lock stays (https://sqlite.org/pragma.html#pragma_locking_mode)
        aside = free_name(options.path, "replaced")
        try:
            db.execute("PRAGMA journal_mode = DELETE")  # the page size may be another
            with private_file(aside, options.path) as partial:
                copy_to_file(db, partial, "keep aside")
            OUT.report["kept_aside"] = aside
            db.execute("PRAGMA locking_mode = NORMAL")  # the lock ends with the next transaction
            copy_pages(source, db, "restore")
            commit()
        finally:
            with suppress(sqlite3.Error):
                sqlite3.Connection.execute(db, f"PRAGMA journal_mode = {mode}")
    OUT.say(f"What was there is kept in {aside}")


# ==== 8. What people see, and the report ===============================================

MADE_BY = "migrate_database_improvements.py"
GONE = (AttributeError, OSError, ValueError)  # a reader that went away (`| head`) stops no run


class Output:
    """What a run says, and its report; `OUT` is the one of this process."""
    def __init__(self, options: argparse.Namespace) -> None:
        self.stream = sys.stderr if options.report == "-" else sys.stdout
        asks = not (options.yes or options.dry_run or options.output or options.verify)
        self.quiet, self.verbose = options.quiet and not asks, options.verbose
        self.terminal = bool(self.stream and self.stream.isatty()) and not self.quiet and (
            os.environ.get("TERM") != "dumb")
        self.step, self.started, self.doing = "Open the file", time.monotonic(), ""
        self.shown, self.width = 0.0, 0
        self.committed = False  # what is done is done for good
        self.database = ""      # as the operator knows it, whatever copy is worked on
        self.report: dict[str, Any] = {
            "made_by": f"{MADE_BY} {VERSION}", "status": "failed", "exit_code": 1, "message": "",
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "seconds": 0,
            "database": {}, "python": sys.version.split()[0], "sqlite": sqlite3.sqlite_version,
            "options": dict(vars(options)), "tables": {}, "phases": [], "decisions": [],
            "repairs": [], "corrections": {}, "checks": [], "extras": [], "not_compiling": {},
            "references_to_missing_rows": {}, "crossing_fractals": {},
            "backup": None, "kept_aside": None}

    def say(self, text: str, always: bool = False, end: str = "\n") -> None:
        if always or not self.quiet:
            with suppress(*GONE):
                clear = f"\r{' ' * self.width}\r" if self.width else ""
                self.stream.write(clear + text + end)
                self.stream.flush()
            self.width = 0

    def begin(self, step: str) -> None:
        self.step, self.started, self.doing = step, time.monotonic(), ""

    def end(self, done: str) -> None:
        seconds = round(time.monotonic() - self.started, 3)
        self.say(f"{self.step:22}  {done:46}{seconds:7.1f} s")
        self.report["phases"].append({"phase": self.step, "done": done, "seconds": seconds})

    def progress(self, what: str, done: int, total: int) -> None:
        left = (time.monotonic() - self.started) / max(done, 1) * (total - done)
        self.doing = f"{what} {done:,} of {total:,}, {left:.0f} s left of this step"
        self.tick()

    def tick(self, waiting: str = "") -> bool:
        """Show a long step: live on a terminal, else every ten seconds. Whether to end it."""
        now = time.monotonic()
        pause = 0.2 if self.terminal else 10
        if not self.quiet and now - max(self.started + 1, self.shown) > pause:
            self.shown = now
            text = f"{self.step}: {waiting or self.doing or f'{now - self.started:.0f} s'}"[:79]
            self.say(text, end="" if self.terminal else "\n")
            self.width = len(text) if self.terminal else 0
        return bool(SIGNALS)


def count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def shorten(ids: Sequence[Any]) -> str:
    text = ", ".join(map(repr, ids))
    return text if len(text) < 60 else text[:text.rfind(", ", 0, 60) + 1] + " ..."


def command(*arguments: str) -> str:
    return shlex.join([sys.executable, abspath(sys.argv[0]), *arguments])


def show_plan(run: Run, seconds: float, space: str, backup: str | None) -> None:
    """Say what the run would do, before anything happens."""
    OUT.say("Plan                        rows new columns     to fill  to correct  recreate")
    for name, columns in run.missing.items():
        how = "create" if name not in run.schema else "yes" if name in run.recreate else "no"
        rows, (fill, correct) = run.sizes.get(name, 0), run.roots.get(name, (0, 0))
        OUT.say(f"  {name:20}{rows:10,}{len(columns):12}{fill:12,}{correct:12,}{how:>10}")
    OUT.say(f"  {count(len(run.indexes), 'index', 'indexes')}, "
            f"triggers that keep root_id right; it takes about {seconds * 6 + 0.1:,.1f} s\n"
            f"  disk    {space}\n  backup  {backup or 'none'}\n"
            f"  extras  {', '.join(run.extras) or 'none'}")
    if refused := [name for name in run.indexes if name.endswith("_activity_name")]:
        # SQLAlchemy sends INSERT and UPDATE before DELETE, and one UPDATE after another.
        OUT.say("  Until the app's code is updated, these refuse an edit that swaps two names, or\n"
                "  removes one and adds another of its name; --skip-constraint leaves them out:\n"
                + "\n".join(f"    {name}" for name in refused))


def check_decisions(run: Run) -> None:
    """Tell all decisions, and what --repair changes; raises Stop if one is left."""
    repair = run.options.repair
    left = [one for one in run.findings if not (one.repairable and repair)]
    OUT.report["decisions"] = [one._asdict() for one in run.findings]
    OUT.report["repairs"] = run.renames if repair else []
    for name, columns in run.missing.items():
        fill, correct = run.roots.get(name, (0, 0))
        OUT.report["tables"][name] = {
            "rows": run.sizes.get(name, 0), "new_columns": columns, "filled": fill,
            "corrected": correct, "recreated": name in run.recreate and name in run.schema}
    for one in run.findings:
        OUT.say(f"  {one.name}: {one.kind}, {count(one.rows, 'row')}\n"
                f"    first    {shorten(one.ids)}\n    show     {one.query}\n    resolve  "
                + "\n          or ".join(one.resolve), always=one in left)
    for one in OUT.report["repairs"]:
        OUT.say(f"  {one['table']} {one['id']!r:.50}\n    {one['before']!r:.70}\n"
                f"    becomes {one['after']!r:.68}")
    if left:
        flags, advice = [], ""
        if settled := sum(one.repairable for one in left):
            flags, advice = ["--repair"], f"--repair settles {settled} of them; "
        for one in left:
            if one.name in CHECKS:
                flags += ["--skip-constraint", one.name]
            elif not one.repairable:
                advice += f"resolve {one.name}; "
        raise Stop(f"the data needs {count(len(left), 'decision')}", 3,
                   f"{advice}next: {command(*run.options.arguments, *flags)}")


def commit() -> None:
    """What is done is done for good: a signal that came too late is none."""
    OUT.committed = True
    SIGNALS.clear()


def on_signal(number: int, frame: Any) -> None:
    if not OUT.committed:
        SIGNALS.append(number)


def confirm(options: argparse.Namespace, verb: str) -> None:
    """Raise Stop unless the operator says yes."""
    if options.yes:
        return
    if not sys.stdin or not sys.stdin.isatty():
        raise Stop("no terminal to ask on", 2, "add --yes")
    OUT.say(f"Type 'yes' to {verb} {options.path}: ", always=True, end="")
    while not (SIGNALS or select.select([sys.stdin], [], [], 0.1)[0]):
        pass
    answer = "" if SIGNALS else sys.stdin.readline()
    OUT.say("", always=True, end="" if answer else "\n")
    check_interrupt()
    if answer.strip() != "yes":
        raise Stop("cancelled, as the answer was not the word yes", 0)


STATUSES = {0: "cancelled", 1: "failed", 2: "usage", 3: "decision", 4: "locked"}
AWAY = "move it away with its -wal and -journal, and restore another backup"
EXPLANATIONS = [
    (" is locked", "DATABASE is locked by another process", 4,
     "stop the app (find it with fuser -v DATABASE), or give a longer --timeout"),
    ("not a database|malformed|corrupt", "DATABASE is damaged, encrypted, or of a newer SQLite", 1,
     f"{AWAY}, or use .recover of sqlite3"),
    ("readonly|unable to open|ermission|denied", "a file can't be opened or written", 1,
     "check owner, permissions and mount"),
    ("disk|space|quota|too large", "the disk is full or failing", 1, "look at the disk"),
    ("constraint failed", "a constraint of the owner's breaks with right roots and names", 3,
     "change those rows or that constraint"),
    ("function.*json", "this SQLite has no JSON functions, which --extra needs", 2,
     "run it with a Python that has SQLite 3.38 or newer"),
    ("no such (function|module|collation)|unknown function",
     "the schema needs what only the app brings", 1, "drop that, create it again afterwards"),
    ("", "it failed", 1, "run with -v to see the statement")]


def explain(error: BaseException) -> Stop:
    """An error of SQLite or the system as one line for the operator."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    _, what, status, advice = next(one for one in EXPLANATIONS if re.search(one[0], text))
    what, advice = (words.replace("DATABASE", OUT.database) for words in (what, advice))
    return Stop(f"{what}: {text:.80}", status, advice)


def say_result(options: argparse.Namespace) -> None:
    """Say what was done, and as commands what may follow."""
    path, report, verify = options.path, OUT.report, command(options.path, "--verify")
    if report["status"] == "nothing to do":
        OUT.say(f"Nothing to do: {path} is migrated.", always=True)
    elif options.dry_run:
        OUT.say(f"Done: rehearsed and rolled back; {path} is untouched.", always=True)
        live = command(*[word for word in options.arguments if word != "--dry-run"])
        OUT.say(f"To migrate: {live}")
    elif options.output:
        OUT.say(f"Done: {options.output} is migrated; {path} is untouched.", always=True)
    else:
        how = " but for the constraints, as chosen" if options.without_constraints else ""
        OUT.say(f"Done: {path} is migrated{how}.", always=True)
        before, now = report["database"]["bytes_before"], size_of(path)
        seconds = sum(phase["seconds"] for phase in report["phases"])
        OUT.say(f"Time: {seconds:,.1f} s; size: {mebibytes(before)} before, {mebibytes(now)} now")
        if backup := report["backup"]:
            OUT.say(f"Backup: {backup}\nUndo; rows written from now on are not carried over:\n"
                    f"  {command(path, '--restore', backup)}")
        OUT.say(f"Check, now and (by crontab) every night:\n  {verify}")
        OUT.say(f"  0 4 * * * {verify} -q >/dev/null".replace("%", "\\%"))


# ==== 9. The command line ==============================================================

def migrate(options: argparse.Namespace) -> None:
    """Migrate live, as a rehearsal (--dry-run) or into a new file (--output)."""
    read_head(options.path)
    copy = bool(options.dry_run or options.output)
    planned = None if options.no_backup else (
        options.backup or free_name(options.path, "backup"))
    backup, space = None if copy else planned, check_places(options, planned, copy)
    with (snapshot(options) if copy else nullcontext(options.path)) as path, closing(
            connect(path, "rw", options.timeout)) as db:
        db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        db.execute(f"PRAGMA temp.cache_size = -{CACHE_KIB}")
        OUT.say(f"{'Rehearse' if options.dry_run else 'Migrate'} {options.path}\n"
                f"  {mebibytes(size_of(path))}, journal mode {db.value('PRAGMA journal_mode')}; "
                f"script {VERSION}, SQLite {sqlite3.sqlite_version}")
        OUT.begin("Check the file")
        if not backup:
            check_sound(db)  # else its backup is checked
        OUT.begin("Look at the data")
        db.execute("BEGIN")  # to see one state, whoever writes
        data_version = db.value("PRAGMA data_version")
        run = survey(db, options)
        db.execute("COMMIT")
        if not run.nothing_to_do():
            show_plan(run, time.monotonic() - OUT.started, space, backup)
            check_decisions(run)
            if not copy:
                confirm(options, "migrate")
            run = migrate_in_transaction(run, data_version, backup)
        OUT.report["status"] = "rehearsed" if options.dry_run else "done"
        if run.nothing_to_do():
            check_sound(db, "integrity_check")
            OUT.report["status"] = "nothing to do"
    if OUT.report["status"] == "rehearsed":
        try:
            check_places(options, planned, copy=False)
        except Stop as stop:
            OUT.say(f"The live run would fail: {stop}; {stop.advice}", always=True)
    say_result(options)


def verify_database(options: argparse.Namespace) -> None:
    """Every check of a run, on a private copy; raises Stop for a fault."""
    with snapshot(options) as path, closing(connect(path)) as db:
        OUT.begin("Verify")
        read_schema(db)
        if not (log := last_log(db)):
            raise Stop(f"{options.path} is not migrated", 1, f"next: {command(options.path)}")
        chosen = log.get("options", {})
        options.skip_constraint = [*options.skip_constraint, *chosen.get("skip_constraint", [])]
        options.without_constraints |= bool(chosen.get("without_constraints"))
        check_sound(db, "integrity_check")
        run = survey(db, options)
        faults = [*schema_faults(run, log.get("not_compiling", {}))]
        faults += [f"{one.name}: {one.kind}, {shorten(one.ids)}" for one in run.findings]
        if not any(run.missing.values()):
            faults += audit(db)
            note_references(run)
    if faults:
        OUT.report["status"] = "fault"
        repair = ["--repair"] if any(one.repairable for one in run.findings) else []
        again = f"migrating again mends schema and roots: {command(options.path, *repair)}"
        if all("not compile" in fault for fault in faults):
            again = "mend the view or trigger that does not compile"
        raise Stop(f"{count(len(faults), 'fault')}: {faults[0][:80]}", 1,
                   "the last line says what to do", "\n".join([*faults, again]))
    OUT.end("schema and roots are right")
    OUT.report["status"] = "done"
    how = ("complete but for the constraints, as chosen" if options.without_constraints
           else "migrated and consistent")
    without = "".join(f"\n  without {name}" for name in options.skip_constraint)
    OUT.say(f"Done: {options.path} is {how}{without}", always=True)


def new_file(text: str) -> str:
    """The real path of a file to be made."""
    path = realpath(text)
    why = ("is no name for a file" if text in ("", "-") or path.endswith(SIDE_FILES) else
           "is there, or its -wal: name a new file"
           if any(lexists(path + end) for end in ("", *SIDE_FILES)) else
           "can't be made: no such folder, or no permission"
           if not os.access(dirname(path), os.W_OK) else "")
    if why:
        raise argparse.ArgumentTypeError(f"{path} {why}")
    return path


def own_file(text: str) -> str:
    """The real path of a report or script: a new file, a device, or one that this script made."""
    path = realpath(text)
    if not isfile(path):
        return path if exists(path) and not isdir(path) else new_file(text)
    with open(path, "rb") as file:
        if not re.match(rb'(\{\n  "made_by": "|-- )%s|$' % MADE_BY.encode(), file.read(100)):
            raise argparse.ArgumentTypeError(f"{path} is another's file, and stays as it is")
    return path


EXIT_STATUS = """exit status: 0 done, nothing to do, or not confirmed; 1 failed and rolled back,
or --verify found a fault; 2 wrong usage or no such database; 3 the data needs
a decision; 4 locked; 130, 143, 129 interrupted and rolled back"""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Stop(" ".join(message.split()), 2, "see --help")


def make_parser() -> Parser:
    parser = Parser(
        prog=MADE_BY, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [DATABASE] [options]\n"
              "         [--dry-run | --output FILE | --verify | --restore BACKUP]",
        description="Migrate the Fractal Goals database: root_id, constraints, indexes.",
        epilog=EXIT_STATUS)
    modes, backups = parser.add_mutually_exclusive_group(), parser.add_mutually_exclusive_group()
    several: dict[str, Any] = {"action": "append", "default": []}
    kinds: dict[str, dict[str, Any]] = {
        "FILE": {"type": new_file}, "BACKUP": {"type": realpath}, "SCRIPT": {"type": own_file},
        "REPORT": {"type": lambda text: text if text == "-" else own_file(text)},
        "DATABASE": {"type": realpath, "nargs": "?"},
        "NAME": {**several, "choices": [*UNIQUE_NAMES, *CHECKS]},
        "EXTRA": {**several, "choices": [*EXTRA_OBJECTS]},
        "SECONDS": {"type": float, "default": 5.0}}
    for group, flags, value, text in (
            (parser, "database", "DATABASE", "default: $DATABASE_PATH, else goals.db"),
            (modes, "--dry-run", "", "rehearse on a private copy, rolled back"),
            (modes, "--verify", "", "check that DATABASE is migrated and consistent"),
            (modes, "--output", "FILE", "migrate a copy into FILE, a new file"),
            (modes, "--restore", "BACKUP", "put a backup back; what is there is kept aside"),
            (backups, "--no-backup", "", "make none"),
            (backups, "--backup", "FILE", "where it goes (default: beside DATABASE)"),
            (parser, "--without-constraints", "", "the quick win: recreate no table"),
            (parser, "--repair", "", "apply the lossless repairs"),
            (parser, "--skip-constraint", "NAME", "leave out one constraint; repeatable"),
            (parser, "--extra", "EXTRA", f"add one of {', '.join(EXTRA_OBJECTS)}; repeatable"),
            (parser, "-y --yes", "", "don't ask"),
            (parser, "-q --quiet", "", "errors and the last line only"),
            (parser, "-v --verbose", "", "each statement"),
            (parser, "--report", "REPORT", "the run as JSON; - for standard output"),
            (parser, "--sql", "SCRIPT", "the statements of the run, for the sqlite3 shell"),
            (parser, "--timeout", "SECONDS", "how long to wait for a lock (5)")):
        kind = {**kinds[value], "metavar": value} if value else {"action": "store_true"}
        group.add_argument(*flags.split(), help=text, **kind)
    parser.add_argument("--version", action="version", version=VERSION)
    parser.set_defaults(path="", arguments=[])
    return parser


def script_text(run: Run) -> str:
    """The run as a script for the sqlite3 shell, for this database alone."""
    counts = " AND ".join(f"(SELECT count(*) FROM {quote(name)}) = {rows}"
                          for name, rows in run.sizes.items())
    lines = [f"""-- {MADE_BY} {VERSION}: the run of {OUT.report["started"]} as a script
.bail on
PRAGMA foreign_keys = OFF;
PRAGMA legacy_alter_table = ON;
BEGIN IMMEDIATE;
CREATE TEMP TABLE migration_guard
    (rows CONSTRAINT "this is not the database that the script was made from" CHECK (rows));
INSERT INTO migration_guard SELECT count(*) = {len(run.sizes)} FROM main.sqlite_master
    WHERE type = 'table' AND rootpage > 0 AND name NOT GLOB 'sqlite_*';
INSERT INTO migration_guard SELECT {counts};"""]
    for sql in map(str.rstrip, run.db.script):
        lines.append(sql + ("\n;" if tokenize(sql)[-1].end < len(sql) else ";"))  # a comment
    return "\n".join([*lines, "COMMIT;", "SELECT 'Done: the database is migrated.';", ""])


def write_file(path: str, text: str) -> None:
    """Write a report or script; - is standard output."""
    if path == "-":
        OUT.stream = sys.stdout
        return OUT.say(text, always=True, end="")
    try:
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
    except OSError as error:
        raise Stop(f"{path} is not written: {error.strerror}", 1, "name another file") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, report; the exit status."""
    global OUT
    arguments, started = [*(sys.argv[1:] if arguments is None else arguments)], time.monotonic()
    options, stop = NO_OPTIONS, None
    OUT = Output(options)
    try:
        options = make_parser().parse_args(arguments)
        options.arguments = arguments
        OUT = Output(options)
        run_mode(options)
    except Exception as error:  # whatever it is, the operator gets one line
        stop = error if isinstance(error, Stop) else interrupted() if SIGNALS else explain(error)
        if isinstance(error, sqlite3.DatabaseError):
            # Opened once more, SQLite undoes what a failing disk kept it from rolling back.
            with suppress(Exception), reading(options.path, 0):
                pass
        if not OUT.committed and (stop is error or stop.status != 1):  # no failing disk
            for what in filter(OUT.report.get, ("backup", "kept_aside")):
                os.unlink(OUT.report[what])
                OUT.report[what] = None
    report, status = OUT.report, stop.status if stop else 0
    if stop:
        report["message"] = say_error(stop)
        if report["status"] == "failed":
            report["status"] = STATUSES.get(status, "interrupted")
    report.update(exit_code=status, seconds=round(time.monotonic() - started, 3))
    report["database"]["bytes_after"] = size_of(options.path)
    if options.report and report["status"] not in ("usage", "cancelled"):
        try:
            write_file(options.report, json.dumps(report, indent=2, default=repr) + "\n")
        except Stop as warning:
            OUT.say(f"warning: {warning}", always=True)
    return status


def run_mode(options: argparse.Namespace) -> None:
    """Find the database, check what was asked for, do it."""
    if sqlite3.sqlite_version_info < (3, 34):
        raise Stop(f"SQLite {sqlite3.sqlite_version} is too old", 2, "3.34 or newer is needed")
    path = options.database or realpath(os.environ.get("DATABASE_PATH") or "goals.db")
    if not options.database:
        options.arguments.insert(0, path)
        sample = os.path.join(dirname(realpath(__file__)), "fixtures", "sample.db")
        if options.dry_run and not exists(path) and exists(sample):
            options.arguments[0], path = "DATABASE", sample
            OUT.say(f"No database here: this rehearses the bundled sample, {path}")
    OUT.database = options.path = path
    files = [path, options.output, options.restore, options.backup, options.report, options.sql]
    named = [*filter(None, files)]
    for wrong, why in (
            ((options.verify or options.restore) and any(
                (options.repair, options.sql, options.backup, options.extra,
                 options.skip_constraint, options.without_constraints))
             or options.output and options.backup, "these flags don't go together"),
            (len({*named}) < len(named), "two of the files are the same"),
            (not 0 <= options.timeout < 1e6, "--timeout takes 0 to 999999 seconds"),
            (re.search(r"\.backup-\d{8}T\d{6}Z", os.path.basename(path))
             and not (options.dry_run or options.output or options.verify),
             f"{path} is a backup: name a copy of it")):
        if wrong:
            raise Stop(why, 2, "see --help")
    for place in {os.path.join(tempfile.gettempdir(), SNAPSHOT), *named}:
        for left in glob.glob(f"{glob.escape(place)}*{PARTIAL}*"):
            OUT.say(f"Left by a killed run, unless one goes on: rm -r {shlex.quote(left)}")
    OUT.report["database"] = {"path": path, "bytes_before": size_of(path)}
    (restore if options.restore else verify_database if options.verify else migrate)(options)


def say_error(stop: Stop) -> str:
    """Say on standard error in one line what ended the run."""
    copy = OUT.report["backup"] or OUT.report["kept_aside"]
    said = "; ".join(filter(None, [
        str(stop), "" if OUT.committed else "nothing was changed",
        copy and f"what was there is also in {copy}", stop.advice]))
    OUT.say("", always=True, end="")  # no live line
    with suppress(*GONE):
        print(f"error: {said}" if stop.status else said, *stop.more.splitlines(), sep="\n",
              file=sys.stderr, flush=True)
    return said


NO_OPTIONS = make_parser().parse_args(["-qy"])
OUT = Output(NO_OPTIONS)

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, on_signal)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        exit_status = main()
    except SystemExit as end:  # --help, --version
        exit_status = int(end.code or 0)
    with suppress(*GONE):
        sys.stdout.flush()
    os._exit(exit_status)  # Python would complain of a closed pipe or a full disk, with status 120
