"""What the workflows must never lose: pinned actions, few rights, and no password."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parent.parent / ".github" / "workflows"
WORKFLOWS = sorted(FOLDER.glob("*.yml"))


def load(path: Path) -> dict[str, Any]:
    options: dict[str, Any] = yaml.safe_load(path.read_text())
    return options


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_action_is_pinned_to_a_commit_and_names_its_version(path: Path) -> None:
    uses = re.findall(r"uses: (.*)", path.read_text())
    assert uses
    assert [line for line in uses if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read_and_knows_no_secret(path: Path) -> None:
    assert load(path)["permissions"] == {"contents": "read"}
    assert "secrets." not in path.read_text()
    assert "password" not in re.sub("#.*", "", path.read_text())


def test_only_the_job_that_publishes_may_ask_for_an_identity_and_from_a_protected_environment() -> None:
    jobs = {(path.name, name): job for path in WORKFLOWS for name, job in load(path)["jobs"].items()}
    rights = {key: job["permissions"] for key, job in jobs.items() if "permissions" in job}
    assert rights == {("publish.yml", "publish"): {"id-token": "write"}}
    publish = jobs["publish.yml", "publish"]
    assert publish["environment"] == "pypi"
    assert publish["needs"] == "build"
    # Nothing of the repository runs where the identity is at hand.
    assert [step for step in publish["steps"] if "run" in step] == []
