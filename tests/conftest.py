import os
import shutil
import signal
import tempfile

import pytest
from databases import build
from helpers import run


def pytest_configure(config):
    config.option.reportchars += "s"  # show why a test is skipped


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory):
    """One of this process's own: the script names what other runs have left in it."""
    for number in (signal.SIGINT, signal.SIGHUP):  # ignored by what a shell or nohup started
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    os.environ["TMPDIR"] = str(tmp_path_factory.mktemp("tmp"))
    tempfile.tempdir = None
    yield
    assert os.listdir(os.environ["TMPDIR"]) == []


@pytest.fixture
def database(tmp_path):
    """The path of a production database."""
    return build(tmp_path / "goals.db")


@pytest.fixture(scope="session")
def migrated_once(tmp_path_factory):
    paths = {}

    def migrated(*what):
        if what not in paths:
            generation, *flags = what
            paths[what] = build(tmp_path_factory.mktemp("migrated") / "goals.db", generation)
            run(paths[what], "--yes", "--no-backup", *flags)
        return paths[what]

    return migrated


@pytest.fixture
def migrated(tmp_path, migrated_once):
    """The path of a migrated production database of the test's own."""
    return shutil.copy(migrated_once("production"), str(tmp_path / "goals.db"))
