"""What will work on this machine, in plain words, and what to do about the rest. Nothing is changed or downloaded.

A check returns its state, `ok`, `note` (something will not work, the rest does) or `fail` (nothing will), and why.
"""

import os
import platform
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import psutil

from medcomfort_utils import paths, profile
from medcomfort_utils.llm.server import ADDRESSES, KEYS
from medcomfort_utils.paths import MedComfortError, tidy

GB = 10**9
CGROUP = Path("/sys/fs/cgroup/memory.max")  # the limit of a container


def examine() -> Iterator[tuple[str, str, str]]:
    """(state, topic, why) of the machine, then of each profile in notebooks/profiles."""
    yield "ok", "Python", f"{platform.python_version()} on {platform.system()}, {os.cpu_count()} cores"
    states = {}
    for topic, check in CHECKS.items():
        states[topic], why = check()
        yield states[topic], topic, why
    for path in sorted(paths.PROFILES.glob("*.yaml")):
        state, why = of_profile(path.stem, states["GPU"] == "ok")
        yield state, f"[{path.stem}]", why


def packages(requirements: str = "requirements/cpu.txt") -> tuple[str, str]:
    """Whether the pinned packages are installed, in the versions that were tried together."""
    file = paths.resolve(requirements)
    if not file.is_file():
        return "note", f"{tidy(file)} is not here, so versions cannot be compared."
    wanted = dict(re.findall(r"^([\w.-]+)==([\w.]+)", file.read_text(encoding="utf-8"), re.MULTILINE))
    here = {name: _installed(name) for name in wanted}
    absent = [name for name in wanted if not here[name]]
    other = [f"{n} {here[n]} (tried: {wanted[n]})" for n in wanted if here[n] not in ("", wanted[n])]
    if absent:
        return "fail", f"{len(absent)} missing: {', '.join(absent[:5])}. Run: make setup"
    if other:
        return "note", f"{len(other)} of {len(wanted)} in other versions: {'; '.join(other[:5])}. For those: make setup"
    return "ok", f"all {len(wanted)} in the versions that were tried together"


def disk() -> tuple[str, str]:
    """Whether there is room for a run of nano with its checkpoints."""
    free = shutil.disk_usage(paths.ROOT).free
    return ("ok", f"{free / GB:.0f} GB free") if free >= GB else ("fail", "less than 1 GB free: make room")


def memory() -> tuple[str, str]:
    """Whether there is memory for a step of nano, which takes 1.8 GB; a container's limit counts."""
    limit = CGROUP.read_text().strip() if CGROUP.is_file() else "max"
    total = min(psutil.virtual_memory().total, int(limit) if limit.isdigit() else sys.maxsize)
    small = "; nano needs 2 GB. Try smoke, and close what else runs." if total < 2 * GB else ""
    return "note" if small else "ok", f"{total / GB:.1f} GB{small}"


def gpu() -> tuple[str, str]:
    """Whether PyTorch sees a GPU."""
    import torch  # takes seconds to import

    if torch.cuda.is_available():
        seen = torch.cuda.get_device_properties(0)
        return "ok", f"{seen.name}, {seen.total_memory / GB:.0f} GB"
    why = "this PyTorch is built without CUDA" if torch.version.cuda is None else "no driver or no device"
    return "note", f"none for PyTorch ({why}): nano and smoke run on the CPU; for a GPU: requirements/gpu.txt"


def unsloth() -> tuple[str, str]:
    """Whether Unsloth is installed; it is not imported, since that changes other packages."""
    version = _installed("unsloth")
    return ("ok", version) if version else ("note", "not installed: training goes on by plain TRL (engine trl or auto)")


def tex() -> tuple[str, str]:
    """Whether the paper can be built."""
    if shutil.which("latexmk") or shutil.which("tectonic"):
        return "ok", "the paper can be built"
    return "note", "no latexmk and no tectonic: all but the PDF of the paper works; Debian has latexmk"


def cache() -> tuple[str, str]:
    """Whether responses of language models can be recorded."""
    folder = paths.ROOT / "cache"
    if os.access(folder if folder.exists() else paths.ROOT, os.W_OK):
        return "ok", f"{len(list(folder.glob('*.sqlite')))} files of recorded responses in {tidy(folder)}"
    return "fail", f"{tidy(folder)} cannot be written: give yourself the right to."


def server() -> tuple[str, str]:
    """Whether the environment names a server of language models; neither address nor key is shown."""
    address, key = (next((name for name in names if os.environ.get(name)), "") for names in (ADDRESSES, KEYS))
    if address:
        return "ok", f"named by {address}, {f'key in {key}' if key else 'no key'}"
    return "note", f"none in the environment ({ADDRESSES[0]}): templates and recorded responses work, new ones need one"


CHECKS = {"Packages": packages, "Disk": disk, "Memory": memory, "GPU": gpu, "Unsloth": unsloth,
          "TeX": tex, "Cache": cache, "LLM server": server}  # fmt: skip


def of_profile(name: str, has_gpu: bool) -> tuple[str, str]:
    """Whether a profile is sound, and what its steps ask for that is not here."""
    lacking: dict[str, list[str]] = defaultdict(list)
    try:
        for step in profile.load(name).steps:
            for lack in _lacking(step.parameters, has_gpu):
                lacking[lack].append(step.name)
    except MedComfortError as error:
        return "fail", str(error)
    if lacking:
        return "note", "needs " + "; ".join(f"{lack} ({', '.join(steps)})" for lack, steps in lacking.items())
    return "ok", f"will work here: medcomfort reproduce --profile {name}"


def _lacking(given: dict, has_gpu: bool) -> Iterator[str]:
    """What parameters ask for that is not here."""
    source, base = given.get("source", "clinic"), given.get("base", "")
    if given.get("dtype") in ("float16", "bfloat16") and not has_gpu:
        yield f"a GPU for dtype {given['dtype']}"
    if given.get("engine") == "unsloth" and not _installed("unsloth"):
        yield "Unsloth for engine unsloth"
    address = given.get("base_url") or any(os.environ.get(name) for name in ADDRESSES)
    if given.get("rewriter") == "llm" and given["mode"] != "replay" and not address:
        yield f"a server of language models: base_url, or {ADDRESSES[0]} in the environment"
    if source.startswith("hf:"):
        yield f"the data set {source.removeprefix('hf:')}, from the network or the hub's cache"
    elif source != "clinic" and not paths.resolve(source).exists():
        yield f"the file {source}, which is not there"
    if base and not paths.resolve(base).exists() and not _cached(base):
        yield f"the model {base}, from the network"


def _cached(model: str) -> bool:
    """Whether the hub's cache holds the model's configuration."""
    from huggingface_hub import errors, try_to_load_from_cache  # slow to import

    try:
        return isinstance(try_to_load_from_cache(model, "config.json"), str)
    except errors.HFValidationError:  # a mistyped folder
        return False


def _installed(name: str) -> str:
    """The version of a package without its local part (2.13.0+cpu is 2.13.0); empty if it is not installed."""
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return ""
