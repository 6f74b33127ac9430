"""For all tests."""

from collections.abc import Iterator

import postgresql
import pytest
from hypothesis import settings

# a busy machine is slow, and that is no fault of the code
settings.register_profile("calm", deadline=None)
settings.load_profile("calm")


@pytest.fixture(scope="session")
def server() -> Iterator[postgresql.Server]:
    """A PostgreSQL."""
    found = postgresql.programs()
    if found is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql): NOT TESTED")
    with postgresql.server(found) as running:
        yield running
