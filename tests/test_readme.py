"""Every command, statement and screen of the README, as written."""
import os
import re
import shutil
import subprocess
import sys

import pytest
from databases import build
from helpers import ROOT, SCRIPT, environment, process, product, query, run, script
from test_extras import EXTRAS
from test_operator import converse

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.M | re.S)


def blocks(language, word=""):
    return [text for kind, text in BLOCKS if kind == language and word in text]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder with the script; python3 is the Python of the tests."""
    for name in ("app", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "bin" / "python3").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    shutil.copy(SCRIPT, tmp_path / "app")
    return tmp_path / "app"


def test_its_links_and_its_numbers_are_right(migrated):
    anchors = {name.lower().replace(" ", "-") for name in re.findall(r"^## (.*)$", TEXT, re.M)}
    assert {*re.findall(r"\]\(#([^)]*)\)", TEXT)} <= anchors and len(TEXT.splitlines()) <= 240
    for path in re.findall(r"`((?:tests/)?\w+\.(?:py|load))`", TEXT):
        assert (ROOT / path).exists() or (ROOT / "tests" / path).exists(), path
    triggers = query(migrated, "SELECT 1 FROM sqlite_master WHERE type = 'trigger'")
    for what, there in (("unique names", product.UNIQUE_NAMES), ("triggers", triggers),
                        ("checks", product.ALL_CHECKS), ("indexes", product.INDEXES)):
        assert f"{len(there)} {what}" in " ".join(TEXT.split())


def test_the_runbook_from_before_to_undo(server):
    """Answering yes, as the operator does; the first block is the quick start, for `.ci/run`."""
    path, said = build(server / "goals.db"), ""
    for block in blocks("sh")[1:]:
        shown, status = converse(block, command=("bash", "-euc"), cwd=server, answer=b"yes\n")
        said += shown
        assert status == 0, shown
        if "--report" in block:
            assert os.path.exists(server / "run.json")
            script(path, "INSERT INTO goals (id, type, name) VALUES ('late', 'Step', 'Late')",
                   "UPDATE goals SET name = 'changed' WHERE id = 'goal-0-00'")
    assert "goals.db is migrated." in said and "0 4 * * * " in said and "Done: " in said
    assert said.count(" left out: []") == 9
    assert query(path, "SELECT name FROM goals WHERE id IN ('late', 'goal-0-00') ORDER BY 1") == [
        ("Goal 0 of 0",), ("Late",)]


@pytest.mark.parametrize("generation", ["early", "models", "later"])
def test_rows_are_carried_over_in_every_generation(server, generation):
    path = build(server / "goals.db", generation)
    run(path, "--yes", "--backup", server / "kept.db")
    script(path, "INSERT INTO goals (id, type, name) VALUES ('late', 'MidTermGoal', 'Late')",
           "INSERT INTO session_templates (id, root_id, name, template_data) "
           "VALUES ('taken', 'goal-0-00', 'Mine', ''), ('t', 'late', 'Mine', '')")
    run(path, "--yes", "--restore", server / "kept.db")
    run(path, "--yes", "--no-backup")
    script(path, "UPDATE session_templates SET name = 'Mine' WHERE id = 'template-0'")
    said = subprocess.check_output(["bash", "-euc", *blocks("sh", "newer")], cwd=server, text=True)
    assert "session_templates left out: [('taken',)]" in said
    assert query(path, "SELECT id FROM session_templates WHERE root_id = 'late'") == [("t",)]


def plain(text, folder):
    """A screen without what differs from run to run."""
    for pattern, word in ((re.escape(str(folder)), "/srv/app"), (r"/\S*/python\S*", "PYTHON"),
                          (r"\d{8}T\d{6}Z", "TIME"), (r"[\d,]+\.\d (s|MiB)", r"N \1")):
        text = re.sub(pattern, word, text)
    return text


def test_a_session_with_a_decision_is_as_shown(server):
    script(build(server / "goals.db"), "UPDATE session_templates SET root_id = 'goal-0-00', "
           "name = 'Evening' WHERE id < 'template-2'")
    session, = blocks("console")
    for command, shown in re.findall(r"^\$ (.*)\n((?:[^$\n].*\n)*)", session, re.M):
        said = subprocess.run(["bash", "-c", f"{command} 2>&1"], cwd=server, text=True,
                              stdout=subprocess.PIPE, env=environment()).stdout
        assert plain(said, server) == plain(shown, "/srv/app")


def test_statements_work_on_a_migrated_database(database):
    run(database, "--yes", "--no-backup", *EXTRAS)
    for block in blocks("sql"):
        for statement in re.sub(r"--.*", "", block).split(";\n"):
            script(database, statement)
    assert query(database, "SELECT value, root_id FROM session_metadata") == [("calm", "goal-0-00")]
    run(database, "--yes", "--no-backup")  # the audit log takes in the new column
    run(database, "--verify")


def test_models_of_sqlalchemy(migrated):
    sqlalchemy = pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    from sqlalchemy import orm
    names = {**vars(sqlalchemy), **vars(orm)}
    exec(blocks("python", "class InFractal")[0], names)

    class Goal(names["InFractal"], orm.declarative_base()):
        __tablename__ = "goals"
        id = sqlalchemy.Column(sqlalchemy.String, primary_key=True)
        name, type, parent_id = (sqlalchemy.Column(sqlalchemy.String) for _ in range(3))

    with orm.Session(sqlalchemy.create_engine(f"sqlite:///{migrated}")) as session:
        goal = Goal(id="new", name="New", type="Step", parent_id="goal-1-01")
        session.add(goal)
        session.commit()
        assert goal.root_id == "goal-1-00" and goal.updated_at
        goal.root_id = "goal-0-00"
        with pytest.raises(sqlalchemy.exc.IntegrityError, match="root_id does not match"):
            session.commit()


def test_what_is_added_at_the_top_of_the_script_is_added_to_the_database(migrated, tmp_path):
    text = SCRIPT.read_text(encoding="utf-8")
    for line, where in re.findall(r"^(.*?) +# in (.*)$", blocks("python", "colour")[0], re.M):
        place = {'TABLES["activity_groups"]': '    "activity_groups": {\n',
                 "TABLES": "    },\n}\nMIGRATION_LOG", "INDEXES": "INDEXES: dict[str, str] = {\n",
                 "CHECKS": "CHECKS: dict[str, tuple[str, str]] = {\n",
                 "PARENTS": "PARENTS: dict[str, list[tuple[str, str]]] = {\n"}[where]
        assert text.count(place) == 1, place
        start, end = ("    },\n", place[7:]) if where == "TABLES" else (place, "")
        text = text.replace(place, start + line + "\n" + end)
    (tmp_path / "more.py").write_text(text, encoding="utf-8")
    for flags in (["--yes", "--no-backup"], ["--verify"]):
        process(migrated, *flags, script=tmp_path / "more.py")
    script(migrated, "INSERT INTO notes (id, goal_id) VALUES ('n', 'goal-1-03')")
    assert query(migrated, "SELECT root_id FROM notes") == [("goal-1-00",)]
    ddl = str(query(migrated, "SELECT sql FROM sqlite_master"))
    assert "CREATE INDEX idx_colour" in ddl and "chk_colour" in ddl
