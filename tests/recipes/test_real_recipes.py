"""Recipes for real models: each has the settings of its source, and its chain runs, scaled down to a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import Store
from pipeline.cli.scaffold import write_example
from pipeline.plan import make_plan
from pipeline.preflight.forecast import fitting_problems, forecasts
from pipeline.recipe import Recipe, load, load_function

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "recipes"
SMALL = ("batch_size=4", "max_steps=1", "epochs=null", "max_length=400", "optim=null", "generation_batch_size=null")
PPO = ("iterations=1", "rollout_batch=4", "max_new_tokens=8", "eval_every=1", "eval_prompts=2", "epochs=1")
LETTERS = """\
def letters(completions, **columns):
    return [float(len(turns[-1]["content"])) for turns in completions]
"""
ROWS = {"messages": "demos.jsonl", "preference": "pairs.jsonl", "prompt": "asks.jsonl"}


def _recipe(name: str, profile: str | None = None, *, overrides: tuple[str, ...] = ()) -> Recipe:
    return load(FOLDER / f"{name}.yaml", profile=profile, overrides=overrides)


def _train(name: str, stage: str, profile: str | None = None) -> Any:
    return _recipe(name, profile).stages[stage].config.train  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "profile", "compute"),
    [
        ("zephyr-7b", None, {"processes": 8, "zero": 3}),
        ("zephyr-7b", "qlora", {"processes": 8, "zero": 0}),
        ("tldr-pythia-1b", None, {"processes": 8, "zero": 0}),
        ("tldr-pythia-1b", "one", {"processes": 1}),
        ("llama-3.1-8b-lora", None, {"processes": 8, "zero": 2}),
        ("llama-3.1-8b-lora", "zero3", {"zero": 3}),
        ("qwen3-8b-lora", None, {"processes": 4, "zero": 2}),
        ("qwen3-8b-lora", "zero3", {"zero": 3, "offload": "optimizer"}),
        ("llama-3.1-70b-qlora", None, {"processes": 4, "zero": 0}),
        ("gsm8k-grpo", None, {"processes": 8, "zero": 2}),
    ],
)
def test_every_profile_plans_without_the_hub(
    name: str, profile: str | None, compute: dict[str, Any], tmp_path: Path
) -> None:
    recipe = _recipe(name, profile)
    plan = make_plan(recipe, Store(tmp_path / "store"))
    assert {stage.status for stage in plan.stages} == {"pending"}
    own = recipe.compute.model_dump()
    assert {key: own[key] for key in compute} == compute
    assert own["precision"] == "bf16"
    share = [stage.config.train.batch_size % own["processes"] for stage in recipe.stages.values() if _batched(stage)]
    assert set(share) <= {0}, "a batch divides over the processes"


LLAMA = {"model_type": "llama", "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
LLAMA |= {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336, "max_position_embeddings": 131072}
QWEN = {"model_type": "qwen3", "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
QWEN |= {"num_hidden_layers": 36, "vocab_size": 151936, "max_position_embeddings": 32768}
PYTHIA = {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 8, "intermediate_size": 8192}
CONFIGS: dict[str, dict[str, Any]] = {
    "mistralai/Mistral-7B-v0.1": {**LLAMA, "model_type": "mistral", "vocab_size": 32000},
    "EleutherAI/pythia-1b-deduped": {**PYTHIA, "model_type": "gpt_neox", "vocab_size": 50304},
    "meta-llama/Llama-3.1-8B": LLAMA,
    "Skywork/Skywork-Reward-V2-Llama-3.1-8B": LLAMA,
    "meta-llama/Llama-3.1-70B": {
        **LLAMA,
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "intermediate_size": 28672,
    },
    "Qwen/Qwen3-8B-Base": {**QWEN, "hidden_size": 4096, "intermediate_size": 12288},
    "Qwen/Qwen3-4B": {**QWEN, "hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True},
}
"""What the `config.json` of each model on the hub says of its size."""


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the hub that has the models' configurations."""
    from huggingface_hub import constants

    for name, config in CONFIGS.items():
        kept = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (kept / "snapshots" / "1").mkdir(parents=True)
        (kept / "refs").mkdir()
        (kept / "refs" / "main").write_text("1")
        (kept / "snapshots" / "1" / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize(
    ("name", "profile", "billions"),
    [
        ("zephyr-7b", None, 7.24),
        ("zephyr-7b", "qlora", 7.24),
        ("tldr-pythia-1b", None, 1.01),
        ("tldr-pythia-1b", "one", 1.01),
        ("llama-3.1-8b-lora", None, 8.03),
        ("llama-3.1-8b-lora", "zero3", 8.03),
        ("qwen3-8b-lora", None, 8.19),
        ("qwen3-8b-lora", "zero3", 8.19),
        ("llama-3.1-70b-qlora", None, 70.55),
        ("gsm8k-grpo", None, 4.02),
    ],
)
@pytest.mark.usefixtures("hub_cache")
def test_every_stage_fits_the_gpus_it_names(name: str, profile: str | None, billions: float, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    plan = make_plan(_recipe(name, profile, overrides=("compute.hardware=h100-80gb",)), store)
    needs, unknown = forecasts(plan, store)
    assert unknown == []
    assert {need.stage.spec.name for need in needs} == {stage.spec.name for stage in plan.stages}
    assert {round(need.shape.parameters / 1e9, 2) for need in needs} == {billions}
    assert list(fitting_problems(plan, store)) == []


def _batched(stage: Any) -> bool:
    return hasattr(getattr(stage.config, "train", None), "batch_size")


def test_zephyrs_numbers_are_the_handbooks() -> None:
    full = {stage: _train("zephyr-7b", stage) for stage in ("sft", "dpo")}
    # config_full.yaml: 16 rows × 1 × 8 GPUs, and 8 × 2 × 8
    assert [(t.batch_size, t.learning_rate) for t in full.values()] == [(128, 2e-5), (128, 5e-7)]
    assert (full["dpo"].beta, full["dpo"].max_length, full["sft"].max_length) == (0.01, 1024, 2048)
    assert {(t.lr_scheduler_type, t.warmup_steps, t.epochs) for t in full.values()} == {("cosine", 0.1, 1)}
    recipe = _recipe("zephyr-7b", "qlora")
    for stage, rate in (("sft", 2e-4), ("dpo", 5e-6)):
        config: Any = recipe.stages[stage].config
        adapter = config.adapter
        assert (adapter.r, adapter.alpha, adapter.dropout, adapter.quantize) == (16, 16, 0.05, "4bit")
        assert config.train.learning_rate == rate


def test_a_million_episodes_are_asked_of_ppo() -> None:
    train = _train("tldr-pythia-1b", "ppo")
    assert abs(train.iterations * train.rollout_batch - 1_000_000) < train.rollout_batch
    assert (train.kl_coef, train.epochs, train.minibatches, train.temperature) == (0.05, 4, 1, 0.7)


@pytest.mark.parametrize(
    ("said", "paid"),
    [
        ("6 * 12 = 72\n#### 72", 1.0),
        ("#### $72.0", 1.0),
        ("#### 7 no, #### 72.", 1.0),
        ("72", 0.0),
        ("#### 720", 0.0),
        ("#### -72", 0.0),
        ("", 0.0),
    ],
)
def test_the_gsm8k_reward_pays_for_the_right_number(said: str, paid: float) -> None:
    correct = load_function("gsm8k_grpo.py:correct", [FOLDER])
    assert correct([[{"role": "assistant", "content": said}]], answer=["6 boxes of 12 … \n#### 72"]) == [paid]
    assert correct([[{"role": "assistant", "content": "#### 1072"}]], answer=["#### 1,072"]) == [1.0]


def test_an_example_brings_the_file_its_rewards_are_in(tmp_path: Path) -> None:
    written = write_example("gsm8k-grpo", tmp_path)
    assert {path.name for path in written.files} == {"gsm8k-grpo.yaml", "gsm8k_grpo.py"}
    assert make_plan(load(written.recipe), Store(tmp_path / "store")).stages


@pytest.fixture(scope="module")
def base(chain: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model without a meaning, but with the context that a hub's chat format needs."""
    from pipeline.models.load.pretrained import load_tokenizer
    from pipeline.models.load.scratch import build_causal_lm
    from pipeline.models.save.artifact import save_model
    from pipeline.stage import ResolvedInput

    source = ResolvedInput(ref="b", name="b", kind="external", fingerprint="b", path=str(chain["base"].path))
    tokenizer, sizes = load_tokenizer(source), {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    spec = {"type": "llama", "num_attention_heads": 4, "max_position_embeddings": 512, **sizes}
    folder = tmp_path_factory.mktemp("hub") / "base"
    save_model(build_causal_lm(spec, tokenizer, 1), tokenizer, folder)
    return folder


def _scaled(recipe: Recipe, chain: Any, model: Path) -> list[str]:
    """Return the `--set` that put a tiny model and tiny data into a recipe and leave the rest as it is."""
    world, judge = chain.recipe.parent, chain["rm"].path
    shapes = {"sft": "messages", "reward": "preference", "dpo": "preference"}
    told = {spec.config.data: shapes.get(spec.kind, "prompt") for spec in reversed(recipe.stages.values())}  # type: ignore[attr-defined]
    texts = ["compute.processes=1", "compute.zero=0", "compute.offload=none", "compute.precision=fp32"]
    texts += ["compute.threads=1", "compute.micro_batch=auto", "compute.activation_checkpointing=false"]
    for name, source in recipe.data.items():
        nulls = ("hub", "subset", "columns", "system")
        texts += [f"data.{name}.{key}=null" for key in nulls if getattr(source, key)]
        texts += [f"data.{name}.hub_split=train", f"data.{name}.held_out=0.2"]
        texts += [f"data.{name}.format=auto", f"data.{name}.path={world / ROWS[told[name]]}"]
    for name, spec in recipe.stages.items():
        config, at = spec.config.model_dump(), f"stages.{name}"
        if "/" in str(config.get("model")):
            texts.append(f"{at}.model={model}")
        if "/" in str(config.get("reward")) and config["reward"]:
            texts.append(f"{at}.reward={judge}")
        if (config.get("adapter") or {}).get("quantize"):
            texts.append(f"{at}.adapter.quantize=null")
        if spec.kind == "evaluate":
            named = [str(model) if "/" in each else each for each in config["models"]]
            texts += [f"{at}.models={json.dumps(named)}", f"{at}.baseline={named[0]}"]
            texts += [f"{at}.limit=4", f"{at}.max_new_tokens=8"]
        else:
            small = PPO if spec.kind == "ppo" else SMALL
            own = [text for text in small if spec.kind == "grpo" or not text.startswith("gener")]
            texts += [f"{at}.train.{text}" for text in own]
        if spec.kind == "grpo":
            texts += [f"{at}.train.max_new_tokens=8", f"{at}.train.num_generations=2"]
            # A random model never has the right number, and rewards that are all the same teach nothing.
            texts.append(f"{at}.reward=[{{function: gsm8k_grpo.py:correct}}, {{function: letters.py:letters}}]")
    return texts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "profile"),
    [
        ("zephyr-7b", None),
        ("llama-3.1-70b-qlora", None),
        ("qwen3-8b-lora", None),
        ("tldr-pythia-1b", "one"),
        ("gsm8k-grpo", None),
    ],
)
def test_the_chain_runs_scaled_down(
    name: str, profile: str | None, chain: Any, base: Path, call: Any, tmp_path: Path
) -> None:
    texts = _scaled(_recipe(name, profile), chain, base)
    (tmp_path / "letters.py").write_text(LETTERS, encoding="utf-8")
    options = [option for text in texts for option in ("--set", text)]
    options += ["--profile", profile] if profile else []
    ended = call("run", FOLDER / f"{name}.yaml", *options, "--store", tmp_path / "store", cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    store = Store(tmp_path / "store")
    kinds = {artifact.manifest.name: artifact.manifest.kind for artifact in store.artifacts()}
    assert kinds == {stage: spec.kind for stage, spec in _recipe(name, profile).stages.items()}
    if "sft" in kinds:
        tuned = store.artifacts("sft")[-1]
        written = (tuned.path / "chat_template.jinja").read_text(encoding="utf-8")
        assert written == _recipe(name).stages["sft"].config.chat_template  # type: ignore[attr-defined]
        assert tuned.manifest.rows.get("dropped", 0) == 0
