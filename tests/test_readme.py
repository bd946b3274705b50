"""Every command, statement and screen of the README, as written."""
import os
import re
import shutil
import subprocess
import sys

import pytest
from databases import build
from helpers import ROOT, SAMPLE, SCRIPT, environment, product, query, run, script
from test_extras import EXTRAS
from test_operator import converse

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.M | re.S)


def blocks(language, word=""):
    return [text for kind, text in BLOCKS if kind == language and word in text]


@pytest.fixture(autouse=True)
def python3(tmp_path, monkeypatch):
    """The Python of the tests, as python3 in the PATH."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "bin" / "python3").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


@pytest.fixture
def server(tmp_path):
    """A folder with the script and the sample as goals.db."""
    (tmp_path / "app").mkdir()
    shutil.copy(SCRIPT, tmp_path / "app")
    shutil.copy(SAMPLE, tmp_path / "app" / "goals.db")
    return tmp_path / "app"


def test_it_is_short_and_every_link_leads_somewhere():
    assert len(TEXT.splitlines()) <= 240
    headings = re.findall(r"^## (.*)$", TEXT, re.M)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]*)\)", TEXT)) <= anchors
    for path in re.findall(r"`((?:tests/)?\w+\.(?:py|load))`", TEXT):
        assert (ROOT / path).exists() or (ROOT / "tests" / path).exists(), path


def test_its_numbers_are_those_of_the_script(migrated):
    triggers = len(query(migrated, "SELECT 1 FROM sqlite_master WHERE type = 'trigger'"))
    for number, what in ((len(product.UNIQUE_NAMES), "unique names"), (triggers, "triggers"),
                         (len(product.ALL_CHECKS), "checks"), (len(product.INDEXES), "indexes")):
        assert f"{number} {what}" in " ".join(TEXT.split())


def test_the_runbook_from_before_to_undo(server):
    """Answering yes, as the operator does; the first block is the quick start, for `.ci/run`."""
    said = ""
    for block in blocks("sh")[1:]:
        shown, status = converse(block, command=("bash", "-euc"), cwd=server, answer=b"yes\n")
        said += shown
        assert status == 0, shown
        if "--report" in block:
            assert os.path.exists(server / "run.json")
            script(server / "goals.db", "INSERT INTO goals (id, type, name) VALUES "
                   "('late', 'Step', 'Late')", "UPDATE goals SET name = 'changed' "
                   "WHERE id = 'goal-0-00'")
    assert "goals.db is migrated." in said and "0 4 * * * " in said and "Done: " in said
    assert said.count(" left out: []") == 9
    assert query(server / "goals.db", "SELECT name FROM goals WHERE id IN ('late', 'goal-0-00') "
                 "ORDER BY 1") == [("Goal 0 of 0",), ("Late",)]


@pytest.mark.parametrize("generation", ["early", "models", "later"])
def test_rows_are_carried_over_in_every_generation(tmp_path, generation):
    path = build(tmp_path / "goals.db", generation)
    run(path, "--yes", "--backup", tmp_path / "kept.db")
    script(path, "INSERT INTO goals (id, type, name) VALUES ('late', 'MidTermGoal', 'Late')",
           "INSERT INTO session_templates (id, root_id, name, template_data) "
           "VALUES ('taken', 'goal-0-00', 'Mine', ''), ('t', 'late', 'Mine', '')")
    run(path, "--yes", "--restore", tmp_path / "kept.db")
    run(path, "--yes", "--no-backup")
    script(path, "UPDATE session_templates SET name = 'Mine' WHERE id = 'template-0'")
    said = subprocess.run(["bash", "-euc", blocks("sh", "newer")[0]], cwd=tmp_path, check=True,
                          capture_output=True, text=True).stdout
    assert "session_templates left out: [('taken',)]" in said
    assert query(path, "SELECT id FROM session_templates WHERE root_id = 'late'") == [("t",)]
    run(path, "--verify")


def plain(text, folder):
    """A screen without what differs from run to run."""
    for pattern, word in ((re.escape(str(folder)), "/srv/app"), (r"/\S*/python\S*", "PYTHON"),
                          (r"\d{8}T\d{6}Z", "TIME"), (r"[\d,]+\.\d (s|MiB)", r"N \1")):
        text = re.sub(pattern, word, text)
    return text


def test_a_session_with_a_decision_is_as_shown(server):
    script(server / "goals.db", "UPDATE session_templates SET root_id = 'goal-0-00', "
           "name = 'Evening' WHERE id < 'template-2'")
    session, = blocks("console")
    for command, shown in re.findall(r"^\$ (.*)\n((?:[^$\n].*\n)*)", session, re.M):
        said = subprocess.run(["bash", "-c", f"{command} 2>&1"], cwd=server, text=True,
                              capture_output=True, env=environment()).stdout
        assert plain(said, server) == plain(shown, "/srv/app")


def test_statements_work_on_a_migrated_database(tmp_path):
    path = build(tmp_path / "goals.db")
    run(path, "--yes", "--no-backup", *EXTRAS)
    for block in blocks("sql"):
        for statement in re.sub(r"--.*", "", block).split(";\n"):
            script(path, statement.strip() or "SELECT 1")
    assert query(path, "SELECT value, root_id FROM session_metadata") == [("calm", "goal-0-00")]
    run(path, "--yes", "--no-backup")  # the audit log takes in the new column
    run(path, "--verify")


def test_models_of_sqlalchemy(migrated):
    sqlalchemy = pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    from sqlalchemy import orm
    names = {**vars(sqlalchemy), **vars(orm)}
    exec(blocks("python", "class InFractal")[0], names)
    base = orm.declarative_base()

    class Group(names["InFractal"], base):
        __tablename__ = "activity_groups"
        id = sqlalchemy.Column(sqlalchemy.String, primary_key=True)
        name = sqlalchemy.Column(sqlalchemy.String)

    class Goal(names["InFractal"], base):
        __tablename__ = "goals"
        id = sqlalchemy.Column(sqlalchemy.String, primary_key=True)
        name, type, parent_id = (sqlalchemy.Column(sqlalchemy.String) for _ in range(3))

    with orm.Session(sqlalchemy.create_engine(f"sqlite:///{migrated}")) as session:
        goal = Goal(id="new", name="New", type="Step", parent_id="goal-1-01")
        session.add_all([goal, Group(id="g", name="G", root_id="goal-1-00")])
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
        subprocess.run([sys.executable, tmp_path / "more.py", migrated, *flags], check=True,
                       stdout=subprocess.DEVNULL)
    script(migrated, "INSERT INTO notes (id, goal_id) VALUES ('n', 'goal-1-03')")
    assert query(migrated, "SELECT root_id FROM notes") == [("goal-1-00",)]
    ddl = str(query(migrated, "SELECT sql FROM sqlite_master"))
    assert "CREATE INDEX idx_colour" in ddl and "chk_colour" in ddl

