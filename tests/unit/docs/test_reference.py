from __future__ import annotations

import ast
import inspect
import re
import runpy
from pathlib import Path

import pytest

from taskpass.config import load
from taskpass.config.table import Table
from taskpass.server import views

ROOT = Path(__file__).parents[3]
PAGES = runpy.run_path(str(ROOT / "docs" / "generate.py"))["pages"]()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_page_made_from_the_code_is_up_to_date(page):
    assert page.read_text() == PAGES[page], "run: make docs"


def test_every_error_code_that_is_raised_is_documented():
    text = (ROOT / "docs/reference/errors.md").read_text()
    for code in ("manifest_changed", "broker_unreachable", "password_in_argv", "clock_behind"):
        assert f"| `{code}` |" in text


def test_the_configuration_page_names_every_key(tmp_path):
    """The keys are those that the loader asks for while it reads the page's own example."""
    text = (ROOT / "docs/reference/config.md").read_text()
    example = re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1]
    asked = set()
    original = Table._get

    def noting(self, key, default):
        asked.add(key)
        return original(self, key, default)

    Table._get = noting
    try:
        config, problems = load.parse(example.encode(), tmp_path)
    finally:
        Table._get = original
    assert problems == []
    assert config.resources
    for key in asked:
        assert f"`{key}`" in text or re.search(rf"(?<![\w-]){re.escape(key)}(?![\w-])", example), key


@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs").rglob("*.md")) + sorted(ROOT.glob("*.md")), ids=lambda path: path.name
)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_decisions_are_numbered_without_gaps():
    numbers = sorted(int(path.name[:4]) for path in (ROOT / "docs/adr").glob("[0-9]*.md"))
    assert numbers == list(range(len(numbers)))


@pytest.mark.parametrize("word", ["make demo", "make test"])
def test_the_readme_names_the_two_commands_and_the_build_runs_the_second(word):
    assert word in (ROOT / "README.md").read_text()
    assert (ROOT / ".ci/run").read_text().endswith("\nmake test\nexec make torture N=100\n")


def keys_of(function):
    """The texts that are keys of a dict in the source of ``function``."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(function))):
        if isinstance(node, ast.Dict):
            found |= {key.value for key in node.keys if isinstance(key, ast.Constant)}
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            found.add(node.slice.value)
    return found


@pytest.mark.parametrize(
    "view",
    [views.request_view, views.lease_view, views.task_view, views.card, views.vote_view],
    ids=lambda f: f.__name__,
)
def test_every_field_of_an_answer_is_documented(view):
    text = (ROOT / "docs/reference/json.md").read_text()
    missing = {key for key in keys_of(view) if f"`{key}`" not in text}
    assert missing == set()
