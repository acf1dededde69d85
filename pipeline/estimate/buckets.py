"""DeepSpeed's bucket sizes from a model's width h; stages configure them, and the memory estimate counts them.

DeepSpeed's defaults suit the largest models: two buckets of 5e8 gradients take 4 GB in fp32 on every GPU, and up to 1e9
gathered weights stay there, which is all of a small model.

References: Rajbhandari et al. 2020, arXiv:1910.02054 (constant-size buffers, section 6.2); transformers'
`HfTrainerDeepSpeedConfig.trainer_config_finalize`, whose `auto` gives h², 0.9 h² and 10 h. Deviations: a bucket has at
least 4 Mi elements, because smaller messages are dominated by latency; the weights gathered at once are those of two
blocks of 12 h², the current one and the prefetched one.
"""

from __future__ import annotations

LEAST, MOST, MOST_LIVE = 2**22, 5 * 10**8, 10**9
"""Numbers of elements: the smallest bucket; DeepSpeed's defaults, the upper bounds of a bucket and of live weights."""


def bucket_sizes(stage: int, hidden: int) -> dict[str, int]:
    """Return the fields of DeepSpeed's `zero_optimization` that bound the elements it communicates or gathers at once.

    Args:
        stage: ZeRO stage, 1 to 3.
        hidden: width of the model.
    """
    bucket = min(MOST, max(LEAST, hidden * hidden))
    bucket += bucket % 2  # stages 1 and 2 align gathered elements to two
    if stage < 3:
        return {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    live = min(MOST_LIVE, max(LEAST, 24 * hidden * hidden))
    return {
        "reduce_bucket_size": bucket,
        "stage3_prefetch_bucket_size": int(0.9 * bucket),
        "stage3_param_persistence_threshold": 10 * hidden,
        "stage3_max_live_parameters": live,
        "stage3_max_reuse_distance": live,
    }
