"""One KFP component for each step of dualipo.steps.GRAPH, and the tasks around them. A body only calls
dualipo.pipeline.call; what a step does, and what its ports are, stands in dualipo/steps/."""

from components.align import align
from components.check_critic import check_critic
from components.check_labels import check_labels
from components.check_reward import check_reward
from components.evaluate import evaluate, evaluate_shard
from components.gather import gather_base, gather_round
from components.generate import generate, generate_shard
from components.label import label, label_shard
from components.load_data import load_data
from components.prefer import prefer, prefer_shard
from components.promote_critic import promote_critic
from components.promote_generator import promote_generator
from components.prompts import prompts
from components.report import report
from components.settle import settle
from components.start import start, start_shard
from components.train_critic import train_critic
from components.train_reward import train_reward

STEPS = {
    "start": start,
    "train_reward": train_reward,
    "check_reward": check_reward,
    "prompts": prompts,
    "generate": generate,
    "label": label,
    "check_labels": check_labels,
    "train_critic": train_critic,
    "check_critic": check_critic,
    "promote_critic": promote_critic,
    "prefer": prefer,
    "align": align,
    "evaluate": evaluate,
    "promote_generator": promote_generator,
    "settle": settle,
    "report": report,
}
"""By the step's name."""
SHARDS = {
    "start": start_shard,
    "generate": generate_shard,
    "label": label_shard,
    "prefer": prefer_shard,
    "evaluate": evaluate_shard,
}

__all__ = ["SHARDS", "STEPS", "gather_base", "gather_round", "load_data"]
