"""All processes of a stage compute in the format its first one decided, whatever each would have measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from ranks import be_rank, run_ranks


@pytest.mark.parametrize("mine", ["fp32", "bf16"])
def test_the_first_process_decides_for_all(tmp_path: Path, mine: str) -> None:
    run_ranks(__file__, str(tmp_path), mine)
    assert {file.read_text() for file in tmp_path.glob("picked-*")} == {mine}
    assert len(list(tmp_path.glob("picked-*"))) == 2


def one_of_two(folder: str, mine: str) -> None:
    """Decide as a rank of a stage, the second of which has a work folder, and would have a format, of its own."""
    import os

    import torch.distributed as dist

    from pipeline.kind.compute import ComputeSettings
    from pipeline.models.cpu.precision import Choice
    from pipeline.parallel.dims import ParallelDims
    from pipeline.stage import StageContext
    from pipeline.training import arguments

    dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    work = Path(folder) / f"work-{rank}"
    work.mkdir()
    other = {"fp32": "bf16", "bf16": "fp32"}[mine]
    measured = Choice(mine if rank == 0 else other, "as it was measured")
    arguments.fastest_precision = lambda width: measured
    ctx = StageContext(
        name="tiny",
        seed=1,
        out=work,
        work=work,
        inputs={},
        load_rows=lambda field: None,
        compute=ComputeSettings(device="cpu"),
        emit=lambda event: None,
        stopping=lambda: False,
        dims=ParallelDims(2),
        rank=rank,
    )
    (Path(folder) / f"picked-{rank}").write_text(arguments.resolve_precision(ctx, 1024).compute.precision)


if __name__ == "__main__":
    be_rank(one_of_two)
