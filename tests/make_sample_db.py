"""Make fixtures/sample.db: python tests/make_sample_db.py [FILE]. The same content each time."""
import os
import sys

from databases import build

if __name__ == "__main__":
    target = sys.argv[1] if len(sys.argv) > 1 else os.path.join(
        os.path.dirname(__file__), os.pardir, "fixtures", "sample.db")
    if os.path.exists(target):
        os.unlink(target)
    build(target, "production")
