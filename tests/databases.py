"""The one builder of databases for the tests: every generation of DESIGN.md section 3."""
import random
import sqlite3

GENERATIONS = ["early", "production", "development", "models", "later", "half-migrated"]

GOALS = """CREATE TABLE IF NOT EXISTS "goals" (
    id VARCHAR PRIMARY KEY,
    type VARCHAR NOT NULL, -- one table for all kinds, (sessions too)
    name VARCHAR NOT NULL,
    description VARCHAR DEFAULT 'none, yet (really)',
    deadline DATETIME,
    completed BOOLEAN DEFAULT 0,
    created_at DATETIME,
    updated_at DATETIME,
    parent_id VARCHAR REFERENCES goals(id), /* the tree */
    root_id VARCHAR,
    duration_minutes INTEGER{sessions},
    session_data TEXT,
    targets TEXT -- JSON, a list
)"""
SESSION_COLUMNS = """,
    session_start DATETIME,
    session_end DATETIME,
    total_duration_seconds INTEGER,
    template_id VARCHAR,
    attributes TEXT"""
PRODUCTION = [
    GOALS.format(sessions=SESSION_COLUMNS),
    """CREATE TABLE practice_session_goals (
    practice_session_id VARCHAR NOT NULL REFERENCES goals(id),
    short_term_goal_id VARCHAR NOT NULL REFERENCES goals(id),
    PRIMARY KEY (practice_session_id, short_term_goal_id)
)""",
    """CREATE TABLE activity_groups (
    id VARCHAR PRIMARY KEY, root_id VARCHAR NOT NULL, name VARCHAR NOT NULL, description VARCHAR,
    created_at DATETIME, sort_order INTEGER DEFAULT 0,
    FOREIGN KEY(root_id) REFERENCES goals (id)
)""",
    """CREATE TABLE activity_definitions (
    id VARCHAR PRIMARY KEY, root_id VARCHAR NOT NULL, name VARCHAR NOT NULL COLLATE NOCASE,
    description VARCHAR, created_at DATETIME, has_sets BOOLEAN DEFAULT 0,
    has_metrics BOOLEAN DEFAULT 1, metrics_multiplicative BOOLEAN DEFAULT 0 -- last, so far
)""",
    """CREATE TABLE metric_definitions (
    id VARCHAR PRIMARY KEY, activity_id VARCHAR NOT NULL REFERENCES activity_definitions(id),
    name VARCHAR NOT NULL, unit VARCHAR, created_at DATETIME, deleted_at DATETIME,
    is_active BOOLEAN DEFAULT 1{flags}
)""",
    """CREATE TABLE split_definitions (
    id VARCHAR PRIMARY KEY, activity_id VARCHAR NOT NULL REFERENCES activity_definitions(id),
    name VARCHAR NOT NULL, "order" INTEGER, created_at DATETIME
)""",
    """CREATE TABLE activity_instances (
    id VARCHAR PRIMARY KEY, practice_session_id VARCHAR NOT NULL REFERENCES goals(id),
    activity_definition_id VARCHAR NOT NULL REFERENCES activity_definitions(id),
    created_at DATETIME, time_start DATETIME, time_stop DATETIME, duration_seconds INTEGER
)""",
    """CREATE TABLE metric_values (
    id VARCHAR PRIMARY KEY, activity_instance_id VARCHAR NOT NULL REFERENCES activity_instances(id),
    metric_definition_id VARCHAR NOT NULL REFERENCES metric_definitions(id), value FLOAT NOT NULL
)""",
    """CREATE TABLE session_templates (
    id VARCHAR PRIMARY KEY, root_id VARCHAR NOT NULL, name VARCHAR NOT NULL, description VARCHAR,
    created_at DATETIME, template_data TEXT
)""",
]
FLAGS = ", is_top_set_metric BOOLEAN DEFAULT 0, is_multiplicative BOOLEAN DEFAULT 1"
HAND_ADDED = [
    "ALTER TABLE activity_definitions ADD COLUMN has_splits BOOLEAN DEFAULT 0",
    "ALTER TABLE activity_definitions ADD COLUMN group_id STRING",
    "ALTER TABLE metric_values ADD COLUMN split_definition_id STRING",
    "ALTER TABLE activity_instances ADD COLUMN completed BOOLEAN DEFAULT 0",
    "ALTER TABLE activity_instances ADD COLUMN notes STRING",
    "ALTER TABLE activity_instances ADD COLUMN data STRING",
]
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
    *(f"ALTER TABLE {table} ADD COLUMN deleted_at DATETIME NULL" for table in (
        "goals", "activity_definitions", "activity_groups", "activity_instances",
        "session_templates", "split_definitions")),
    *(f"ALTER TABLE {table} ADD COLUMN updated_at DATETIME NULL" for table in (
        "activity_groups", "activity_definitions", "metric_definitions", "split_definitions",
        "activity_instances", "session_templates", "metric_values")),
    "ALTER TABLE metric_values ADD COLUMN created_at DATETIME NULL",
    *(f"ALTER TABLE {table} ADD COLUMN sort_order INTEGER DEFAULT 0" for table in (
        "activity_instances", "metric_definitions", "goals")),
]
MODELS = ["""CREATE TABLE goals (
\tid VARCHAR NOT NULL, \n\ttype VARCHAR NOT NULL, \n\tname VARCHAR NOT NULL, description VARCHAR,
\tdeadline DATETIME, \n\tcompleted BOOLEAN, \n\tcreated_at DATETIME, \n\tupdated_at DATETIME,
\tparent_id VARCHAR, \n\troot_id VARCHAR, duration_minutes INTEGER, session_start DATETIME,
\tsession_end DATETIME, total_duration_seconds INTEGER, template_id VARCHAR, attributes TEXT,
\tsession_data TEXT, \n\ttargets TEXT, \n\tPRIMARY KEY (id),
\tCONSTRAINT goal_type CHECK (type IN ('UltimateGoal', 'LongTermGoal', 'MidTermGoal',
\t\t'ShortTermGoal', 'Step', 'PracticeSession')),
\tFOREIGN KEY(parent_id) REFERENCES goals (id) ON DELETE CASCADE,
\tFOREIGN KEY(root_id) REFERENCES goals (id)
)""", """CREATE TABLE practice_session_goals (
\tpractice_session_id VARCHAR NOT NULL, \n\tshort_term_goal_id VARCHAR NOT NULL,
\tPRIMARY KEY (practice_session_id, short_term_goal_id),
\tFOREIGN KEY(practice_session_id) REFERENCES goals (id) ON DELETE CASCADE,
\tFOREIGN KEY(short_term_goal_id) REFERENCES goals (id) ON DELETE CASCADE
)""", """CREATE TABLE activity_groups (
\tid VARCHAR NOT NULL, \n\troot_id VARCHAR NOT NULL, \n\tname VARCHAR NOT NULL,
\tdescription VARCHAR, created_at DATETIME, sort_order INTEGER, \n\tPRIMARY KEY (id),
\tFOREIGN KEY(root_id) REFERENCES goals (id)
)""", """CREATE TABLE activity_definitions (
\tid VARCHAR NOT NULL, \n\troot_id VARCHAR NOT NULL, \n\tname VARCHAR NOT NULL,
\tdescription VARCHAR, created_at DATETIME, has_sets BOOLEAN, has_metrics BOOLEAN,
\tmetrics_multiplicative BOOLEAN, has_splits BOOLEAN, group_id VARCHAR, \n\tPRIMARY KEY (id),
\tFOREIGN KEY(root_id) REFERENCES goals (id),
\tFOREIGN KEY(group_id) REFERENCES activity_groups (id)
)""", """CREATE TABLE metric_definitions (
\tid VARCHAR NOT NULL, \n\tactivity_id VARCHAR NOT NULL, \n\tname VARCHAR NOT NULL,
\tunit VARCHAR NOT NULL, created_at DATETIME, deleted_at DATETIME, is_active BOOLEAN,
\tis_top_set_metric BOOLEAN, is_multiplicative BOOLEAN, \n\tPRIMARY KEY (id),
\tFOREIGN KEY(activity_id) REFERENCES activity_definitions (id)
)""", """CREATE TABLE split_definitions (
\tid VARCHAR NOT NULL, \n\tactivity_id VARCHAR NOT NULL, \n\tname VARCHAR NOT NULL,
\t"order" INTEGER NOT NULL, created_at DATETIME, \n\tPRIMARY KEY (id),
\tFOREIGN KEY(activity_id) REFERENCES activity_definitions (id)
)""", """CREATE TABLE activity_instances (
\tid VARCHAR NOT NULL, practice_session_id VARCHAR NOT NULL,
\tactivity_definition_id VARCHAR NOT NULL, created_at DATETIME, time_start DATETIME,
\ttime_stop DATETIME, duration_seconds INTEGER, completed BOOLEAN, notes VARCHAR, data TEXT,
\tPRIMARY KEY (id), FOREIGN KEY(practice_session_id) REFERENCES goals (id) ON DELETE CASCADE,
\tFOREIGN KEY(activity_definition_id) REFERENCES activity_definitions (id)
)""", """CREATE TABLE metric_values (
\tid VARCHAR NOT NULL, activity_instance_id VARCHAR NOT NULL,
\tmetric_definition_id VARCHAR NOT NULL, split_definition_id VARCHAR, value FLOAT NOT NULL,
\tPRIMARY KEY (id),
\tFOREIGN KEY(activity_instance_id) REFERENCES activity_instances (id) ON DELETE CASCADE,
\tFOREIGN KEY(metric_definition_id) REFERENCES metric_definitions (id),
\tFOREIGN KEY(split_definition_id) REFERENCES split_definitions (id) ON DELETE RESTRICT
)""", """CREATE TABLE session_templates (
\tid VARCHAR NOT NULL, \n\troot_id VARCHAR NOT NULL, \n\tname VARCHAR NOT NULL,
\tdescription VARCHAR, created_at DATETIME, template_data TEXT NOT NULL, \n\tPRIMARY KEY (id),
\tFOREIGN KEY(root_id) REFERENCES goals (id)
)"""]
LATER = [
    "DROP TABLE practice_session_goals",
    """CREATE TABLE sessions (id VARCHAR PRIMARY KEY, name VARCHAR, session_start DATETIME,
    root_id VARCHAR NOT NULL REFERENCES goals(id) ON DELETE CASCADE, deleted_at DATETIME)""",
    """CREATE TABLE session_goals (session_id VARCHAR REFERENCES sessions(id) ON DELETE CASCADE,
    goal_id VARCHAR, PRIMARY KEY (session_id, goal_id))""",
    "CREATE TABLE programs (id VARCHAR PRIMARY KEY, root_id VARCHAR NOT NULL, name VARCHAR)",
    "DROP TABLE activity_instances",
    """CREATE TABLE activity_instances (
    id VARCHAR PRIMARY KEY, session_id VARCHAR REFERENCES sessions(id) ON DELETE CASCADE,
    practice_session_id VARCHAR, activity_definition_id VARCHAR NOT NULL
    REFERENCES activity_definitions(id), created_at DATETIME, time_start DATETIME,
    time_stop DATETIME, duration_seconds INTEGER, completed BOOLEAN DEFAULT 0, notes STRING,
    data STRING, root_id STRING, deleted_at DATETIME NULL, updated_at DATETIME NULL,
    sort_order INTEGER DEFAULT 0, mood VARCHAR DEFAULT 'ok')""",
    "ALTER TABLE goals ADD COLUMN relevance TEXT",
]


def statements(generation):
    """The DDL of a generation; for half-migrated without the part of the first script."""
    if generation == "models":
        return list(MODELS)
    found = [sql.replace("{flags}", "" if generation == "early" else FLAGS).replace(
        "{sessions}", "" if generation == "early" else SESSION_COLUMNS) for sql in PRODUCTION]
    if generation == "early":
        found = [sql for sql in found
                 if "TABLE activity_groups" not in sql and "TABLE split_definitions" not in sql]
    if generation in ("development", "later"):
        found += HAND_ADDED
    if generation == "later":
        found += LATER
    return found


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


KINDS = ["UltimateGoal", "LongTermGoal", "MidTermGoal", "ShortTermGoal"]


def at(day, hour=9):
    return f"2025-{1 + day // 28 % 12:02}-{1 + day % 28:02} {hour:02}:00:00.000000"


def populate(connection, fractals=3, instances=40, values=2.5, seed=1, untidy=True):
    """Fill a database of any generation with goals, sessions, activities and values; untidy as in
    the field."""
    rng = random.Random(seed)
    later = "session_id" in columns(connection, "activity_instances")
    number = 0
    for f in range(fractals):
        goals = add_goals(connection, f, rng, untidy)
        for d in range(3):
            definition = f"activity-{f}-{d}"
            insert(connection, "activity_definitions", id=definition, root_id=goals[0],
                   name=f"Activity {d}", created_at=at(d), has_sets=d % 2, has_metrics=1,
                   group_id=f"group-{f}")
            for m in range(2):
                insert(connection, "metric_definitions", id=f"metric-{f}-{d}-{m}", unit="kg",
                       activity_id=definition, name=f"Metric {m}", created_at=at(d), is_active=1)
            insert(connection, "split_definitions", id=f"split-{f}-{d}", activity_id=definition,
                   name="Left", order=1, created_at=at(d))
        insert(connection, "session_templates", id=f"template-{f}", root_id=goals[0],
               name="Template", created_at=at(3), template_data="{}")
        sessions = add_sessions(connection, f, goals, rng, later)
        for _ in range(instances):
            number += 1
            instance, d = f"instance-{number:05}", rng.randrange(3)
            parent = {"session_id" if later else "practice_session_id": rng.choice(sessions)}
            insert(connection, "activity_instances", id=instance, created_at=at(number),
                   activity_definition_id=f"activity-{f}-{d}", time_start=at(number, 10),
                   time_stop=at(number, 11), duration_seconds=3600, **parent)
            for v in range(int(values) + (rng.random() < values % 1)):
                insert(connection, "metric_values", id=f"value-{number:05}-{v}",
                       activity_instance_id=instance, value=rng.randrange(100) / 2,
                       metric_definition_id=f"metric-{f}-{d}-{v % 2}",
                       split_definition_id=f"split-{f}-{d}" if v % 2 else None)
    if untidy:
        untidy_rows(connection, later)


def add_goals(connection, f, rng, untidy):
    goals = []
    for g in range(14):
        parent = rng.choice(goals[:6]) if goals else None
        kind = KINDS[min(g, 3)]
        goals.append(f"goal-{f}-{g:02}")
        insert(connection, "goals", id=goals[-1], type=kind, name=f"Goal {g} of {f}",
               parent_id=parent, deadline=at(300) if g % 2 else None, completed=g % 2,
               root_id=rng.choice([None, f"goal-{f}-00", "goal-gone"]) if untidy else None,
               created_at=at(g), updated_at=at(g), targets='[{"id": 1}]')
    insert(connection, "activity_groups", id=f"group-{f}", root_id=goals[0], name="Group",
           created_at=at(1))
    return goals


def add_sessions(connection, f, goals, rng, later):
    sessions = []
    has_links = bool(columns(connection, "practice_session_goals"))
    for s in range(6):
        sessions.append(f"session-{f}-{s}")
        if later:
            insert(connection, "sessions", id=sessions[-1], root_id=goals[0], name=f"Session {s}")
            continue
        parent = goals[3] if s % 3 == 0 or not has_links else None
        insert(connection, "goals", id=sessions[-1], type="PracticeSession", name=f"Session {s}",
               parent_id=parent, created_at=at(40 + s), session_start=at(40 + s, 10),
               session_end=at(40 + s, 11), total_duration_seconds=3600,
               root_id=goals[0] if s % 3 == 2 else None)
        if s % 3 == 1 and has_links:
            insert(connection, "practice_session_goals", practice_session_id=sessions[-1],
                   short_term_goal_id=rng.choice(goals))
    return sessions


def untidy_rows(connection, later):
    """What is harmless and found in the field: rows of a deleted fractal, of a deleted metric."""
    for d in range(2):
        insert(connection, "activity_definitions", id=f"activity-gone-{d}", root_id="goal-gone",
               name=f"Old {d}")
    insert(connection, "metric_definitions", id="metric-old", activity_id="activity-gone-0",
           name="Old", unit="s")
    insert(connection, "session_templates", id="template-gone", root_id="goal-gone", name="Old",
           template_data="{}")
    insert(connection, "metric_values", id="value-lost", activity_instance_id="instance-00001",
           metric_definition_id="metric-deleted", value=1.0)
    insert(connection, "goals", id="goal-orphan", type="MidTermGoal", name="Orphan",
           parent_id="goal-deleted", root_id="goal-gone", created_at=at(1))
    if not later:
        insert(connection, "goals", id="session-alone", type="PracticeSession", name="Alone",
               created_at=at(50))
        insert(connection, "goals", id="session-gone", type="PracticeSession",
               name="Of a deleted fractal", root_id="goal-gone", created_at=at(50))


def build(path, generation="production", fill=populate, journal="delete", steps=None, **options):
    """Make a database file of a generation; returns its path as a string. `steps`: how far the
    first script came."""
    connection = sqlite3.connect(str(path))
    connection.execute(f"PRAGMA journal_mode = {journal}")
    for sql in statements(generation):
        connection.execute(sql)
    if fill:
        fill(connection, **options)
    if generation == "half-migrated":
        for sql in FIRST_SCRIPT[:len(FIRST_SCRIPT) - 9 if steps is None else steps]:
            connection.execute(sql)
    connection.commit()
    connection.close()
    return str(path)
