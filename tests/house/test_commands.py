"""The command line and what documents say of it agree."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from farm.cli import cli

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("examples/*.md")]
)


def test_no_line_of_a_list_of_commands_is_cut_off() -> None:
    for path, group in all_commands(cli, ("farm",)):
        if isinstance(group, click.Group):
            lines = group.get_help(click.Context(group, info_name=" ".join(path), terminal_width=80)).splitlines()
            assert not [line for line in lines[1:] if line.endswith("...")], " ".join(path)


def all_commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that is shown to people, with the words that call it."""
    yield path, command
    if isinstance(command, click.Group):
        for name, inner in sorted(command.commands.items()):
            if not inner.hidden:
                yield from all_commands(inner, (*path, name))


cli.load_all()
COMMANDS = dict(all_commands(cli, ("farm",)))


def why_not_a_call(words: list[str]) -> str | None:
    """What is wrong with a command line that begins with `farm`; None if it can be typed like this."""
    command, rest = COMMANDS["farm",], words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            return f"there is no command {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    known = {name for parameter in command.params if isinstance(parameter, click.Option) for name in parameter.opts}
    passes_on = command.ignore_unknown_options or command.context_settings.get("ignore_unknown_options")
    used = {word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
    unknown = used - known - {"--help", "-h", "--version"}
    return f"no option {', '.join(sorted(unknown))}" if unknown and not passes_on else None


def calls_in(text: str) -> list[list[str]]:
    """The words of every `farm …` in a document's shell blocks, comments and pipes left out."""
    calls = []
    for block in re.findall(r"^```(?:sh|console|bash)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            for part in re.split(r"[|;&]+", re.sub(r"\s#.*", "", line.removeprefix("$ "))):
                words = shlex.split(part)
                while words and re.fullmatch(r"\w+=\S*", words[0]):
                    words = words[1:]
                if words and words[0] in ("farm", ".venv/bin/farm"):
                    calls.append(["farm", *words[1:]])
    return calls


@pytest.mark.parametrize(
    "path", [path for path, command in COMMANDS.items() if not isinstance(command, click.Group)], ids=" ".join
)
def test_every_command_has_help_with_an_example_that_can_be_typed(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    help_text = command.help or ""
    assert len(help_text.split("\n")[0]) > 15, f"{' '.join(path)} does not say what it does"
    examples = [line.strip() for line in help_text.splitlines() if line.strip().startswith(" ".join(path))]
    assert re.search(r"^\s*Examples?:$", help_text, re.MULTILINE), f"{' '.join(path)} has no example"
    assert examples, f"no example of {' '.join(path)} calls it"
    for example in examples:
        assert why_not_a_call(shlex.split(re.split(r"[|;&]", example)[0])) is None, example


@pytest.mark.parametrize("path", list(COMMANDS), ids=" ".join)
def test_every_option_has_help(path: tuple[str, ...]) -> None:
    options = [p for p in COMMANDS[path].params if isinstance(p, click.Option) and not p.hidden]
    assert not [option.name for option in options if not option.help]


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_every_command_in_a_document_can_be_typed(path: Path) -> None:
    wrong = {
        " ".join(call): why
        for call in calls_in((ROOT / path).read_text(encoding="utf-8"))
        if (why := why_not_a_call(call)) is not None
    }
    assert not wrong


def calls_told_by(path: Path) -> Iterator[str]:
    """Every `farm …` in a text of a module; what a sentence fills in is a 7."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    within = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        text = ""
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "7" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in within:
            text = node.value
        yield from re.findall(r"`(farm [a-z][^`]*)`", text)


def test_every_command_in_a_sentence_of_the_program_can_be_typed() -> None:
    modules = [path for package in ("farm", "workers") for path in (ROOT / package).rglob("*.py")]
    told = {call for path in modules for call in calls_told_by(path)}
    assert len(told) > 20
    assert not {call: why for call in told if (why := why_not_a_call(shlex.split(call))) is not None}


def test_every_command_of_the_compose_file_can_be_typed() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    for name, service in services.items():
        if service.get("image", "").startswith("farm"):
            assert why_not_a_call(["farm", *service["command"]]) is None, name
        check = service.get("healthcheck", {}).get("test", [])
        if check[1:2] == ["farm"]:
            assert why_not_a_call(check[1:]) is None, name


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_every_link_in_a_document_leads_to_a_file(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", (ROOT / path).read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link and not link.startswith("mailto:")]
    assert not [link for link in local if not (ROOT / path).parent.joinpath(link).exists()]
