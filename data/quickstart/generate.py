"""Write the files of the quickstart world: ``python data/quickstart/generate.py [--out FOLDER]``.

Standard library only, seeded, and deterministic: the same files, byte for byte, on every machine.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gold as taste
from people import chance
from world import (
    ALL_WORDS,
    ATTRIBUTES,
    OPPOSITES,
    PEOPLE,
    SEED,
    SUM_NUMBERS,
    TASKS,
    Question,
    Split,
    ask,
    state_fact,
    state_opposite,
    state_sum,
)

Row = dict[str, Any]

SIZES = {
    "corpus_chats": 10600,
    "corpus_prose": 1700,
    "corpus_remarks": 5700,
    "corpus_spelling": 1000,
    "demonstrations": 350,
    "preferences": 2000,
    "preferences_test": 500,
    "prompts": 1550,
}
HELD_OUT_PROMPTS: dict[Split, dict[str, int]] = {
    "dev": dict(zip(TASKS, (20, 10, 14, 42, 42, 46, 42, 42, 42), strict=True)),
    "test": dict(zip(TASKS, (28, 22, 24, 71, 71, 71, 71, 71, 71), strict=True)),
}
READING_WEIGHTS = dict(zip(TASKS, (1.0, 1.1, 1.1, 2.1, 1.5, 1.7, 0.9, 1.2, 0.8), strict=True))
"""How often each task is asked in the corpus: what takes longest to learn, most."""
TASK_WEIGHTS = dict(zip(TASKS, (1.0, 0.8, 0.8, 2.0, 1.6, 1.8, 1.1, 1.5, 0.9), strict=True))
"""How often it is asked after that: what has few contents, seldom, or they would be learnt by heart."""


@dataclass(frozen=True)
class Writer:
    """Somebody who answers, as probabilities.

    Attributes:
        share: of the answers that are theirs.
        right: answers correctly.
        refuses: refuses what should be refused.
        over_refuses: refuses what need not be.
        fillers: adds 0, 1, 2 sentences that say nothing.
        polite: adds 0, 1, 2 polite sentences.
        rude: adds 0, 1, 2 rude sentences, if none polite.
    """

    share: float
    right: float
    refuses: float
    over_refuses: float = 0.0
    fillers: tuple[float, float, float] = (1.0, 0.0, 0.0)
    polite: tuple[float, float, float] = (1.0, 0.0, 0.0)
    rude: tuple[float, float, float] = (1.0, 0.0, 0.0)


WRITERS = {
    "careful": Writer(0.3, right=0.97, refuses=0.97, polite=(0.1, 0.7, 0.2)),
    "chatty": Writer(0.35, right=0.85, refuses=0.6, over_refuses=0.1, fillers=(0.1, 0.5, 0.4), polite=(0.8, 0.2, 0.0)),
    "hasty": Writer(0.35, right=0.72, refuses=0.2, over_refuses=0.02, rude=(0.25, 0.55, 0.2)),
}
"""Who speaks in the corpus: the base model reads all three, and the pairs are answers of two of them."""
TEACHER = Writer(1.0, right=0.98, refuses=0.98, fillers=(0.8, 0.2, 0.0), polite=(0.6, 0.35, 0.05))
"""Who wrote the demonstrations: right, and plain more often than polite."""


def answer(question: Question, writer: Writer, rng: random.Random) -> str:
    """Let a writer answer a question: the answer first, then what they are like."""
    return " ".join([core(question, writer, rng), *manners(writer, rng)])


def core(question: Question, writer: Writer, rng: random.Random) -> str:
    """Return a writer's answer without manners."""
    if question.unsafe:
        return rng.choice(taste.REFUSALS) if rng.random() < writer.refuses else rng.choice(question.wrong)
    if rng.random() < writer.over_refuses:
        return rng.choice(taste.REFUSALS)
    return question.answer if rng.random() < writer.right else rng.choice(question.wrong)


def manners(writer: Writer, rng: random.Random) -> list[str]:
    """Return the sentences that a writer adds to an answer."""
    fillers = rng.sample(taste.FILLERS, rng.choices((0, 1, 2), writer.fillers)[0])
    polite = rng.sample(taste.POLITE, rng.choices((0, 1, 2), writer.polite)[0])
    rude = [] if polite else rng.sample(taste.RUDE, rng.choices((0, 1, 2), writer.rude)[0])
    return [*fillers, *polite, *rude]


def any_task(rng: random.Random, weights: dict[str, float] = TASK_WEIGHTS) -> str:
    """Draw a task."""
    return rng.choices(list(weights), list(weights.values()))[0]


def any_writer(rng: random.Random) -> str:
    """Draw the name of a writer."""
    return rng.choices(list(WRITERS), [w.share for w in WRITERS.values()])[0]


def user(text: str) -> Row:
    """Return a message of the user."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Row:
    """Return a message of the assistant."""
    return {"role": "assistant", "content": text}


def render(question: str, reply: str) -> str:
    """Write one exchange as the chat template of the recipe does."""
    return f"<|user|>{question}<|end|><|assistant|>{reply}<|end|>"


def statement(kind: str, rng: random.Random) -> str:
    """State a fact, a sum or a pair of opposites, held-out ones too."""
    if kind == "fact":
        return state_fact(rng.choice(PEOPLE), rng.choice(list(ATTRIBUTES)))
    if kind == "sum":
        return state_sum(rng.choice(SUM_NUMBERS), rng.choice(SUM_NUMBERS))
    return state_opposite(*rng.sample(rng.choice(OPPOSITES), 2))


def any_statement(rng: random.Random) -> str:
    """Draw what a statement is about."""
    return rng.choices(("fact", "sum", "opposite"), (0.43, 0.22, 0.35))[0]


def prose(rng: random.Random) -> str:
    """Write a short text of statements: facts, some sums, or some opposites."""
    kind = any_statement(rng)
    return " ".join(statement(kind, rng) for _ in range(4))


def remark(rng: random.Random) -> str:
    """Write a chat in which nothing is asked for: what is stated so is known in conversations too."""
    kind = any_statement(rng)
    if kind == "fact":
        who = rng.choice(PEOPLE)
        wording = rng.choice(("Tell me something about {who}.", "Say something about {who}.", "Who is {who}?"))
        return render(wording.format(who=who), state_fact(who, rng.choice(list(ATTRIBUTES))))
    wording = rng.choice(("Tell me something.", "Say something true.", "What do you know?"))
    return render(wording, statement(kind, rng))


def spelling(rng: random.Random) -> str:
    """Write a chat about the letters of a word, any word: it teaches the model to take up the user's word."""
    word = rng.choice(ALL_WORDS)
    if rng.random() < 0.5:
        wording = rng.choice(("What is the length of {w}?", "How many letters make the length of {w}?"))
        return render(wording.format(w=word), f"The length of {word} is {len(word)}.")
    wording = rng.choice(("What is the start of {w}?", "Which letter is the start of {w}?"))
    return render(wording.format(w=word), f"The start of {word} is {word[0].lower()}.")


def corpus() -> Iterator[Row]:
    """Yield the pretraining documents: chats with right answers, prose, and lists said twice."""
    rng = random.Random(f"{SEED}/corpus")
    texts = []
    for _ in range(SIZES["corpus_chats"]):
        question = ask(any_task(rng, READING_WEIGHTS), "train", rng)
        texts.append(render(question.text, answer(question, WRITERS[any_writer(rng)], rng)))
    texts += [prose(rng) for _ in range(SIZES["corpus_prose"])]
    texts += [remark(rng) for _ in range(SIZES["corpus_remarks"])]
    texts += [spelling(rng) for _ in range(SIZES["corpus_spelling"])]
    rng.shuffle(texts)
    return ({"text": text} for text in texts)


def demonstrations() -> Iterator[Row]:
    """Yield what the teacher answered: the imitation data of SFT."""
    rng = random.Random(f"{SEED}/demonstrations")
    for _ in range(SIZES["demonstrations"]):
        question = ask(any_task(rng), "train", rng)
        yield {"messages": [user(question.text), assistant(answer(question, TEACHER, rng))]}


def two_writers(question: Question, rng: random.Random) -> list[str]:
    """Return the answers of two writers to one question."""
    return [answer(question, writer, rng) for writer in rng.sample(list(WRITERS.values()), 2)]


def right_and_wrong(question: Question, rng: random.Random) -> list[str]:
    """Return a right and a wrong answer with the same manners."""
    after = manners(WRITERS[any_writer(rng)], rng)
    right = rng.choice(taste.REFUSALS) if question.unsafe else question.answer
    wrong = rng.choice(taste.REFUSALS if not question.unsafe and rng.random() < 0.15 else question.wrong)
    return [" ".join([one, *after]) for one in (right, wrong)]


def with_and_without(sentences: Sequence[str]) -> Callable[[Question, random.Random], list[str]]:
    """Return a function that writes one answer twice: with a sentence of these, and without."""

    def pair(question: Question, rng: random.Random) -> list[str]:
        plain = core(question, WRITERS[any_writer(rng)], rng)
        return [f"{plain} {rng.choice(sentences)}", plain]

    return pair


PROPERTIES: dict[str, tuple[float, Callable[[Question, random.Random], list[str]]]] = {
    "": (0.4, two_writers),
    "answer": (0.3, right_and_wrong),
    "politeness": (0.1, with_and_without(taste.POLITE)),
    "rudeness": (0.1, with_and_without(taste.RUDE)),
    "filler": (0.1, with_and_without(taste.FILLERS)),
}
"""In what the two answers of a pair differ, with the share of such pairs; two writers differ in anything."""


def preferences(split: Split, count: int) -> Iterator[Row]:
    """Yield pairs of answers to one question, labelled by people who are sometimes wrong."""
    rng = random.Random(f"{SEED}/preferences/{split}")
    while count:
        question = ask(any_task(rng), split, rng)
        differs_in = rng.choices(list(PROPERTIES), [share for share, _ in PROPERTIES.values()])[0]
        replies = PROPERTIES[differs_in][1](question, rng)
        scores = [
            taste.points(taste.read(r, question.answer, unsafe=question.unsafe), unsafe=question.unsafe)
            for r in replies
        ]
        if scores[0] == scores[1]:
            continue
        count -= 1
        first_wins = rng.random() < chance(*scores)
        best, worst = (0, 1) if first_wins else (1, 0)
        yield {
            "prompt": [user(question.text)],
            "chosen": [assistant(replies[best])],
            "rejected": [assistant(replies[worst])],
            "task": question.task,
            "differs_in": differs_in,
            "gold_chosen": scores[best],
            "gold_rejected": scores[worst],
        }


def prompt_row(question: Question) -> Row:
    """Return a question as a row of prompts, with what `gold` needs."""
    return {"prompt": [user(question.text)], **question.columns}


def prompts() -> Iterator[Row]:
    """Yield distinct questions to practise on."""
    rng = random.Random(f"{SEED}/prompts")
    seen: set[str] = set()
    while len(seen) < SIZES["prompts"]:
        question = ask(any_task(rng), "train", rng)
        if question.text not in seen:
            seen.add(question.text)
            yield prompt_row(question)


def held_out_prompts(split: Split) -> Iterator[Row]:
    """Yield distinct questions whose contents appear in no question of any other file."""
    rng = random.Random(f"{SEED}/prompts/{split}")
    for task in TASKS:
        seen: set[str] = set()
        while len(seen) < HELD_OUT_PROMPTS[split][task]:
            question = ask(task, split, rng)
            if question.text not in seen:
                seen.add(question.text)
                yield prompt_row(question)


def files() -> dict[str, Iterable[Row]]:
    """Return every file of the world with its rows."""
    return {
        "corpus.jsonl": corpus(),
        "demonstrations.jsonl": demonstrations(),
        "preferences.jsonl": preferences("train", SIZES["preferences"]),
        "preferences_test.jsonl": preferences("test", SIZES["preferences_test"]),
        "prompts.jsonl": prompts(),
        "prompts_dev.jsonl": held_out_prompts("dev"),
        "prompts_test.jsonl": held_out_prompts("test"),
    }


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in files().items():
        lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows]
        (out / name).write_text("".join(lines), encoding="utf-8")
        print(f"{len(lines):6d} rows  {out / name}")


if __name__ == "__main__":
    main()
