"""farm: batch rendering of talking-head video on a queue-driven worker farm."""

__version__ = "0.1.0"
