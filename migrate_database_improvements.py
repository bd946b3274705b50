#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = []
# ///
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
import calendar
import contextlib
import functools
import glob
import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import urllib.parse
from collections import namedtuple
from typing import Any, Callable, Iterator, NoReturn, Sequence

VERSION = "2.0.0 (2026-11-26)"
OLDEST_SQLITE = (3, 34, 0)

# ==== 1. The target, as data (DESIGN.md section 3) =====================================

# NULL and a column left out become '', for a trigger to fill.
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
REFERENCE = re.compile(r"REFERENCES (\w+)\(id\)(?: ON DELETE (\w+))?")
REFERENCES = [(table, column, REFERENCE.search(declared)[1])  # type: ignore[index]
              for table, columns in TABLES.items() for column, declared in columns.items()
              if "REFERENCES" in declared]
# A REFERENCES above takes effect where the column is new; of those that exist, only these get it.
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
EXTRAS = ("targets", "session-metadata", "audit-log")  # made where --extra asks for them
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
    *((table, "fill guard move adopt follow orphan") for table in [*TABLES][:8]),
    ("sessions", "adopt follow orphan"), ("practice_session_goals", "insert update delete"),
    ("goals", "refill guard_insert guard_update cycle_insert cycle_update subtree session_subtree"
     " sessions unlink")] for kind in kinds.split()}
VERSION_1_DEADLINE = f"CONSTRAINT {DEADLINE} CHECK (date(deadline) >= date(created_at))"



# ==== 2. The rule of root_id (DESIGN.md section 4), once, as SQL: `rule` ===============

KNOWN = "migration_known_"  # before a table's name: what `derive` knows of it (id, root_id)
FOUND = "migration_found_"  # the rows whose root it changes (key, root, stored), as numbers


def number_of(root: str) -> str:
    """SQL for the number that stands for a root meanwhile: it takes a third of the memory."""
    return f"(SELECT n FROM migration_roots WHERE id = {root})"


def root_of(number: str) -> str:
    return f"(SELECT id FROM migration_roots WHERE n = {number})"


def rule(schema: Schema, name: str, row: str, stored: str = "", known: str = "") -> str:
    """SQL for the root that the row with alias `row` should have; NULL where there is none.
    `stored` is SQL for its stored root; other rows' roots are the stored or (KNOWN) derived."""
    stored = f"NULLIF({stored or row + '.root_id'}, '')"

    def given_by(pairs: Pairs) -> list[str]:
        # +: the NUMERIC affinity of a STRING column would forbid the index on p.id.
        return [f"(SELECT NULLIF(p.root_id, '') FROM {known}{parent} p"
                f" WHERE p.id = +{row}.{column})" for column, parent in schema.pairs(pairs, name)]

    terms = given_by(PARENTS)                                                    # rule 1
    if name == "goals":
        top = f"COALESCE({row}.parent_id, '') = ''"
        linked = linked_root(schema, row, stored, known)
        terms += [f"CASE WHEN {row}.type = 'PracticeSession' THEN"
                  f" CASE WHEN {top} OR {stored} IS NULL THEN {linked} END"      # rules 3, 5
                  f" WHEN {top} THEN {row}.id END", stored, f"{row}.id"]         # rules 2, 4, 5
    else:
        terms += [stored, *given_by(LAST_RESORTS)]                               # rules 4, 5
    return f"COALESCE({', '.join([*terms, 'NULL'])})"


def linked_root(schema: Schema, row: str, stored: str, known: str) -> str:
    """SQL for the root of a session's links: the stored one if one has it, else the first's."""
    if LINKS not in schema:
        return "NULL"
    links = (f"SELECT l.root_id FROM {known}{LINKS} k"
             f" JOIN {known}goals l ON l.id = k.short_term_goal_id"
             f" WHERE k.practice_session_id = {row}.id AND l.id <> {row}.id")
    return (f"COALESCE(({links} AND l.root_id = {stored} LIMIT 1), ({links} AND l.root_id <> ''"
            f" ORDER BY k.{'rowid' if known else schema.link_order} LIMIT 1))")


# ---- derivation -------------------------------------------------------------------------

def derive(db: Database, schema: Schema, otherwise: str = "NULL") -> None:
    """Fill the FOUND tables. Tables are scanned, as an index might lie. Where the rule gives a row
    no root, the SQL `otherwise` does; but a goal that no rule reaches has none."""
    for old in db.column("SELECT name FROM temp.sqlite_master WHERE type = 'table'"):
        db.change(f"DROP TABLE temp.{old}")
    derive_goals(db, schema)
    names = [name for name in ("sessions", *ROOTED) if name in schema]
    roots = [f"UNION SELECT CAST(root_id AS TEXT) FROM {name} NOT INDEXED"
             for name in names if schema.has(name, "root_id")]
    db.change("CREATE TEMP TABLE migration_roots "
              "(n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE CHECK (id <> ''))")
    db.change("INSERT OR IGNORE INTO migration_roots (id) SELECT id FROM migration_tree "
              f"UNION SELECT '{RECOVERED}' {' '.join(roots)}")
    db.change(f"UPDATE {KNOWN}goals SET root_id = {number_of('root_id')}")
    for name in names:
        stored = "NULL"
        if schema.has(name, "root_id"):
            stored = number_of("CAST(c.root_id AS TEXT)")
        join, root = first_parent(schema, name, KNOWN)
        root = f"COALESCE({root}, {rule(schema, name, 'c', stored, KNOWN)}, {otherwise})"
        if name == "goals":
            join, root = f"LEFT JOIN {KNOWN}goals q ON q.id = c.id", "q.root_id"
        db.change(f"CREATE TEMP TABLE {FOUND}{name} (key INTEGER PRIMARY KEY, root, stored)")
        # LIMIT keeps SQLite from looking the root up again for each mention of it.
        db.change(f"""
            INSERT INTO {FOUND}{name}
            SELECT * FROM (SELECT c.rowid, {root} AS root, {stored} AS stored
                           FROM {name} c NOT INDEXED {join} LIMIT -1)
            WHERE root IS NULL OR root IS NOT stored""")
        if name in PARENT_TABLES - {"goals"}:
            root = f"COALESCE((SELECT root FROM {FOUND}{name} WHERE key = c.rowid), {stored})"
            db.change(f"CREATE TEMP TABLE {KNOWN}{name} (id TEXT PRIMARY KEY, root_id) "
                      "WITHOUT ROWID")
            db.change(f"INSERT OR IGNORE INTO {KNOWN}{name} SELECT c.id, {root} FROM {name} c "
                      "NOT INDEXED WHERE c.id <> '' ORDER BY c.id")  # in order is faster


def first_parent(schema: Schema, name: str, known: str = "") -> tuple[str, str]:
    """A join of row `c` with its first parent, and the root that this gives it: what the rule
    says of most rows, in less time."""
    for column, parent in schema.pairs(PARENTS, name):
        return f"LEFT JOIN {known}{parent} q ON q.id = +c.{column}", "NULLIF(q.root_id, '')"
    return "", "NULL"


# The links of the session `g` whose goals have no known root yet.
UNKNOWN_LINKS = f"""
    SELECT l.id FROM {KNOWN}{LINKS} k JOIN migration_tree l ON l.id = k.short_term_goal_id
    WHERE k.practice_session_id = g.id AND l.id <> g.id
      AND l.id NOT IN (SELECT id FROM {KNOWN}goals)"""


def derive_goals(db: Database, schema: Schema) -> None:
    """Fill the KNOWN table of goals that the rule reaches: roots spread from the tops down; a
    linked session is a top that waits for the roots of its links."""
    stored = "COALESCE(root_id, '')" if schema.has("goals", "root_id") else "''"
    db.change("CREATE TEMP TABLE migration_tree "
              "(id TEXT PRIMARY KEY, parent_id TEXT, type, root_id TEXT)")
    db.change(f"INSERT OR IGNORE INTO migration_tree SELECT id, parent_id, type, {stored} "
              "FROM goals NOT INDEXED WHERE id <> ''")
    db.change("CREATE INDEX migration_tree_parent ON migration_tree (parent_id)")
    db.change(f"CREATE TEMP TABLE {KNOWN}goals (id TEXT PRIMARY KEY, root_id) WITHOUT ROWID")
    db.change(f"CREATE TEMP TABLE {KNOWN}{LINKS} (practice_session_id, short_term_goal_id)")
    if LINKS in schema:
        db.change(f"INSERT INTO {KNOWN}{LINKS} SELECT practice_session_id, short_term_goal_id "
                  f"FROM {LINKS} NOT INDEXED ORDER BY {schema.link_order}")
    db.change(f"CREATE INDEX migration_links ON {KNOWN}{LINKS} (practice_session_id)")
    spread = f"""
        INSERT INTO {KNOWN}goals
        WITH RECURSIVE tree(id, root_id) AS (
            SELECT g.id, {rule(schema, "goals", "g", known=KNOWN)} FROM migration_tree g
            WHERE g.id NOT IN (SELECT id FROM {KNOWN}goals)
              AND NOT EXISTS (SELECT 1 FROM migration_tree p WHERE p.id = g.parent_id)
              AND NOT (g.type = 'PracticeSession' AND EXISTS ({UNKNOWN_LINKS})
                       AND (COALESCE(g.parent_id, '') = '' OR g.root_id = ''))
            UNION ALL
            SELECT g.id, tree.root_id FROM tree JOIN migration_tree g ON g.parent_id = tree.id)
        SELECT id, root_id FROM tree"""
    while db.change(spread):
        pass


def audit(db: Database) -> Iterator[str]:
    """A line for each table with rows whose stored root the rule contradicts: read from what is
    stored, not from what `derive` found."""
    schema = read_schema(db)
    for name in filter(schema.__contains__, ROOTED):
        join, root = first_parent(schema, name)
        wrong = (f"FROM {name} c {join} WHERE COALESCE(c.root_id, '') = '' "
                 f"OR c.root_id IS NOT COALESCE({root}, {rule(schema, name, 'c')})")
        if ids := db.column(f"SELECT c.{ROOTED[name]} {wrong} LIMIT 4"):
            rows = count(db.value(f"SELECT count(*) {wrong}"), "row")
            yield f"{name}: {rows} with a wrong or empty root_id, id {shorten(ids)}"


# ---- triggers: they keep the rule, and take NULL for '' ---------------------------------------

ANCESTORS = ("(WITH RECURSIVE up(id) AS (SELECT NEW.parent_id UNION"
             " SELECT g.parent_id FROM up JOIN goals g ON g.id = up.id WHERE g.parent_id <> '')"
             " SELECT id FROM up)")
SUBTREE = ("(WITH RECURSIVE sub(id) AS (SELECT NEW.id UNION"
           " SELECT g.id FROM sub JOIN goals g ON g.parent_id = sub.id) SELECT id FROM sub)")
# SQLite updates a subtree in any order: an ancestor that has the new root proves it right.
ANCESTOR_HAS_ROOT = (
    "EXISTS (WITH RECURSIVE up(parent_id, root_id) AS ("
    "SELECT parent_id, root_id FROM goals WHERE id = NEW.parent_id UNION"
    " SELECT g.parent_id, g.root_id FROM up JOIN goals g ON g.id = up.parent_id"
    " WHERE up.root_id <> NEW.root_id)"
    " SELECT 1 FROM up WHERE root_id = NEW.root_id AND root_id <> '')")
CHANGED = "NEW.root_id IS NOT OLD.root_id AND NEW.root_id <> ''"
# Any other goal changes its root with its subtree, by trg_goals_move, or when it is filled.
TOP_CHANGED = (f"{CHANGED} AND (COALESCE(OLD.root_id, '') = ''"
               " OR NOT EXISTS (SELECT 1 FROM goals WHERE id = NEW.parent_id))")


def triggers(schema: Schema) -> dict[str, str]:
    """The CREATE statement of every trigger of the target, by name."""
    found: dict[str, str] = {}

    def add(table: str, kind: str, event: str, when: str, *statements: str) -> None:
        name, body = f"trg_{table}_{kind}", ";\n    ".join(statements)
        found[name] = (f"CREATE TRIGGER {name} AFTER {event} ON {table} WHEN {when}\n"
                       f"BEGIN\n    {body};\nEND")

    for name in filter(schema.__contains__, PARENTS):
        keep_own_root(add, schema, name)
    linked = []
    if LINKS in schema:
        sessions = f"(SELECT practice_session_id FROM {LINKS} WHERE short_term_goal_id = NEW.id)"
        linked = [follow_links(schema, f"id IN {sessions}")]
    for parent in [*TABLES, "sessions"]:
        if below := give_children(schema, parent):
            add(parent, "follow", "UPDATE OF root_id", CHANGED, *below)
            if parent == "goals":
                below += [move_subtree("NEW.root_id"), *linked]
            add(parent, "adopt", "INSERT", "NEW.root_id <> ''", *below)
    add("goals", "subtree", "UPDATE OF root_id", TOP_CHANGED, move_subtree("NEW.root_id"))
    cycle = "SELECT RAISE(ABORT, 'goals.parent_id: a goal cannot be below itself')"
    add("goals", "cycle_update", "UPDATE OF parent_id", f"NEW.id IN {ANCESTORS}", cycle)
    add("goals", "cycle_insert", "INSERT", "1", f"{cycle} WHERE NEW.id IN {ANCESTORS}",
        "SELECT RAISE(ABORT, 'goals.id is missing') WHERE COALESCE(NEW.id, '') = ''")
    if LINKS in schema:
        new, old = (follow_links(schema, f"id = {one}.practice_session_id")
                    for one in ("NEW", "OLD"))
        # Apart from `subtree`: while that runs, the rows below it fire all triggers but it.
        add("goals", "sessions", "UPDATE OF root_id", CHANGED, *linked)
        add(LINKS, "insert", "INSERT", "1", new)
        add(LINKS, "update", "UPDATE", "1", new, old)
        add(LINKS, "delete", "DELETE", "1", old)
        # Or foreign keys would forbid deleting a fractal. AFTER: within its cascade, what follows
        # its sessions is gone already.
        add("goals", "unlink", "DELETE", "1", f"DELETE FROM {LINKS} "
            "WHERE practice_session_id = OLD.id OR short_term_goal_id = OLD.id")
    return found


def keep_own_root(add: Callable[..., None], schema: Schema, name: str) -> None:
    """Add fill, guard and move: what keeps a row's own root right."""
    columns = ", ".join(column for column, _ in schema.pairs(PARENTS, name))
    event = f"UPDATE OF {columns}" + (", type" if name == "goals" else "")
    want, before = rule(schema, name, "NEW"), rule(schema, name, "NEW", "OLD.root_id")
    wrong = f"COALESCE(NEW.root_id, '') IS NOT {want}"
    missing = f"RAISE(ABORT, '{name}.root_id is missing: no row that {columns} names has one')"

    def give(root: str) -> str:
        return f"""UPDATE {name} SET root_id = CASE WHEN NEW.root_id <> '' THEN
        RAISE(ABORT, 'root_id does not match: a row of {name} belongs where its {columns} says')
        ELSE {root} END WHERE rowid = NEW.rowid"""

    guarded = f"OLD.root_id <> '' AND NEW.root_id IS NOT OLD.root_id AND {wrong}"
    moved = f"{wrong} AND {want} IS NOT NULL"
    carry = f"UPDATE {name} SET root_id = {want} WHERE rowid = NEW.rowid"
    if name == "goals":
        guarded += f" AND NOT {ANCESTOR_HAS_ROOT}"
        moved = "NEW.parent_id IS NOT OLD.parent_id OR NEW.type IS NOT OLD.type"
        carry = move_subtree(want)
    add(name, "fill", "INSERT", wrong, give(f"COALESCE({want}, {missing})"))
    add(name, "guard", "UPDATE OF root_id", guarded, give(before))
    add(name, "move", event, moved, carry)


def set_root(name: str, root: str, where: str) -> str:
    """The statement that gives some rows of a table a root, where they have another."""
    return f"UPDATE {name} SET root_id = {root} WHERE {where} AND COALESCE(root_id, '') <> {root}"


def give_children(schema: Schema, parent: str) -> list[str]:
    """Statements that give the rows of other tables below the row NEW of `parent` their root."""
    return [set_root(name, rule(schema, name, name), f"{column} = NEW.id")
            for name in PARENTS if name != "goals"
            for column, source in schema.pairs(PARENTS, name) if source == parent]


def move_subtree(root: str) -> str:
    """Give the goal NEW and all below it a root. A trigger that fires itself would end at SQLite's
    depth limit."""
    return set_root("goals", root, f"id IN {SUBTREE}")


def follow_links(schema: Schema, which: str) -> str:
    """The statement that gives sessions among some goals the root of their links."""
    root = rule(schema, "goals", "goals")
    return set_root("goals", root, f"{which} AND type = 'PracticeSession'")


# ---- extras: what --extra asks for; JSON as in https://sqlite.org/json1.html ------------------

TARGETS = """json_each(CASE WHEN typeof(g.targets) = 'text' AND json_valid(g.targets) THEN
                   CASE json_type(g.targets) WHEN 'array' THEN g.targets END END) t"""
TARGET_OBJECTS = {
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
    FROM goals g, {TARGETS}, json_each(
        CASE WHEN t.type = 'object' THEN
             CASE json_type(t.value, '$.metrics') WHEN 'array' THEN
                  json_extract(t.value, '$.metrics') END END) m
    WHERE g.targets IS NOT NULL AND m.type = 'object'""",
    "idx_goals_targets":
        "CREATE INDEX idx_goals_targets ON goals (root_id) WHERE targets IS NOT NULL",
}
AUDIT_LOG = """CREATE TABLE audit_log (
    id INTEGER PRIMARY KEY, at DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    table_name VARCHAR NOT NULL, row_id VARCHAR, root_id VARCHAR, action VARCHAR NOT NULL,
    old_values TEXT, new_values TEXT
)"""


def session_metadata(schema: Schema) -> str:
    sessions = "sessions" if "sessions" in schema else "goals"
    return f"""CREATE TABLE session_metadata (
    session_id VARCHAR NOT NULL REFERENCES {sessions}(id) ON DELETE CASCADE,
    key VARCHAR NOT NULL, value TEXT, root_id VARCHAR {NOT_EMPTY} {IN_GOALS},
    created_at {NOW}, updated_at {NOW}, PRIMARY KEY (session_id, key)
)"""


def extra_objects(schema: Schema, extras: Sequence[str]) -> dict[str, str]:
    """{name: CREATE statement} of every object of these extras."""
    found: dict[str, str] = {}
    if "targets" in extras:
        found.update(TARGET_OBJECTS)
    if "session-metadata" in extras:
        found["session_metadata"] = session_metadata(schema)
    if "audit-log" in extras:
        found["audit_log"] = AUDIT_LOG
        for action, when in (("update", "1"), ("insert", "NEW.id IN (SELECT id FROM audit_log)")):
            name = f"trg_audit_log_{action}"
            found[name] = f"""CREATE TRIGGER {name} BEFORE {action.upper()} ON audit_log WHEN {when}
BEGIN
    SELECT RAISE(ABORT, 'an entry of audit_log cannot be changed');
END"""
        for name in schema.of_target():
            for action, old, new in (("insert", "", "NEW"), ("update", "OLD", "NEW"),
                                     ("delete", "OLD", "")):
                found[f"trg_{name}_audit_{action}"] = audit_trigger(schema, name, action, old, new)
    return found


def audit_trigger(schema: Schema, name: str, action: str, old: str, new: str) -> str:
    """The trigger that logs what one action changes. `old` and `new` are the rows it has. A root
    is compared only where no trigger fills or moves it."""
    def values(of: str, column: str) -> str:
        return f"{of}.{quote(column)}" if of else "NULL"

    def as_json(of: str, value: str) -> str:
        text = f"CASE typeof({value}) WHEN 'blob' THEN hex({value}) ELSE {value} END"
        return f"json_group_object(name, {text})" if of else "NULL"

    changes = ",\n            ".join(
        f"({literal(column.name)}, {values(old, column.name)}, {values(new, column.name)})"
        for key, column in schema[name].columns.items()
        if not (column.hidden or key == "root_id" and name in PARENTS))
    return f"""CREATE TRIGGER trg_{name}_audit_{action} AFTER {action.upper()} ON {name} BEGIN
    INSERT INTO audit_log (table_name, row_id, root_id, action, old_values, new_values)
    SELECT '{name}', {new or old}.id, {rule(schema, name, new or old)}, '{action}', old_values,
           new_values
    FROM (
        WITH changes(name, old, new) AS (VALUES
            {changes})
        SELECT count(*) AS n, {as_json(old, "old")} AS old_values,
               {as_json(new, "new")} AS new_values
        FROM changes WHERE old IS NOT new COLLATE BINARY)
    WHERE n > 0;
END"""


# ==== 3. A connection; reading, refusing and editing a schema ==========================

class Stop(Exception):
    """The run ends here: a line for the operator, the exit status, what to do next."""
    def __init__(self, message: str, status: int = 1, advice: str = "", more: str = "") -> None:
        super().__init__(message)
        self.status, self.advice, self.more = status, advice, more  # more: the lines below


class Fault(Stop):
    """Verification has found something."""


SIGNALS: list[int] = []  # those that came; heard between statements and within long ones


def interrupted() -> Stop:
    return Stop(f"interrupted by {signal.Signals(SIGNALS[0]).name}", 128 + SIGNALS[0],
                "run it again when it suits")


def check_interrupt() -> None:
    if SIGNALS:
        raise interrupted()


def is_locked(error: BaseException) -> bool:
    """Whether SQLite says SQLITE_BUSY or SQLITE_LOCKED (no error codes before Python 3.11)."""
    return isinstance(error, sqlite3.OperationalError) and " is locked" in str(error)


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
                if not is_locked(error) or time.monotonic() > deadline:
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
    uri = f"file:{urllib.parse.quote(os.path.abspath(path))}?mode={mode}"
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


class Token(namedtuple("Token", "text start end")):
    @property
    def name(self) -> str:
        """The identifier it stands for, in lower case (https://sqlite.org/lang_keywords.html)."""
        quoted = self.text[0] in "\"`'[" and len(self.text) > 1
        return str(self.text[1:-1].replace('""', '"') if quoted else self.text).lower()


TOKEN = re.compile(r"""
    (?P<skip>[ \t\n\f\r]+ | --[^\n]* | /\*.*?(?:\*/|\Z))
  | "(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\] | '(?:[^']|'')*'
  | [A-Za-z0-9_$\x80-\U0010ffff]+ | .""", re.VERBOSE | re.DOTALL)


@functools.lru_cache(None)
def tokenize(sql: str) -> list[Token]:
    return [Token(m[0], m.start(), m.end()) for m in TOKEN.finditer(sql) if not m["skip"]]


def bracket_items(tokens: list[Token]) -> tuple[list[list[Token]], Token]:
    """What the bracket that `tokens` begin with holds, cut at the commas; its closing bracket."""
    items: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        depth += {"(": 1, ")": -1}.get(token.text, 0)
        if depth == 0:
            break
        if depth == 1 and token.text == ",":
            items.append([])
        elif token is not tokens[0]:
            items[-1].append(token)
    return items, token


# A row of PRAGMA table_xinfo, and whether it is declared STRING, which means NUMERIC.
Column = namedtuple("Column", "name type not_null default key hidden is_string")
# The name as it is spelled, the text, {lower-case name: Column}, the tokens of each column and
# constraint, the closing bracket, {(column, table, ON DELETE)}.
Table = namedtuple("Table", "name sql columns items close references")
Pairs = dict[str, list[tuple[str, str]]]  # table -> (column, parent table)


class Schema(dict[str, Table]):
    link_order = "rowid"  # what says which of a session's links came first

    def has(self, name: str, *columns: str) -> bool:
        return name in self and {*columns} <= self[name].columns.keys()

    def of_target(self) -> list[str]:
        return [name for name in TABLES if name in self]

    def pairs(self, pairs: Pairs, name: str) -> list[tuple[str, str]]:
        """Those of a table whose column and parent table there are."""
        return [(column, parent) for column, parent in pairs.get(name, [])
                if self.has(name, column) and parent in self]


def read_table(db: Database, name: str) -> Table | None:
    """Take a table's text apart; None if there is no such plain table."""
    for actual, sql in db.rows("SELECT name, sql FROM sqlite_master WHERE type = 'table' AND "
                               "lower(name) = ? AND sql NOT LIKE 'CREATE VIRTUAL%'", [name]):
        items, close = bracket_items(tokenize(sql)[3:])
        columns = {row[1].lower(): Column._make([*row[1:], re.match("(?i)STRING\\b", row[2])])
                   for row in db.rows(f"PRAGMA table_xinfo({quote(actual)})")}
        references = {(row[3].lower(), row[2].lower(), row[6])
                      for row in db.rows(f"PRAGMA foreign_key_list({quote(actual)})")}
        return Table(actual, sql, columns, items, close, references)
    return None


def read_schema(db: Database) -> Schema:
    """The app's tables. Raises Stop for a database that is not ours or is refused (DESIGN.md 2)."""
    names = [*TABLES, "sessions", LINKS, "session_metadata"]
    schema = Schema({name: table for name in names if (table := read_table(db, name))})
    if not schema.has("goals", "id", "type", "name", "parent_id"):
        raise Stop(f"{OUT.database} is no Fractal Goals database: it has no table goals with id, "
                   "type, name and parent_id", 2, "name the app's own database")
    for kind, name in db.rows("SELECT type, lower(name) FROM sqlite_master WHERE type IN "
                              "('table', 'view')"):
        if name in TABLES and name not in schema:
            refuse(name, f"it is a {'view' if kind == 'view' else 'virtual table'}", "rename it")
    for name in schema.of_target():
        refuse_shape(db, name, schema[name])
        refuse_new_names(db, name, schema[name])
    if not schema.has("sessions", "id", "root_id"):
        schema.pop("sessions", None)  # another's
    if "session_metadata" in schema and (
            schema["session_metadata"].sql != session_metadata(schema)):
        del schema["session_metadata"]
    if LINKS in schema:
        if not schema.has(LINKS, "practice_session_id", "short_term_goal_id"):
            refuse(LINKS, "it has no practice_session_id and short_term_goal_id",
                   "name its columns so")
        if "WITHOUT" in schema[LINKS].sql[schema[LINKS].close.end:].upper():
            schema.link_order = "short_term_goal_id"
    return schema


def refuse(name: str, why: str, way_out: str) -> NoReturn:
    raise Stop(f"table {name} can't be migrated: {why}", 1, way_out)


def refuse_shape(db: Database, name: str, table: Table) -> None:
    """Raise Stop for a table of a shape that neither the app nor an ordinary owner makes."""
    tokens, columns = tokenize(table.sql), table.columns
    options = " ".join(token.text for token in tokens if token.start > table.close.start)
    itself = any(a.name == name and b.text == "." for a, b in zip(tokens[3:], tokens[4:]))
    told = [item[0].name for item in table.items if item][:len(columns)]
    wrong = [
        (options, f"it is {options}", "make it anew without that"),
        (told != [*columns], "its text and its columns disagree",
         "compare its CREATE with its table_xinfo"),
        ("id" not in columns, "it has no id", "add one"),
        ("rowid" in columns, "it has a column named rowid", "rename that column"),
        (itself, "a constraint in its text names the table itself", "leave the name out there")]
    for column in ["id", "root_id", *(column for column, _ in PARENTS.get(name, []))]:
        if found := columns.get(column):
            number = re.search("INT|REAL|FLOA|DOUB", found.type, re.I)
            wrong += [(found.hidden, f"its {column} is a generated column", "make it a plain one"),
                      (number, f"its {column} is declared {found.type}",
                       "make it VARCHAR, in all references too")]
    wrong += [(True, f"its root_id REFERENCES {parent} ON DELETE {action}",
               "let it refer to goals(id) with ON DELETE CASCADE")
              for column, parent, action in table.references if column == "root_id"
              and (parent != "goals" or action not in ("NO ACTION", "CASCADE"))]
    wrong.append((not db.rows("""
        SELECT 1 FROM pragma_index_list(?) i WHERE i."unique" AND NOT i.partial AND
        (SELECT group_concat(lower(name)) FROM pragma_index_info(i.name)) = 'id'""", [table.name]),
        "its id is not unique", f"CREATE UNIQUE INDEX {name}_id ON {name}(id)"))
    for found, why, way_out in wrong:
        if found:
            refuse(name, why, way_out)
    if not re.search("CHAR|CLOB|TEXT", columns["id"].type, re.I) and db.rows(
            f"SELECT 1 FROM {name} WHERE typeof(id) IN ('integer', 'real') LIMIT 1"):
        refuse(name, "its ids are numbers", "make them text, in all references too")


def refuse_new_names(db: Database, name: str, table: Table) -> None:
    """Raise Stop where a string in double quotes would become a new column's name
    (https://sqlite.org/quirks.html#dblquote)."""
    for sql in db.column("SELECT sql FROM sqlite_master WHERE lower(tbl_name) = ? "
                         "AND type IN ('table', 'index') AND sql > ''", [name]):
        tokens = tokenize(sql[sql.find("("):])
        for before, token in zip(tokens, tokens[1:]):
            if token.text[0] == '"' and token.name in TABLES[name].keys() - table.columns and (
                    before.text.upper() not in (".", "REFERENCES", "CONSTRAINT", "COLLATE")):
                refuse(name, f"the string {token.text} in its text would become the new column",
                       "write it in single quotes")


# ALTER TABLE refuses CURRENT_TIMESTAMP; this keeps its place until the table is recreated.
NO_TIME_YET = "DEFAULT (+NULL)"


def new_text(name: str, table: Table, checks: Sequence[str] = ()) -> str:
    """The text of a table brought to the target, with these checks. Clauses are appended, as of two
    SQLite takes the last; nothing of the owner's is removed."""
    edits = []
    for (key, column), item in zip(table.columns.items(), table.items):
        end = item[-1].end
        if column.is_string:
            edits.append((item[1].start, item[1].end, "VARCHAR"))
        if key == "root_id" and NOT_EMPTY not in table.sql[item[0].start:end]:
            edits.append((end, end, f" {NOT_EMPTY}"))
        wanted = REFERENCE.search(TABLES[name].get(key, ""))
        if wanted and (name, key) in ADDED_REFERENCES:
            actions = [action for of, parent, action in table.references
                       if (of, parent) == (key, wanted[1])]
            if not actions or wanted[2] and wanted[2] not in actions:
                edits.append((end, end, f" {wanted[0]}"))
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
            expression = sql[tokens[at + 1].end:bracket_items(tokens[at + 1:])[1].start]
            named = tokens[at - 2].text.upper() == "CONSTRAINT"
            unnamed = f"CHECK ({' '.join(expression.split())})"
            found[tokens[at - 1].name if named else unnamed] = expression
    return found


# ==== 4. What there is to do, and the decisions that the data needs ====================

# Rows in the way: what is wrong, with what, how many, first ids, a query for all, the ways out.
Finding = namedtuple("Finding", "kind name rows ids query resolve repairable")


class Run:
    """What is to change, by table: `compare_schema` finds it in the schema, `survey` in rows."""
    def __init__(self, db: Database, options: argparse.Namespace) -> None:
        self.db, self.options = db, options
        self.schema, self.log = read_schema(db), last_log(db)
        self.extras = [*dict.fromkeys([*self.log.get("extras", []), *options.extra])]
        self.differences: list[str] = []          # between schema and target, a line each
        self.missing: dict[str, list[str]] = {}   # columns
        self.checks: dict[str, list[str]] = {}    # checks to add
        self.recreate: list[str] = []             # tables
        self.indexes: dict[str, str] = {}         # name -> CREATE statement
        self.others: dict[str, str] = {}          # triggers, and what extras are made of
        self.rows: dict[str, int] = {}
        self.filled: dict[str, int] = {}          # roots to fill
        self.corrected: dict[str, int] = {}
        self.findings: list[Finding] = []
        self.renames: list[dict[str, Any]] = []   # what --repair does to equal names
        self.recovers = False                     # whether the recovered goal is to be made
        self.sizes: dict[str, int] = {}           # the rows of every table, the owner's too
        self.broken_references: set[str] = set()  # before the run
        self.owners_triggers: list[str] = []      # their texts, while they are put aside

    def nothing_to_do(self) -> bool:
        changed = sum(self.filled.values()) + sum(self.corrected.values())
        return not (self.differences or self.findings or changed)


def last_log(db: Database) -> dict[str, Any]:
    """The report of the last run, from migration_log; {} if there is none that can be read."""
    try:
        return dict(json.loads(db.value(
            "SELECT report FROM migration_log ORDER BY id DESC LIMIT 1")))
    except (sqlite3.OperationalError, TypeError, ValueError):
        return {}


def compare_schema(db: Database, options: argparse.Namespace) -> Run:
    """A Run with what the schema lacks of the target. Raises Stop for a refused database."""
    run, incomplete = Run(db, options), []
    for name, columns in TABLES.items():
        sql = run.schema[name].sql if name in run.schema else ""
        declared, made = declared_checks(sql), run.log.get("checks", [])
        run.missing[name] = [column for column in columns if not run.schema.has(name, column)]
        # A check of our name is ours, unless a run made it and its text is another now.
        run.checks[name] = [
            check for check, (owner, expression) in ALL_CHECKS.items()
            if owner == name and check not in options.skip_constraint
            and (check not in declared or check in made and declared[check] != expression)]
        late = any("CURRENT_TIMESTAMP" in columns[column] for column in run.missing[name])
        if not sql or late or new_text(name, run.schema[name], run.checks[name]) != sql:
            incomplete.append(name)
        run.differences += [f"{name}.{column} is missing" for column in run.missing[name]]
    if incomplete and not options.without_constraints:
        run.differences += [f"{name} lacks " + (", ".join(run.checks[name]) or "a constraint")
                            for name in incomplete]
        # And those after the first: the order of creation stays the target's (see TABLES).
        run.recreate = [*TABLES][[*TABLES].index(incomplete[0]):]
    run.indexes = indexes_to_make(run)
    run.differences += [f"index {name} is missing, differs or is out of order"
                        for name in run.indexes]
    if {"targets", "audit-log"} & {*run.extras} and compile_error(db, "SELECT json('[]')"):
        raise Stop("this SQLite has no JSON functions, which --extra needs", 2,
                   "run it with a Python that has SQLite 3.38 or newer")
    run.others = {**extra_objects(run.schema, run.extras), **triggers(run.schema)}
    stored = dict(db.rows("SELECT name, sql FROM sqlite_master"))
    run.differences += [f"{name} is missing or differs" for name, sql in run.others.items()
                        if stored.get(name) != sql]
    run.differences += [f"trigger {name} is version 1's"
                        for name in stored.keys() & VERSION_1_TRIGGERS - run.others.keys()]
    return run


def indexes_to_make(run: Run) -> dict[str, str]:
    """{name: CREATE statement} of all indexes of each table that lacks one of the target's, has
    them in another order, or is recreated."""
    wanted = {name: f"CREATE UNIQUE INDEX {name} ON {table} ({columns}) WHERE deleted_at IS NULL"
              for name, (table, columns) in UNIQUE_NAMES.items()
              if not run.options.without_constraints and name not in run.options.skip_constraint}
    wanted.update({name: f"CREATE INDEX {name} ON {on}" for name, on in INDEXES.items()})
    stored = run.db.rows("SELECT lower(name), sql FROM sqlite_master WHERE type = 'index' "
                         "ORDER BY rowid")
    found: dict[str, str] = {}
    for table in TABLES:
        ours = {name: sql for name, sql in wanted.items() if INDEXED_TABLE[name] == table}
        if table in run.recreate or [one for one in stored if one[0] in ours] != [*ours.items()]:
            found.update(ours)
    return found


def refuse_names(run: Run) -> None:
    """Raise Stop where another's object has a name of ours, or a text that is not UTF-8."""
    log, made = read_table(run.db, "migration_log"), run.log.get("extras", [])
    reserved = {NEW + name for name in TABLES} | (
        extra_objects(run.schema, run.extras).keys() - extra_objects(run.schema, made).keys())
    if not (log and {"script_version", "report"} <= log.columns.keys()):  # never migrated
        reserved |= {"migration_log", *VERSION_1_TRIGGERS, *triggers(run.schema)}
    for kind, name, table, sql in run.db.rows(
            "SELECT type, lower(name), lower(tbl_name), sql FROM sqlite_master"):
        if name in reserved and sql != run.others.get(name) or name in INDEXED_TABLE and (
                kind != "trigger" and (kind, table) != ("index", INDEXED_TABLE[name])):
            raise Stop(f"the {kind} {name} has a name that the migration needs", 1, "rename it")
        if re.search("[\ud800-\udfff]", f"{name}{sql}"):
            raise Stop(f"the CREATE statement of the {kind} {name} is not UTF-8", 1,
                       "write it anew in UTF-8")


def survey(db: Database, options: argparse.Namespace) -> Run:
    """Compare schema and rows with the target, derive all roots, find what to decide."""
    run = compare_schema(db, options)
    refuse_names(run)
    run.differences += [] if run.log else ["migration_log has no report"]
    derive(db, run.schema)
    find_goals_without_root(run)
    find_rows_without_root(run)
    if options.repair and any(one.kind == "no root" for one in run.findings):
        run.recovers = not db.rows(f"SELECT 1 FROM goals WHERE id = '{RECOVERED}'")
        derive(db, run.schema, number_of(literal(RECOVERED)))
    if not options.without_constraints:
        for name in UNIQUE_NAMES:
            find_equal_names(run, name)
        for name in filter(run.schema.__contains__, run.recreate):
            find_broken_rows(run, name)
    if run.findings:
        check_sound(db, "integrity_check")  # nothing is decided on the word of a damaged index
    for name in filter(run.schema.__contains__, ROOTED):
        run.rows[name] = db.value(f"SELECT count(*) FROM {name}")
        run.filled[name], run.corrected[name] = db.rows(
            f"SELECT count(*) - count(stored), count(stored) FROM {FOUND}{name}")[0]
    return run


def find(run: Run, kind: str, name: str, query: str, *ways: str) -> None:
    """Add a finding if its query has rows; their first column is an id."""
    if rows := run.db.value(f"SELECT count(*) FROM ({query})"):
        ids = run.db.column(f"{query} LIMIT 20")
        run.findings.append(Finding(kind, name, rows, ids, query, ways, "--repair" in ways[0]))


def find_goals_without_root(run: Run) -> None:
    """Goals without an id, cycles of parents, rings of links; not what hangs below them."""
    no_id = "WHERE COALESCE(id, '') = ''"
    find(run, "a goal without an id", "goals.id", f"SELECT rowid, * FROM goals {no_id}",
         f"UPDATE goals SET id = lower(hex(randomblob(16))) {no_id}")
    # Each waits for its parent, else for one of its links: followed, that leads into a loop.
    waits_for = {goal: (parent, link) for goal, parent, link in run.db.rows(
        f"SELECT g.id, p.id, ({UNKNOWN_LINKS} LIMIT 1) FROM migration_tree g "
        f"LEFT JOIN migration_tree p ON p.id = g.parent_id "
        f"WHERE g.id NOT IN (SELECT id FROM {KNOWN}goals)")}
    seen: set[str] = set()
    for start in waits_for:
        walk = [start]
        while walk[-1] not in seen:
            seen.add(walk[-1])
            walk.append(waits_for[walk[-1]][0] or waits_for[walk[-1]][1])
        if loop := walk[walk.index(walk[-1]):-1]:
            goal = min(loop, key=lambda goal: bool(waits_for[goal][0]))
            parent, link = waits_for[goal]
            find(run, "a cycle of parents" if parent else "a ring of links", "goals.root_id",
                 "SELECT id, parent_id, type, name FROM goals "
                 f"WHERE id IN ({', '.join(map(literal, loop))})",
                 f"UPDATE goals SET parent_id = NULL WHERE id = {literal(goal)}" if parent else
                 f"DELETE FROM {LINKS} WHERE practice_session_id = {literal(goal)} "
                 f"AND short_term_goal_id = {literal(link)}")


def find_rows_without_root(run: Run) -> None:
    """Rows that no rule gives a root; not those below them, which get it from them."""
    for name in run.schema.of_target()[1:]:
        if run.db.rows(f"SELECT 1 FROM {FOUND}{name} WHERE root IS NULL LIMIT 1"):
            tests = [f"NOT EXISTS (SELECT 1 FROM {parent} p WHERE p.id = c.{column})"
                     for pairs in (PARENTS, LAST_RESORTS)
                     for column, parent in run.schema.pairs(pairs, name)]
            if run.schema.has(name, "root_id"):
                tests.append("COALESCE(c.root_id, '') = ''")
            find(run, "no root", f"{name}.root_id",
                 f"SELECT c.id, c.* FROM {name} c WHERE {' AND '.join(tests)}",
                 "--repair: they get a fractal, 'Recovered by the migration'",
                 "give them a root_id")


def find_broken_rows(run: Run, name: str) -> None:
    """Rows that break a check to come, or a NOT NULL or CHECK that the owner had."""
    table, missing = run.schema[name], {*run.missing[name]}
    # Not IS NULL, which SQLite takes for false where a column is NOT NULL.
    tests = {f"{name}.{column}": f"typeof({quote(column)}) = 'null'" for column, declared
             in table.columns.items() if declared.not_null and column != "root_id"}
    tests.update({f"{name}: {check}": f"NOT ({expression})" for check, expression
                  in declared_checks(table.sql).items() if check not in ALL_CHECKS})
    tests.update({check: f"NOT ({CHECKS[check][1]})" for check in run.checks[name]
                  if check in CHECKS and not missing & {*re.findall(r"\w+", CHECKS[check][1])}})
    if tests and run.db.rows(f"SELECT 1 FROM {name} WHERE {' OR '.join(tests.values())} LIMIT 1"):
        for what, test in tests.items():
            ways = [f"UPDATE {name} SET ... WHERE {test}"]
            ways += [f"--skip-constraint {what}"] if what in CHECKS else []
            find(run, "broken", what, f"SELECT id, * FROM {name} WHERE {test}", *ways)


def find_equal_names(run: Run, constraint: str) -> None:
    """Live rows with equal names, and the new names that --repair gives them."""
    table, columns = UNIQUE_NAMES[constraint]
    if constraint in run.options.skip_constraint or table not in run.schema:
        return
    column = columns.split(",")[0]
    named = "c.name IS NOT NULL"
    live = "c.deleted_at IS NULL" if run.schema.has(table, "deleted_at") else named
    age = "c.created_at" if run.schema.has(table, "created_at") else "NULL"
    scope = f"c.{column}" if run.schema.has(table, column) else "NULL"
    if column == "root_id":  # as it will be
        found = root_of(f"(SELECT root FROM {FOUND}{table} WHERE key = c.rowid)")
        scope = f"COALESCE({found}, {scope})"
    names = f"""
        SELECT c.id, c.rowid AS key, {scope} AS scope, CAST(c.name AS TEXT) AS name,
               row_number() OVER (equal ORDER BY {age} IS NULL, {age}, c.rowid) AS position,
               count(*) OVER equal AS size
        FROM {table} c WHERE {live} AND {scope} <> '' AND {named}
        WINDOW equal AS (PARTITION BY {scope}, c.name)"""
    ids = run.db.column(f"SELECT id FROM ({names}) WHERE size > 1 ORDER BY scope, name, position")
    if ids:
        run.findings.append(Finding("equal names", constraint, len(ids), ids[:20],
            f"SELECT id, {column}, name FROM {table} c WHERE {live} AND ({column}, name) IN "
            f"(SELECT {column}, name FROM {table} c WHERE {live} AND {column} <> '' "
            "GROUP BY 1, 2 HAVING count(*) > 1)",
            ("--repair: newer ones become 'Name (2)'", f"--skip-constraint {constraint}"), True))
        rows = run.db.rows(f"SELECT * FROM ({names}) ORDER BY position, key")
        run.renames += [dict(rename, table=table) for rename in new_names(rows)]


def new_names(rows: list[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """The next free name for each but the oldest of equal names; the rows are in that order."""
    # Equal for what any collation finds equal.
    taken = {(scope, name.lower().rstrip(" ")) for _, _, scope, name, _, _ in rows}
    for identity, key, scope, name, position, _ in rows:
        if position > 1:  # names up to this number are taken: by the equals before
            after = next(free for number in range(position, len(rows) + 3)
                         if (scope, (free := f"{name} ({number})").lower()) not in taken)
            taken.add((scope, after.lower()))
            yield {"id": identity, "key": key, "before": name, "after": after}


RESTORE = "restore a backup, or use .recover of sqlite3"


def damage(db: Database, check: str = "quick_check") -> str:
    """What a check of the file says; "" if nothing. A value that breaks its declaration is no
    damage: SQLite 3.40 says it of columns that ALTER TABLE added."""
    harmless = r"ok$|(NULL|NUMERIC|TEXT|non-\w+) value in |CHECK constraint failed in "
    try:
        said = [" ".join(text.split()) for text in db.column(f"PRAGMA main.{check}(9999)")
                if not re.match(harmless, text)]
    except sqlite3.DatabaseError as error:
        if "malformed" not in str(error):
            raise
        said = [str(error)]
    return said[0] + (f" and {len(said) - 1:,} more" if said[1:] else "") if said else ""


def check_sound(db: Database, check: str = "quick_check") -> None:
    """Raise Stop if the database is damaged, with what mends it."""
    if said := damage(db, check):
        index = re.search(r"(missing from|entries in) index", said)
        raise Stop(f"{'an index' if index else 'the database'} is damaged: {said}", 1,
                   "REINDEX in the sqlite3 shell, and run again" if index else RESTORE)


# ==== 5. One transaction, five phases ==================================================

CHUNK_ROWS = 50_000
NEW = "migration_new_"  # before the name of a table while it is recreated
CACHE_KIB = 96 * 1024  # random ids go into the index of a PRIMARY KEY: it should fit
SORT_KIB = 8 * 1024    # sorts of this size are the fastest
REPORT_THIS = "please report this with the output of -v"


def migrate_in_transaction(run: Run, data_version: int, backup: str | None) -> Run:
    """Everything that changes the file; rolled back under --dry-run and on any failure. Returns
    the run that was carried out: a new one if someone wrote since `data_version`."""
    db, options = run.db, run.options
    for pragma in ("foreign_keys = OFF", "legacy_alter_table = ON", "threads = 2",
                   "secure_delete = FAST"):
        db.execute(f"PRAGMA {pragma}")
    db.execute("BEGIN IMMEDIATE")
    try:
        if db.value("PRAGMA main.data_version") != data_version:
            shown, run = run.renames, survey(db, options)
            check_decisions(run)
            if options.repair and not options.yes and run.renames != shown:
                raise Stop("others have written names that are to be repaired", 1, "run it again")
        if run.nothing_to_do():
            return run
        run.sizes = row_counts(db)
        wait_for_check = back_up(run, backup)
        OUT.report["not_compiling"] = not_compiling(db)
        run.broken_references = broken_references(run)
        put_triggers_aside(run)
        repair_names(run)
        for number, (title, phase) in enumerate(PHASES, 1):
            OUT.begin(f"[{number}/5] {title}")
            OUT.end(phase(run))
        write_log(run)
        wait_for_check()
        if options.sql:
            write_file(options.sql, script_text(run))
        db.execute("ROLLBACK" if options.dry_run else "COMMIT")
        if not (options.dry_run or options.output):
            commit()
    except Fault:
        db.execute("ROLLBACK")
        check_sound(db, "integrity_check")  # as found, an index may have lied
        raise
    finally:
        if db.in_transaction:
            sqlite3.Connection.execute(db, "ROLLBACK")
    return run


def put_triggers_aside(run: Run) -> None:
    """Drop all triggers, that none fires meanwhile; keep the texts of the owner's."""
    for name, sql in run.db.rows("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' "
                                 "ORDER BY rowid"):
        run.db.change(f"DROP TRIGGER {quote(name)}")
        if name.lower() not in VERSION_1_TRIGGERS | run.others.keys():
            run.owners_triggers.append(sql)


def repair_names(run: Run) -> None:
    """Give equal names their new ones; name the full-text tables to be filled anew."""
    for one in run.renames:
        run.db.change(f"UPDATE {one['table']} SET name = {literal(one['after'])} WHERE "
                      f"rowid = {one['key']} AND CAST(name AS TEXT) = {literal(one['before'])}")
    for name, sql in run.db.rows("SELECT name, sql FROM sqlite_master "
                                 "WHERE sql LIKE 'CREATE VIRTUAL TABLE%content%'"):
        if any(re.search(rf"content\s*=\W*{one['table']}\b", sql, re.I) for one in run.renames):
            OUT.say(f"Names that {name} indexes have changed; afterwards, in the sqlite3 shell:\n"
                    f"  INSERT INTO {name}({name}) VALUES('rebuild')")


def add_columns(run: Run) -> str:
    """[1/5] Create missing tables, add missing columns, make the recovered goal."""
    added = created = 0
    for name, columns in run.missing.items():
        declared = {column: TABLES[name][column] for column in columns}
        if name in run.schema:
            added += len(columns)
            for column, text in declared.items():
                text = re.sub(f" NOT NULL(?! ON CONFLICT)| {re.escape(IN_GOALS)}", "", text)
                run.db.change(f"ALTER TABLE {name} ADD COLUMN {quote(column)} "
                              + text.replace("DEFAULT CURRENT_TIMESTAMP", NO_TIME_YET))
        else:
            created += 1
            lines = ",\n    ".join(f"{quote(column)} {text}" for column, text in declared.items())
            run.db.change(f"CREATE TABLE {name} (\n    {lines})")  # [3/5] adds its checks
    for name, sql in run.others.items():
        if sql.startswith("CREATE TABLE") and not read_table(run.db, name):
            created += 1
            run.db.change(sql)
    if run.recovers:
        run.db.change(f"""
            INSERT INTO goals (id, type, name, root_id, created_at) VALUES ('{RECOVERED}',
            'UltimateGoal', 'Recovered by the migration', '{RECOVERED}', CURRENT_TIMESTAMP)""")
        run.rows["goals"] += 1
    return f"{count(added, 'column')} added, {count(created, 'table')} created"


def backfill(run: Run) -> str:
    """[2/5] Give rows their root: here, or on the way into a table that is recreated."""
    for name in run.filled:
        if name not in run.recreate:
            root = root_of(f"(SELECT root FROM {FOUND}{name} WHERE key = {name}.rowid)")
            run.db.change(f"UPDATE OR FAIL {name} SET root_id = {root} "
                          f"WHERE rowid IN (SELECT key FROM {FOUND}{name})")
        OUT.report["corrections"][name] = run.db.rows(
            f"SELECT c.{ROOTED[name]}, {root_of('f.stored')}, {root_of('f.root')} FROM "
            f"{FOUND}{name} f JOIN {name} c ON c.rowid = f.key WHERE f.stored > 0 LIMIT 1000")
    filled, corrected = sum(run.filled.values()), sum(run.corrected.values())
    return f"{count(filled, 'root')} filled, {corrected:,} corrected"


def recreate_tables(run: Run) -> str:
    """[3/5] Rebuild tables, as https://sqlite.org/lang_altertable.html#otheralter says. With
    legacy_alter_table on and foreign_keys off, DROP deletes no rows elsewhere, and RENAME leaves
    views and references. All are copied first: what is dropped is written over slowly."""
    db, schema = run.db, read_schema(run.db)
    rows, total = 0, sum(run.rows.get(name, 0) for name in run.recreate)
    for name in run.recreate:
        for copied in copy_table(run, name, schema[name]):
            rows += copied
            OUT.progress("row", rows, total)
    for name in run.recreate:
        new, old = NEW + name, schema[name].name
        owners = [sql for index, sql in db.rows(
            "SELECT lower(name), sql FROM sqlite_master WHERE type = 'index' AND sql > '' "
            f"AND lower(tbl_name) = '{name}' ORDER BY rowid") if index not in INDEXED_TABLE]
        if db.rows("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_sequence'"):
            # AUTOINCREMENT: the highest key ever given may be that of a row that is gone.
            db.change(f"DELETE FROM sqlite_sequence WHERE name = '{new}'")
            db.change(f"INSERT INTO sqlite_sequence SELECT '{new}', seq FROM sqlite_sequence "
                      f"WHERE name = {literal(old)}")
        db.change(f"DROP TABLE {quote(old)}")
        db.change(f"ALTER TABLE {new} RENAME TO {quote(old)}")
        for sql in owners:
            db.change(sql)
    return f"{count(len(run.recreate), 'table')}, {count(rows, 'row')} copied and proven"


def copy_table(run: Run, name: str, table: Table) -> Iterator[int]:
    """Create the new table, copy the rows in ranges, prove each range equal; how many it has."""
    db, new = run.db, NEW + name
    text = new_text(name, table, run.checks[name])
    db.change(f"CREATE TABLE {new} {text[tokenize(text)[2].end:]}")
    made = read_table(db, new)
    if not made or [*made.columns] != [*table.columns] or not table.references <= made.references:
        raise Stop(f"the new text of table {name} does not mean what it should", 1, REPORT_THIS)
    values = {quote(column.name): new_value(column) for column in table.columns.values()
              if not column.hidden}
    old = {column: value for column, value in values.items()
           if column[1:-1].lower() not in run.missing[name]}
    new_row = ", ".join(f"n.{column} COLLATE BINARY" for column in old)
    source = f"{name} o LEFT JOIN {FOUND}{name} r ON r.key = o.rowid"
    for chunk in rowid_ranges(db, name) if name in run.rows else ():  # else it is new
        # FAIL: no conflict clause of the table drops a row in silence; no journal of the statement.
        copied = db.change(f"INSERT OR FAIL INTO {new} (rowid, {', '.join(values)}) "
                           f"SELECT o.rowid, {', '.join(values.values())} "
                           f"FROM {source} WHERE {chunk}")
        if lost := db.value(
                f"SELECT count(*) FROM {source} LEFT JOIN {new} n ON n.rowid = o.rowid "
                f"WHERE {chunk} AND ({new_row}) IS NOT ({', '.join(old.values())})"):
            raise Stop(f"the copy of {name} differs in {count(lost, 'row')}", 1, REPORT_THIS)
        yield copied
    db.script.append("INSERT INTO migration_guard SELECT "
                     f"(SELECT count(*) FROM {new}) = (SELECT count(*) FROM {name})")


def new_value(column: Column) -> str:
    """SQL for what a column of the old row `o` becomes: the same, but for root_id, and a number in
    a STRING column that SQLite's text of 15 digits would not keep."""
    value = f"o.{quote(column.name)}"
    if column.name.lower() == "root_id":
        return f"COALESCE({root_of('r.root')}, {value})"
    if column.is_string:
        return (f"CASE WHEN typeof({value}) = 'real' AND CAST({value} AS TEXT) + 0.0 <> {value} "
                f"THEN printf('%!.17g', {value}) ELSE {value} END")
    return value


def rowid_ranges(db: Database, name: str) -> Iterator[str]:
    """Conditions that cut a table into ranges of CHUNK_ROWS rows, however sparse its rowids."""
    start = "1"
    while after := db.rows(f"SELECT rowid FROM {name} o WHERE {start} "
                           f"ORDER BY rowid LIMIT 1 OFFSET {CHUNK_ROWS}"):
        yield f"{start} AND o.rowid < {after[0][0]}"
        start = f"o.rowid >= {after[0][0]}"
    yield start


def create_indexes(run: Run) -> str:
    """[4/5] Create indexes and triggers, the owner's last: the newest fires first, so they see an
    insert before ours fill its root."""
    db, now = run.db, compare_schema(run.db, run.options)
    db.execute(f"PRAGMA cache_size = -{SORT_KIB}")
    for number, (name, sql) in enumerate(now.indexes.items()):
        OUT.progress("index", number, len(now.indexes))
        db.change(f"DROP INDEX IF EXISTS {name}")
        db.change(sql)
    db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    made = 0
    for name, sql in now.others.items():
        if (kind := sql.split()[1]) != "TABLE":
            db.change(f"DROP {kind} IF EXISTS {name}")
            db.change(sql)
            made += kind == "TRIGGER"
    for sql in run.owners_triggers:
        db.change(sql)
    db.execute("PRAGMA analysis_limit = 1000")
    for name in TABLES:
        db.change(f"ANALYZE {name}")
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
    """[5/5] Look at every promise of the run afresh; raises Fault where one is broken."""
    faults = [*schema_faults(compare_schema(run.db, run.options), OUT.report["not_compiling"])]
    if not faults:
        sizes = row_counts(run.db)
        sizes[read_schema(run.db)["goals"].name] -= run.recovers
        faults = [*audit(run.db), *sorted(broken_references(run) - run.broken_references), *(
            f"{name} has {sizes.get(name)} rows, not {rows}" for name, rows in run.sizes.items()
            if sizes.get(name) != rows)]
    kept = len(run.recreate) < len(TABLES)  # with indexes that might lie
    check_sound(run.db, "integrity_check" if faults or kept else "quick_check")
    if faults:
        raise Fault("verification found a fault: " + "; ".join(faults[:5]), 1,
                    "mend the view, trigger or foreign key it names; else " + REPORT_THIS)
    note_references(run.db)
    return "schema, roots, rows, integrity are right"


def schema_faults(run: Run, before: dict[str, str]) -> Iterator[str]:
    """What the schema lacks of the target; what compiled before and does no more."""
    yield from run.differences
    for statement, why in not_compiling(run.db).items():
        # Our triggers fire those of other tables: what was broken there is so in more statements.
        if statement not in before and (statement[:6] == "SELECT" or why not in before.values()):
            yield f"{statement} does not compile any more: {why}"
    if not run.differences:
        for name, on in INDEXES.items():  # a query for one fractal, one parent, must find its index
            table, column, where = re.split(r" \((\w+).*?\)", on)
            query = f"SELECT * FROM {table} INDEXED BY {name} WHERE {column} = ''"
            yield from filter(None, [compile_error(run.db, query + where.replace("WHERE", "AND"))])
    OUT.report["extras"] = run.extras
    OUT.report["checks"] = [
        name for table in run.schema.values() for name, expression
        in declared_checks(table.sql).items() if ALL_CHECKS.get(name, ("", ""))[1] == expression]


def row_counts(db: Database) -> dict[str, int]:
    """{table: number of rows}, of the owner's tables too."""
    return {name: db.value(f"SELECT count(*) FROM main.{quote(name)}") for name in db.column(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0 "
        "AND name NOT GLOB 'sqlite_*'")}


def broken_references(run: Run) -> set[str]:
    """The roots that name no goal; where names are repaired, what violates a foreign key, too."""
    schema = read_schema(run.db)
    found = {f"no root_id named the missing goal {root!r} before"
             for name in schema.of_target() if schema.has(name, "root_id")
             for root in run.db.column(f"""
                 SELECT CAST(root_id AS TEXT) FROM (SELECT DISTINCT root_id FROM {name})
                 WHERE root_id <> '' EXCEPT SELECT id FROM goals""")}
    with contextlib.suppress(sqlite3.OperationalError):  # a mismatch: not even SQLite can tell
        if run.renames:
            found |= {f"{name}: the row of rowid {rowid} refers to no row of {parent} any more"
                      for name, rowid, parent, _ in run.db.rows("PRAGMA foreign_key_check")
                      if parent.lower() != "goals"}
    return found


def compile_error(db: Database, sql: str) -> str:
    """What SQLite says of a statement when it compiles it; "" if nothing."""
    try:
        db.execute(f"EXPLAIN {sql}")
    except sqlite3.OperationalError as error:
        return "" if str(error).startswith("cannot modify") else str(error)
    return ""


def not_compiling(db: Database) -> dict[str, str]:
    """{statement: error} for views, and tables with their triggers, that don't compile."""
    found = {}
    for name in db.column("SELECT name FROM sqlite_master WHERE type = 'view' OR type = 'table' "
                          "AND rootpage > 0 AND name NOT GLOB 'sqlite_*'"):
        table, columns = f"main.{quote(name)}", ["rowid"]
        with contextlib.suppress(sqlite3.OperationalError):
            columns = [quote(row[1]) for row in db.rows(f"PRAGMA table_info({quote(name)})")]
        same = ", ".join(f"{column} = {column}" for column in columns)
        for sql in (f"SELECT * FROM {table}", f"INSERT INTO {table} DEFAULT VALUES",
                    f"DELETE FROM {table}", f"UPDATE {table} SET {same}"):
            if error := compile_error(db, sql):
                found[f"{sql.split()[0]} {name}"] = error
    return found


def note_references(db: Database) -> None:
    """Count, by column, references to missing rows and rows that link two fractals: no faults,
    as an app without foreign keys makes them daily."""
    lost, crossing = OUT.report["references_to_missing_rows"], OUT.report["crossing_fractals"]
    if read_table(db, "migration_quarantine"):
        rows = db.value("SELECT count(*) FROM migration_quarantine")
        OUT.report["quarantined_by_version_1"] = rows
    queries = {}
    if LINKS in read_schema(db):
        queries[LINKS] = (
            f"SELECT c.id FROM goals c JOIN {LINKS} k ON k.practice_session_id = c.id "
            "JOIN goals p ON p.id = k.short_term_goal_id WHERE p.root_id <> c.root_id")
    for name, column, parent in REFERENCES:
        if missing := int(db.value(f"""
                SELECT total(n) FROM (SELECT {column} AS id, count(*) AS n FROM {name}
                                      WHERE {column} > '' GROUP BY 1) k
                WHERE NOT EXISTS (SELECT 1 FROM {parent} p WHERE p.id = k.id)""")):
            lost[f"{name}.{column}"] = missing
        if column != "root_id" and (column, parent) not in PARENTS.get(name, []):
            # DISTINCT: by fractal and parent these are few, from the index
            queries[f"{name}.{column}"] = (
                f"SELECT id FROM {name} WHERE (root_id, {column}) IN (SELECT k.root_id, p.id FROM "
                f"(SELECT DISTINCT root_id, {column} AS id FROM {name} WHERE {column} > '') k "
                f"JOIN {parent} p ON p.id = k.id WHERE p.root_id <> k.root_id)")
    for where, query in queries.items():
        if ids := db.column(query):
            crossing[where] = {"count": len(ids), "ids": ids[:20], "query": query}
    if lost or crossing:
        OUT.say(f"  {count(sum(lost.values()), 'reference')} to missing rows, "
                f"{count(sum(one['count'] for one in crossing.values()), 'row')} that link two "
                "fractals\n  (listed in the --report; the app makes them: it uses no foreign keys)")


PHASES = [("Add columns", add_columns), ("Backfill root_id", backfill),
          ("Recreate tables", recreate_tables), ("Create indexes", create_indexes),
          ("Verify", verify)]


# ==== 7. Files: copies, backup, restore ================================================
# While this process has a connection to a file, it opens that file by no other way: closing any
# descriptor drops its locks (https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled).

SNAPSHOT, PARTIAL = "fractal-goals-", ".partial-"  # so is named what a killed run leaves
SIDE_FILES = ("-wal", "-shm", "-journal")


def read_head(path: str) -> bytes:
    """The first 100 bytes of a file; raises Stop unless it begins as a database does."""
    if not os.path.isfile(path):
        why = "is no file" if os.path.exists(path) else "does not exist: no such database"
        raise Stop(f"{path} {why}", 2, "name the app's own, or a backup of it")
    with open(path, "rb") as file:
        head = file.read(100)
    if not head.startswith(b"SQLite format 3\0"):
        raise Stop(f"{path} is " + ("no SQLite database, or encrypted" if head else "empty"), 2,
                   "name the app's own, or a backup of it")
    return head


def size_of(path: str) -> int:
    """Bytes of a database with its -wal."""
    return sum(os.path.getsize(path + end) for end in ("", "-wal") if os.path.exists(path + end))


def mebibytes(size: float) -> str:
    return f"{size / 2 ** 20:,.1f} MiB"


@contextlib.contextmanager
def reading(path: str, patience: float) -> Iterator[Database]:
    """A connection that reads one state, after SQLite's own recovery, and leaves no file."""
    mode = "rw" if os.path.exists(path + "-journal") else "ro"
    if read_head(path)[18:20] == b"\2\2":  # in WAL mode: as the app would open it
        writable = os.access(path, os.W_OK) and os.access(os.path.dirname(path), os.W_OK)
        mode = "rw" if writable or os.path.exists(path + "-wal") else "ro&immutable=1"
    with contextlib.closing(connect(path, mode, patience)) as db:
        db.execute("BEGIN")
        db.execute("SELECT count(*) FROM sqlite_master")
        yield db


def copy_pages(source: Database, target: Database, what: str) -> None:
    """Copy a database by the backup API, in steps, between which signals are heard. `source` is in
    a transaction: no writer makes it begin anew."""
    def progress(status: int, left: int, total: int) -> None:
        if status != 101:  # SQLITE_DONE: what is complete no signal may deny
            check_interrupt()
            OUT.progress(what, total - left, total)
    source.backup(target, pages=1000, progress=progress)


def copy_to_file(source: Database, path: str, what: str) -> None:
    with contextlib.closing(connect(path, "rwc")) as target:
        copy_pages(source, target, what)


@contextlib.contextmanager
def snapshot(options: argparse.Namespace) -> Iterator[str]:
    """The path of a private copy of DATABASE, gone in the end; or of what is to be --output."""
    with contextlib.ExitStack() as stack:
        if options.output:
            path = stack.enter_context(private_file(options.output, options.path))
        else:
            prefix = f"{SNAPSHOT}{os.getpid()}-"
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix))
            path = os.path.join(folder, "snapshot.db")
        with reading(options.path, options.timeout) as source:
            copy_to_file(source, path, "snapshot")
        yield path


@contextlib.contextmanager
def private_file(final: str, like: str) -> Iterator[str]:
    """A new private file that in the end gets the name `final` and the owner of `like`; removed
    where that is not reached. Nothing is overwritten."""
    partial = f"{final}{PARTIAL}{os.getpid()}"
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    try:
        yield partial
        with contextlib.suppress(PermissionError):  # where root runs this for the app
            os.chown(partial, os.stat(like).st_uid, os.stat(like).st_gid)
        sync(partial)
        if os.path.lexists(final):
            raise Stop(f"{final} exists already", 2, "name a new file")
        os.rename(partial, final)
        sync(os.path.dirname(final))
    finally:
        for end in ("", *SIDE_FILES):
            with contextlib.suppress(OSError):
                os.unlink(partial + end)


def sync(path: str) -> None:
    """Make a file, or the names in a folder, last through a power cut."""
    number = os.open(path, os.O_RDONLY)
    os.fsync(number)
    os.close(number)


def back_up(run: Run, final: str | None) -> Callable[[], None]:
    """Back up under the run's lock, from a second connection; nothing if `final` is None. Returns a
    function that waits for the check, which goes on in a thread, and raises Stop for damage."""
    if final is None:
        return lambda: None
    from concurrent.futures import ThreadPoolExecutor
    OUT.begin("Back up")
    with contextlib.closing(connect(run.options.path, "ro", run.options.timeout)) as source:
        source.execute("BEGIN")
        with private_file(final, run.options.path) as partial:
            copy_to_file(source, partial, "backup")
    OUT.report["backup"] = final
    OUT.end(f"{mebibytes(os.path.getsize(final))}, is checked during what follows")
    return ThreadPoolExecutor(1).submit(check_backup, final).result


def check_backup(path: str) -> None:
    """Raise Stop if a backup is damaged: so is the database, of which it is a copy."""
    with contextlib.closing(connect(path, "ro&immutable=1")) as db:
        db.set_progress_handler(lambda: bool(SIGNALS), 10_000)
        check_sound(db)


def check_space(*needs: tuple[str, int]) -> str:
    """Raise Stop where a file system has less free than the (folder, bytes) need; else say it."""
    said = []
    for device in {os.stat(folder).st_dev for folder, _ in needs}:
        here = [(folder, size) for folder, size in needs if os.stat(folder).st_dev == device]
        need, free = sum(size for _, size in here), shutil.disk_usage(here[0][0]).free
        said.append(f"{mebibytes(need)} needed, {mebibytes(free)} free in {here[0][0]}")
        if free < need:
            raise Stop(f"not enough free disk: {said[-1]}", 1,
                       "make room there; TMPDIR names the folder for temporary files")
    return "\n          ".join(said)


def check_live_run(options: argparse.Namespace, backup: str | None) -> str:
    """Raise Stop where a live run could not write what it must; else say the disk it needs."""
    folder, size = os.path.dirname(options.path), size_of(options.path)
    backups = os.path.dirname(backup) if backup else folder
    for place in (options.path, folder, backups):
        if not os.access(place, os.W_OK):
            raise Stop(f"no permission to write {place}", 1, "run this as the app's own user")
    return check_space((folder, 4 * size), (tempfile.gettempdir(), size),
                       (backups, size if backup else 0))


def new_name(path: str, word: str) -> str:
    return f"{path}.{word}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"


def restore(options: argparse.Namespace) -> None:
    """Put a backup in place of DATABASE; what is there now is kept aside."""
    path, backup = options.path, options.restore
    read_head(backup)
    there = os.path.exists(path)
    if there and (os.path.samefile(path, backup) or not os.path.isfile(path)):
        raise Stop(f"{path} is the backup itself, or no file", 2, "name database and backup")
    for end in ("-wal", "-journal"):
        if os.path.exists(path + end) and not (there and os.path.getsize(path)):
            raise Stop(f"{path}{end} lies there without its database", 1,
                       "move it away, and run again")
    try:
        with reading(backup, options.timeout) as source:
            said, goals = damage(source), read_table(source, "goals")
    except sqlite3.DatabaseError as error:
        said, goals = str(error), None
    if said or not (goals and {"type", "parent_id"} <= goals.columns.keys()):
        raise Stop(f"{backup} is " + (f"damaged: {said}" if said else "no Fractal Goals database"),
                   1 if said else 2, "choose another backup")
    with reading(backup, options.timeout) as source:
        say_what_is_lost(source, options)
        confirm(options, "restore")
        if there:
            put_back(source, options)
        else:
            with private_file(path, os.path.dirname(path)) as partial:
                copy_to_file(source, partial, "restore")
            commit()
        rows = row_counts(source)
    with reading(path, options.timeout) as restored:
        if damage(restored) or row_counts(restored) != rows:
            raise Stop(f"{path} does not equal {backup}", 1, "look at the disk, and restore again")
    OUT.report["status"] = "done"
    OUT.say(f"Done: {path} is as {backup} was.", always=True)


def say_what_is_lost(source: Database, options: argparse.Namespace) -> None:
    """Say what a restore replaces. Raises Stop where that can't be read, or is another database."""
    stamp = re.search(r"\.backup-(\d{8}T\d{6})Z", options.restore)  # a copy has a date of its own
    made = (calendar.timegm(time.strptime(stamp[1], "%Y%m%dT%H%M%S")) if stamp else
            os.stat(options.restore).st_mtime)
    OUT.say(f"Restore {options.restore}\nin place of {options.path}")
    OUT.say(f"  the backup is {(time.time() - made) / 3600:,.1f} hours old, and "
            + ("migrated" if last_log(source) else "not migrated"))
    if not os.path.exists(options.path) or not os.path.getsize(options.path):
        return
    OUT.say(f"{'rows of':24}{'the backup':>14}{'now':>14}{'only now':>14}")
    try:
        with reading(options.path, options.timeout) as db:
            sizes, before = row_counts(db), row_counts(source)
            another = not read_table(db, "goals") and any(sizes.values())
            db.execute("ATTACH ? AS backup", [source.uri])
            for name, now in sizes.items():
                lost = max(now - before.get(name, 0), 0)
                with contextlib.suppress(sqlite3.OperationalError):  # it has no id
                    lost = db.value(f"SELECT count(*) FROM main.{quote(name)} n WHERE n.id NOT IN "
                                    f"(SELECT b.id FROM backup.{quote(name)} b WHERE b.id > '')")
                another = another or name.lower() == "goals" and 0 < now == lost
                OUT.say(f"  {name:22.22}{before.get(name, 0):14,}{now:14,}{lost:14,}")
    except (Stop, sqlite3.DatabaseError) as error:
        if is_locked(error) or SIGNALS:
            raise
        raise Stop(f"{options.path} can't be read: {error}", 1,
                   "move it away with its -wal and -journal, and run again") from None
    if another:
        raise Stop(f"{options.path} has no goal in common with {options.restore}", 2,
                   "name a backup of this database")


def put_back(source: Database, options: argparse.Namespace) -> None:
    """Keep the content of a database aside, then overwrite it, under one exclusive lock."""
    with contextlib.closing(connect(options.path, "rw", options.timeout)) as db:
        mode = db.value("PRAGMA journal_mode")
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("BEGIN EXCLUSIVE")
        db.execute("COMMIT")  # the lock stays (https://sqlite.org/pragma.html#pragma_locking_mode)
        db.execute("PRAGMA journal_mode = DELETE")  # the page size may be another in the backup
        aside = new_name(options.path, "replaced")
        with private_file(aside, options.path) as partial:
            copy_to_file(db, partial, "keep aside")
        OUT.report["kept_aside"] = aside
        try:
            copy_pages(source, db, "restore")
            commit()
        finally:
            with contextlib.suppress(sqlite3.Error, OSError):
                sqlite3.Connection.execute(db, f"PRAGMA journal_mode = {mode}")
                if mode == "wal":  # the exclusive mode keeps it, and nobody needs it
                    os.unlink(options.path + "-journal")
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
        self.terminal = bool(self.stream and self.stream.isatty()) and not self.quiet
        self.step, self.started, self.shown, self.width = "", time.monotonic(), 0.0, 0
        self.doing = ""             # how far the step is
        self.asking = False         # a question waits for its answer
        self.committed = False      # what is done is done for good
        self.database = ""          # as the operator knows it, whatever copy is worked on
        self.report: dict[str, Any] = {
            "made_by": f"{MADE_BY} {VERSION}", "status": "failed", "exit_code": 1, "message": "",
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "seconds": 0.0,
            "database": {}, "python": sys.version.split()[0], "sqlite": sqlite3.sqlite_version,
            "options": dict(vars(options)), "tables": {}, "phases": [], "decisions": [],
            "repairs": [], "corrections": {}, "checks": [], "extras": [], "not_compiling": {},
            "references_to_missing_rows": {}, "crossing_fractals": {},
            "backup": None, "kept_aside": None}

    def write(self, text: str, end: str = "\n") -> None:
        with contextlib.suppress(*GONE):
            self.stream.write(f"\r{' ' * self.width}\r{text}{end}" if self.width else text + end)
            self.stream.flush()
        self.width = 0

    def say(self, text: str, always: bool = False) -> None:
        if always or not self.quiet:
            self.write(text)

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
        """Show a step longer than a second: live on a terminal, else a line every ten seconds.
        Whether to end a long statement."""
        now = time.monotonic()
        pause = 0.2 if self.terminal else 10
        if not self.quiet and now - max(self.started + 1, self.shown) > pause:
            self.shown = now
            text = f"{self.step}: {waiting or self.doing or f'{now - self.started:.0f} s'}"[:79]
            self.write(text, end="" if self.terminal else "\n")
            self.width = len(text) if self.terminal else 0
        return bool(SIGNALS)


def count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def shorten(ids: Sequence[Any]) -> str:
    text = ", ".join(map(repr, ids))
    return text if len(text) < 60 else text[:text.rfind(", ", 0, 60) + 1] + " ..."


def command(*arguments: str) -> str:
    return shlex.join([sys.executable, os.path.abspath(sys.argv[0]), *arguments])


SURVEYS = 6  # a run takes this many times what its survey took, as measured


def show_plan(run: Run, seconds: float, space: str, backup: str | None) -> None:
    """Say what the run would do, before anything happens."""
    OUT.say("Plan                        rows new columns     to fill  to correct  recreate")
    for name, columns in run.missing.items():
        how = "create" if name not in run.schema else "yes" if name in run.recreate else "no"
        rows, fill, correct = (by.get(name, 0) for by in (run.rows, run.filled, run.corrected))
        OUT.say(f"  {name:20}{rows:10,}{len(columns):12}{fill:12,}{correct:12,}{how:>10}")
        OUT.report["tables"][name] = {"rows": rows, "new_columns": columns, "filled": fill,
                                      "corrected": correct, "recreated": how == "yes"}
    OUT.say(f"  {count(len(run.indexes), 'index', 'indexes')}, "
            f"triggers that keep root_id right; it takes about {seconds * SURVEYS + 0.1:,.1f} s\n"
            f"  disk    {space}\n  backup  {backup or 'none'}")
    if run.extras:
        OUT.say(f"  extras  {', '.join(run.extras)}")
    if refused := [name for name in run.indexes if name.endswith("_activity_name")]:
        # SQLAlchemy sends INSERT and UPDATE before DELETE, and one UPDATE after another.
        OUT.say("  Until the app's code is updated, these refuse an edit that swaps two names, or\n"
                "  removes one and adds another of its name; --skip-constraint leaves them out:\n"
                + "\n".join(f"    {name}" for name in refused))


def check_decisions(run: Run) -> None:
    """Tell the decisions, all at once, and what --repair changes. Raises Stop if any is left; its
    last words are the command to run next."""
    repair = run.options.repair
    left = [one for one in run.findings if not (one.repairable and repair)]
    OUT.report["decisions"] = [one._asdict() for one in run.findings]
    OUT.report["repairs"] = run.renames if repair else []
    if run.findings:
        OUT.say("Decisions")
    for one in run.findings:
        OUT.say(f"  {one.name}: {one.kind}, {count(one.rows, 'row')}\n"
                f"    first    {shorten(one.ids)}\n    show     {one.query}\n    resolve  "
                + "\n          or ".join(one.resolve), always=one in left)
    if OUT.report["repairs"]:
        OUT.say("Repairs")
    for one in OUT.report["repairs"]:
        OUT.say(f"  {one['table']} {one['id']!r:.50}\n    {one['before']!r:.70}\n"
                f"    becomes {one['after']!r:.68}")
    if left:
        settled = [one.name for one in left if one.repairable]
        skipped = [one.name for one in left if one.name in CHECKS]
        correct = sorted({one.name for one in left} - {*settled, *skipped})
        flags = ["--repair"] if settled else []
        flags += [word for name in skipped for word in ("--skip-constraint", name)]
        raise Stop(f"the data needs {count(len(left), 'decision')}", 3,
                   (f"--repair settles {len(settled)} of them; " if settled else "")
                   + (f"resolve {', '.join(correct)}; " if correct else "")
                   + f"next: {command(*run.options.arguments, *flags)}")


def commit() -> None:
    """What is done is done for good: a signal that came too late is none."""
    OUT.committed = True
    SIGNALS.clear()


def on_signal(number: int, frame: Any) -> None:
    """Note a signal, but none after what is done for good; end a waiting question."""
    if not OUT.committed:
        SIGNALS.append(number)
    if OUT.asking:
        raise KeyboardInterrupt


def confirm(options: argparse.Namespace, verb: str) -> None:
    """Raise Stop unless the operator says yes: on a terminal by typing it, else by --yes."""
    if options.yes:
        return
    if not sys.stdin or not sys.stdin.isatty():
        raise Stop("no terminal to ask on", 2, "add --yes")
    OUT.write(f"Type 'yes' to {verb} {os.path.basename(options.path)}: ", end="")
    answer, OUT.asking = "", True
    with contextlib.suppress(KeyboardInterrupt):
        answer = "" if SIGNALS else sys.stdin.readline()
    OUT.asking = False
    check_interrupt()
    if answer.strip() != "yes":
        raise Stop("cancelled, as the answer was not the word yes", 0)


EXPLANATIONS = [
    (" is locked", "the database is locked by another process", 4,
     "stop the app (find it with fuser -v DATABASE), or give a longer --timeout"),
    ("not a database|malformed|corrupt", "damaged, encrypted, or of a newer SQLite", 1, RESTORE),
    ("readonly|unable to open|ermission|denied", "it can't be opened or written", 1,
     "check owner, permissions and mount"),
    ("disk|space|quota|too large", "the disk is full or failing", 1, "look at the disk"),
    ("constraint failed", "a constraint of the owner's breaks with right roots and names", 3,
     "change those rows or that constraint"),
    ("no such (function|module|collation)|unknown function",
     "the schema needs what only the app brings", 1, "drop that, create it again afterwards"),
    ("", "it failed", 1, "run with -v to see the statement")]


def explain(error: BaseException) -> Stop:
    """An error of SQLite or the system as one line for the operator, with its exit status."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    _, what, status, advice = next(one for one in EXPLANATIONS if re.search(one[0], text))
    return Stop(f"{what}: {text:.80}", status, advice.replace("DATABASE", OUT.database))


def say_result(options: argparse.Namespace) -> None:
    """Say what was done, and as commands what may follow."""
    path, backup, verify = options.path, OUT.report["backup"], command(options.path, "--verify")
    if OUT.report["status"] == "nothing to do":
        OUT.say(f"Nothing to do: {path} is migrated.", always=True)
    elif options.dry_run:
        live = [word for word in options.arguments if word != "--dry-run"]
        OUT.say(f"Done: rehearsed and rolled back; {path} is untouched.", always=True)
        OUT.say(f"To migrate: {command(*(['DATABASE'] if options.sample else live))}")
    elif options.output:
        OUT.say(f"Done: {options.output} is migrated; {path} is untouched.", always=True)
    else:
        before, now = OUT.report["database"]["bytes_before"], size_of(path)
        how = " but for the constraints, as chosen" if options.without_constraints else ""
        seconds = sum(phase["seconds"] for phase in OUT.report["phases"])
        OUT.say(f"Done: {path} is migrated{how}.", always=True)
        OUT.say(f"Time: {seconds:,.1f} s; size: {mebibytes(before)} before, {mebibytes(now)} now")
        if backup:
            OUT.say(f"Backup: {backup}\nUndo; rows written from now on are not carried over:\n"
                    f"  {command(path, '--restore', backup)}")
        OUT.say(f"Check, now and (by crontab) every night:\n  {verify}\n"
                f"  0 4 * * * {verify} -q >/dev/null".replace("%", "\\%"))


# ==== 9. The command line ==============================================================

def migrate(options: argparse.Namespace) -> None:
    """The main job: live, as a rehearsal (--dry-run) or into a new file (--output)."""
    read_head(options.path)
    size, mode = size_of(options.path), os.stat(options.path).st_mode & 0o777
    backup = None if options.no_backup else options.backup or new_name(options.path, "backup")
    if options.dry_run or options.output:
        folder = os.path.dirname(options.output) if options.output else tempfile.gettempdir()
        space = check_space((folder, 5 * size))
        with snapshot(options) as path:
            work(options, path, space, None)
            os.chmod(path, mode)
    else:
        space = check_live_run(options, backup)
        try:
            work(options, options.path, space, backup)
        except sqlite3.DatabaseError:
            # Opened once more, SQLite undoes what a failing disk kept it from rolling back.
            with contextlib.suppress(sqlite3.Error), reading(options.path, options.timeout):
                pass
            raise
    if options.dry_run and OUT.report["status"] == "rehearsed":
        try:
            check_live_run(options, backup)
        except Stop as stop:
            OUT.say(f"The live run would fail: {stop}; {stop.advice}", always=True)
    say_result(options)


def work(options: argparse.Namespace, path: str, space: str, backup: str | None) -> None:
    """Survey, plan, ask, migrate the file at `path`: DATABASE, or a copy of it."""
    with contextlib.closing(connect(path, "rw", options.timeout)) as db:
        db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        db.execute(f"PRAGMA temp.cache_size = -{CACHE_KIB}")
        OUT.say(f"{'Rehearse' if options.dry_run else 'Migrate'} {options.path}")
        OUT.say(f"  {mebibytes(size_of(path))}, journal mode {db.value('PRAGMA journal_mode')}; "
                f"script {VERSION}, SQLite {sqlite3.sqlite_version}")
        OUT.begin("Check the file")
        if backup is None:
            check_sound(db)  # else its backup is looked at
        OUT.begin("Look at the data")
        db.execute("BEGIN")  # to see one state, whoever writes
        data_version = db.value("PRAGMA data_version")
        run = survey(db, options)
        db.execute("COMMIT")
        if not run.nothing_to_do():
            show_plan(run, time.monotonic() - OUT.started, space, backup)
            check_decisions(run)
            if not (options.dry_run or options.output):
                confirm(options, "migrate")
            run = migrate_in_transaction(run, data_version, backup)
        if run.nothing_to_do():
            check_sound(db, "integrity_check")
        OUT.report["status"] = ("nothing to do" if run.nothing_to_do() else
                                "rehearsed" if options.dry_run else "done")


def verify_database(options: argparse.Namespace) -> None:
    """--verify: every check of a run, on a private copy; Stop with status 1 for a fault."""
    with snapshot(options) as path, contextlib.closing(connect(path)) as db:
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
        if all(run.schema.has(name, *columns) for name, columns in TABLES.items()):
            faults += audit(db)
            note_references(db)
        OUT.end("schema and roots" + ("" if faults else " are right"))
    if faults:
        OUT.report["status"] = "fault"
        mended = any("not compile" not in fault for fault in faults)
        repair = ["--repair"] if any(one.repairable for one in run.findings) else []
        again = f"migrating again mends the rest: {command(options.path, *repair)}"
        raise Stop(f"{count(len(faults), 'fault')}: {faults[0][:80]}", 1,
                   "migrating again mends schema and roots" if mended else
                   "mend the view or trigger that does not compile",
                   "\n".join([*faults, again] if mended else faults))
    how = ("complete but for the constraints, as chosen" if options.without_constraints else
           "migrated and consistent")
    OUT.report["status"] = "done"
    OUT.say("\n  without ".join([f"Done: {options.path} is {how}", *options.skip_constraint]),
            always=True)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Stop(" ".join(message.split()), 2, "see --help")


def make_parser() -> Parser:
    parser = Parser(
        prog=MADE_BY, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [DATABASE] [options]\n"
              "         [--dry-run | --output FILE | --verify | --restore BACKUP]",
        description="Migrate the Fractal Goals database: root_id, constraints, indexes.",
        epilog="""exit status: 0 done, nothing to do, or not confirmed; 1 failed and rolled back,
or --verify found a fault; 2 wrong usage or no such database; 3 the data needs
a decision; 4 locked; 130, 143, 129 interrupted and rolled back""")
    modes, backups = parser.add_mutually_exclusive_group(), parser.add_mutually_exclusive_group()
    parser.add_argument("database", nargs="?", metavar="DATABASE",
                        help="default: $DATABASE_PATH, else goals.db")
    for group, flags, value, text in (
            (modes, "--dry-run", "", "rehearse on a private copy, rolled back"),
            (modes, "--verify", "", "check that DATABASE is migrated and consistent"),
            (modes, "--output", "FILE", "migrate a copy into FILE, a new file"),
            (modes, "--restore", "BACKUP", "put a backup back; what is there is kept aside"),
            (backups, "--no-backup", "", "make none"),
            (backups, "--backup", "FILE", "where it goes (default: beside DATABASE)"),
            (parser, "--without-constraints", "", "the quick win: recreate no table"),
            (parser, "--repair", "", "apply the lossless repairs"),
            (parser, "-y --yes", "", "don't ask"),
            (parser, "-q --quiet", "", "errors and the last line only"),
            (parser, "-v --verbose", "", "each statement"),
            (parser, "--report", "FILE", "the run as JSON; - for standard output"),
            (parser, "--sql", "FILE", "the statements of the run, for the sqlite3 shell")):
        kind: dict[str, Any] = {"metavar": value} if value else {"action": "store_true"}
        group.add_argument(*flags.split(), help=text, **kind)
    for flag, names, text in (
            ("--skip-constraint", [*UNIQUE_NAMES, *CHECKS], "leave out one constraint; repeatable"),
            ("--extra", EXTRAS, f"add one of {', '.join(EXTRAS)}; repeatable")):
        parser.add_argument(flag, metavar="NAME", action="append", default=[], choices=names,
                            help=text)
    parser.add_argument("--timeout", metavar="SECONDS", type=float, default=5.0,
                        help="how long to wait for a lock (5)")
    parser.add_argument("--version", action="version", version=VERSION)
    return parser


def find_database(options: argparse.Namespace) -> str:
    """The real path of the database that is meant."""
    path = options.database or os.environ.get("DATABASE_PATH") or "goals.db"
    sample = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures", "sample.db")
    if options.dry_run and not (options.database or os.path.exists(path)) and (
            os.path.exists(sample)):
        OUT.say(f"No {path} here: this rehearses the bundled sample, {sample}")
        options.sample, path = True, sample
    return os.path.realpath(path)


def check_flags(options: argparse.Namespace) -> None:
    """Raise Stop for flags that don't go together, and for files that must not be written."""
    only_looks = options.dry_run or options.output or options.verify
    for wrong, why, way_out in (
            ((options.verify or options.restore) and (options.repair or options.sql)
             or options.output and options.backup, "these flags don't go together", "see --help"),
            (not 0 <= options.timeout < 1e6, "--timeout takes 0 to 999999 seconds", "see --help"),
            (options.database == "", "DATABASE is an empty name", "name the app's own database"),
            (re.search(r"\.backup-\d{8}T\d{6}Z", os.path.basename(options.path)) and not only_looks,
             f"{options.path} is a backup", "name the database, or a copy of the backup")):
        if wrong:
            raise Stop(why, 2, way_out)
    files = [options.path, *(options.path + end for end in SIDE_FILES)]
    for name in ("report", "sql", "restore", "backup", "output"):
        path = getattr(options, name)
        if path is not None and (name, path) != ("report", "-"):
            files.append(check_file(name, path, files))
            setattr(options, name, files[-1])


def check_file(name: str, path: str, files: Sequence[str]) -> str:
    """The real path that a flag names; raises Stop where it can't be written, or may not be."""
    real = os.path.realpath(path)
    folder, new = os.path.dirname(real), name in ("backup", "output")
    why = ("that is no name of a file" if path in ("", "-") or os.path.isdir(real) else
           "there is no such folder" if not os.path.isdir(folder) else
           "that is another file of this run" if real in files else
           "no permission to write in that folder" if new and not os.access(folder, os.W_OK) else
           f"{real} or its -wal is there" if new and any(
               os.path.lexists(real + end) for end in ("", *SIDE_FILES)) else
           "not writable, or not made by this script" if name in ("report", "sql")
           and not may_write(real) else "")
    if why:
        raise Stop(f"--{name} {path!r}: {why}", 2, "name another file")
    return real


def may_write(path: str) -> bool:
    """Whether a report or script may be written here: what is there, if anything, is one."""
    if not os.path.isfile(path):
        return os.access(path if os.path.exists(path) else os.path.dirname(path), os.W_OK)
    with open(path, "rb") as file:
        head = file.read(100)
    ours = re.match(rb'(\{\n  "made_by": "|-- )' + MADE_BY.encode(), head)
    return os.access(path, os.W_OK) and bool(ours or not head)


def script_text(run: Run) -> str:
    """The run as a script for the sqlite3 shell, for a copy of this database alone."""
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
    """Write a report or script, - for standard output; raises Stop where that fails."""
    if path == "-":
        OUT.stream = sys.stdout
        return OUT.write(text, end="")
    try:
        with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            file.write(text)
    except OSError as error:
        raise Stop(f"{path} could not be written: {error.strerror}", 1,
                   "name another file") from None


def name_leftovers(options: argparse.Namespace) -> None:
    """Name what killed runs have left beside this run's files and in the temporary folder."""
    files = filter(None, (options.path, options.output, options.backup))
    starts = [f"{glob.escape(path)}*{PARTIAL}" for path in files]
    starts.append(glob.escape(os.path.join(tempfile.gettempdir(), SNAPSHOT)))
    for left in sorted({left for start in starts for left in glob.glob(start + "*")}):
        OUT.say(f"Left by a killed run, unless one goes on: rm -r {shlex.quote(left)}")


STATUSES = {0: "cancelled", 1: "failed", 2: "usage", 3: "decision", 4: "locked"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, report; the exit status of DESIGN.md section 5."""
    global OUT
    arguments, started = [*(sys.argv[1:] if arguments is None else arguments)], time.monotonic()
    try:
        options = make_parser().parse_args(arguments)
    except Stop as wrong:
        say_error(wrong)
        return wrong.status
    options.arguments, options.path, options.sample, status = arguments, "", False, 0
    OUT = Output(options)
    report = OUT.report
    try:
        run_mode(options)
    except (Exception, KeyboardInterrupt) as error:  # whatever it is, the operator gets one line
        stop = error if isinstance(error, Stop) else interrupted() if SIGNALS else explain(error)
        status = stop.status
        clean = isinstance(error, (Stop, sqlite3.IntegrityError)) or is_locked(error)
        for what in ("backup", "kept_aside"):  # equal to the database; else a disk may be at fault
            if clean and report[what] and not OUT.committed:
                os.unlink(report[what])
                report[what] = None
        if report["status"] == "failed":
            report["status"] = STATUSES.get(status, "interrupted")
        report["message"] = say_error(stop)
    report.update(exit_code=status, seconds=round(time.monotonic() - started, 3))
    report["database"]["bytes_after"] = size_of(options.path)
    if options.report and report["status"] not in ("usage", "cancelled"):
        try:
            write_file(options.report, json.dumps(report, indent=2, default=repr) + "\n")
        except Stop as stop:
            OUT.write(f"warning: {stop}")
    return status


def run_mode(options: argparse.Namespace) -> None:
    """Check what was asked for, then do it."""
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise Stop(f"SQLite {sqlite3.sqlite_version} is too old", 2, "3.34 or newer is needed")
    OUT.database = options.path = find_database(options)
    if not options.database:
        options.arguments = [options.path, *options.arguments]
    check_flags(options)
    name_leftovers(options)
    OUT.report["database"] = {"path": options.path, "bytes_before": size_of(options.path)}
    (restore if options.restore else verify_database if options.verify else migrate)(options)


def say_error(stop: Stop) -> str:
    """Say on standard error in one line what ended the run."""
    copy = OUT.report["backup"] or OUT.report["kept_aside"]
    said = "; ".join(filter(None, [
        str(stop), "" if OUT.committed else "nothing was changed",
        copy and f"what was there is also in {copy}", stop.advice]))
    OUT.write("", end="")
    with contextlib.suppress(*GONE):
        print(f"error: {said}" if stop.status else said, file=sys.stderr, flush=True)
        if stop.more:
            print(stop.more, file=sys.stderr, flush=True)
    return said


OUT = Output(make_parser().parse_args(["-qy"]))

if __name__ == "__main__":
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, on_signal)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        exit_status = main()
    except SystemExit as end:  # --help, --version
        exit_status = int(end.code or 0)
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)  # what was done and said stands
    with contextlib.suppress(*GONE):
        sys.stdout.flush()
    os._exit(exit_status)  # Python would complain of a closed pipe or a full disk, with status 120
