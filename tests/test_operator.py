"""What an operator sees: the screens, the prompts, the exit status, whatever becomes of them."""
import contextlib
import io
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from databases import build
from helpers import (SAMPLE, SCRIPT, digest, environment, folder_state, process, product, query,
                     run, script, start)
from test_decisions import TEMPLATE, UNREPAIRABLE, UNTIDY


def test_a_fresh_clone_rehearses_its_sample_with_nothing_but_the_standard_library(tmp_path):
    (tmp_path / "fixtures").mkdir()
    sample = shutil.copy(SAMPLE, tmp_path / "fixtures")
    said = process("--dry-run", cwd=tmp_path, script=shutil.copy(SCRIPT, tmp_path)).out
    assert "bundled sample" in said and "untouched" in said and len(said.splitlines()) <= 35
    assert re.findall(r"^\[\d/5\]", said, re.M) == [f"[{n}/5]" for n in range(1, 6)]
    assert digest(sample) == digest(SAMPLE)
    assert os.listdir(tmp_path / "fixtures") == ["sample.db"]
    imports = re.findall(r"^ *(?:import|from) (\w+)", SCRIPT.read_text(encoding="utf-8"), re.M)
    if hasattr(sys, "stdlib_module_names"):
        assert {*imports} <= {*sys.stdlib_module_names, "__future__"}


def test_commands_that_are_printed_can_be_pasted(tmp_path):
    path = build(tmp_path / "it's mine.db")
    live = re.search(r"^To migrate: (.*)$", process(path, "--dry-run").out, re.M)[1]
    said = subprocess.check_output(f"{live} --yes", shell=True, text=True)
    assert "rows written from now on are not carried over" in said and len(said.splitlines()) <= 40
    commands = re.findall(r"^  (0 4 \* \* \* )?(/.*(?:--verify|--restore).*)$", said, re.M)
    assert [bool(cron) for cron, _ in commands] == [False, False, True]
    for _, line in reversed(commands):  # the undo at last
        subprocess.check_call(line.replace("--restore", "--yes --restore"), shell=True)


@pytest.mark.parametrize("generation", ["early", "production", "later"])
@pytest.mark.parametrize("flags", [["--dry-run"], ["--yes"], ["--verify"], ["--yes", "--repair"]])
def test_nothing_is_wider_than_80_columns(tmp_path, generation, flags):
    """But for paths and what is to be pasted."""
    path = build(tmp_path / "goals.db", generation)
    if flags == ["--verify"]:
        run(path, "--yes", "--no-backup")
    else:
        script(path, *UNTIDY, *(UNREPAIRABLE[:1] if "--repair" not in flags else []))
    said = run(path, *flags, status=None)
    for line in (said.out + said.err).splitlines():
        assert len(line) <= 80 or re.search("/[a-z]|SELECT|UPDATE|DELETE", line), line


# ---- on a terminal ----------------------------------------------------------------------------

def converse(*arguments, answer=None, number=None, cwd=".", meanwhile=lambda: None,
             command=(sys.executable, str(SCRIPT))):
    """Run on a terminal, answer the question or send a signal; what was shown, and the status."""
    terminal, other = pty.openpty()
    shown, asked = b"", False
    with contextlib.suppress(OSError), subprocess.Popen(
            [*command, *arguments], stdin=other, stdout=other, stderr=other, cwd=cwd,
            env=environment(), preexec_fn=lambda: signal.alarm(20)) as child:
        os.close(other)
        while block := os.read(terminal, 4096):  # OSError: nobody has it open any more
            shown += block
            if not asked and b"Type 'yes'" in shown:
                asked = True
                meanwhile()
                child.send_signal(number) if number else os.write(terminal, answer)
    os.close(terminal)
    return shown.decode(), child.returncode


def test_yes_migrates_and_anything_else_does_not(database):
    before = folder_state(database)
    shown, status = converse(database, answer=b"y\n")
    assert status == 0 and "cancelled" in shown and "nothing was changed" in shown
    assert folder_state(database) == before
    shown, status = converse(database, answer=b"yes\n")
    assert status == 0 and "is migrated" in shown and "\033" not in shown  # no colours


def test_what_comes_while_the_question_waits_is_not_written_over(database, tmp_path):
    kept = tmp_path / "kept.db"
    shown, status = converse(database, "--backup", str(kept), answer=b"yes\n",
                             meanwhile=lambda: kept.write_text("mine"))
    assert status == 2 and "exists already" in shown and kept.read_text() == "mine"
    twins = [(TEMPLATE, (name, "goal-0-00", "Template", None)) for name in "tu"]
    script(database, twins[0])
    shown, status = converse(database, "--repair", "--no-backup", answer=b"yes\n",
                             meanwhile=lambda: script(database, twins[1]))
    assert 0 < shown.index("becomes 'Template (2)'") < shown.index("Type 'yes'")
    assert status == 1 and "others have written names" in shown
    assert query(database, "SELECT DISTINCT name FROM session_templates WHERE id IN ('t', 'u')"
                 ) == [("Template",)]


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143),
                                            (signal.SIGHUP, 129)])
def test_a_signal_at_the_question_ends_it(database, number, status):
    before = folder_state(database)
    shown, found = converse(database, number=number)
    assert found == status and "nothing was changed" in shown
    assert folder_state(database) == before


@pytest.mark.parametrize("terminal, shown", [(True, 240), (False, 5)])
def test_a_long_step_shows_that_it_goes_on(monkeypatch, terminal, shown):
    """Several times a second on a terminal, every ten seconds in a log."""
    clock, stream = [0.0], io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(sys, "stdout", stream)
    out = product.Output(product.make_parser().parse_args([]))
    out.begin("[3/5] Recreate tables")
    while clock[0] < 60:
        clock[0] += 0.03
        out.progress("goals", 50, 100)
    found = re.findall(r"\[3/5\] Recreate tables: goals 50 of 100, \d+ s left of this step",
                       stream.getvalue())
    assert abs(len(found) - shown) <= shown * 0.2 and ("\r" in stream.getvalue()) == terminal


# ---- where output goes wrong ------------------------------------------------------------------

@pytest.mark.parametrize("arguments, status", [
    (["--yes", "--no-backup"], 0), (["--dry-run"], 0), (["--verify"], 1), (["--help"], 0),
    (["--version"], 0), (["--dry-run", "--report", "-"], 0), (["--dry-run", "--verify"], 2)])
@pytest.mark.parametrize("where", ["full", "closed pipe", "closed"])
def test_the_status_tells_what_happened_to_the_database(database, arguments, status, where):
    """Not what became of standard output; and Python does not complain of that."""
    reader, out = os.pipe() if where == "closed pipe" else (0, os.open("/dev/full", os.O_WRONLY))
    if reader:
        os.close(reader)
    with start(database, *arguments, stdout=out,
               preexec_fn=lambda: os.close(1) if where == "closed" else None) as child:
        said = child.stderr.read()
    os.close(out)
    assert child.returncode == status, said
    assert "Exception" not in said and "Errno" not in said
    if arguments[0] == "--yes":
        assert query(database, "SELECT count(*) FROM migration_log") == [(1,)]


def test_a_console_without_utf8_gets_ascii(tmp_path):
    path = build(tmp_path / "zi\u00e9l.db", instances=1)
    done = subprocess.run([sys.executable, str(SCRIPT), path, "--dry-run"], capture_output=True,
                          env=environment(PYTHONIOENCODING="ascii:strict", LC_ALL="C"))
    assert done.returncode == 0 and done.stdout.decode("ascii")


def test_a_pipe_for_the_report_gets_it(database, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    cat = ["cat", str(tmp_path / "pipe")]
    with subprocess.Popen(cat, stdout=subprocess.PIPE, text=True) as reader:
        run(database, "--yes", "--no-backup", "--report", tmp_path / "pipe")
        assert '"status": "done"' in reader.communicate(timeout=20)[0]
    said = process(database, "--yes", "--report", "-")
    assert said.out.startswith("{") and "Nothing to do" in said.err


def test_quiet_says_one_line_and_verbose_each_statement(database):
    assert len(run(database, "--dry-run", "-q").out.splitlines()) == 1
    assert "sql> CREATE TRIGGER trg_goals_fill" in run(database, "--dry-run", "-v").out
    assert run(database, "--yes", "-q").out.startswith(f"Done: {database} is migrated")


def test_help_fits_a_screen():
    said = run("--help").out
    assert len(said.splitlines()) <= 50 and "exit status" in said
    assert all(len(line) <= 80 for line in said.splitlines())
    assert re.search(r"^2\.\d", run("--version").out)
