"""The command line, run in the test's own process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from farm.cli import cli


def run_farm(*words: str) -> Result:
    """`run_farm("jobs", "list")`: what the command printed and how it ended."""
    result = CliRunner().invoke(cli, [*words], catch_exceptions=False, prog_name="farm")
    assert "Traceback" not in result.output
    return result
