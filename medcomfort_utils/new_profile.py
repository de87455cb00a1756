"""A profile of one's own: a copy of another with one's corpus, model and rewriter put in, its comments kept.

The YAML is edited as text, at the places that its syntax tree names, since loading and dumping would lose the comments.
"""

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from medcomfort_utils import paths, profile
from medcomfort_utils.llm.server import checked_address
from medcomfort_utils.paths import MedComfortError, tidy
from medcomfort_utils.profile import FILE_NAME, Run, Step
from medcomfort_utils.rewrite import sources

REWRITE = "01_rewrite"
# What 01_rewrite keeps of the profile that is copied; all else hangs on the corpus and on who rewrites.
KEPT = ("limit", "emotions", "seed", "temperature", "max_tokens", "concurrency", "out_dir")
YOURS = "# yours"
HEADER = """\
# Made by `medcomfort new-profile --from {origin}`. The step 01_rewrite and what is marked "yours" were set. All other
# values are those of {origin}, chosen there for another corpus and model: check them, learning rates above all.
"""
Edits = dict[tuple[int, int], str]  # (from, to) in the text -> what stands there instead
_ANCHOR = re.compile(r"(?:&\S+\s+)?")
_COMMENT = re.compile(r"^(\w+): .*?  # (.+)$", re.MULTILINE)


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
    if not FILE_NAME.fullmatch(name):
        raise MedComfortError(f"--name {name!r} names files, so it may hold only letters, digits, '_', '-' and '.'.")
    if path.exists():
        raise MedComfortError(f"{tidy(path)} exists: give another --name, or remove it.")
    given = _corpus(*_at_revision(source), fields) | _rewriter(llm, llm_model, name)
    text = _edited(copied, name, given, _base(*_at_revision(model)))
    with paths.replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        profile.load(temporary)
    return path


def _at_revision(name: str) -> tuple[str, str]:
    """`ID@REVISION` as its two parts; a file or folder may have an @ in its name."""
    return (name, "") if _place(name).exists() else name.partition("@")[::2]


def _place(name: str) -> Path:
    """Where a path given by a person lies: in the folder they are in, else below the repository's root."""
    here = Path(name).expanduser().resolve()
    return here if here.exists() else paths.resolve(name)


def _corpus(source: str, revision: str, fields: tuple[str, str]) -> dict[str, Any]:
    """The parameters that name the corpus, after one dialogue could be read from it."""
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


def _base(model: str, revision: str) -> dict[str, str]:
    """The parameters that name the base model: a folder that holds one, or what looks like a hub id."""
    folder = _place(model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise MedComfortError(f"--model: {tidy(folder)} has no config.json, so it is no model.")
        return {"base": tidy(folder), "revision": ""}
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model):
        raise MedComfortError(f"--model: {model} is neither a folder nor a hub id such as owner/name.")
    return {"base": model, "revision": revision}


def _edited(copied: Run, name: str, given: dict[str, Any], base: dict[str, str]) -> str:
    """The profile's text with its head and its first step written anew, and the base put into all later steps."""
    text = paths.resolve(copied.profile).read_text(encoding="utf-8")
    root = yaml.compose(text, yaml.SafeLoader)
    about = {"name": name, "description": f"{given['source']}, {base['base']}; all else as in {copied.name}."}
    edits = _set(root, about, text) | {(0, root.value[0][0].start_mark.index): HEADER.format(origin=copied.name)}
    for entry in _items(root)["steps"].value:
        stem = Path(_items(entry)["notebook"].value).stem
        step = next(step for step in copied.steps if step.notebook.stem == stem)
        if stem == REWRITE:
            edits |= _rewriting(_parameters(entry, copied), step, given, text)
        elif "base" in profile.declared(step.notebook):
            edits |= _rebased(_parameters(entry, copied), base, text)
    for (start, end), new in sorted(edits.items(), reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _items(node: yaml.MappingNode) -> dict[str, yaml.Node]:
    return {key.value: value for key, value in node.value}


def _parameters(entry: yaml.MappingNode, copied: Run) -> yaml.MappingNode:
    node = _items(entry).get("parameters")
    if not isinstance(node, yaml.MappingNode) or not node.value:
        stem = _items(entry)["notebook"].value
        raise MedComfortError(f"{copied.profile}: {stem} has no parameters there, so none can be set; copy another.")
    return node


def _rewriting(node: yaml.MappingNode, step: Step, given: dict[str, Any], text: str) -> Edits:
    """All parameters of 01_rewrite anew, each with the comment that it has in the notebook."""
    told = given | {key: step.given[key] for key in KEPT if key in step.given}
    cells = profile.read_notebook(step.notebook).cells
    comments = dict(_COMMENT.findall(next(c.source for c in cells if "parameters" in c.metadata.get("tags", []))))
    lines = [f"{key}: {_scalar(value)}  # {comments[key]}" for key, value in told.items()]
    if node.flow_style:
        start = len(text[: text.index("{", node.start_mark.index)].rstrip())
        return {(start, node.end_mark.index): "".join(f"\n{' ' * 6}{line}" for line in lines)}
    first, last = node.value[0][0].start_mark, node.value[-1][1].end_mark
    return {(first.index, _line_end(text, last.index)): f"\n{' ' * first.column}".join(lines)}


def _rebased(node: yaml.MappingNode, base: dict[str, str], text: str) -> Edits:
    """The base of a step, where it is given or inherited (`<<`); one that goes on from a model of the run stays."""
    inherited = [value for key, value in node.value if key.value == "<<" and isinstance(value, yaml.MappingNode)]
    holder = next((each for each in (node, *inherited) if "base" in _items(each)), node)
    goes_on = "base" in _items(holder) and _items(holder)["base"].value.startswith("${run}")
    return {} if goes_on else _set(holder, base, text)


def _set(node: yaml.MappingNode, values: dict[str, str], text: str) -> Edits:
    """Values put in the place of the old ones, or before the first key; an empty one is not added.

    An anchor (`&base`) stays, so that what refers to it (`*base`) takes the new value.
    """
    items, first, edits = _items(node), node.value[0][0].start_mark, {}
    for key, value in values.items():
        if key in items:
            start, end = items[key].start_mark.index, items[key].end_mark.index
            anchor = _ANCHOR.match(text, start)[0]
            edits[start, end if node.flow_style else _line_end(text, end)] = anchor + _marked(_scalar(value), node)
    new = [_marked(f"{key}: {_scalar(value)}", node) for key, value in values.items() if value and key not in items]
    between = ", " if node.flow_style else f"\n{' ' * first.column}"
    return edits | ({(first.index, first.index): "".join(each + between for each in new)} if new else {})


def _marked(text: str, node: yaml.MappingNode) -> str:
    return text if node.flow_style else f"{text}  {YOURS}"


def _scalar(value: Any) -> str:
    """As YAML and JSON both read it."""
    return json.dumps(value, ensure_ascii=False)


def _line_end(text: str, index: int) -> int:
    end = text.find("\n", index)
    return len(text) if end < 0 else end
