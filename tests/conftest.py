"""For all tests."""

from hypothesis import settings

# a busy machine is slow, and that is no fault of the code
settings.register_profile("calm", deadline=None)
settings.load_profile("calm")
