"""`dualipo world`: makes the small world's models and data again, from nothing, on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dualipo.runtime import prepare_torch

if TYPE_CHECKING:
    import numpy as np

    from dualipo.cli import Decorated


@click.group()
def world() -> None:
    """Make the small world's base models and data again, from nothing."""


def _folder(command: Decorated) -> Decorated:
    option = click.option(
        "--data", default="data", type=click.Path(path_type=Path), show_default=True, help="Data folder."
    )
    return click.option("--seed", default=0, show_default=True)(option(command))


FAMILIES = {"cogvideox": ("generator", (1300, 7000, 3000)), "wan": ("generator_wan", (2000, 5500, 1500))}
"""Folder inside the data folder, and steps of the VAE, of the transformer on clean clips and on clips as found."""


def _steps(index: int) -> str:
    return "  [default: " + ", ".join(f"{name} {steps[index]}" for name, (_, steps) in FAMILIES.items()) + "]"


@world.command()
@_folder
@click.option("--family", type=click.Choice(list(FAMILIES)), default="cogvideox", show_default=True)
@click.option("--vae-steps", type=int, help=f"Steps of the VAE.{_steps(0)}")
@click.option("--steps", type=int, help=f"Steps of the transformer on clean clips.{_steps(1)}")
@click.option("--wild-steps", type=int, help=f"Its steps on clips as found in the wild.{_steps(2)}")
@click.option("--vae", type=click.Path(path_type=Path), help="Use the VAE of this folder instead of training one.")
def generator(
    data: Path,
    seed: int,
    family: str,
    vae_steps: int | None = None,
    steps: int | None = None,
    wild_steps: int | None = None,
    vae: Path | None = None,
) -> None:
    """Train a base generator: VAE, text encoder and transformer. CogVideoX into generator/, Wan into generator_wan/."""
    from dualipo.world.train_generator import train_generator
    from dualipo.world.train_wan import train_wan

    prepare_torch()
    folder, usual = FAMILIES[family]
    asked = (vae_steps, steps, wild_steps)
    train = train_wan if family == "wan" else train_generator
    on_vae, on_clean, on_wild = (own if mine is None else mine for mine, own in zip(asked, usual, strict=True))
    train(data / folder, seed, on_vae, on_clean, on_wild, vae=vae)


@world.command()
@_folder
def labels(data: Path, seed: int) -> None:
    """Sample clips from the base generator and let the simulated annotators label them; render the real clips."""
    from dualipo.world.data import make_data

    prepare_torch()
    make_data(data, data / "generator", seed)


@world.command()
@_folder
@click.option("--vision-steps", default=900, show_default=True, help="Steps of the vision tower on rendered clips.")
@click.option("--steps", default=2500, show_default=True, help="Steps of the language model on rendered clips.")
@click.option("--generated-steps", default=1700, show_default=True, help="Steps of both on described generated clips.")
@click.option("--human-steps", default=150, show_default=True, help="Steps of both on the human seed labels.")
def critic(data: Path, seed: int, vision_steps: int, steps: int, generated_steps: int, human_steps: int) -> None:
    """Train the base critic: rendered and generated clips that are described first, then the human seed labels."""
    from dualipo.generator.base import load_generator
    from dualipo.world.data import described_pairs
    from dualipo.world.train_critic import train_reference, warm_start

    prepare_torch()
    model = load_generator(data / "generator")

    def restore(clips: np.ndarray) -> np.ndarray:
        return model.decode(model.encode_clips(clips))

    described = described_pairs(data, model, seed)
    train_reference(data / "critic_reference", seed, described, restore, (vision_steps, steps, generated_steps))
    warm_start(data / "critic_reference", data / "critic", data / "seed", seed, human_steps, restore)


@world.command(name="all")
@_folder
@click.pass_context
def everything(context: click.Context, data: Path, seed: int) -> None:
    """All of the above, in order, and the second generator."""
    context.invoke(generator, data=data, seed=seed, family="cogvideox")
    for command in (labels, critic):
        context.invoke(command, data=data, seed=seed)
    context.invoke(generator, data=data, seed=seed, family="wan")
