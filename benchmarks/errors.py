"""Errors that the commands report as one sentence. No imports: `benchmarks.guard` runs this beside old commits."""


class BenchmarkError(Exception):
    """Something cannot be measured as asked; the message says what is wrong and what to do."""


class Missing(BenchmarkError):
    """A method or a competing program cannot run here; the message has the reason and what to install."""
