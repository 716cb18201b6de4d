"""Documents that are made from the program are up to date, and the two READMEs tell the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from farm.batch import COLUMNS

ROOT = Path(__file__).resolve().parents[2]


def test_what_is_made_from_the_program_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts/make_docs", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_column_of_a_batch_file_is_documented() -> None:
    text = (ROOT / "docs/batch-files.md").read_text(encoding="utf-8")
    table = text.split("<!-- columns -->")[1].split("<!-- end of columns -->")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(COLUMNS)


def shell_blocks(name: str) -> list[str]:
    """The commands of a document, without their comments."""
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [re.sub(r"\s+#.*", "", line) for block in blocks for line in block.splitlines()]


def test_the_chinese_readme_has_the_commands_promises_and_documents_of_the_english_one() -> None:
    assert shell_blocks("README.zh.md") == shell_blocks("README.md")
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md")]
    for pattern in (r"^\d\. ", r"^\| \[([^]]+)\]"):
        found = [re.findall(pattern, text, re.MULTILINE) for text in texts]
        assert found[0] == found[1]


@pytest.mark.parametrize("name", ["README.md", "README.zh.md", "docs/quickstart.md", "docs/nightly.md"])
def test_every_script_that_a_document_calls_is_there(name: str) -> None:
    scripts = [line.split()[0] for line in shell_blocks(name) if re.match(r"(\./)?scripts/", line)]
    assert all((ROOT / script).is_file() for script in scripts)
