"""The operator's experience: what the README says is what happens."""
import io
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest
from databases import build
from helpers import ROOT, SAMPLE, SCRIPT, content, digest, environment, query, run, script

README = (ROOT / "README.md").read_text(encoding="utf-8")


def stable(text):
    """Lines without paths, times, sizes and versions."""
    text = re.sub(r"(/\S*)?\S*sample\.db", "sample.db", text)
    text = re.sub(r"(script|disk|database) .*", r"\1", text)
    return [line.rstrip() for line in re.sub(r"\d+\.\d+ s", "N s", text).strip().splitlines()]


def test_the_transcript_in_the_readme_is_a_real_one(tmp_path):
    shown = re.search(r"```console\n\$ python migrate_database_improvements.py --dry-run\n(.*?)```", README, re.S).group(1)
    (tmp_path / "fixtures").mkdir()
    shutil.copy(str(SCRIPT), str(tmp_path))
    shutil.copy(str(SAMPLE), str(tmp_path / "fixtures"))
    said = run("--dry-run", cwd=tmp_path, script=tmp_path / SCRIPT.name).stdout
    assert stable(said) == stable(shown)
    assert len(said.splitlines()) <= 60


def test_every_command_of_the_runbook_runs_as_written(tmp_path):
    shutil.copy(str(SCRIPT), str(tmp_path))
    build(tmp_path / "goals.db")
    commands = re.findall(r"`(python migrate_database_improvements\.py [^`]*)`", README)
    assert len(commands) >= 5
    for command in commands:
        words = command.split()[2:]
        if "--restore" in words:
            words[-1] = next(name for name in os.listdir(str(tmp_path)) if ".backup-" in name)
        asks = not set(words) & {"--dry-run", "--output", "--verify"}
        run(*(words + ["--yes"] * asks), cwd=tmp_path, script=tmp_path / SCRIPT.name)


def test_readme_names_every_constraint_flag_and_index_count():
    import migrate_database_improvements as product
    for name in product.CONSTRAINTS:
        assert name in README
    assert "%d indexes" % len(product.INDEXES) in README
    for flag in re.findall(r"--[a-z-]+", product.make_parser().format_help()):
        assert flag in README or flag == "--help", flag


def test_quarantined_rows_go_back_exactly_as_the_readme_shows(database, tmp_path):
    script(database, "INSERT INTO metric_definitions (id, activity_id, name, unit, is_active) "
           "VALUES ('m1', 'nowhere', x'00ff', 'a' || char(0) || 'b', 2.5)",
           "INSERT INTO session_templates (id, root_id, name) VALUES ('THE-ROW', '', 'lost')",
           "INSERT INTO activity_groups (id, root_id, name) VALUES ('g1', '', 'lost')",
           "INSERT INTO activity_groups (id, root_id, name, description) VALUES ('g2', '', 'odd', CAST(x'ff41' AS TEXT))")
    before = content(database)["metric_definitions"][20]
    run(database, "--yes", "--no-backup", "--repair")
    code = re.search(r"```python\n(import json.*?)```", README, re.S).group(1)
    assert b"root_id" in subprocess.run([sys.executable, "-c", code, database], check=True, stdout=subprocess.PIPE).stdout
    assert query(database, "SELECT count(*) FROM migration_quarantine") == [(4,)]
    script(database, "INSERT INTO activity_definitions (id, root_id, name) VALUES ('nowhere', 'goal-0-00', 'again')",
           "INSERT INTO activity_groups (id, root_id, name) VALUES ('new', 'goal-0-00', 'takes the rowid')")
    for identity in ("THE-ROW", "g1", "g2"):
        root = re.search(r'"(UPDATE migration_quarantine .*?)"\n', README).group(1)
        script(database, root.replace("THE-GOAL", "goal-0-00").replace("THE-ROW", identity))
    subprocess.run([sys.executable, "-c", code, database], check=True)
    assert query(database, "SELECT CAST(description AS BLOB), updated_at FROM activity_groups WHERE id = 'g2'") == [(b"\xffA", None)]
    after = content(database)["metric_definitions"][20]
    assert {column: after[column] for column in before} == before
    assert query(database, "SELECT count(*) FROM migration_quarantine") == [(0,)]
    assert query(database, "SELECT root_id FROM activity_groups WHERE id = 'g1'") == [("goal-0-00",)]
    run(database, "--verify")


def test_users_can_be_added_as_the_readme_shows(migrated):
    statements = re.search(r"```sql\n(CREATE TABLE users.*?)```", README, re.S).group(1)
    script(migrated, *[part for part in re.sub(r"--.*", "", statements).split(";") if part.strip()][:4])
    script(migrated, "INSERT INTO users VALUES ('u1', 'Ada')", "UPDATE goals SET user_id = 'u1' WHERE id = 'goal-1-00'")
    select_ = statements[statements.index("SELECT v.*"):].strip().rstrip(";")
    found = query(migrated, select_)
    assert len(found) == query(migrated, "SELECT count(*) FROM metric_values WHERE root_id = 'goal-1-00'")[0][0] > 0
    run(migrated, "--verify")


MODELS = """
from sqlalchemy.orm import declarative_base
Base = declarative_base()

class Goal(InFractal, SoftDeleted, Audited, Base):
    __tablename__ = "goals"
    id, parent_id = Column(String, primary_key=True), Column(String, ForeignKey("goals.id"))
    type, name = Column(String), Column(String)

class ActivityGroup(InFractal, SoftDeleted, Audited, Base):
    __tablename__ = "activity_groups"
    id = Column(String, primary_key=True)

class ActivityDefinition(InFractal, SoftDeleted, Audited, Base):
    __tablename__ = "activity_definitions"
    id, name = Column(String, primary_key=True), Column(String)
    has_splits = has_splits
    group_id = group_id

class ActivityInstance(InFractal, SoftDeleted, Audited, Base):
    __tablename__ = "activity_instances"
    id, practice_session_id = Column(String, primary_key=True), Column(String, ForeignKey("goals.id"))
    activity_definition_id = Column(String, ForeignKey("activity_definitions.id"))
    sort_order, completed, notes, data = sort_order, completed, notes, data
"""


def test_the_models_of_the_readme_work(migrated):
    sqlalchemy = pytest.importorskip("sqlalchemy", reason="SQLAlchemy, the app's library, is not installed")
    from sqlalchemy.orm import Session
    names = {}
    for code in re.findall(r"```python\n((?:from sqlalchemy|sort_order).*?)```", README, re.S) + [MODELS]:
        exec(code, names)
    goal, definition, instance = names["Goal"], names["ActivityDefinition"], names["ActivityInstance"]
    engine = sqlalchemy.create_engine("sqlite:///" + migrated)
    with Session(engine) as session:
        session.add(goal(id="r", type="UltimateGoal", name="r"))
        session.add(goal(id="s", type="PracticeSession", name="s", parent_id="r"))
        session.add(definition(id="d", name="d", root_id="r"))
        session.flush()
        rows = [instance(id="i%d" % n, practice_session_id="s", activity_definition_id="d") for n in range(3)]
        session.add_all(rows)
        session.flush()
        assert [row.root_id for row in rows] == ["r"] * 3 and rows[0].updated_at and rows[0].sort_order == 0
        session.get(goal, "s").parent_id = "goal-0-00"
        session.commit()
        assert rows[0].root_id == session.get(goal, "s").root_id == "goal-0-00"
        rows[0].root_id = "r"
        with pytest.raises(sqlalchemy.exc.IntegrityError, match="root_id does not match"):
            session.commit()
    engine.dispose()
    run(migrated, "--verify")


def converse(path, answer=None, number=None, env=None):
    """Run on a terminal, answer the question or send a signal; what was shown and the exit status."""
    process, terminal = pty.fork()
    if process == 0:
        os.execve(sys.executable, [sys.executable, str(SCRIPT), path], environment(**(env or {})))
    shown = b""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                block = os.read(terminal, 4096)
            except OSError:
                break
            if not block:
                break
            shown += block
        if b"Type 'yes'" in shown and (answer or number):
            if number:
                os.kill(process, number)
            else:
                os.write(terminal, answer)
            answer = number = None
    _, status = os.waitpid(process, 0)
    os.close(terminal)
    return shown.decode(), os.WEXITSTATUS(status)


def test_yes_migrates_and_anything_else_cancels(database):
    before = digest(database)
    shown, status = converse(database, b"y\n")
    assert status == 0 and "Cancelled" in shown and "nothing was changed" in shown and digest(database) == before
    shown, status = converse(database, b"yes\n")
    assert status == 0 and "is migrated" in shown and digest(database) != before


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_at_the_question_ends_it(database, number, status):
    before = digest(database)
    assert converse(database, number=number)[1] == status
    assert digest(database) == before


def test_colour_only_on_a_terminal_and_never_with_no_color(database):
    assert "\033[1m" in converse(database, b"no\n", env={"TERM": "xterm"})[0]
    assert "\033[1m" not in converse(database, b"no\n", env={"TERM": "xterm", "NO_COLOR": "1"})[0]
    said = run(database, "--dry-run").stdout
    assert "\033" not in said and "\r" not in said


@pytest.mark.parametrize("live, said", [(True, 60), (False, 6)])
def test_a_long_statement_shows_that_it_goes_on(monkeypatch, live, said):
    import migrate_database_improvements as product
    clock, stream = [0.0], io.StringIO()
    monkeypatch.setattr(product.time, "monotonic", lambda: clock[0])
    stream.isatty = lambda: live
    out = product.Output(stream, False, False)
    out.title("[5/5] Verify")
    while clock[0] <= 61:
        out.tick()
        clock[0] += 0.03
    shown = re.findall(r"  \[5/5\] Verify: (\d+) s", stream.getvalue())
    assert shown[-1] in ("59", "60") and len(shown) in (said - 1, said)
    assert ("\r" in stream.getvalue()) == live


def test_a_long_statement_ticks(database):
    import migrate_database_improvements as product
    calls = []
    with product.Database(database) as db:
        db.out.tick = lambda: calls.append(1)
        db.all("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 50000) SELECT count(*) FROM n")
    assert len(calls) > 10


def test_a_console_without_utf8_gets_ascii(tmp_path):
    path = build(tmp_path / "zi\u00e9l.db", instances=1)
    done = subprocess.run([sys.executable, str(SCRIPT), path, "--dry-run"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          env=dict(environment(), PYTHONIOENCODING="ascii:strict", LC_ALL="C"))
    assert done.returncode == 0 and done.stdout.decode("ascii")


def test_quiet_says_one_line_and_verbose_each_statement(database):
    assert len(run(database, "--dry-run", "-q").stdout.splitlines()) == 1
    assert "sql> CREATE TRIGGER trg_goals_fill" in run(database, "--dry-run", "-v").stdout


def test_the_plan_tells_how_long_the_rehearsal_took(database, tmp_path):
    report = str(tmp_path / "run.json")
    run(database, "--dry-run", "--report", report)
    assert re.search(r"time +\d+\.\d s in the rehearsal of 20", run(database, "--yes", "--report", report).stdout)
    other = build(tmp_path / "other.db", instances=1)
    assert "in the rehearsal" not in run(other, "--yes", "--report", report).stdout


def test_help_fits_a_screen_and_version_has_a_date():
    said = run("--help").stdout
    assert len(said.splitlines()) <= 43 and "exit status" in said and "examples" in said
    assert re.search(r"\(\d{4}-\d\d-\d\d\)", run("--version").stdout)


def test_the_file_stands_alone(tmp_path):
    shutil.copy(str(SCRIPT), str(tmp_path))
    build(tmp_path / "goals.db")
    run("--dry-run", cwd=tmp_path, script=tmp_path / SCRIPT.name)
    imports = re.findall(r"^(?:import|from) (\w+)", SCRIPT.read_text(encoding="utf-8"), re.M)
    if hasattr(sys, "stdlib_module_names"):
        assert set(imports) <= set(sys.stdlib_module_names) | {"__future__"}


def test_a_new_column_index_and_check_are_one_line_each(database, tmp_path):
    text = SCRIPT.read_text(encoding="utf-8")
    text = text.replace('    "activity_groups": {\n', '    "activity_groups": {\n        "colour": "VARCHAR",\n', 1)
    text = text.replace('INDEXES: Dict[str, str] = {\n', 'INDEXES: Dict[str, str] = {\n    "idx_colour": "activity_groups (colour)",\n', 1)
    text = text.replace('    "chk_metric_values_non_negative":\n', '    "chk_colour": ("activity_groups", "length(colour) < 9", ("colour",)),\n'
                        '    "chk_metric_values_non_negative":\n', 1)
    (tmp_path / "more.py").write_text(text, encoding="utf-8")
    run(database, "--yes", "--no-backup")
    run(database, "--yes", "--no-backup", script=tmp_path / "more.py")
    run(database, "--verify", script=tmp_path / "more.py")
    ddl = query(database, "SELECT sql FROM sqlite_master WHERE name IN ('activity_groups', 'idx_colour') ORDER BY 1")
    assert "CREATE INDEX idx_colour" in ddl[0][0] and "chk_colour" in ddl[1][0] and "colour" in ddl[1][0]
