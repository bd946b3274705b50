"""The one builder of databases for the tests: every generation of DESIGN.md section 2."""
import random
import re
import sqlite3

GENERATIONS = ["early", "production", "development", "models", "later", "half-migrated"]

# ---- what production has; early lacks these, and two tables -------------------------------------

SESSION_COLUMNS = """session_start DATETIME, session_end DATETIME, total_duration_seconds INTEGER,
    template_id VARCHAR, attributes TEXT, """
FLAGS = ", is_top_set_metric BOOLEAN DEFAULT 0, is_multiplicative BOOLEAN DEFAULT 1"
PRODUCTION = [
    f"""CREATE TABLE IF NOT EXISTS "goals" (
    id VARCHAR PRIMARY KEY, type VARCHAR NOT NULL, -- one table for all kinds, (sessions too)
    name VARCHAR NOT NULL, description VARCHAR DEFAULT 'none, yet (really)', deadline DATETIME,
    completed BOOLEAN DEFAULT 0, created_at DATETIME, updated_at DATETIME,
    parent_id VARCHAR REFERENCES goals(id), /* the tree */ root_id VARCHAR,
    duration_minutes INTEGER, {SESSION_COLUMNS}session_data TEXT, targets TEXT -- JSON, a list
)""", """CREATE TABLE practice_session_goals (
    practice_session_id VARCHAR NOT NULL REFERENCES goals(id),
    short_term_goal_id VARCHAR NOT NULL REFERENCES goals(id),
    PRIMARY KEY (practice_session_id, short_term_goal_id)
)""", """CREATE TABLE activity_groups (
    id VARCHAR PRIMARY KEY, root_id VARCHAR NOT NULL, name VARCHAR NOT NULL, description VARCHAR,
    created_at DATETIME, sort_order INTEGER DEFAULT 0, FOREIGN KEY(root_id) REFERENCES goals (id)
)""", """CREATE TABLE activity_definitions (
    id VARCHAR PRIMARY KEY, root_id VARCHAR NOT NULL, name VARCHAR NOT NULL COLLATE NOCASE,
    description VARCHAR, created_at DATETIME, has_sets BOOLEAN DEFAULT 0,
    has_metrics BOOLEAN DEFAULT 1, metrics_multiplicative BOOLEAN DEFAULT 0 -- last, so far
)""", f"""CREATE TABLE metric_definitions (
    id VARCHAR PRIMARY KEY, activity_id VARCHAR NOT NULL REFERENCES activity_definitions(id),
    name VARCHAR NOT NULL, unit VARCHAR, created_at DATETIME, deleted_at DATETIME,
    is_active BOOLEAN DEFAULT 1{FLAGS}
)""", """CREATE TABLE split_definitions (
    id VARCHAR PRIMARY KEY, activity_id VARCHAR NOT NULL REFERENCES activity_definitions(id),
    name VARCHAR NOT NULL, "order" INTEGER, created_at DATETIME
)""", """CREATE TABLE activity_instances (
    id VARCHAR PRIMARY KEY, practice_session_id VARCHAR NOT NULL REFERENCES goals(id),
    activity_definition_id VARCHAR NOT NULL REFERENCES activity_definitions(id),
    created_at DATETIME, time_start DATETIME, time_stop DATETIME, duration_seconds INTEGER
)""", """CREATE TABLE metric_values (
    id VARCHAR PRIMARY KEY, activity_instance_id VARCHAR NOT NULL REFERENCES activity_instances(id),
    metric_definition_id VARCHAR NOT NULL REFERENCES metric_definitions(id), value FLOAT NOT NULL
)""", """CREATE TABLE session_templates (
    id VARCHAR PRIMARY KEY, root_id VARCHAR NOT NULL, name VARCHAR NOT NULL, description VARCHAR,
    created_at DATETIME, template_data TEXT
)"""]


def add_columns(column, *tables):
    return [f"ALTER TABLE {table} ADD COLUMN {column}" for table in tables]


HAND_ADDED = [f"ALTER TABLE {table_and_column}" for table_and_column in (
    "activity_definitions ADD has_splits BOOLEAN DEFAULT 0",
    "activity_definitions ADD group_id STRING", "metric_values ADD split_definition_id STRING",
    "activity_instances ADD completed BOOLEAN DEFAULT 0", "activity_instances ADD notes STRING",
    "activity_instances ADD data STRING")]

# The app's first script, a committed statement each (DESIGN.md section 1).
FIRST_SCRIPT = [
    "UPDATE goals SET root_id = id WHERE parent_id IS NULL AND type = 'UltimateGoal'",
    """WITH RECURSIVE tree(id, root) AS (SELECT id, id FROM goals WHERE parent_id IS NULL UNION ALL
       SELECT g.id, tree.root FROM goals g JOIN tree ON g.parent_id = tree.id)
       UPDATE goals SET root_id = (SELECT root FROM tree WHERE tree.id = goals.id)
       WHERE root_id IS NULL""",
    *(sql for table, parent, column in (
        ("activity_instances", "goals", "practice_session_id"),
        ("metric_values", "activity_instances", "activity_instance_id"),
        ("metric_definitions", "activity_definitions", "activity_id"),
        ("split_definitions", "activity_definitions", "activity_id"))
      for sql in (f"ALTER TABLE {table} ADD COLUMN root_id STRING", f"UPDATE {table} SET root_id = "
                  f"(SELECT root_id FROM {parent} WHERE id = {column})")),
    "CREATE INDEX idx_goals_parent_id ON goals (parent_id)",
    "CREATE INDEX idx_goals_root_id ON goals (root_id)",
    "CREATE INDEX idx_goals_type ON goals (type, name)",
    "CREATE INDEX idx_metric_values_root ON metric_values (root_id)",
    *add_columns("deleted_at DATETIME NULL", "goals", "activity_definitions", "activity_groups",
                 "activity_instances", "session_templates", "split_definitions"),
    *add_columns("updated_at DATETIME NULL", "activity_groups", "activity_definitions",
                 "metric_definitions", "split_definitions", "activity_instances",
                 "session_templates", "metric_values"),
    *add_columns("created_at DATETIME NULL", "metric_values"),
    *add_columns("sort_order INTEGER DEFAULT 0", "activity_instances", "metric_definitions",
                 "goals")]


# ---- what SQLAlchemy makes, and what came later -------------------------------------------------

def model(name, columns, **references):
    """A table as create_all writes it. In `columns`, ! stands for VARCHAR NOT NULL."""
    key = "id" if columns.startswith("id") else ", ".join(references)
    keys = [f"FOREIGN KEY({column}) REFERENCES {of}" for column, of in references.items()]
    parts = [*columns.replace("!", " VARCHAR NOT NULL").split(", "), f"PRIMARY KEY ({key})", *keys]
    return f"CREATE TABLE {name} (\n\t" + ", \n\t".join(parts) + "\n)"


GOAL, IN_GOAL = "goals (id)", "goals (id) ON DELETE CASCADE"
MODELS = [
    model("goals", "id!, type!, name!, description VARCHAR, deadline DATETIME, completed BOOLEAN, "
          "created_at DATETIME, updated_at DATETIME, parent_id VARCHAR, root_id VARCHAR, "
          "duration_minutes INTEGER, session_start DATETIME, session_end DATETIME, "
          "total_duration_seconds INTEGER, template_id VARCHAR, attributes TEXT, "
          "session_data TEXT, targets TEXT, CONSTRAINT goal_type CHECK (type IN ('UltimateGoal', "
          "'LongTermGoal', 'MidTermGoal', 'ShortTermGoal', 'Step', 'PracticeSession'))",
          parent_id=IN_GOAL, root_id=GOAL),
    model("practice_session_goals", "practice_session_id!, short_term_goal_id!",
          practice_session_id=IN_GOAL, short_term_goal_id=IN_GOAL),
    model("activity_groups", "id!, root_id!, name!, description VARCHAR, created_at DATETIME, "
          "sort_order INTEGER", root_id=GOAL),
    model("activity_definitions", "id!, root_id!, name!, description VARCHAR, created_at DATETIME, "
          "has_sets BOOLEAN, has_metrics BOOLEAN, metrics_multiplicative BOOLEAN, "
          "has_splits BOOLEAN, group_id VARCHAR", root_id=GOAL, group_id="activity_groups (id)"),
    model("metric_definitions", "id!, activity_id!, name!, unit!, created_at DATETIME, "
          "deleted_at DATETIME, is_active BOOLEAN, is_top_set_metric BOOLEAN, "
          "is_multiplicative BOOLEAN", activity_id="activity_definitions (id)"),
    model("split_definitions", "id!, activity_id!, name!, \"order\" INTEGER NOT NULL, "
          "created_at DATETIME", activity_id="activity_definitions (id)"),
    model("activity_instances", "id!, practice_session_id!, activity_definition_id!, "
          "created_at DATETIME, time_start DATETIME, time_stop DATETIME, duration_seconds INTEGER, "
          "completed BOOLEAN, notes VARCHAR, data TEXT", practice_session_id=IN_GOAL,
          activity_definition_id="activity_definitions (id)"),
    model("metric_values", "id!, activity_instance_id!, metric_definition_id!, "
          "split_definition_id VARCHAR, value FLOAT NOT NULL",
          activity_instance_id="activity_instances (id) ON DELETE CASCADE",
          metric_definition_id="metric_definitions (id)",
          split_definition_id="split_definitions (id) ON DELETE RESTRICT"),
    model("session_templates", "id!, root_id!, name!, description VARCHAR, created_at DATETIME, "
          "template_data TEXT NOT NULL", root_id=GOAL)]
LATER = [
    *(sql.replace("practice_session_id VARCHAR NOT NULL REFERENCES goals(id)", "session_id VARCHAR "
                  "REFERENCES sessions(id) ON DELETE CASCADE, practice_session_id VARCHAR")
      for sql in PRODUCTION if "practice_session_goals" not in sql), *HAND_ADDED,
    """CREATE TABLE sessions (id VARCHAR PRIMARY KEY, name VARCHAR, session_start DATETIME,
    root_id VARCHAR NOT NULL REFERENCES goals(id) ON DELETE CASCADE, deleted_at DATETIME)""",
    *add_columns("root_id STRING", "activity_instances"),
    *add_columns("relevance TEXT DEFAULT 'ok'", "goals", "activity_instances")]


def statements(generation):
    """The DDL of a generation; for half-migrated without the part of the first script."""
    early = [sql.replace(SESSION_COLUMNS, "").replace(FLAGS, "") for sql in PRODUCTION
             if not re.search("TABLE (activity_groups|split_definitions)", sql)]
    return {"early": early, "development": PRODUCTION + HAND_ADDED, "models": MODELS,
            "later": LATER}.get(generation, PRODUCTION)


# ---- rows ---------------------------------------------------------------------------------------

def columns(connection, table):
    return [row[1].lower() for row in connection.execute(f"PRAGMA table_info({table})")]


def insert(connection, table, **values):
    """Insert what of the values the table has columns for."""
    known = columns(connection, table)
    values = {name: value for name, value in values.items() if name in known}
    if values:
        names = ", ".join(f'"{name}"' for name in values)
        marks = ", ".join("?" * len(values))
        connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", [*values.values()])


def at(day, hour=9):
    return f"2025-{1 + day // 28 % 12:02}-{1 + day % 28:02} {hour:02}:00:00.000000"


def populate(connection, fractals=3, instances=40):
    """Fill a database of any generation with goals, sessions, activities and values; untidy as in
    the field."""
    rng = random.Random(1)
    later = "session_id" in columns(connection, "activity_instances")
    for f in range(fractals):
        goals = add_goals(connection, f, rng)
        for d in range(3):
            activity = f"activity-{f}-{d}"
            insert(connection, "activity_definitions", id=activity, root_id=goals[0],
                   name=f"Activity {d}", created_at=at(d), has_sets=d % 2, has_metrics=1,
                   group_id=f"group-{f}")
            for m in range(2):
                insert(connection, "metric_definitions", id=f"metric-{f}-{d}-{m}", unit="kg",
                       activity_id=activity, name=f"Metric {m}", created_at=at(d), is_active=1)
            insert(connection, "split_definitions", id=f"split-{f}-{d}", activity_id=activity,
                   name="Left", order=1, created_at=at(d))
        insert(connection, "session_templates", id=f"template-{f}", root_id=goals[0],
               name="Template", created_at=at(3), template_data="{}")
        sessions = add_sessions(connection, f, goals, rng, later)
        for number in range(f * instances + 1, (f + 1) * instances + 1):
            instance, d, session = f"instance-{number:05}", rng.randrange(3), rng.choice(sessions)
            insert(connection, "activity_instances", id=instance, created_at=at(number),
                   activity_definition_id=f"activity-{f}-{d}", time_start=at(number, 10),
                   time_stop=at(number, 11), duration_seconds=3600,
                   **{"session_id" if later else "practice_session_id": session})
            for v in range(2 + (rng.random() < 0.5)):
                insert(connection, "metric_values", id=f"value-{number:05}-{v}",
                       activity_instance_id=instance, value=rng.randrange(100) / 2,
                       metric_definition_id=f"metric-{f}-{d}-{v % 2}",
                       split_definition_id=f"split-{f}-{d}" if v % 2 else None)
    add_untidy_rows(connection, later)


def add_goals(connection, f, rng):
    goals = []
    kinds = ["UltimateGoal", "LongTermGoal", "MidTermGoal", *["ShortTermGoal"] * 11]
    for g, kind in enumerate(kinds):
        parent = rng.choice(goals[:6]) if goals else None
        goals.append(f"goal-{f}-{g:02}")
        insert(connection, "goals", id=goals[-1], type=kind, name=f"Goal {g} of {f}",
               parent_id=parent, deadline=at(300) if g % 2 else None, completed=g % 2,
               root_id=rng.choice([None, f"goal-{f}-00", "goal-gone"]),
               created_at=at(g), updated_at=at(g), targets='[{"id": 1}]')
    insert(connection, "activity_groups", id=f"group-{f}", root_id=goals[0], name="Group",
           created_at=at(1))
    return goals


def add_sessions(connection, f, goals, rng, later):
    """Two sessions each with a parent, with a link, and with nothing but a stored root."""
    sessions = [f"session-{f}-{s}" for s in range(6)]
    for s, session in enumerate(sessions):
        if later:
            insert(connection, "sessions", id=session, root_id=goals[0], name=f"Session {s}")
            continue
        insert(connection, "goals", id=session, type="PracticeSession", name=f"Session {s}",
               parent_id=goals[3] if s % 3 == 0 else None, created_at=at(40 + s),
               session_start=at(40 + s, 10), session_end=at(40 + s, 11),
               total_duration_seconds=3600, root_id=goals[0] if s % 3 == 2 else None)
        if s % 3 == 1:
            insert(connection, "practice_session_goals", practice_session_id=session,
                   short_term_goal_id=rng.choice(goals))
    return sessions


def add_untidy_rows(connection, later):
    """What is harmless and found in the field: rows of a deleted fractal, of a deleted metric."""
    for table, row in (
            ("activity_definitions", dict(id="activity-gone-0", root_id="goal-gone", name="Old 0")),
            ("activity_definitions", dict(id="activity-gone-1", root_id="goal-gone", name="Old 1")),
            ("metric_definitions", dict(id="metric-old", activity_id="activity-gone-0",
                                        name="Old", unit="s")),
            ("session_templates", dict(id="template-gone", root_id="goal-gone", name="Old",
                                       template_data="{}")),
            ("metric_values", dict(id="value-lost", activity_instance_id="instance-00001",
                                   metric_definition_id="metric-deleted", value=1.0)),
            ("goals", dict(id="goal-orphan", type="MidTermGoal", name="Orphan", root_id="goal-gone",
                           parent_id="goal-deleted", created_at=at(1))),
            *([] if later else [
                ("goals", dict(id="session-alone", type="PracticeSession", name="Alone",
                               created_at=at(50))),
                ("goals", dict(id="session-gone", type="PracticeSession", root_id="goal-gone",
                               name="Of a deleted fractal", created_at=at(50)))])):
        insert(connection, table, **row)


def build(path, generation="production", journal="delete", steps=-9, before=(), **numbers):
    """Make a database file of a generation; returns its path as a string. `steps`: how far the
    first script came; `before`: statements before the rows come."""
    connection = sqlite3.connect(str(path))
    connection.execute(f"PRAGMA journal_mode = {journal}")
    for sql in [*statements(generation), *before]:
        connection.execute(sql)
    populate(connection, **numbers)
    for sql in FIRST_SCRIPT[:steps] if generation == "half-migrated" else ():
        connection.execute(sql)
    connection.commit()
    connection.close()
    return str(path)
