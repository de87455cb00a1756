"""What will work on this machine, in plain words, and what to do about the rest. Nothing is changed or downloaded."""

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil

from medcomfort_utils import paths, profile
from medcomfort_utils.llm.server import ADDRESSES, KEYS
from medcomfort_utils.paths import MedComfortError, tidy
from medcomfort_utils.profile import Step

PYTHON = (3, 11)
GB = 10**9
DISK = 1 * GB  # a run of the nano profile with its checkpoints, and room
MEMORY = 2 * GB  # a step of the nano profile needs 1.8 GB at its peak
CGROUP = Path("/sys/fs/cgroup/memory.max")  # the limit of a container


@dataclass(frozen=True)
class Finding:
    """One check: `ok`, `note` (something will not work, the rest does) or `fail` (nothing will)."""

    state: Literal["ok", "note", "fail"]
    topic: str
    told: str

    def __str__(self) -> str:
        return f"{self.state:<5} {self.topic:<10} {self.told}"


def examine() -> Iterator[Finding]:
    """All checks, one after the other: the machine first, then each profile in notebooks/profiles."""
    graphics = gpu()
    yield from (python(), pins(), disk(), memory(), graphics, unsloth(), tex(), cache(), endpoint())
    for path in sorted(paths.PROFILES.glob("*.yaml")):
        yield of_profile(path.stem, graphics.state == "ok")


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Whether Python is new enough."""
    shown = ".".join(map(str, version))
    if version < PYTHON:
        return Finding("fail", "Python", f"{shown} is too old: make setup PYTHON=/path/to/python3.11")
    return Finding("ok", "Python", f"{shown} on {platform.system()}, {os.cpu_count()} cores")


def pins(requirements: Path | None = None) -> Finding:
    """Whether the packages of requirements/cpu.txt are installed, in the versions that were tried together."""
    file = requirements or paths.ROOT / "requirements/cpu.txt"
    if not file.is_file():
        return Finding("note", "Packages", f"{tidy(file)} is not here, so versions cannot be compared.")
    wanted = dict(re.findall(r"^([\w.-]+)==([\w.]+)", file.read_text(encoding="utf-8"), re.MULTILINE))
    found = {name: _installed(name) for name in wanted}
    absent = [name for name in wanted if not found[name]]
    other = [
        f"{name} {found[name]} (tried: {wanted[name]})" for name in wanted if found[name] not in ("", wanted[name])
    ]
    if absent:
        return Finding("fail", "Packages", f"{len(absent)} missing: {', '.join(absent[:5])}. Run: make setup")
    if other:
        told = f"{len(other)} of {len(wanted)} in other versions: {'; '.join(other[:5])}. To have those: make setup"
        return Finding("note", "Packages", told)
    return Finding("ok", "Packages", f"all {len(wanted)} in the versions that were tried together")


def disk() -> Finding:
    """Whether there is room for a small run."""
    free = shutil.disk_usage(paths.ROOT).free
    told = f"{free / GB:.0f} GB free"
    return Finding("ok", "Disk", told) if free >= DISK else Finding("fail", "Disk", f"{told}; make room: 1 GB at least")


def memory() -> Finding:
    """Whether there is memory for a small run; a container's limit counts."""
    limit = CGROUP.read_text().strip() if CGROUP.is_file() else "max"
    total = min(psutil.virtual_memory().total, int(limit) if limit.isdigit() else sys.maxsize)
    told = f"{total / GB:.1f} GB"
    if total < MEMORY:
        return Finding("note", "Memory", f"{told}; nano needs 2 GB. Try smoke, and close what else runs.")
    return Finding("ok", "Memory", told)


def gpu() -> Finding:
    """Whether PyTorch sees a GPU."""
    import torch  # takes seconds to import

    if torch.cuda.is_available():
        seen = torch.cuda.get_device_properties(0)
        return Finding("ok", "GPU", f"{seen.name}, {seen.total_memory / GB:.0f} GB")
    why = "this PyTorch is built without CUDA" if torch.version.cuda is None else "no driver or no device"
    told = f"none that PyTorch can use ({why}): nano and smoke run on the CPU; for a GPU: requirements/gpu.txt"
    return Finding("note", "GPU", told)


def unsloth() -> Finding:
    """Whether Unsloth is installed; it is not imported, since that changes other packages."""
    version = _installed("unsloth")
    if version:
        return Finding("ok", "Unsloth", version)
    return Finding("note", "Unsloth", "not installed: training goes on without it, on plain TRL (engine: trl or auto)")


def tex() -> Finding:
    """Whether the paper can be built."""
    found = next((name for name in ("latexmk", "tectonic") if shutil.which(name)), "")
    if found:
        return Finding("ok", "TeX", f"{found}: the paper can be built")
    return Finding("note", "TeX", "no latexmk and no tectonic: all but the PDF of the paper works; Debian has latexmk")


def cache() -> Finding:
    """Whether responses of language models can be recorded, and how many files of them there are."""
    folder = paths.ROOT / "cache"
    files = list(folder.glob("*.sqlite"))
    if not os.access(folder if folder.exists() else paths.ROOT, os.W_OK):
        return Finding("fail", "Cache", f"{tidy(folder)} cannot be written: give yourself the right to.")
    return Finding("ok", "Cache", f"{len(files)} files of recorded responses in {tidy(folder)}, which can be written")


def endpoint() -> Finding:
    """Whether the environment names a server of language models; neither address nor key is shown."""
    address, key = (next((name for name in names if os.environ.get(name)), "") for names in (ADDRESSES, KEYS))
    if address:
        return Finding("ok", "LLM server", f"named by {address}, {f'key in {key}' if key else 'no key'}")
    told = f"none in the environment ({ADDRESSES[0]}): templates and recorded responses work, new ones need one"
    return Finding("note", "LLM server", told)


def of_profile(name: str, has_gpu: bool) -> Finding:
    """Whether a profile is sound, and what it asks for that is not here."""
    topic = f"[{name}]"
    try:
        run = profile.load(name)
    except MedComfortError as error:
        return Finding("fail", topic, str(error))
    lacking: dict[tuple[str, str], list[str]] = {}
    for step in run.steps:
        for lack in _lacking(step, has_gpu):
            lacking.setdefault(lack, []).append(step.name)
    if lacking:
        told = "; ".join(f"{what} ({', '.join(steps)}: {where})" for (what, where), steps in lacking.items())
        return Finding("note", topic, f"needs {told}")
    return Finding("ok", topic, f"will work here: medcomfort reproduce --profile {name}")


def _lacking(step: Step, has_gpu: bool) -> Iterator[tuple[str, str]]:
    """What a step asks for that is not here, and the parameter that asks for it."""
    given = step.parameters
    source, base = given.get("source", ""), given.get("base", "")
    if given.get("dtype") in ("float16", "bfloat16") and not has_gpu:
        yield "a GPU", f"dtype {given['dtype']}"
    if given.get("engine") == "unsloth" and not _installed("unsloth"):
        yield "Unsloth", "engine unsloth"
    address = given.get("base_url") or any(os.environ.get(name) for name in ADDRESSES)
    if given.get("rewriter") == "llm" and given["mode"] != "replay" and not address:
        yield "a server of language models", f"base_url, or {ADDRESSES[0]} in the environment"
    if source.startswith("hf:"):
        yield f"the data set {source.removeprefix('hf:')}, from the network or the hub's cache", "source"
    elif source not in ("", "clinic") and not paths.resolve(source).exists():
        yield f"the file {source}, which is not there", "source"
    if base and not paths.resolve(base).exists() and not _cached(base):
        yield f"the model {base}, from the network", "base"


def _cached(model: str) -> bool:
    """Whether the hub's cache holds the model's configuration."""
    from transformers.utils import cached_file  # takes seconds to import

    return cached_file(model, "config.json", local_files_only=True, _raise_exceptions_for_missing_entries=False,
                       _raise_exceptions_for_connection_errors=False) is not None  # fmt: skip


def _installed(name: str) -> str:
    """The version of a package without its local part (2.13.0+cpu is 2.13.0); empty if it is not installed."""
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return ""
