"""Whether a wheel and an sdist are what an index takes and a user can install: metadata, license, files, checksums, commands."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

from packaging.metadata import ExceptionGroup, InvalidMetadata, Metadata  # a name of its own before Python 3.11

from workspace import Package


def faults(wheel: Path, sdist: Path, package: Package) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    with tarfile.open(sdist) as archive:
        members = [member for member in archive.getmembers() if not member.isdir()]
        links = [member.name for member in members if not member.isfile()]
        sources = {member.name.partition("/")[2]: archive.extractfile(member).read() for member in members if member.isfile()}
    found = [*faults_of_wheel(files, package), *(f"{sdist.name}: {name} is a link" for name in links)]
    found += [f"{sdist.name}: {fault}" for fault in faults_of_metadata(sources.get("PKG-INFO", b""), package)]
    modules = {name: content for name, content in files.items() if name.startswith("jumar/")}
    differing = [name for name, content in modules.items() if sources.get(f"src/{name}") != content]
    found += [f"{sdist.name}: {name} is not as in the wheel" for name in differing]
    needed = ("pyproject.toml", "README.md", "LICENSE", *package.forced)
    return found + [f"{sdist.name}: no {name}" for name in needed if name not in sources]


def faults_of_wheel(files: dict[str, bytes], package: Package) -> list[str]:
    stem = f"{package.name.replace('-', '_')}-{package.version}"
    info = f"{stem}.dist-info/"
    found = [f"wheel: {fault}" for fault in faults_of_metadata(files.get(info + "METADATA", b""), package)]
    place = PurePosixPath(package.imports)
    for name in files:
        declared = name.startswith(info) or name in package.forced.values()
        if not declared and not PurePosixPath(name).is_relative_to(place):
            found.append(f"wheel: {name} is not in {place}")
        if "__pycache__" in name or name.endswith(".pyc"):
            found.append(f"wheel: {name}: bytecode")
    if f"{info}licenses/LICENSE" not in files:
        found.append("wheel: no license text")
    for target in package.project.get("scripts", {}).values():
        module = target.partition(":")[0].replace(".", "/")
        if f"{module}.py" not in files:
            found.append(f"wheel: its command starts {target}, which is not in it")
    return found + faults_of_record(files, info + "RECORD")


def faults_of_record(files: dict[str, bytes], record: str) -> list[str]:
    """RECORD names every file with its SHA-256."""
    if record not in files:
        return ["wheel: no RECORD"]
    listed = {row[0]: row[1] for row in csv.reader(io.StringIO(files[record].decode()))}
    found = [f"wheel: {name} is not in RECORD" for name in files if name not in listed]
    found += [f"wheel: RECORD has {name}, which is not there" for name in listed if name not in files]
    for name, said in listed.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(files.get(name, b"")).digest()).rstrip(b"=").decode()
        if name != record and name in files and said != f"sha256={digest}":
            found.append(f"wheel: {name} is not what RECORD says")
    return found


def faults_of_metadata(content: bytes, package: Package) -> list[str]:
    """By the core metadata's own rules, and by what a page on an index needs."""
    try:
        metadata = Metadata.from_email(content, validate=True)
    except (InvalidMetadata, ExceptionGroup) as error:
        return [f"metadata: {problem}" for problem in getattr(error, "exceptions", [error])]
    said = (metadata.name, str(metadata.version), metadata.description_content_type)
    expected = (package.name, package.version, "text/markdown")
    found = [] if said == expected else [f"metadata: {said}, expected {expected}"]
    found += [f"metadata: no {name}" for name in ("summary", "description", "license_expression") if not getattr(metadata, name)]
    if metadata.requires_python is None:
        found.append("metadata: no Requires-Python")
    return found
