"""Planning stays light: no heavy import; `make bench` has its time."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = """
import json, sys
from pathlib import Path
from pipeline.artifacts import Store
from pipeline.plan import make_plan
from pipeline.recipe import load
import pipeline.records
import conftest
for name, config, makes in (("base", conftest.BaseConfig, "model"), ("tune", conftest.TuneConfig, "model"),
                            ("judge", conftest.JudgeConfig, "report")):
    conftest.register_kind(name, version=1, config=config, run="", makes=makes)
heavy = ("torch", "transformers", "trl", "datasets", "numpy", "scipy", "pyarrow", "fsspec")
plan = make_plan(load(Path(sys.argv[1]) / "big.yaml"), Store(Path(sys.argv[1]) / "store"))
print(json.dumps({"stages": len(plan.stages), "heavy": [name for name in heavy if name in sys.modules]}))
"""


def test_a_recipe_the_size_of_the_quickstart_is_planned_without_a_heavy_import(world: Any) -> None:
    tuned = "".join(
        f"  tune{n}:\n    kind: tune\n    data: pairs\n    model: base\n"
        f"    train: {{beta: 0.{n + 1}, learning_rate: 1.0e-3, max_steps: {n + 1}, lr_scheduler_type: cosine, "
        "warmup_steps: 3, weight_decay: 0.01, optim: adamw_torch, eval_strategy: steps}\n"
        for n in range(8)
    )
    text = (world.folder / "r.yaml").read_text().replace("  report:", f"{tuned}  report:")
    world.write("big.yaml", text)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(world.folder)],
        cwd=Path(__file__).parents[2],
        env={"PYTHONPATH": f"{Path(__file__).parents[2]}:{Path(__file__).parent}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout)
    assert result["stages"] == 12
    assert result["heavy"] == []
