"""The model card: the README.md inside every model artifact.

Contains only what the fingerprint determines (configuration, seed, inputs, rows, results), never the time or machine
of the run, so that the same run gives the same bytes. Pure functions from text to text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.artifacts.implicit_reward import REFERENCE_FOLDER, SETTINGS_FILE
from pipeline.artifacts.manifest import DataRecord, InputRecord, Manifest
from pipeline.artifacts.provenance import HUB, adapters_of, base_of
from pipeline.errors import counted

TEMPLATE_FILE = "chat_template.jinja"
_TIMED = re.compile(r"(seconds|runtime|_s|per_second|_mib|memory)$")
_ROW_FATES = {
    "cut": "are longer than the context and were cut at their end",
    "dropped": "do not fit the context and were left out",
    "same": "have two sides of the same tokens and were left out",
    "unrendered": "cannot be rendered by the chat template and were left out",
}
"""What happened to rows, by the key that counts them in the manifest's `rows`."""
_IMPLICIT = f"""\
The folder holds two causal language models: the policy here, and the reference in `{REFERENCE_FOLDER}/`. The reward of
an answer is beta · (log π_policy − reference_weight · log π_reference), summed over its tokens, the end token included
(arXiv:2305.18290, section 5); `{SETTINGS_FILE}` has both numbers. It says which of two answers to one prompt is better;
scores of different prompts have no common zero. A stage of trueup takes the folder as its `reward`. In transformers:
"""
_PURPOSE = {
    "model": "A causal language model",
    "reward": "A reward model: it gives a conversation one number, higher is better",
}


def card(manifest: Manifest, ancestors: Sequence[Manifest], files: Iterable[str]) -> str:
    """Return the Markdown card of a model.

    Args:
        manifest: manifest of the model.
        ancestors: manifests of its direct and indirect ancestors, nearest first.
        files: paths of its payload.
    """
    paths = set(files)
    sections = [
        _front_matter(manifest, ancestors, paths),
        f"# {manifest.name}\n",
        f"{_PURPOSE.get(manifest.makes, 'An artifact')}, made by trueup's `{manifest.kind}` stage"
        f" (fingerprint `{manifest.short}`, seed {manifest.seed}).\n",
        _lineage(manifest, ancestors),
        _data(manifest),
        _metrics(manifest),
        _usage(manifest, paths),
        f"## Configuration\n\n```json\n{json.dumps(_plain(manifest.config), indent=2, sort_keys=True)}\n```\n",
    ]
    return "\n".join(section for section in sections if section)


def _front_matter(manifest: Manifest, ancestors: Sequence[Manifest], files: set[str]) -> str:
    """Return the YAML metadata of a card for the hub. It names no licence: that depends on the data and the base."""
    if "config.json" not in files:
        return ""
    tags = ["trueup", manifest.kind, *(["lora"] if manifest.lineage.get("adapters") else [])]
    entries = [
        "library_name: transformers",
        f"pipeline_tag: {'text-classification' if _has_score_head(manifest, files) else 'text-generation'}",
        *_yaml_list("tags", tags),
        *_yaml_list("datasets", _hub_datasets([manifest, *ancestors])),
    ]
    base = str(manifest.lineage.get("base") or "")
    if base.startswith(HUB):
        entries += [
            f"base_model: {json.dumps(base.removeprefix(HUB).partition('@')[0])}",
            "base_model_relation: finetune",
        ]
    return "---\n" + "\n".join(entries) + "\n---\n"


def _yaml_list(key: str, items: Iterable[str]) -> list[str]:
    lines = [f"  - {json.dumps(item)}" for item in items]
    return [f"{key}:", *lines] if lines else []


def _hub_datasets(chain: Iterable[Manifest]) -> list[str]:
    origins = [origin for each in chain for record in each.data.values() for origin in record.where]
    return sorted({origin.removeprefix(HUB) for origin in origins if origin.startswith(HUB)})


def _lineage(manifest: Manifest, ancestors: Sequence[Manifest]) -> str:
    if not manifest.parents:
        return "## Lineage\n\nTrained from nothing: it has no parent.\n"
    lines = ["## Lineage\n"]
    lines += [f"- `{record.field}`: {_parent(record)}" for record in manifest.inputs]
    lines += [
        f"- further back: `{item.name}` (`{item.kind}`, fingerprint `{item.short}`)"
        for item in ancestors
        if item.key not in {record.key for record in manifest.parents}
    ]
    if manifest.lineage.get("base_name"):
        lines.append(f"- base of the weights: {base_of(manifest.lineage)}")
        lines += [f"- adapter {n}: {each.text}" for n, each in enumerate(adapters_of(manifest.lineage), 1)]
    return "\n".join(lines) + "\n"


def _parent(record: InputRecord) -> str:
    if record.key is None:
        return f"`{record.name}` (from outside this store: `{record.fingerprint}`)"
    return f"`{record.name}` (`{record.kind}`, fingerprint `{record.fingerprint[:12]}`)"


def _data(manifest: Manifest) -> str:
    if not manifest.data:
        return ""
    lines = ["## Data\n", "| field | rows | left out | digest |", "|---|---:|---:|---|"]
    lines += [
        f"| {field} | {_rows(manifest, record)} | {record.rejected:,} | `{record.digest[:12]}` |"
        for field, record in manifest.data.items()
    ]
    told = [f"- {count:,} {_ROW_FATES[name]}" for name, count in manifest.rows.items() if count and name in _ROW_FATES]
    if told:
        learnt = (
            f"Of {counted(manifest.rows['train'], 'row')} to learn from:"
            if "train" in manifest.rows
            else "Of the rows:"
        )
        lines += ["", learnt, "", *told]
    return "\n".join(lines) + "\n"


def _rows(manifest: Manifest, record: DataRecord) -> str:
    used = manifest.rows_used(record)
    return f"{record.rows:,}" if used == record.rows else f"{used:,} of {record.rows:,}"


def _metrics(manifest: Manifest) -> str:
    shown = {key: value for key, value in manifest.metrics.items() if not _TIMED.search(key)}
    if not shown:
        return ""
    lines = ["## Results\n", "| metric | value |", "|---|---:|"]
    lines += [f"| {_cell(key)} | {value:.6g} |" for key, value in sorted(shown.items())]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Escape text for a Markdown table cell: a metric's name may contain a user's group of rows."""
    return " ".join(text.split()).replace("|", r"\|")


def _usage(manifest: Manifest, files: set[str]) -> str:
    if "config.json" not in files:
        return ""
    if SETTINGS_FILE in files:
        return "## How to use\n\n" + _IMPLICIT + "\n" + _python(_comparing(files))
    code = [*_loading(manifest), *(_scoring(files) if manifest.makes == "reward" else _generating(files))]
    text = "## How to use\n\n" + _python(code)
    if manifest.makes == "model":
        text += f"\nOr talk to it: `trueup chat {manifest.name}@{manifest.short}`.\n"
    if "adapter/adapter_config.json" in files:
        text += "\nThe weights here are merged; the LoRA adapter alone is in `adapter/`. " + _adapter(manifest)
    return text


def _python(lines: Iterable[str]) -> str:
    return "```python\n" + "\n".join(lines) + "\n```\n"


def _has_score_head(manifest: Manifest, files: set[str]) -> bool:
    """Return whether the model gives a score by a head of its own, as an implicit reward does not."""
    return manifest.makes == "reward" and SETTINGS_FILE not in files


def _comparing(files: set[str]) -> list[str]:
    """Return example code that scores an answer by the log-ratio of policy and reference."""
    if TEMPLATE_FILE in files:
        texts = [
            'asked = [{"role": "user", "content": "Hello!"}]',
            'answered = [*asked, {"role": "assistant", "content": "Hello, how are you?"}]',
            "prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)",
            "whole = tokenizer.apply_chat_template(answered, tokenize=False).rstrip()",
        ]
    else:
        texts = ['prompt, whole = "Hello,", "Hello, how are you?" + tokenizer.eos_token']
    return [
        "import json",
        "",
        "import torch",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'path = "."  # this folder',
        "tokenizer = AutoTokenizer.from_pretrained(path)",
        "policy = AutoModelForCausalLM.from_pretrained(path)",
        f'reference = AutoModelForCausalLM.from_pretrained(path + "/{REFERENCE_FOLDER}")',
        f'settings = json.load(open(path + "/{SETTINGS_FILE}"))',
        *texts,
        'first = tokenizer(prompt, add_special_tokens=False)["input_ids"]',
        'ids = torch.tensor([first + tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"]])',
        "",
        "",
        "@torch.no_grad()",
        "def logprob(model):",
        "    logprobs = model(ids).logits[0, :-1].log_softmax(-1)",
        "    return logprobs.gather(1, ids[0, 1:, None])[len(first) - 1 :].sum().item()",
        "",
        "",
        'ratio = logprob(policy) - settings["reference_weight"] * logprob(reference)',
        'print(settings["beta"] * ratio)',
    ]


def _loader(manifest: Manifest) -> str:
    return "ModelForSequenceClassification" if manifest.makes == "reward" else "ModelForCausalLM"


def _loading(manifest: Manifest) -> list[str]:
    loader = f"Auto{_loader(manifest)}"
    names = ", ".join(sorted(("AutoTokenizer", loader)))
    return [
        f"from transformers import {names}",
        "",
        'path = "."  # this folder',
        "tokenizer = AutoTokenizer.from_pretrained(path)",
        f"model = {loader}.from_pretrained(path)",
    ]


def _generating(files: set[str]) -> list[str]:
    """Return example code for generation: an answer with a chat template, else the continuation of a text."""
    if TEMPLATE_FILE in files:
        code = [
            'messages = [{"role": "user", "content": "Hello! Who are you?"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
        ]
    else:
        code = ['inputs = tokenizer("Once upon a time", return_tensors="pt", return_token_type_ids=False)']
    return [
        *code,
        "output = model.generate(**inputs, max_new_tokens=32)",
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]


def _scoring(files: set[str]) -> list[str]:
    """Return example code for scoring: an answer with a chat template, else a text."""
    if TEMPLATE_FILE in files:
        code = [
            "messages = [",
            '    {"role": "user", "content": "Hello!"},',
            '    {"role": "assistant", "content": "Hello, how are you?"},',
            "]",
            'inputs = tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt")',
        ]
    else:
        code = ['inputs = tokenizer("Hello, how are you?", return_tensors="pt", return_token_type_ids=False)']
    return [*code, "print(model(**inputs).logits[0, 0].item())"]


def _adapter(manifest: Manifest) -> str:
    """Return example code for loading the adapter on the weights it was trained on, if these are known."""
    parent = next((r for r in manifest.inputs if r.fingerprint == manifest.lineage.get("parent")), None)
    if parent is None:
        return "\n"
    if parent.key is None and not parent.fingerprint.startswith(HUB):
        return (
            f"It was trained on the folder `{parent.name}`, which is not in this store: load that, then"
            ' `peft.PeftModel.from_pretrained(model, "adapter")`.\n'
        )
    origin = "from the hub" if parent.key is None else "the sibling artifact, which `trueup pull` brings along"
    loader, labels = f"AutoPeft{_loader(manifest)}", ", num_labels=1" if manifest.makes == "reward" else ""
    code = [
        f"from peft import {loader}",
        "",
        f'adapted = {loader}.from_pretrained("adapter"{labels})  # in this folder',
    ]
    return f"It goes on `{parent.name}`, {origin}:\n\n" + _python(code)


def _plain(value: object) -> Any:
    """Return ``value`` as JSON data."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)
