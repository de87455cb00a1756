"""A profile of one's own: a copy of another with one's corpus, model and rewriter put in, its comments kept."""

import io
import json
import re
import urllib.request
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from medcomfort_utils import paths, profile, schema
from medcomfort_utils.llm.server import checked_address
from medcomfort_utils.paths import MedComfortError, tidy
from medcomfort_utils.rewrite import sources

# What `rewrite` keeps of the profile that is copied; all else hangs on the corpus and on who rewrites.
KEPT = ("limit", "emotions", "seed", "temperature", "max_tokens", "concurrency")
HEADER = """\
# Made by `medcomfort new-profile --from {origin}`. The section `rewrite`, and base and revision in `train`, are yours.
# All other values are those of {origin}, chosen for another corpus and model: check them, learning rates above all.
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
    if not re.fullmatch(schema.FILE_NAME, name):
        raise MedComfortError(f"--name {name!r} names files, so it may hold only letters, digits, '_', '-' and '.'.")
    if path.exists():
        raise MedComfortError(f"{tidy(path)} exists: give another --name, or remove it.")
    editor = YAML()
    editor.preserve_quotes, editor.width = True, 10**6
    told = editor.load(paths.resolve(copied.profile).read_text(encoding="utf-8"))
    rewrite, base = _corpus(source, fields) | _rewriter(llm, llm_model, name), _base(model)
    kept = {key: value for key, value in (told.get("rewrite") or {}).items() if key in KEPT}
    told["name"], told["rewrite"] = name, CommentedMap(rewrite | kept)
    cells = schema.code_cells(paths.NOTEBOOKS / "01_rewrite.ipynb")
    for key, comment in re.findall(r"^(\w+): .*?  # (.+)$", "\n".join(cell["source"] for cell in cells), re.MULTILINE):
        if key in rewrite:
            told["rewrite"].yaml_add_eol_comment(comment, key)
    told["description"] = f"{rewrite['source']}, {base['base']}; all else as in {copied.name}."
    if not told.get("train"):
        told.pop("train", None)
        told.insert(list(told).index("rewrite") + 1, "train", CommentedMap())
    told["train"].update({key: value for key, value in base.items() if value or key in told["train"]})
    written = io.StringIO()
    editor.dump(told, written)
    with paths.replacing(path) as temporary:
        _, _, own = ("\n" + written.getvalue()).partition("\nname:")  # before it, what `origin` says of itself
        temporary.write_text(f"{HEADER.format(origin=copied.name)}name:{own}", encoding="utf-8")
        profile.load(temporary)
    return path


def _place(name: str) -> tuple[Path, str]:
    """Where `PATH` or `ID@REVISION` would lie, from the folder a person is in or the repository's root; revision."""
    for path in (Path(name).expanduser().resolve(), paths.resolve(name)):
        if path.exists():  # it may have an @ in its name
            return path, ""
    return paths.resolve(name), name.partition("@")[2]


def _corpus(source: str, fields: tuple[str, str]) -> dict[str, str]:
    """The parameters that name the corpus, after one dialogue could be read from it."""
    path, revision = _place(source)
    named = tidy(path) if path.exists() else source.removesuffix(f"@{revision}")
    given = {"source": named, "revision": revision, "question_field": fields[0], "answer_field": fields[1]}
    given = {key: value for key, value in given.items() if value}
    if named != "clinic":
        next(iter(sources.open_source(**given)))
    return given


def _rewriter(llm: str, model: str, name: str) -> dict[str, str]:
    if not llm:
        return {"rewriter": "template"}
    address = checked_address(llm)
    return {"rewriter": "llm", "base_url": address, "model": model or _served(address), "mode": "auto",
            "responses": "", "cache": f"cache/{name}.sqlite"}  # fmt: skip


def _served(address: str) -> str:
    """The one model that a server has. No key is sent: a server that wants one needs --llm-model."""
    request = f"{address.rstrip('/')}/models"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            served = [str(each["id"]) for each in json.loads(answer.read(2**20))["data"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MedComfortError(f"{request} does not tell which model is served ({error}); give --llm-model.") from error
    if len(served) != 1:
        told = ", ".join(served[:8]) or "none"
        raise MedComfortError(f"{request} tells of {len(served)} models ({told}); choose one by --llm-model.")
    return served[0]


def _base(model: str) -> dict[str, str]:
    """The parameters that name the base model: a folder that holds one, or what looks like a hub id."""
    folder, revision = _place(model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise MedComfortError(f"--model: {tidy(folder)} has no config.json, so it is no model.")
        return {"base": tidy(folder), "revision": ""}
    model = model.removesuffix(f"@{revision}")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model):
        raise MedComfortError(f"--model: {model} is neither a folder nor a hub id such as owner/name.")
    return {"base": model, "revision": revision}
