from tests.e2e.conftest import tiny

__all__ = ["tiny"]
