"""The model card: says what follows from the fingerprint, and is the same bytes for the same run."""

from __future__ import annotations

from pipeline.artifacts.manifest import DataRecord


def model(make, store, name, which="1", **fields):
    return make(store, name, which, files={"config.json": b"{}", "model.safetensors": b"w"}, makes="model", **fields)


def test_a_model_carries_its_card(store, make):
    base = model(make, store, "base")
    sft = model(make, store, "sft", parents=(base,))
    data = {"data": DataRecord(source="pairs", digest="0123456789abcdef", rows=1200, rejected=3)}
    metrics = {"loss": 0.123456789, "train_runtime": 12.3}
    dpo = model(make, store, "dpo", parents=(sft,), data=data, metrics=metrics, config={"train": {"beta": 0.1}})
    text = (dpo.path / "README.md").read_text()
    assert f"- `model`: `sft` (`sft`, fingerprint `{sft.manifest.short}`)" in text
    assert f"- further back: `base` (`sft`, fingerprint `{base.manifest.short}`)" in text
    assert "| data | 1,200 | 3 | `0123456789ab` |" in text
    assert "| loss | 0.123457 |" in text
    assert "runtime" not in text  # how long it took is not part of what it is
    assert "AutoModelForCausalLM.from_pretrained(path)" in text
    assert '"beta": 0.1' in text
    assert "README.md" in dpo.manifest.files


def test_a_group_of_rows_keeps_to_its_cell(store, make):
    reward = make(store, "rm", files={"config.json": b"{}"}, makes="reward", metrics={"accuracy/a|b\nc": 0.5})
    assert r"| accuracy/a\|b c | 0.5 |" in (reward.path / "README.md").read_text().splitlines()


def test_a_reward_model_is_used_as_a_classifier(store, make):
    reward = make(store, "rm", files={"config.json": b"{}"}, makes="reward")
    assert "AutoModelForSequenceClassification" in (reward.path / "README.md").read_text()


def test_time_and_place_do_not_change_the_digest(tmp_path, make):
    from pipeline.artifacts import Store

    digests = set()
    for turn in range(2):
        store = Store(tmp_path / str(turn))
        for extra in range(turn):  # other versions in the store, other seconds, another machine, other folders
            model(make, store, "sft", f"extra{extra}")
        data = {"data": DataRecord(source="x", digest="d", rows=1, where=[f"/{turn}/file.jsonl"])}
        digests.add(
            model(
                make,
                store,
                "sft",
                data=data,
                seconds=turn,
                environment={"host": turn},
                recipe={"file": f"/{turn}.yaml"},
            ).manifest.digest
        )
    assert len(digests) == 1


def test_a_report_has_no_card(store, make):
    assert not (make(store).path / "README.md").exists()


def test_it_says_what_became_of_the_rows_that_were_not_learnt_from(store, make):
    data = {"data": DataRecord(source="pairs", digest="0123456789abcdef", rows=2299, rejected=0)}
    rows = {"train": 2299, "held_out": 0, "dropped": 1201, "same": 3}
    text = (model(make, store, "dpo", data=data, rows=rows).path / "README.md").read_text()
    assert "Of 2,299 rows to learn from:" in text
    assert "- 1,201 do not fit the context and were left out" in text
    assert "- 3 have two sides of the same tokens and were left out" in text
    assert "cannot be rendered" not in text
