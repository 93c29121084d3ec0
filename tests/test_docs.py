"""Every relative link and picture of the README and the docs exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lit_jax.commands.entry import COMMANDS
from lit_jax.commands.help import reference

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("launch/*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")


def broken_links(page: Path, text: str) -> list[str]:
    links = [link for link in LINK.findall(text) if "://" not in link]
    return [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text()) == []


def test_a_broken_link_is_found() -> None:
    assert broken_links(ROOT / "README.md", "[a](LICENSE) ![b](docs/no.png)") == ["docs/no.png"]


def test_commands_name_files_that_exist() -> None:
    """Configs, tools and scripts that the pages tell people to run."""
    named = re.compile(r"\b(?:configs|tools|demo|benchmarks|launch)/[\w/]+\.(?:py|sh|safetensors)")
    found = {name for page in PAGES for name in named.findall(page.read_text())}
    assert len(found) > 5
    real = [name for name in sorted(found) if "/X." not in name]
    assert [name for name in real if not (ROOT / name).exists()] == []


def test_the_page_of_flags_is_up_to_date() -> None:
    page = (ROOT / "docs/flags.md").read_text()
    assert page == reference(COMMANDS), "docs/flags.md is out of date: make docs"
