"""The pages say what is so: their commands run, their links resolve, the reference is that of the Structs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from stream_app.config_reference import reference
from tests.pages import PAGES, ROOT, needs_kafka, outside, run_page, steps

HERE = [page for page in PAGES if not needs_kafka(page)]
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_SCRIPT = re.compile(
    r"`(?:[^`]*\s)?((?:benchmarks|deploy|docs|examples|learners|negative_queues|stream_app|tests)/[\w./-]+)[^`]*`"
)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in HERE if any(steps(page))], ids=name)
def test_the_commands_run(page: Path, tmp_path: Path) -> None:
    run_page(page, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_resolve(page: Path) -> None:
    for link in _LINK.findall(page.read_text()):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(path), f"{link}: no such heading; there are {sorted(anchors(path))}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    named = {path for path in _SCRIPT.findall(page.read_text()) if "NAME" not in path}
    assert not {path for path in named if not (ROOT / path).exists()}


def test_every_page_is_in_the_index() -> None:
    linked = set(_LINK.findall((ROOT / "docs" / "README.md").read_text()))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= linked


def test_the_reference_is_that_of_the_structs() -> None:
    page = ROOT / "docs" / "configuration.md"
    assert page.read_text() == reference(), "run: python -m stream_app.config_reference > docs/configuration.md"


def test_every_key_is_explained() -> None:
    rows = re.findall(r"^\| `(.*?)` \|.*\|(.*)\|$", reference(), re.MULTILINE)
    assert len(rows) > 100
    assert not [key for key, text in rows if not text.strip()]


def test_commands_outside_are_those_that_there_are() -> None:
    found = [words for page in PAGES for words in outside(page)]
    makefile, compose = (ROOT / "Makefile").read_text(), (ROOT / "deploy" / "compose.yaml").read_text()
    services = set(re.findall(r"^  ([\w-]+):$", compose.partition("\nservices:")[2].partition("\nvolumes:")[0], re.MULTILINE))
    assert {words[0] for words in found} >= {"docker"}
    for words in found:
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words
        else:
            assert words[1:4] == ["compose", "-f", "deploy/compose.yaml"], words
            assert words[4] in ("up", "logs", "run", "exec", "cp", "kill", "start", "down"), words
            named = {word.partition(":")[0] for word in words[5:] if not word.startswith("-")}
            assert words[4] in ("up", "down") or named & services, words


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_command_hides_in_a_block_that_is_not_run(page: Path) -> None:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    hidden = [
        line
        for language, text in blocks
        if language != "console"
        for line in text.splitlines()
        if re.match(r"(\$ |(\S*/)?(freshet|python3?|kafka-\S+|docker) )", line)
    ]
    assert not hidden, "commands belong into a block `console`, where a test runs them"


def test_toml_of_pages_is_toml() -> None:
    for page in PAGES:
        for block in re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            tomllib.loads(block)
