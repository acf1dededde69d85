"""Verbs that try a checkpoint: generate, chat."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pipeline.cli.chat_loop import ChatLoop, find_checkpoint, typed_lines
from pipeline.cli.options import JsonOption, ModelArgument, RemoteCodeOption, StoreOption, existing_store
from pipeline.cli.terminal import print_json
from pipeline.errors import PipelineError, Problem

GreedyOption = Annotated[bool, typer.Option("--greedy", help="Always the most likely token.")]
TemperatureOption = Annotated[float, typer.Option("--temperature", "-t", help="Divides the logits.")]
TopKOption = Annotated[int, typer.Option("--top-k", help="Keep the K most likely tokens; 0 keeps all.")]
TopPOption = Annotated[float, typer.Option("--top-p", help="Keep the smallest set of tokens with this probability.")]
MaxTokensOption = Annotated[int, typer.Option("--max-new-tokens", metavar="N", help="Longest answer.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Of the random numbers.")]
SystemOption = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="System message.")]


def generate(
    ref: ModelArgument,
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="Else standard input.")] = None,
    greedy: GreedyOption = False,
    beams: Annotated[int, typer.Option("--beams", metavar="N", help="Beam search with N beams.")] = 1,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    max_new_tokens: MaxTokensOption = 256,
    seed: SeedOption = 0,
    n: Annotated[int, typer.Option("--n", "-n", help="Answers to sample; the seed counts up.")] = 1,
    system: SystemOption = None,
    raw: Annotated[bool, typer.Option("--raw", help="Go on with the text itself, without the chat template.")] = False,
    trust_remote_code: RemoteCodeOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer one prompt with a checkpoint."""
    if n < 1:
        raise PipelineError(Problem(f"--n is {n}", "must be >= 1"))
    if prompt is None or prompt == "-":
        prompt = sys.stdin.read().rstrip("\n")
    if not prompt:
        raise PipelineError(Problem("the prompt is empty", "some text", "give it as an argument or on standard input"))
    source = find_checkpoint(existing_store(store), ref)

    # Loading torch takes seconds; a wrong option or ref is told at once.
    from pipeline.models.generate import chat_session

    model, tokenizer = chat_session.load_checkpoint(source, trust_remote_code=trust_remote_code)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    answers = []
    for index in range(n):
        options = chat_session.ReplyOptions(max_new_tokens, greedy, beams, temperature, top_k, top_p, seed + index)
        if raw or not tokenizer.chat_template:
            pieces = chat_session.complete(model, tokenizer, prompt, options)
        else:
            pieces = chat_session.reply(model, tokenizer, messages, options)
        if as_json:
            answers.append({"prompt": prompt, "seed": seed + index, "text": "".join(pieces)})
            continue
        if n > 1:
            print(f"--- seed {seed + index}")
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
    if as_json:
        print_json(answers)


def chat(
    ref: ModelArgument,
    greedy: GreedyOption = False,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    max_new_tokens: MaxTokensOption = 256,
    seed: SeedOption = 0,
    system: SystemOption = None,
    trust_remote_code: RemoteCodeOption = False,
    store: StoreOption = None,
) -> None:
    """Talk to a checkpoint; /help inside lists what it understands."""
    source = find_checkpoint(existing_store(store), ref)
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print(f"loading {ref} …", flush=True)

    from pipeline.models.generate import chat_session  # loading torch takes seconds; a wrong ref is told at once

    model, tokenizer = chat_session.load_checkpoint(source, trust_remote_code=trust_remote_code)
    options = chat_session.ReplyOptions(max_new_tokens, greedy, 1, temperature, top_k, top_p, seed)
    problems = options.sampling.problems()
    if not tokenizer.chat_template:
        problems.append(Problem(f"`{ref}` has no chat template", "one, to chat", f"use `trueup generate {ref}`"))
    if problems:
        raise PipelineError(*problems)

    def write(text: str) -> None:
        print(text, end="", flush=True)

    loop = ChatLoop(chat_session.ChatSession(model, tokenizer, options, system), write)
    if is_terminal:
        print("say something; /help lists commands, Ctrl-D leaves\n")
        loop.run(typed_lines("> ", write))
    else:
        loop.run(sys.stdin)
