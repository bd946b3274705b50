import shutil

import pytest
from databases import build
from helpers import run


@pytest.fixture
def database(tmp_path):
    """A production database, as a path."""
    return build(tmp_path / "goals.db")


@pytest.fixture(scope="session")
def migrated_once(tmp_path_factory):
    path = build(tmp_path_factory.mktemp("migrated") / "goals.db")
    run(path, "--yes", "--no-backup")
    return path


@pytest.fixture
def migrated(tmp_path, migrated_once):
    """A migrated production database of the test's own, as a path; foreign keys are off unless a test says so."""
    return shutil.copy(migrated_once, str(tmp_path / "goals.db"))
