"""What holds for every test."""

from hypothesis import settings

# A busy machine takes its time: no test is about that.
settings.register_profile("any machine", settings(), deadline=None)
settings.load_profile("any machine")
