"""The rule of root_id: what is derived, and what the triggers keep."""
import os
import random
import sqlite3

import pytest
from databases import build, populate, statements
from helpers import SESSION, derive, goal_roots, product, run, script, stored_roots

GOAL = "INSERT INTO goals (id, type, name, parent_id) VALUES (?, ?, 'n', ?)"
LINK = "INSERT INTO practice_session_goals VALUES (?, ?)"
INSTANCE = ("INSERT INTO activity_instances (id, practice_session_id, activity_definition_id) "
            "VALUES (?, ?, 'activity-0-0')")
VALUE = ("INSERT INTO metric_values (id, activity_instance_id, metric_definition_id, value) "
         "VALUES (?, ?, 'metric-0-0-0', 1)")


def in_memory(ddl=()):
    """A connection of the script's own kind to a database in memory."""
    connection = sqlite3.connect(":memory:", isolation_level=None, factory=product.Database)
    connection.script = []
    for sql in ddl:
        connection.execute(sql)
    return connection


# ---- derivation -------------------------------------------------------------------------

def derived_goals(goals, links):
    """What `derive` says of goals {id: (type, parent_id, root_id)} and of links."""
    db = in_memory(statements("production")[:2])
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


U, L = "UltimateGoal", "LongTermGoal"
RULES = {
    "a row has its parent's root": (
        {"a": (U, None, None), "b": (L, "a", "wrong"), "c": (SESSION, "b", None)}, [],
        {"a": "a", "b": "a", "c": "a"}),
    "a goal without parent_id is its own root": (
        {"a": (U, None, "wrong"), "b": (L, "", None)}, [], {"a": "a", "b": "b"}),
    "a linked session has the stored root if a linked goal has it": (
        {"a": (U, None, None), "b": (U, None, None), "s": (SESSION, None, "b")},
        [("s", "a"), ("s", "b")], {"a": "a", "b": "b", "s": "b"}),
    "else that of the first link": (
        {"a": (U, None, None), "b": (U, None, None), "s": (SESSION, "", "x")},
        [("s", "b"), ("s", "a")], {"a": "a", "b": "b", "s": "b"}),
    "whose goal exists and is another": (
        {"a": (U, None, None), "s": (SESSION, None, None)},
        [("s", "gone"), ("s", "s"), ("s", "a")], {"a": "a", "s": "a"}),
    "a session without links keeps the stored root": (
        {"s": (SESSION, None, "x"), "t": (SESSION, None, ""), "u": (SESSION, None, "u")},
        [("s", "gone"), ("t", "t")], {"s": "x", "t": "t", "u": "u"}),
    "a goal whose parent row is missing keeps the stored root": (
        {"a": (L, "gone", "x"), "s": (SESSION, "gone", "x")}, [("s", "a")], {"a": "x", "s": "x"}),
    "or is its own, or a session takes its link's": (
        {"a": (U, None, None), "b": (L, "gone", ""), "s": (SESSION, "gone", None)}, [("s", "a")],
        {"a": "a", "b": "b", "s": "a"}),
    "links of what is no session say nothing": (
        {"a": (U, None, None), "b": (U, None, None)}, [("a", "b")], {"a": "a", "b": "b"}),
    "a session linked to a goal below a linked session": (
        {"a": (U, None, None), "s": (SESSION, None, None), "b": (L, "s", None),
         "t": (SESSION, None, None)}, [("t", "b"), ("s", "a")], dict.fromkeys("asbt", "a")),
    "goals in a cycle have no root, nor what is below": (
        {"a": (L, "b", "x"), "b": (L, "a", "x"), "c": (L, "b", None), "d": (U, None, None)}, [],
        {"a": None, "b": None, "c": None, "d": "d"}),
    "sessions linked in a ring have none": (
        {"s": (SESSION, None, "x"), "t": (SESSION, None, None), "a": (U, None, None)},
        [("s", "t"), ("t", "s"), ("t", "a")], {"s": None, "t": None, "a": "a"}),
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
    links = {(rng.choice(names), rng.choice([*names, "gone"])) for _ in range(20)}
    links = sorted(links, key=lambda link: rng.random())
    by_session = {}
    for session, goal in links:
        by_session.setdefault(session, []).append(goal)
    rows = {name: dict(zip(("type", "parent_id", "root_id"), row)) for name, row in goals.items()}
    expected = goal_roots(rows, by_session)
    assert derived_goals(goals, links) == {name: expected.get(name) for name in names}


def test_a_tree_of_100000_levels_is_no_problem(tmp_path):
    path = build(tmp_path / "goals.db", fill=None)
    with sqlite3.connect(path) as connection:
        connection.executemany(GOAL, [(f"g{n}", L, f"g{n - 1}" if n else None)
                                      for n in range(100_000)])
    connection.close()
    run(path, "--yes", "--no-backup", "-q")
    assert set(stored_roots(path)["goals"].values()) == {"g0"}


# ---- triggers -----------------------------------------------------------------------------

@pytest.fixture(params=[(0, 0), (0, 1), (1, 0), (1, 1)], ids=lambda on: "keys%d-recursive%d" % on)
def app(request, migrated_once):
    """A migrated production database in memory, with either pragma on and off."""
    return open_in_memory(migrated_once("production"), *request.param)


def open_in_memory(path, foreign_keys, recursive):
    connection = sqlite3.connect(":memory:", isolation_level=None)
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


def test_an_insert_gets_its_root(app):
    app.execute(GOAL, ("new", U, None))
    app.execute("INSERT INTO goals (id, type, name, parent_id, root_id) "
                "VALUES ('kid', 'Step', 'n', 'new', NULL)")
    app.execute(GOAL, ("s", SESSION, "kid"))
    app.execute("INSERT INTO activity_definitions (id, root_id, name) VALUES ('a', 'new', 'n')")
    for table in ("metric_definitions", "split_definitions"):
        app.execute(f"INSERT INTO {table} (id, activity_id, name) VALUES ('x', 'a', 'n')")
    app.execute("INSERT INTO activity_instances (id, practice_session_id, activity_definition_id, "
                "root_id) VALUES ('i', 's', 'a', '')")
    app.execute("INSERT INTO metric_values (id, activity_instance_id, metric_definition_id, value, "
                "root_id) VALUES ('v', 'i', 'x', 1, 'new')")
    for table, identity in (("goals", "new"), ("goals", "kid"), ("goals", "s"),
                            ("metric_definitions", "x"), ("split_definitions", "x"),
                            ("activity_instances", "i"), ("metric_values", "v")):
        assert root(app, table, identity) == "new"


@pytest.mark.parametrize("table, insert, update", [
    ("goals", "(id, type, name, parent_id, root_id) VALUES ('x', 'Step', 'n', 'goal-0-03', ?)",
     "goal-0-03"),
    ("activity_instances", "(id, practice_session_id, activity_definition_id, root_id) "
     "VALUES ('x', 'session-0-0', 'activity-0-0', ?)", "instance-00001"),
    ("metric_definitions", "(id, activity_id, name, root_id) VALUES ('x', 'activity-0-0', 'n', ?)",
     "metric-0-0-0"),
    ("metric_values", "(id, activity_instance_id, metric_definition_id, value, root_id) "
     "VALUES ('x', 'instance-00001', 'metric-0-0-0', 1, ?)", "value-00001-0")])
def test_the_root_of_another_fractal_is_refused(app, table, insert, update):
    words = f"root_id does not match: a row of {table} belongs where its .*_id says"
    refused(app, words, f"INSERT INTO {table} {insert}", "goal-1-00")
    refused(app, words, f"UPDATE {table} SET root_id = 'goal-1-00' WHERE id = ?", update)
    app.execute(f"INSERT INTO {table} {insert}", ["goal-0-00"])
    for empty in (None, ""):
        app.execute(f"UPDATE {table} SET root_id = ? WHERE id = ?", (empty, update))
        assert root(app, table, update) == "goal-0-00"
    app.execute(f"UPDATE {table} SET root_id = root_id, id = id WHERE id = ?", [update])


def test_a_row_without_any_root_is_refused(app):
    app.execute("PRAGMA foreign_keys = OFF")
    refused(app, "metric_definitions.root_id is missing: no row that activity_id names",
            "INSERT INTO metric_definitions (id, activity_id, name) VALUES ('x', 'nowhere', 'n')")
    for table in ("activity_groups", "activity_definitions", "session_templates"):
        for empty in ("", None):
            refused(app, f"chk_{table}_root_id",
                    f"INSERT INTO {table} (id, name, root_id) VALUES ('x', 'n', ?)", empty)
            refused(app, f"chk_{table}_root_id", f"UPDATE {table} SET root_id = ?", empty)
    for empty in (None, ""):
        refused(app, "goals.id is missing", GOAL, empty, "Step", "goal-0-03")


def test_an_orphan_keeps_its_root_and_may_get_another(app):
    app.execute("PRAGMA foreign_keys = OFF")
    app.execute("DELETE FROM goals WHERE id = 'session-0-0'")
    changed = "UPDATE activity_instances SET root_id = ? WHERE practice_session_id = 'session-0-0'"
    for given, now in (("goal-1-00", "goal-1-00"), ("", "goal-1-00"), (None, "goal-1-00")):
        app.execute(changed, [given])
        roots = app.execute("SELECT DISTINCT root_id FROM activity_instances WHERE "
                            "practice_session_id = 'session-0-0'").fetchall()
        assert roots == [(now,)]


def test_a_subtree_moves_with_its_sessions_instances_and_values(app):
    values = ("SELECT DISTINCT v.root_id FROM metric_values v JOIN activity_instances i "
              "ON i.id = v.activity_instance_id WHERE i.practice_session_id = 'session-0-0'")
    app.execute("UPDATE goals SET parent_id = 'goal-1-02' WHERE id = 'goal-0-03'")
    assert root(app, "goals", "session-0-0") == "goal-1-00"
    assert app.execute(values).fetchall() == [("goal-1-00",)]
    app.execute("UPDATE goals SET parent_id = NULL WHERE id = 'goal-0-03'")
    assert root(app, "goals", "session-0-0") == "goal-0-03"
    app.execute("UPDATE goals SET parent_id = 'goal-0-00', root_id = root_id "
                "WHERE id = 'goal-0-03'")
    assert app.execute(values).fetchall() == [("goal-0-00",)]
    assert broken(app) == []


def test_a_deep_subtree_moves(app):
    app.execute("BEGIN")
    for n in range(1100):
        app.execute(GOAL, (f"deep{n}", "Step", f"deep{n - 1}" if n else "goal-0-00"))
    app.execute("COMMIT")
    app.execute("UPDATE goals SET parent_id = 'goal-1-00' WHERE id = 'deep0'")
    assert root(app, "goals", "deep1099") == "goal-1-00"


def test_a_session_follows_its_links_and_an_instance_its_session(app):
    app.execute(GOAL, ("s", SESSION, None))
    app.execute("UPDATE activity_instances SET practice_session_id = 's' WHERE rowid = 1")
    assert root(app, "activity_instances", "instance-00001") == "s"
    app.execute(LINK, ("s", "goal-2-03"))
    assert root(app, "metric_values", "value-00001-0") == root(app, "goals", "s") == "goal-2-00"
    app.execute("UPDATE practice_session_goals SET short_term_goal_id = 'goal-1-03' "
                "WHERE practice_session_id = 's'")
    assert root(app, "metric_values", "value-00001-0") == "goal-1-00"
    app.execute("UPDATE goals SET parent_id = 'goal-0-00' WHERE id = 'goal-1-03'")
    assert root(app, "metric_values", "value-00001-0") == "goal-0-00"
    assert broken(app) == []


def test_a_goal_below_itself_is_refused(app):
    words = "a goal cannot be below itself"
    for parent in ("goal-0-01", "goal-0-00"):
        refused(app, words, "UPDATE goals SET parent_id = ? WHERE id = 'goal-0-00'", parent)
    refused(app, words, "INSERT INTO goals (id, type, name, parent_id, root_id) "
            "VALUES ('x', 'Step', 'n', 'x', 'x')")
    app.execute("PRAGMA foreign_keys = OFF")
    app.execute(GOAL, ("kid", "Step", "late"))
    refused(app, words, GOAL, "late", "Step", "kid")


def test_rows_that_name_a_goal_before_it_comes_get_its_root(app):
    app.execute("PRAGMA foreign_keys = OFF")
    app.execute(GOAL, ("kid", "Step", "late"))
    app.execute(GOAL, ("s", SESSION, None))
    app.execute(LINK, ("s", "late"))
    app.execute("INSERT INTO activity_instances (id, practice_session_id, activity_definition_id) "
                "VALUES ('i', 'kid', 'activity-0-0')")
    app.execute(VALUE, ("v", "i"))
    app.execute(GOAL, ("late", "Step", "goal-1-03"))
    for table, identity in (("goals", "kid"), ("goals", "s"), ("metric_values", "v")):
        assert root(app, table, identity) == "goal-1-00"


def deleted_exactly(app, fractal):
    """Delete a fractal with foreign keys on; its rows, and no others, must go."""
    app.execute("PRAGMA foreign_keys = ON")
    rows = {table: f"SELECT rowid, * FROM {table} WHERE root_id IS NOT '{fractal}' ORDER BY rowid"
            for table in product.TABLES}
    others = {table: app.execute(sql).fetchall() for table, sql in rows.items()}
    app.execute("DELETE FROM goals WHERE id = ?", [fractal])
    assert {table: app.execute(sql).fetchall() for table, sql in rows.items()} == others
    for table in product.TABLES:
        assert not app.execute(f"SELECT 1 FROM {table} WHERE root_id = ?", [fractal]).fetchall()


@pytest.mark.parametrize("generation", ["early", "production", "models", "later"])
@pytest.mark.parametrize("recursive", [0, 1])
def test_a_fractal_is_deleted_with_exactly_its_rows(migrated_once, generation, recursive):
    app = open_in_memory(migrated_once(generation), 1, recursive)
    deleted_exactly(app, "goal-1-00")


@pytest.mark.parametrize("recursive", [0, 1])
@pytest.mark.parametrize("generation", ["production", "models"])
@pytest.mark.parametrize("older", ["session", "goal"])
@pytest.mark.parametrize("links", [["own"], ["own", "goal-1-03"], ["new"], ["new", "goal-1-03"]])
def test_a_linked_session_is_deleted_with_its_fractal(migrated_once, generation, recursive, older,
                                                      links):
    app = open_in_memory(migrated_once(generation), 1, recursive)
    app.execute(GOAL, ("new", U, None))
    goals = [("s", SESSION, None), ("own", "Step", "new")]
    for goal in goals if older == "session" else reversed(goals):
        app.execute(GOAL, goal)
    for goal in links:
        app.execute(LINK, ("s", goal))
    app.execute(INSTANCE, ("i", "s"))
    app.execute(VALUE, ("v", "i"))
    assert root(app, "metric_values", "v") == "new"
    deleted_exactly(app, "new")
    assert not app.execute("SELECT 1 FROM practice_session_goals WHERE "
                           "practice_session_id = 's'").fetchall()


def test_without_foreign_keys_a_session_goes_on_with_its_other_links(app):
    app.execute("PRAGMA foreign_keys = OFF")
    app.execute(GOAL, ("s", SESSION, None))
    app.execute(LINK, ("s", "goal-0-03"))
    app.execute(LINK, ("s", "goal-1-03"))
    app.execute("DELETE FROM goals WHERE id = 'goal-0-03'")
    assert root(app, "goals", "s") == "goal-1-00"


@pytest.mark.parametrize("given", ["goal-1-00", "", None])
def test_instances_follow_a_row_of_sessions(migrated_once, given):
    app = open_in_memory(migrated_once("later"), 0, 0)
    app.execute("UPDATE sessions SET root_id = 'goal-2-00' WHERE id = 'session-0-0'")
    instances = ("SELECT DISTINCT root_id FROM {} WHERE session_id = 'session-0-0'")
    assert app.execute(instances.format("activity_instances")).fetchall() == [("goal-2-00",)]
    app.execute("INSERT INTO activity_instances (id, session_id, activity_definition_id) "
                "VALUES ('i', 'new', 'activity-0-0')")
    app.execute(VALUE, ("v", "i"))
    assert root(app, "metric_values", "v") == "goal-0-00"
    if given:
        app.execute("INSERT INTO sessions (id, root_id) VALUES ('new', ?)", [given])
    assert root(app, "metric_values", "v") == (given or "goal-0-00")


# ---- the random walk ----------------------------------------------------------------------

def broken(app, gaps=None):
    """The rows that break the rule as stored; what section 4 says is not kept, goals below a
    linked session and what is linked to them, is put into `gaps`."""
    gaps = [] if gaps is None else gaps
    goals = {row[0]: dict(zip(("id", "parent_id", "type", "root_id"), row)) for row in
             app.execute("SELECT id, parent_id, type, root_id FROM goals")}
    links = {}
    for session, goal in app.execute("SELECT * FROM practice_session_goals ORDER BY rowid"):
        links.setdefault(session, []).append(goal)

    def below_linked(identity, seen=()):
        """Whether a session, linked now or before, stands above a goal or what it is linked to."""
        row = goals.get(identity, {})
        above = [goals[goal]["id"] for goal in [row.get("parent_id"), *links.get(identity, [])]
                 if goal in goals and goal not in seen]
        return any(goals[goal]["type"] == SESSION or below_linked(goal, (*seen, goal))
                   for goal in above)

    def right(row):
        parent, stored = row["parent_id"] or None, row["root_id"]
        linked = [goals[goal]["root_id"] for goal in links.get(row["id"], [])
                  if goal in goals and goal != row["id"]]
        if parent in goals:
            return stored == goals[parent]["root_id"]
        if row["type"] != SESSION and not parent:
            return stored == row["id"]
        return stored in linked if linked and not parent else bool(stored)

    wrong = [(identity, row) for identity, row in goals.items() if not right(row)]
    gaps += [row for identity, row in wrong if below_linked(identity)]
    found = [("goals", row) for identity, row in wrong if row not in gaps]
    metadata = app.execute("SELECT 1 FROM sqlite_master WHERE name = 'session_metadata'").fetchall()
    for table, pairs in list(product.PARENTS.items())[1:None if metadata else -1]:
        column, parent = pairs[-1 if table == "session_metadata" else 0]
        found += [(table, row) for row in app.execute(
            f"SELECT c.rowid, c.root_id, p.id, p.root_id FROM {table} c LEFT JOIN {parent} p "
            f"ON p.id = c.{column} WHERE c.root_id <> p.root_id OR COALESCE(c.root_id, '') = ''")]
    return found


def step(app, rng, new):
    """One of 27 kinds of statements, at random."""
    def pick(table):
        found = [row[0] for row in app.execute(f"SELECT id FROM {table} ORDER BY rowid")]
        return rng.choice(found or ["none"])

    g, h, i, d = (pick(table) for table in ("goals", "goals", "activity_instances",
                                            "activity_definitions"))
    kind, where = rng.choice([U, L, SESSION]), rng.choice([None, "", h, h, "gone"])
    link = "rowid = (SELECT {}(rowid) FROM practice_session_goals)"
    full = "INSERT INTO goals (id, type, name, parent_id, root_id) "
    statements = rng.choice([
        [(GOAL, (new, kind, where))],
        [("UPDATE goals SET parent_id = ? WHERE id = ?", (where, g))],
        [(LINK, (g, h))],
        [(LINK, (pick("goals"), h))],
        [("DELETE FROM practice_session_goals WHERE " + link.format("max"), ())],
        [("DELETE FROM goals WHERE id = ?", (g,))],
        [(INSTANCE, (new, rng.choice([g, "gone"])))],
        [("UPDATE activity_instances SET practice_session_id = ? WHERE id = ?", (g, i))],
        [(VALUE, (new, i))],
        [("UPDATE metric_values SET activity_instance_id = ? WHERE id = ?",
          (i, pick("metric_values")))],
        [("DELETE FROM activity_instances WHERE id = ?", (i,))],
        [("UPDATE activity_definitions SET root_id = (SELECT root_id FROM goals WHERE id = ?) "
          "WHERE id = ?", (g, d))],
        [(f"UPDATE {rng.choice(list(product.PARENTS)[:-1])} SET root_id = ? WHERE rowid = ?",
          (rng.choice([g, None, ""]), rng.randrange(1, 30)))],
        [("UPDATE goals SET type = ? WHERE id = ?", (kind, g))],
        [("DELETE FROM activity_definitions WHERE id = ?", (d,))],
        [("UPDATE metric_definitions SET activity_id = ? WHERE id = ?",
          (d, pick("metric_definitions")))],
        [("UPDATE practice_session_goals SET short_term_goal_id = ? WHERE " + link.format("min"),
          (g,))],
        [("UPDATE practice_session_goals SET practice_session_id = ? WHERE " + link.format("max"),
          (g,))],
        [("INSERT OR REPLACE INTO activity_definitions (id, root_id, name) "
          "VALUES (?, (SELECT root_id FROM goals WHERE id = ?), ?)", (d, g, new))],
        [("DELETE FROM goals WHERE id = ?", (g,)), (GOAL, (g, L, h))],
        [(GOAL, (new, L, new + "p")), (full + "SELECT ?, 'Step', 'n', id, root_id FROM goals "
                                       "WHERE id = ?", (new + "p", g))],
        [("INSERT OR REPLACE INTO activity_instances (id, practice_session_id, "
          "activity_definition_id) VALUES (?, ?, ?)", (i, g, d))],
        [(LINK, (g, new)), (GOAL, (new, "Step", h))],
        [("INSERT OR REPLACE INTO goals (id, type, name, parent_id) SELECT id, type, 'r', ? "
          "FROM goals WHERE id = ?", (h, g))],
        [("UPDATE goals SET parent_id = ?, root_id = (SELECT root_id FROM goals WHERE id = ?) "
          "WHERE id = ?", (h, h, g))],
        [("UPDATE goals SET parent_id = ? WHERE parent_id = ?", (h, g))],
        [(full + "VALUES (?, ?, 'n', ?, ?)", (new, kind, where, g))]])
    app.execute("SAVEPOINT step")
    try:
        for sql, values in statements:
            app.execute(sql, values)
    except sqlite3.IntegrityError:
        app.execute("ROLLBACK TO step")
    app.execute("RELEASE step")
    return statements


WALKS = int(os.environ.get("WALK", 8))
EXTRAS = [word for name in product.EXTRAS for word in ("--extra", name)]


@pytest.mark.parametrize("what", [("production",), ("models",), ("production", *EXTRAS)], ids=len)
@pytest.mark.parametrize("seed", range(WALKS))
def test_the_rule_holds_after_any_statement(migrated_once, what, seed):
    """WALK=300 walks more often."""
    app = open_in_memory(migrated_once(*what), seed & 1, seed >> 1 & 1)
    if what[1:]:
        app.execute("INSERT INTO session_metadata (session_id, key) "
                    f"SELECT id, 'mood' FROM goals WHERE type = '{SESSION}' "
                    "AND root_id IN (SELECT id FROM goals)")
    rng, gaps, number = random.Random(seed), [], 0
    while number < 150 and not gaps:
        done = step(app, rng, f"x{number}")
        assert broken(app, gaps) == [], (number, done)
        number += 1


def test_after_a_walk_a_run_finds_what_plain_python_finds(tmp_path, migrated_once):
    path = build(tmp_path / "goals.db", fill=populate)
    run(path, "--yes", "--no-backup", "-q")
    connection = sqlite3.connect(path, isolation_level=None)
    rng = random.Random(7)
    for number in range(60):
        if number % 3:
            connection.execute(GOAL, (f"n{number}", L, rng.choice(["goal-0-03", "goal-1-00"])))
        else:
            connection.execute("UPDATE goals SET parent_id = ? WHERE id = ?", (
                f"goal-{rng.randrange(3)}-00",
                f"goal-{rng.randrange(3)}-{rng.randrange(6, 14):02}"))
    connection.close()
    assert stored_roots(path) == derive(path)
    assert "Nothing to do" in run(path, "--yes").out
    script(path, "UPDATE goals SET name = 'x'")
