"""Releases: every package has its own version, CHANGELOG.md and ranges of what it needs of the others.

    python scripts/release.py check                     what must hold at any commit; CI runs it
    python scripts/release.py bump infer minor          next version of packages/infer; its CHANGELOG, the others' ranges
    python scripts/release.py bump infer as-is          dates the version that stands there as unreleased
    python scripts/release.py build [infer ...]         wheels and sdists into dist/, looked at, and the tags to make

A version below 1 promises that patches are compatible, one from 1 on that minors are too: 0.3.1 is asked for as >=0.3,<0.4,
and 1.4.2 as >=1.4,<2. A CHANGELOG.md begins with "## Unreleased" where there are changes since the newest version.
Commits and tags are made by hand: this changes and builds files, and says what to type.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import re
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

import artifacts
import workspace
from workspace import ROOT, Package

HEADING = re.compile(r"^## (?:(?P<version>\d+\.\d+\.\d+) \((?P<date>\d{4}-\d\d-\d\d|unreleased)\)|Unreleased)$")
PARTS = ("major", "minor", "patch", "as-is")


class Refused(Exception):
    """What is said instead of doing it."""


def compatible(version: str) -> str:
    """The range in which others ask for a package of this version."""
    major, minor = Version(version).release[:2]
    return f">={major}.{minor},<" + (f"{major + 1}" if major else f"0.{minor + 1}")


def following(version: str, part: str) -> str:
    major, minor, patch = Version(version).release
    return {"major": f"{major + 1}.0.0", "minor": f"{major}.{minor + 1}.0", "patch": f"{major}.{minor}.{patch + 1}"}[part]


# --- CHANGELOG.md


def headings(text: str) -> list[tuple[str, str]]:
    """(version, date or "unreleased") of each section, newest first; ("", "") for changes since the newest version."""
    out = []
    for line in text.splitlines():
        if line.startswith("## "):
            found = HEADING.match(line)
            if found is None:
                raise Refused(f"{line!r} is neither '## Unreleased' nor '## 1.2.3 (2026-01-31)' nor '## 1.2.3 (unreleased)'")
            out.append((found["version"] or "", found["date"] or ""))
    return out


def faults_of_changelog(package: Package) -> list[str]:
    path = package.folder / "CHANGELOG.md"
    try:
        found = headings(path.read_text(encoding="utf-8"))
    except (OSError, Refused) as error:
        return [f"CHANGELOG.md: {error}"]
    versions = [version for version, _ in found if version]
    faults = []
    if not versions or versions[0] != package.version:
        faults.append(
            f"CHANGELOG.md begins with {versions[0] if versions else 'no version'}, pyproject.toml says {package.version}"
        )
    if sorted(set(versions), key=Version, reverse=True) != versions:
        faults.append("CHANGELOG.md: versions are not in order, newest first")
    if any(not version for version, _ in found[1:]) or any(date == "unreleased" for _, date in found[1:]):
        faults.append("CHANGELOG.md: what is unreleased stands first, in one section")
    return faults


def dated(text: str, version: str, day: str) -> str:
    """The first section, unreleased so far, becomes that of the version. Raises Refused where nothing is in it."""
    first = headings(text)[:1]
    if not first or first[0][1] not in ("", "unreleased"):
        raise Refused('nothing is unreleased: its CHANGELOG.md has no "## Unreleased" above the newest version')
    head, _, rest = text.partition("\n## ")
    body = re.split(r"^## ", rest.partition("\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    if not body.strip():
        raise Refused("its CHANGELOG.md says of no change")
    return f"{head}\n## {version} ({day})\n{rest.partition(chr(10))[2]}"


def with_entry(text: str, entry: str) -> str:
    """With a line at the end of the section of what is unreleased, which is made where there is none."""
    first = headings(text)[:1]
    if not first or first[0][1] not in ("", "unreleased"):
        head, _, rest = text.partition("\n## ")
        return f"{head}\n## Unreleased\n\n- {entry}\n\n## {rest}"
    head, _, rest = text.partition("\n## ")
    section, mark, older = rest.partition("\n## ")
    return f"{head}\n## {section.rstrip()}\n- {entry}\n" + (f"\n## {older}" if mark else "")


# --- ranges


def faults_of_ranges(package: Package, ours: dict[str, Package]) -> list[str]:
    """Whoever installs a package gets siblings that it was tested with: each range has an end, and today's version in it."""
    faults = []
    for line in package.requirements(package.extras):
        wanted = Requirement(line)
        sibling = ours.get(workspace.canonical(wanted.name))
        if sibling is None:
            continue
        if not any(part.operator in ("<", "<=", "==", "~=") for part in wanted.specifier):
            faults.append(f"{line!r} has no upper bound; expected {sibling.name}{compatible(sibling.version)}")
        elif not wanted.specifier.contains(sibling.version, prereleases=True):
            faults.append(f"{line!r} shuts out {sibling.name} {sibling.version}, which stands here")
    return faults


def with_range(text: str, name: str, new: str) -> str:
    """A pyproject.toml in which every requirement of this package has the range."""
    return re.sub(rf'"({re.escape(name)}(?:\[[^]"]*\])?)(?=[\s<>=!~,;"])[^";]*', lambda found: f'"{found[1]}{new}', text)


def check(root: Path = ROOT) -> list[str]:
    """What is wrong with the packages as they stand, each with its folder."""
    ours = workspace.packages(root)
    license_text = (root / "LICENSE").read_bytes()
    faults = []
    for package in ours.values():
        found = [*faults_of_changelog(package), *faults_of_ranges(package, ours)]
        path = package.folder / "LICENSE"
        if not path.exists() or path.read_bytes() != license_text:
            found.append("its LICENSE is not that of the repository, which has to go along with every wheel: copy it")
        found += [
            f"pyproject.toml: no {key}"
            for key in ("description", "readme", "license", "requires-python")
            if key not in package.project
        ]
        faults += [f"packages/{package.folder.name}: {fault}" for fault in found]
    return faults


# --- commands


def clean(root: Path) -> None:
    done = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    if done.stdout:
        raise Refused(f"uncommitted changes: commit them first\n{done.stdout.rstrip()}")


def bump(folder: str, part: str, day: str, root: Path = ROOT) -> list[str]:
    """Writes the next version of a package. Returns what is to be said."""
    ours = workspace.packages(root)
    package = chosen([folder], ours)[0]
    clean(root)
    version = package.version if part == "as-is" else following(package.version, part)
    changelog, settings = package.folder / "CHANGELOG.md", package.folder / "pyproject.toml"
    if part != "as-is" and "unreleased" in dict(headings(changelog.read_text(encoding="utf-8"))).values():
        raise Refused(f"{package.version} is not released yet: scripts/release.py bump {folder} as-is")
    changelog_text = dated(changelog.read_text(encoding="utf-8"), version, day)
    changelog.write_text(changelog_text, encoding="utf-8")
    text = settings.read_text(encoding="utf-8")
    settings.write_text(
        re.sub(r'^version = ".*"$', f'version = "{version}"', text, count=1, flags=re.MULTILINE), encoding="utf-8"
    )

    said = [f"{package.name} {package.version} -> {version}"] if part != "as-is" else [f"{package.name} {version}, {day}"]
    for other in ours.values():
        lines = [Requirement(line) for line in other.requirements(other.extras)]
        if all(line.specifier.contains(version) for line in lines if workspace.canonical(line.name) == package.name):
            continue
        settings, changelog = other.folder / "pyproject.toml", other.folder / "CHANGELOG.md"
        settings.write_text(with_range(settings.read_text(encoding="utf-8"), package.name, compatible(version)), encoding="utf-8")
        entry = f"Needs {package.name} {compatible(version)}."
        changelog.write_text(with_entry(changelog.read_text(encoding="utf-8"), entry), encoding="utf-8")
        said.append(f"{other.name} asks for {compatible(version)} of it now, and needs a release of its own")
    return [*said, f"next: git commit -am '{package.name} {version}', then scripts/release.py build {folder}"]


def build(folders: list[str], into: Path, root: Path = ROOT) -> list[str]:
    """Wheels and sdists, looked at. Returns what is to be said."""
    packages = chosen(folders, workspace.packages(root))
    clean(root)
    faults = check(root)
    for package in packages:
        if headings((package.folder / "CHANGELOG.md").read_text(encoding="utf-8"))[0][1] in ("", "unreleased"):
            faults.append(
                f"packages/{package.folder.name}: changes are unreleased: scripts/release.py bump {package.folder.name} ..."
            )
    if faults:
        raise Refused("\n".join(faults))
    said, tags = [], []
    for package in packages:
        wheel, sdist = workspace.build([package], into, "wheel", "sdist")
        if found := artifacts.faults(wheel, sdist, package):
            raise Refused("\n".join(f"{package.name}: {fault}" for fault in found))
        said += [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in (wheel, sdist)]
        tags.append(f"git tag -a {package.name}-{package.version} -m '{package.name} {package.version}'")
    return [*said, *tags]


def chosen(folders: list[str], ours: dict[str, Package]) -> list[Package]:
    by_folder = {package.folder.name: package for package in ours.values()}
    unknown = sorted(set(folders) - set(by_folder))
    if unknown:
        raise Refused(f"no such package: {', '.join(unknown)}; there are {', '.join(by_folder)}")
    return [package for name, package in by_folder.items() if name in folders or not folders]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check")
    of_bump = commands.add_parser("bump")
    of_bump.add_argument("package", help="a folder below packages/")
    of_bump.add_argument("part", choices=PARTS)
    of_bump.add_argument("--date", default=datetime.datetime.now(datetime.timezone.utc).date().isoformat())
    of_build = commands.add_parser("build")
    of_build.add_argument("packages", nargs="*", help="folders below packages/; all by default")
    of_build.add_argument("-o", "--out", type=Path, default=ROOT / "dist")
    options = parser.parse_args()
    try:
        if options.command == "check":
            if faults := check():
                raise Refused("\n".join(faults))
            said = [f"{package.name} {package.version}" for package in workspace.packages().values()]
        elif options.command == "bump":
            said = bump(options.package, options.part, options.date)
        else:
            said = build(options.packages, options.out)
    except Refused as refused:
        sys.exit(f"error: {refused}")
    print("\n".join(said))


if __name__ == "__main__":
    main()
