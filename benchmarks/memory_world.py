"""A chain of stages whose memory is large enough to measure, each beside the same stage on a minute model."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

LARGE = "type: llama, hidden_size: 512, num_hidden_layers: 6, num_attention_heads: 8, intermediate_size: 1536"
SMALL = "type: llama, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32"
WIDE = "type: llama, hidden_size: 128, num_hidden_layers: 1, num_attention_heads: 4, intermediate_size: 256"
LONG = "type: llama, hidden_size: 256, num_hidden_layers: 4, num_attention_heads: 8, intermediate_size: 768"
QWEN = (
    "type: qwen2, hidden_size: 320, num_hidden_layers: 5, num_attention_heads: 10, num_key_value_heads: 2, "
    "intermediate_size: 1200"
)
NEOX = "type: gpt_neox, hidden_size: 448, num_hidden_layers: 5, num_attention_heads: 7, intermediate_size: 1792"
GPT2 = "type: gpt2, n_embd: 384, n_layer: 6, n_head: 6, n_positions: 1024"
RECIPE = f"""
name: memory
data:
  corpus: {{path: corpus.jsonl}}
  demos: {{path: demos.jsonl}}
  pairs: {{path: pairs.jsonl}}
  asks: {{path: asks.jsonl}}
stages:
  tokenizer: {{kind: tokenizer, data: corpus, vocab_size: 1500}}
  small: {{kind: pretrain, data: corpus, tokenizer: tokenizer, model: {{{SMALL}, max_position_embeddings: 4096}},
    train: {{batch_size: 4, max_steps: 3, max_length: 8}}}}
  base: {{kind: pretrain, data: corpus, tokenizer: tokenizer, model: {{{LARGE}, max_position_embeddings: 4096}},
    train: {{batch_size: 4, max_steps: 3, max_length: 64}}}}
  wide: {{kind: pretrain, data: corpus, tokenizer: ./wide-tokenizer, model: {{{WIDE}, max_position_embeddings: 4096}},
    train: {{batch_size: 4, max_steps: 3, max_length: 192}}}}
  long: {{kind: pretrain, data: corpus, tokenizer: tokenizer, model: {{{LONG}, max_position_embeddings: 4096}},
    train: {{batch_size: 1, max_steps: 3, max_length: 4096}}}}
  qwen: {{kind: pretrain, data: corpus, tokenizer: tokenizer, model: {{{QWEN}, max_position_embeddings: 4096}},
    train: {{batch_size: 8, max_steps: 3, max_length: 256}}}}
  neox: {{kind: pretrain, data: corpus, tokenizer: tokenizer, model: {{{NEOX}, max_position_embeddings: 4096}},
    train: {{batch_size: 8, max_steps: 6, max_length: 256}}}}
  gpt2: {{kind: pretrain, data: corpus, tokenizer: tokenizer, model: {{{GPT2}}},
    train: {{batch_size: 2, max_steps: 6, max_length: 512}}}}
  checkpointed: {{kind: pretrain, data: corpus, tokenizer: tokenizer, model: {{{LARGE}, max_position_embeddings: 4096}},
    train: {{batch_size: 8, max_steps: 2, max_length: 512}}, compute: {{activation_checkpointing: true}}}}
  small-lora: {{kind: sft, data: demos, model: small, adapter: {{r: 8}},
    train: {{batch_size: 1, max_steps: 3, max_length: 8}}}}
  lora: {{kind: sft, data: demos, model: base, adapter: {{r: 8}},
    train: {{batch_size: 8, max_steps: 3, max_length: 256}}}}
  lora-again: {{kind: sft, data: demos, model: base, adapter: {{r: 8}}, seed: 1,
    train: {{batch_size: 8, max_steps: 3, max_length: 256}}}}
  lora-thrice: {{kind: sft, data: demos, model: base, adapter: {{r: 8}}, seed: 2,
    train: {{batch_size: 8, max_steps: 3, max_length: 256}}}}
  small-dpo: {{kind: dpo, data: pairs, model: small, train: {{batch_size: 1, max_steps: 3}}}}
  dpo: {{kind: dpo, data: pairs, model: base, train: {{batch_size: 8, max_steps: 3}}}}
  sft: {{kind: sft, data: demos, model: base, train: {{batch_size: 8, max_steps: 3, max_length: 256}}}}
  small-rm: {{kind: reward, data: pairs, model: small, train: {{batch_size: 1, max_steps: 3}}}}
  rm: {{kind: reward, data: pairs, model: base, train: {{batch_size: 8, max_steps: 3}}}}
  ppo: {{kind: ppo, data: asks, model: base, reward: small-rm, train: {{iterations: 2, rollout_batch: 16,
    max_new_tokens: 128, eval_every: 5, eval_prompts: 2, epochs: 1, minibatches: 1, token_budget: 2048}}}}
  separate: {{kind: ppo, data: asks, model: base, reward: small-rm, layout: separate, train: {{iterations: 2,
    rollout_batch: 16, max_new_tokens: 128, eval_every: 5, eval_prompts: 2, epochs: 1, minibatches: 1,
    token_budget: 2048}}}}
compute: {{threads: 1, precision: fp32, checkpoint_every_s: 1000}}
"""


def write_recipe(folder: Path) -> Path:
    """Write the recipe, its data and a tokenizer of 50,000 words, and return the recipe's path."""
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    letters, draw = "abcdefghijklmnopqrstuvwxyz", random.Random(1)

    def words(count: int) -> str:
        return " ".join(draw.choice(letters) + draw.choice(letters) for _ in range(count))

    def save(name: str, rows: list[dict[str, object]]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    save("corpus.jsonl", [{"text": words(6000)} for _ in range(12)])
    ask = {"role": "user", "content": "ab cd"}
    save("demos.jsonl", [{"messages": [ask, {"role": "assistant", "content": words(400)}]} for _ in range(24)])
    save("pairs.jsonl", [{"prompt": words(30), "chosen": words(60), "rejected": words(60)} for _ in range(24)])
    save("asks.jsonl", [{"prompt": words(30)} for _ in range(40)])
    vocab = {word: number for number, word in enumerate(["[eos]", "[unk]", *(f"w{n}" for n in range(49_998))])}
    built = Tokenizer(models.WordLevel(vocab, unk_token="[unk]"))
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    wide = PreTrainedTokenizerFast(tokenizer_object=built, eos_token="[eos]", unk_token="[unk]", pad_token="[eos]")
    wide.save_pretrained(folder / "wide-tokenizer")
    return folder / "recipe.yaml"
