"""A profile of one's own: a copy of another with one's corpus, model and rewriter put in, its comments kept."""

import io
import json
import re
import urllib.request
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from medcomfort_utils import paths, profile
from medcomfort_utils.llm.server import checked_address
from medcomfort_utils.paths import MedComfortError, tidy
from medcomfort_utils.rewrite import sources

# What `rewrite` keeps of the profile that is copied; all else hangs on the corpus and on who rewrites.
KEPT = ("limit", "emotions", "seed", "temperature", "max_tokens", "concurrency")
HEADER = """\
# Made by `medcomfort new-profile --from {origin}`. The section `rewrite` and what is marked "yours" were set. All other
# values are those of {origin}, chosen there for another corpus and model: check them, learning rates above all.
"""


def new_profile(
    origin: str,
    source: str,
    model: str,
    llm: str = "",
    llm_model: str = "",
    fields: tuple[str, str] = ("", ""),
    name: str = "",
) -> Path:
    """Write notebooks/profiles/NAME.yaml, a copy of `origin` on one's own `source` and base `model`, and validate it.

    `source`: a file or hf:owner/name@REVISION. `model`: a folder or a hub id, ID@REVISION. `llm`: the address of the
    server that rewrites; empty takes the templates. `llm_model`: what the server calls its model; empty asks it.
    `fields`: those of question and answer; empty detects them. Raises MedComfortError for whatever would fail later.
    """
    copied = profile.load(origin)
    name = name or re.sub(r"[^\w.-]+", "-", Path(source.partition("@")[0]).stem).strip("-.")
    path = paths.PROFILES / f"{name}.yaml"
    if not profile.FILE_NAME.fullmatch(name):
        raise MedComfortError(f"--name {name!r} names files, so it may hold only letters, digits, '_', '-' and '.'.")
    if path.exists():
        raise MedComfortError(f"{tidy(path)} exists: give another --name, or remove it.")
    text = paths.resolve(copied.profile).read_text(encoding="utf-8")
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 10**6
    told = yaml.load(text)
    rewrite, base = _corpus(source, fields) | _rewriter(llm, llm_model, name), _base(model)
    rewrite |= {key: value for key, value in (told.get("rewrite") or {}).items() if key in KEPT}
    _put(told, {"name": name, "description": f"{rewrite['source']}, {base['base']}; all else as in {copied.name}."})
    told["rewrite"] = CommentedMap(rewrite)
    cell = next(c.source for c in profile.read_notebook(paths.NOTEBOOKS / "01_rewrite.ipynb").cells
                if "parameters" in c.metadata.get("tags", []))  # fmt: skip
    for key, comment in re.findall(r"^(\w+): .*?  # (.+)$", cell, re.MULTILINE):
        if key in rewrite:
            told["rewrite"].yaml_add_eol_comment(comment, key)
    if not told.get("train"):
        told.pop("train", None)
        told.insert(list(told).index("rewrite") + 1, "train", CommentedMap())
    _put(told["train"], base)
    written = io.StringIO()
    yaml.dump(told, written)
    with paths.replacing(path) as temporary:
        _, _, own = ("\n" + written.getvalue()).partition("\nname:")  # before it, what `origin` says of itself
        temporary.write_text(f"{HEADER.format(origin=copied.name)}name:{own}", encoding="utf-8")
        profile.load(temporary)
    return path


def _put(section: CommentedMap, values: dict[str, str]) -> None:
    """Set values and mark them; an empty one takes the place of an old one only."""
    for place, (key, value) in enumerate(values.items()):
        if key in section:
            section[key] = value
        elif value:
            section.insert(place, key, value)
        if key in section and not section.fa.flow_style():
            section.yaml_add_eol_comment("yours", key)


def _at_revision(name: str) -> tuple[str, str]:
    """`ID@REVISION` as its two parts; a file or folder may have an @ in its name."""
    return (name, "") if _place(name).exists() else name.partition("@")[::2]


def _place(name: str) -> Path:
    """Where a path given by a person lies: in the folder they are in, else below the repository's root."""
    here = Path(name).expanduser().resolve()
    return here if here.exists() else paths.resolve(name)


def _corpus(source: str, fields: tuple[str, str]) -> dict[str, Any]:
    """The parameters that name the corpus, after one dialogue could be read from it."""
    source, revision = _at_revision(source)
    source = tidy(_place(source)) if _place(source).exists() else source
    given = {"source": source, "revision": revision, "question_field": fields[0], "answer_field": fields[1]}
    given = {key: value for key, value in given.items() if value}
    if source != "clinic":
        next(iter(sources.open_source(**given)))
    return given


def _rewriter(llm: str, model: str, name: str) -> dict[str, Any]:
    if not llm:
        return {"rewriter": "template"}
    address = checked_address(llm)
    told = {"rewriter": "llm", "base_url": address, "model": model or _served(address), "mode": "auto"}
    return told | {"responses": "", "cache": f"cache/{name}.sqlite"}


def _served(address: str) -> str:
    """The one model that a server has. No key is sent: a server that wants one needs --llm-model."""
    request = f"{address.rstrip('/')}/models"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            served = [each["id"] for each in json.loads(answer.read(2**20))["data"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MedComfortError(f"{request} does not tell which model is served ({error}); give --llm-model.") from error
    if len(served) != 1:
        told = ", ".join(map(str, served[:8])) or "none"
        raise MedComfortError(f"{request} tells of {len(served)} models ({told}); choose one by --llm-model.")
    return str(served[0])


def _base(model: str) -> dict[str, str]:
    """The parameters that name the base model: a folder that holds one, or what looks like a hub id."""
    model, revision = _at_revision(model)
    folder = _place(model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise MedComfortError(f"--model: {tidy(folder)} has no config.json, so it is no model.")
        return {"base": tidy(folder), "revision": ""}
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model):
        raise MedComfortError(f"--model: {model} is neither a folder nor a hub id such as owner/name.")
    return {"base": model, "revision": revision}
