import pytest
from databases import build


@pytest.fixture
def database(tmp_path):
    """A production database, as a path."""
    return build(tmp_path / "goals.db")


@pytest.fixture
def migrated(tmp_path, database):
    """A migrated production database, as a path; foreign keys are off unless a test says so."""
    from helpers import run
    run(database, "--yes", "--no-backup")
    return database
