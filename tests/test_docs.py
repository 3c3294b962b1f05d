# SPDX-License-Identifier: Apache-2.0
"""What the documentation says exists: commands, options, files, events, exit codes."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer.main
import yaml

import client.cli
import common
import server.cli
import simulations
from common.errors import EXIT_CODE_HELP
from common.study_file import parse_study
from server.run_story import RUN_ENDED, RUN_RESUMED
from simulations.cli import app
from simulations.layout import RunLayout
from simulations.options import SHIPPED_STUDIES

PROJECT = Path(__file__).resolve().parents[1]
CODE = Path(common.__file__).resolve().parents[1]
PAGES = [PROJECT / "README.md", PROJECT / "CHANGELOG.md", *sorted((PROJECT / "docs").glob("*.md"))]
RUN_PAGE = PROJECT / "docs" / "run-directory.md"
BARE = r"wardround-sim \S+|wardround-(client|server) \S+( [a-z-]+)?"  # a bare name is only spoken of
COMMANDS = {
    "wardround-sim": typer.main.get_command(app),
    "wardround-client": typer.main.get_command(client.cli.app),
    "wardround-server": typer.main.get_command(server.cli.app),
}


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def code_in(path: Path) -> Iterator[str]:
    """Lines of shell blocks without their comments, and pieces of inline code."""
    blocks = re.findall(r"^```(?:sh|bash)\n(.*?)^```", text_of(path), re.MULTILINE | re.DOTALL)
    yield from (line.split(" #")[0].strip() for block in blocks for line in block.splitlines() if line.strip())
    yield from re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text_of(path))


def commands() -> list[tuple[str, str]]:
    """Every `wardround-sim …` and `wardround-client …` that the documentation or a shipped study shows, with its page."""
    shown = [(page.name, code) for page in PAGES for code in code_in(page)]
    shown += [(path.name, line.strip("# \n")) for path in SHIPPED_STUDIES.glob("*.yaml") for line in text_of(path).splitlines()]
    found = [(name, code) for name, code in shown if code.split(" ")[0] in COMMANDS and " " in code and "|" not in code]
    return [(name, f"{code} --help" if re.fullmatch(BARE, code) else code) for name, code in found]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*## ", text_of(PROJECT / "Makefile"), re.MULTILINE))


def check_command(words: list[str]) -> None:
    """Parse as the command line would, without running. Raises click's UsageError on an option or command that does not exist."""
    command: click.Command = COMMANDS[words[0]]
    used = 1
    while isinstance(command, click.Group) and not words[used].startswith("-"):
        command = command.commands[words[used]]
        used += 1
    command.make_context(words[used - 1], words[used:], resilient_parsing="--help" in words)


def test_the_pages_show_commands() -> None:
    assert {code.split()[1] for _, code in commands()} >= {"run", "compare", "validate", "describe", "plan"}


@pytest.mark.parametrize(("page", "code"), commands())
def test_commands_in_the_documentation_exist(page: str, code: str) -> None:
    check_command(shlex.split(code))


@pytest.mark.parametrize("code", ["run quickstart --no-such-option", "validate", "run --sites many", "compare"])
def test_the_check_of_commands_can_fail(code: str) -> None:
    with pytest.raises(click.UsageError):
        check_command(["wardround-sim", *shlex.split(code)])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_in_the_documentation_exist(page: Path) -> None:
    used = {words[1] for words in map(str.split, code_in(page)) if words[:1] == ["make"] and len(words) > 1}
    assert used <= targets()


def test_the_readme_has_the_two_commands() -> None:
    lines = list(code_in(PROJECT / "README.md"))
    assert {"make simulate", "make test"} <= set(lines)


def test_every_target_is_in_the_help_and_is_phony() -> None:
    makefile = text_of(PROJECT / "Makefile")
    phony = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split()
    assert set(phony) == targets()
    assert {
        "simulate",
        "test",
        "test-all",
        "test-pythons",
        "lint",
        "format",
        "docs",
        "doctor",
        "bench-simulation",
        "bench-privacy",
        "bench-accuracy",
        "clean",
        "help",
    } <= targets()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text_of(page)) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    paths = [code for code in code_in(page) if re.match(r"^(common|client|server|simulations)/[\w/.]+$", code)]
    assert [path for path in paths if not (CODE / path).exists()] == []


def test_studies_in_the_documentation_are_valid() -> None:
    found = [block for page in PAGES for block in re.findall(r"^```yaml\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)]
    assert found
    for block in found:
        parse_study(block, "the documentation")


def test_the_changelog_has_a_block_for_what_comes() -> None:
    assert re.search(r"^## Unreleased$", text_of(PROJECT / "CHANGELOG.md"), re.MULTILINE)


def test_every_exit_code_is_in_the_help() -> None:
    epilog = app.info.epilog
    assert isinstance(epilog, str)
    assert all(f"{code.value} {text}" in epilog for code, text in EXIT_CODE_HELP.items())


STORY = CODE / "server" / "run_story.py"
"""Where the events about a run's beginning and end have names in constants."""


def emitted_events() -> set[str]:
    """Names of all events that the source emits: first arguments of `.emit(…)`, and the constants of `STORY`."""
    names = set()
    for package in ("common", "client", "server", "simulations"):
        for path in (CODE / package).rglob("*.py"):
            for node in ast.walk(ast.parse(text_of(path))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "emit":
                    if path == STORY:
                        continue
                    assert isinstance(node.args[0], ast.Constant), f"{path.name}:{node.lineno}: the name of an event must stand in the code"
                    names.add(str(node.args[0].value))
    return names | {RUN_ENDED, RUN_RESUMED}


def test_every_event_is_documented_and_no_other() -> None:
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", text_of(RUN_PAGE).split("## Events")[1], re.MULTILINE))
    assert documented == emitted_events()


def test_every_file_of_a_run_is_documented() -> None:
    layout = RunLayout(Path("run"))
    properties = [name for name, value in vars(RunLayout).items() if isinstance(value, property)]
    names = [getattr(layout, name).name for name in properties] + ["sites/", "baselines/", "checkpoints/", "rounds.sqlite", "ledger.sqlite"]
    assert [name for name in names if name not in text_of(RUN_PAGE)] == []


def test_the_readme_says_what_this_is_not() -> None:
    assert "no clinical evidence" in text_of(PROJECT / "README.md")


def test_package_data_is_there() -> None:
    here = Path(simulations.__file__).parent
    assert all(yaml.safe_load(text_of(path)) for path in (here / "studies").glob("*.yaml"))
    assert (Path(common.__file__).parent / "study.schema.json").is_file()
