"""DeepSpeed's configuration, from ours."""

from __future__ import annotations

import math
from typing import Any

from dualipo.training.task import Recipe


def deepspeed_config(recipe: Recipe, cuda: bool) -> dict[str, Any]:
    """ZeRO of the stage asked for, AdamW supplied by the caller. Micro-batches are counted by the loop, not here.

    With `precision: bf16` DeepSpeed holds bfloat16 weights and gradients and, sharded, float32 master weights and
    moments; else all is float32.
    """
    settings = recipe.training
    zero: dict[str, Any] = {"stage": settings.zero, "contiguous_gradients": True, "overlap_comm": cuda}
    if settings.offload:
        place = {"device": "cpu", "pin_memory": cuda}
        zero["offload_optimizer"] = place
        if settings.zero == 3:
            zero["offload_param"] = place
    return {
        # bookkeeping that must be there: a step's batch is what the loop makes it.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": recipe.max_grad_norm if math.isfinite(recipe.max_grad_norm) else 0.0,
        "bf16": {"enabled": settings.precision == "bf16", "check_grad_overflow": True},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
