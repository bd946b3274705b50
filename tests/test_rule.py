"""The rule of root_id: what is derived, and what the triggers keep."""
import collections
import itertools
import os
import random
import sqlite3

import pytest
from databases import build, insert, statements
from helpers import SESSION, TABLES, content, derive, goal_roots, product, run, script, stored_roots

GOAL = "INSERT INTO goals (id, type, name, parent_id) VALUES (?, ?, 'n', ?)"
LINK = "INSERT INTO practice_session_goals VALUES (?, ?)"
U, L = "UltimateGoal", "LongTermGoal"


# ---- derivation -------------------------------------------------------------------------

def derived_goals(goals, links):
    """What `derive` says of goals {id: (type, parent_id, root_id)} and of links."""
    db = product.connect(":memory:", "memory")
    for sql in statements("production")[:2]:
        db.execute(sql)
    for identity, row in goals.items():
        db.execute("INSERT INTO goals (id, type, name, parent_id, root_id) "
                   "VALUES (?, ?, 'n', ?, ?)", (identity, *row))
    for link in links:
        db.execute(LINK, link)
    product.derive(db, product.read_schema(db))
    changed = {key: (root, stored) for key, root, stored in
               db.rows(f"SELECT c.id, {product.root_of('f.root')}, {product.root_of('f.stored')} "
                       "FROM migration_found_goals f JOIN goals c ON c.rowid = f.key")}
    assert all(changed[i][1] == (goals[i][2] or None) for i in changed)
    return {i: changed.get(i, goals[i][2:])[0] for i in goals}


RULES = {  # goals, links, the roots of these goals
    "a row has its parent's root": (
        {"a": (U, None, None), "b": (L, "a", "wrong"), "c": (SESSION, "b", None)}, [],
        {"a": "a", "b": "a", "c": "a"}),
    "a goal without parent_id is its own root, whatever it is linked to": (
        {"a": (U, None, "wrong"), "b": (L, "", None)}, [("b", "a")], {"a": "a", "b": "b"}),
    "a linked session has the stored root if a linked goal has it, else the first that there is": (
        {"a": (U, None, None), "b": (U, None, None), "s": (SESSION, None, "b"),
         "t": (SESSION, "", "x")},
        [("s", "a"), ("s", "b"), ("t", "gone"), ("t", "t"), ("t", "b"), ("t", "a")],
        {"a": "a", "b": "b", "s": "b", "t": "b"}),
    "a session without links keeps the stored root": (
        {"s": (SESSION, None, "x"), "t": (SESSION, None, ""), "u": (SESSION, None, "u")},
        [("s", "gone"), ("t", "t")], {"s": "x", "t": "t", "u": "u"}),
    "a goal whose parent row is missing keeps the stored root, or is its own, or has its link's": (
        {"a": (L, "gone", "x"), "b": (L, "gone", ""), "s": (SESSION, "gone", "x"),
         "t": (SESSION, "gone", None)}, [("s", "b"), ("t", "a")],
        {"a": "x", "b": "b", "s": "x", "t": "x"}),
    "a session linked to a goal below a linked session": (
        {"a": (U, None, None), "s": (SESSION, None, None), "b": (L, "s", None),
         "t": (SESSION, None, None)}, [("t", "b"), ("s", "a")], dict.fromkeys("asbt", "a")),
    "goals in a cycle or a ring of links have none, nor what is below": (
        {"a": (L, "b", "x"), "b": (L, "a", "x"), "c": (L, "b", None), "d": (U, None, None),
         "s": (SESSION, None, "x"), "t": (SESSION, None, None)},
        [("s", "t"), ("t", "s"), ("t", "d")], {**dict.fromkeys("abcst"), "d": "d"}),
}


@pytest.mark.parametrize("name", RULES)
def test_goals_have_the_root_that(name):
    goals, links, expected = RULES[name]
    assert derived_goals(goals, links) == expected


@pytest.mark.parametrize("seed", range(40))
def test_random_forests_are_derived_as_plain_python_does(seed):
    rng = random.Random(seed)
    names = [f"g{number}" for number in range(25)]
    goals = {name: (rng.choice([U, L, SESSION]), rng.choice([None, "", "gone", *names[:12]]),
                    rng.choice([None, "", "gone", *names])) for name in names}
    links = {(rng.choice(names), rng.choice([*names, "gone"])): rng.random() for _ in range(20)}
    links, by_session = sorted(links, key=links.get), collections.defaultdict(list)
    for session, goal in links:
        by_session[session].append(goal)
    rows = {name: dict(zip(("type", "parent_id", "root_id"), row)) for name, row in goals.items()}
    expected = goal_roots(rows, by_session)
    assert derived_goals(goals, links) == {name: expected.get(name) for name in names}


def test_a_tree_of_100000_levels_is_migrated_and_moved(tmp_path):
    path = build(tmp_path / "goals.db", fractals=1)
    with sqlite3.connect(path) as connection:
        connection.executemany(GOAL, [(f"g{n}", L, f"g{n - 1}" if n else None)
                                      for n in range(100_000)])
    connection.close()
    for root in ("g0", "goal-0-00"):
        run(path, "--yes", "--no-backup", "-q")
        roots = [*stored_roots(content(path))["goals"].values()]
        assert roots.count(root) >= 100_000
        script(path, "UPDATE goals SET parent_id = 'goal-0-00' WHERE id = 'g0'")


# ---- triggers -----------------------------------------------------------------------------

@pytest.fixture(params=[(0, 0), (0, 1), (1, 0), (1, 1)], ids=lambda on: "keys%d-recursive%d" % on)
def app(request, migrated_once):
    """A migrated production database in memory, with either pragma on and off."""
    return open_in_memory(migrated_once("production"), *request.param)


def open_in_memory(path, foreign_keys, recursive):
    connection = product.connect(":memory:", "memory")
    source = sqlite3.connect(path)
    source.backup(connection)
    source.close()
    connection.execute(f"PRAGMA foreign_keys = {foreign_keys}")
    connection.execute(f"PRAGMA recursive_triggers = {recursive}")
    return connection


def root(app, table, identity):
    return app.execute(f"SELECT root_id FROM {table} WHERE id = ?", [identity]).fetchone()[0]


def refused(app, words, sql, *values):
    with pytest.raises(sqlite3.IntegrityError, match=words):
        app.execute(sql, values)


def broken(app):
    """The rows whose stored root is not the rule's, but for goals that no rule reaches."""
    rows = content(app)
    stored, wanted = stored_roots(rows), derive(rows)
    return [(table, rows[table][key], root) for table, roots in wanted.items()
            for key, root in roots.items() if root != stored[table][key] and root]


ROWS = {  # a row of the first fractal for each table whose rows have a parent
    "goals": dict(type="Step", name="n", parent_id="goal-0-03"),
    "metric_definitions": dict(activity_id="activity-0-0", name="n"),
    "split_definitions": dict(activity_id="activity-0-0", name="n"),
    "activity_instances": dict(practice_session_id="session-0-0",
                               activity_definition_id="activity-0-0"),
    "metric_values": dict(activity_instance_id="instance-00001",
                          metric_definition_id="metric-0-0-0", value=1)}


@pytest.mark.parametrize("table", ROWS)
def test_a_row_has_its_parents_root_and_no_other(app, table):
    words = f"root_id does not match: a row of {table} belongs where its .*_id says"
    with pytest.raises(sqlite3.IntegrityError, match=words):
        insert(app, table, **ROWS[table], id="x", root_id="goal-1-00")
    for given in ("goal-0-00", "", None):
        insert(app, table, **ROWS[table], id="x", root_id=given)
        assert root(app, table, "x") == "goal-0-00"
        app.execute(f"UPDATE {table} SET root_id = ? WHERE id = 'x'", [given])
        assert root(app, table, "x") == "goal-0-00"
        refused(app, words, f"UPDATE {table} SET root_id = 'goal-1-00' WHERE id = 'x'")
        app.execute(f"DELETE FROM {table} WHERE id = 'x'")


def test_a_row_without_any_root_is_refused(app):
    app.execute("PRAGMA foreign_keys = OFF")
    refused(app, "metric_definitions.root_id is missing: no row that activity_id names",
            "INSERT INTO metric_definitions (id, activity_id, name) VALUES ('x', 'nowhere', 'n')")
    for empty in ("", None):
        refused(app, "goals.id is missing", GOAL, empty, "Step", "goal-0-03")
        for table in ("activity_groups", "activity_definitions", "session_templates"):
            refused(app, f"chk_{table}_root_id",
                    f"INSERT INTO {table} (id, name, root_id) VALUES ('x', 'n', ?)", empty)
            refused(app, f"chk_{table}_root_id", f"UPDATE {table} SET root_id = ?", empty)


def test_a_goal_below_itself_is_refused(app):
    words = "a goal cannot be below itself"
    for parent in ("goal-0-01", "goal-0-00"):
        refused(app, words, "UPDATE goals SET parent_id = ? WHERE id = 'goal-0-00'", parent)
    app.execute("PRAGMA foreign_keys = OFF")
    refused(app, words, GOAL, "x", "Step", "x")
    app.execute(GOAL, ("kid", "Step", "late"))
    refused(app, words, GOAL, "late", "Step", "kid")


def test_a_subtree_moves_with_its_sessions_instances_and_values(app):
    """Whether a session is linked or has a parent, and in whatever order SQLite takes the rows."""
    for goal in (("s", SESSION, None), ("a", "Step", "goal-0-03"), ("z", "Step", "goal-0-03")):
        app.execute(GOAL, goal)
    app.execute("UPDATE goals SET parent_id = 'z' WHERE id = 'a'")
    for session, unlink in (
            ("s", "DELETE FROM practice_session_goals"),
            ("session-0-0", "UPDATE practice_session_goals SET practice_session_id = 'goal-0-13'")):
        app.execute("UPDATE activity_instances SET practice_session_id = ? WHERE rowid = 1",
                    [session])
        assert root(app, "metric_values", "value-00001-0") == root(app, "goals", session)
        for goal in ("s", "goal-1-03", "goal-2-03"):
            app.execute(LINK, ("s", goal))
        assert root(app, "goals", "s") == "goal-1-00"
        app.execute(f"{unlink} WHERE short_term_goal_id = 'goal-1-03'")
        assert root(app, "goals", "s") == "goal-2-00"
        app.execute("UPDATE practice_session_goals SET short_term_goal_id = 'goal-0-03' "
                    "WHERE short_term_goal_id = 'goal-2-03'")
        for parent, now in (("goal-1-02", "goal-1-00"), (None, "goal-0-03"),
                            ("goal-0-00", "goal-0-00")):
            app.execute("UPDATE goals SET parent_id = ?, root_id = root_id "
                        "WHERE id = 'goal-0-03'", [parent])
            assert root(app, "metric_values", "value-00001-0") == root(app, "goals", "s") == now
            assert root(app, "goals", "a") == now
        app.execute("DELETE FROM practice_session_goals WHERE practice_session_id = 's'")
    assert broken(app) == []


def test_an_orphan_may_get_any_root_until_its_goal_comes(app):
    app.execute("PRAGMA foreign_keys = OFF")
    app.execute(GOAL, ("kid", "Step", "late"))
    app.execute(GOAL, ("s", SESSION, None))
    app.execute(LINK, ("s", "late"))
    insert(app, "activity_instances", id="i", practice_session_id="late",
           activity_definition_id="activity-0-0")
    insert(app, "metric_values", **{**ROWS["metric_values"], "activity_instance_id": "i"}, id="v")
    app.execute("UPDATE activity_instances SET root_id = 'goal-2-00' WHERE id = 'i'")
    assert root(app, "metric_values", "v") == "goal-2-00"
    app.execute(GOAL, ("late", "Step", "goal-1-03"))
    for table, identity in (("goals", "kid"), ("goals", "s"), ("metric_values", "v")):
        assert root(app, table, identity) == "goal-1-00"


@pytest.mark.parametrize("given", ["goal-1-00", "", None])
def test_instances_follow_a_row_of_sessions(migrated_once, given):
    app = open_in_memory(migrated_once("later"), 0, 0)
    insert(app, "activity_instances", id="i", session_id="new",
           activity_definition_id="activity-0-0")
    insert(app, "metric_values", **{**ROWS["metric_values"], "activity_instance_id": "i"}, id="v")
    if given:
        app.execute("INSERT INTO sessions (id, root_id) VALUES ('new', ?)", [given])
    assert root(app, "metric_values", "v") == (given or "goal-0-00")
    app.execute("UPDATE sessions SET root_id = 'goal-2-00'")
    assert root(app, "metric_values", "v") == ("goal-2-00" if given else "goal-0-00")
    assert broken(app) == []


LINKS = [["own"], ["own", "goal-1-03"], ["new"], ["new", "goal-1-03"]]


@pytest.mark.parametrize("generation, links", [
    *itertools.product(["early", "production", "models"], LINKS), ("later", [])])
@pytest.mark.parametrize("order", ["older", "younger"])
@pytest.mark.parametrize("recursive", [0, 1])
def test_a_fractal_is_deleted_with_exactly_its_rows(migrated_once, generation, links, order,
                                                    recursive):
    """With its session, older or younger than its goal, linked to one fractal or to two."""
    app = open_in_memory(migrated_once(generation), 1, recursive)
    app.execute(GOAL, ("new", U, None))
    goals = [("s", SESSION, None), ("own", "Step", "new")]
    for goal in goals if order == "older" else reversed(goals):
        app.execute(GOAL, goal)
    for goal in links:
        app.execute(LINK, ("s", goal))
    insert(app, "activity_instances", id="i", practice_session_id="s",
           activity_definition_id="activity-0-0")
    insert(app, "metric_values", **{**ROWS["metric_values"], "activity_instance_id": "i"}, id="v")
    assert root(app, "metric_values", "v") == ("new" if links else "s")
    for fractal in ("new", "goal-1-00") if order == "older" else ("goal-1-00", "new"):
        kept = {table: f"SELECT rowid, * FROM {table} WHERE root_id <> '{fractal}' ORDER BY rowid"
                for table in TABLES}
        others = {table: app.execute(sql).fetchall() for table, sql in kept.items()}
        app.execute("DELETE FROM goals WHERE id = ?", [fractal])
        assert {table: app.execute(sql).fetchall() for table, sql in kept.items()} == others
        for table in TABLES:
            assert not app.execute(f"SELECT 1 FROM {table} WHERE root_id = '{fractal}'").fetchall()


# ---- the random walk ----------------------------------------------------------------------

INTO_GOALS = "INTO goals (id, type, name, parent_id, root_id)"
ROOT = "(SELECT root_id FROM goals WHERE id = :goal)"
LINK_OF = "rowid = (SELECT {}(rowid) FROM practice_session_goals)"
STEPS = [  # kinds of statements; `goal` is no session: see DESIGN.md section 4, Not kept
    [f"INSERT {INTO_GOALS} VALUES (:new, :type, 'n', :parent, NULL)"],
    [f"INSERT {INTO_GOALS} VALUES (:new, :type, 'n', :parent, :any)"],
    [f"INSERT {INTO_GOALS} VALUES (:new, :type, 'n', 'p' || :new, NULL)",
     f"INSERT {INTO_GOALS} VALUES ('p' || :new, 'Step', 'n', :goal, {ROOT})"],
    [f"INSERT OR REPLACE {INTO_GOALS} SELECT id, type, 'r', :goal, '' FROM goals WHERE id = :any"],
    ["UPDATE goals SET parent_id = :parent WHERE id = :any"],
    ["UPDATE goals SET parent_id = :goal WHERE parent_id = :any"],
    [f"UPDATE goals SET parent_id = :goal, root_id = {ROOT} WHERE id = :any"],
    ["UPDATE goals SET type = :type WHERE id = :any AND id NOT IN (SELECT parent_id FROM goals "
     "WHERE parent_id > '' UNION SELECT short_term_goal_id FROM practice_session_goals)"],
    ["DELETE FROM goals WHERE id = :any"],
    ["DELETE FROM goals WHERE id = :any",
     f"INSERT {INTO_GOALS} VALUES (:any, 'Step', 'n', :goal, NULL)"],
    ["INSERT INTO practice_session_goals VALUES (:any, :goal)"],
    ["INSERT INTO practice_session_goals VALUES (:session, :goal)"],
    ["INSERT INTO practice_session_goals VALUES (:session, :new)",
     f"INSERT {INTO_GOALS} VALUES (:new, 'Step', 'n', :goal, {ROOT})"],
    ["UPDATE practice_session_goals SET short_term_goal_id = :goal WHERE " + LINK_OF.format("min")],
    ["UPDATE practice_session_goals SET practice_session_id = :any WHERE " + LINK_OF.format("max")],
    ["DELETE FROM practice_session_goals WHERE " + LINK_OF.format("max")],
    [f"UPDATE activity_definitions SET root_id = {ROOT} WHERE id = :activity"],
    ["INSERT OR REPLACE INTO activity_definitions (id, root_id, name) "
     f"VALUES (:activity, {ROOT}, :new)"],
    ["DELETE FROM activity_definitions WHERE id = :activity"],
    ["UPDATE metric_definitions SET activity_id = :activity WHERE id = :metric"],
    ["INSERT OR REPLACE INTO activity_instances (id, practice_session_id, activity_definition_id) "
     "VALUES (:new_or_instance, :any_or_gone, :activity)"],
    ["UPDATE activity_instances SET practice_session_id = :any WHERE id = :instance"],
    ["DELETE FROM activity_instances WHERE id = :instance"],
    ["INSERT INTO metric_values (id, activity_instance_id, metric_definition_id, value) "
     "VALUES (:new, :instance, :metric, 1)"],
    ["UPDATE metric_values SET activity_instance_id = :instance WHERE id = :value"],
    *([f"UPDATE {table} SET root_id = :any_or_empty WHERE rowid = :row"] for table in ROWS)]


def step(app, rng, new):
    """Execute one of the STEPS, whole or not at all; what was executed."""
    def pick(table, where="1"):
        found = app.execute(f"SELECT id FROM {table} WHERE {where} ORDER BY rowid").fetchall()
        return rng.choice(found or [("none",)])[0]

    anything, goal = pick("goals"), pick("goals", f"type <> '{SESSION}'")
    values = {
        "new": new, "any": anything, "goal": goal, "session": pick("goals", f"type = '{SESSION}'"),
        "type": rng.choice([U, L, SESSION]), "parent": rng.choice([None, "", goal, goal, "gone"]),
        "any_or_gone": rng.choice([anything, "gone"]), "row": rng.randrange(1, 30),
        "any_or_empty": rng.choice([anything, None, ""]), "instance": pick("activity_instances"),
        "activity": pick("activity_definitions"), "metric": pick("metric_definitions"),
        "value": pick("metric_values")}
    values["new_or_instance"] = rng.choice([new, values["instance"]])
    statements = rng.choice(STEPS)
    app.execute("SAVEPOINT step")
    try:
        for sql in statements:
            app.execute(sql, values)
    except sqlite3.IntegrityError:
        app.execute("ROLLBACK TO step")
    app.execute("RELEASE step")
    return statements, values


EXTRAS = [word for name in product.EXTRA_OBJECTS for word in ("--extra", name)]


@pytest.mark.parametrize("what", [("production",), ("models",), ("production", *EXTRAS)], ids=len)
@pytest.mark.parametrize("seed", range(int(os.environ.get("WALK", 8))))
def test_the_rule_holds_after_any_statement(migrated_once, what, seed):
    """WALK=300 walks more often."""
    app = open_in_memory(migrated_once(*what), seed & 1, seed >> 1 & 1)
    if what[1:]:
        app.execute("INSERT INTO session_metadata (session_id, key) "
                    f"SELECT id, 'mood' FROM goals WHERE type = '{SESSION}' "
                    "AND root_id IN (SELECT id FROM goals)")
    rng = random.Random(seed)
    for number in range(100):
        done = step(app, rng, f"x{number}")
        assert broken(app) == [], (number, done)
