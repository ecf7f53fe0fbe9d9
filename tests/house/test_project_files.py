"""Files that nothing else reads in the tests: citation, changelog, workflow, Dockerfile, guides, constraints."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "tests").rglob("*.md")]


def version() -> str:
    return re.search(r'version="([\d.]+)"', (ROOT / "setup.py").read_text())[1]


def test_one_version_everywhere():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version()
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version()


def test_the_workflow_runs_the_test_command():
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())
    steps = workflow["jobs"]["tests"]["steps"]
    assert [step["run"] for step in steps if "run" in step][-1] == "bash launch/test.sh --all"


def test_the_dockerfiles_commands_and_files():
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    instructions = [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]
    assert [name for name, _ in instructions][:2] == ["ARG", "FROM"]
    for name, rest in instructions:
        if name == "RUN":
            assert subprocess.run(["bash", "-n", "-c", rest]).returncode == 0, rest
        if name == "COPY":
            assert all((ROOT / path).exists() for path in rest.split()[:-1]), rest


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (document.parent / path.replace("\\", "")).resolve() if path else document
        assert found.exists(), f"{document.name} links to {target}"
        if anchor and found.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", text).lower().replace(" ", "-") for text in headings}, target


def test_every_guide_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text()
    missing = [
        path.name for path in (ROOT / "docs").glob("*.md") if path.name != "README.md" and f"({path.name}" not in index
    ]
    assert missing == []


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_constraints_hold_what_setup_pins(name):
    """A pin of setup.py that the tested versions contradict would make every install fail."""
    setup = dict(re.findall(r'"([\w-]+)(?:\[\w+\])?==([\w.]+)"', (ROOT / "setup.py").read_text()))
    held = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / f"launch/constraints-{name}.txt").read_text(), re.MULTILINE))
    held = {package.lower().replace("_", "-"): found for package, found in held.items()}
    for package, wanted in setup.items():
        if (name, package) != ("cpu", "torch"):  # the extra gpu pins torch for itself
            assert held.get(package.lower(), wanted) == wanted, package
