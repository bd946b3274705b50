import shutil

import pytest
from databases import build
from helpers import run


@pytest.fixture
def database(tmp_path):
    """The path of a production database."""
    return build(tmp_path / "goals.db")


@pytest.fixture(scope="session")
def migrated_once(tmp_path_factory):
    paths = {}

    def migrated(generation):
        if generation not in paths:
            paths[generation] = build(tmp_path_factory.mktemp("migrated") / "goals.db", generation)
            run(paths[generation], "--yes", "--no-backup")
        return paths[generation]

    return migrated


@pytest.fixture
def migrated(tmp_path, migrated_once):
    """The path of a migrated production database of the test's own."""
    return shutil.copy(migrated_once("production"), str(tmp_path / "goals.db"))
