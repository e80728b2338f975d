"""`dualipo world`: makes the small world's models and data again, from nothing, on a CPU."""

from __future__ import annotations

from pathlib import Path

import click

from dualipo.runtime import prepare_torch


@click.group()
def world() -> None:
    """Make the small world's base models and data again, from nothing."""


def _folder(command: click.Command) -> click.Command:
    option = click.option(
        "--data", default="data", type=click.Path(path_type=Path), show_default=True, help="Data folder."
    )
    return click.option("--seed", default=0, show_default=True)(option(command))


@world.command()
@_folder
@click.option("--vae-steps", default=1300, show_default=True)
@click.option("--steps", default=7000, show_default=True, help="Steps of the transformer on clean clips.")
@click.option("--wild-steps", default=3000, show_default=True, help="Its steps on clips as found in the wild.")
@click.option("--vae", type=click.Path(path_type=Path), help="Use the VAE of this folder instead of training one.")
def generator(data: Path, seed: int, vae_steps: int, steps: int, wild_steps: int, vae: Path | None) -> None:
    """Train the base CogVideoX: VAE, text encoder and transformer."""
    from dualipo.world.train_generator import train_generator

    prepare_torch()
    train_generator(data / "generator", seed, vae_steps, steps, wild_steps, vae=vae)


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

    def restore(clips):
        return model.decode(model.encode_clips(clips))

    described = described_pairs(data, model, seed)
    train_reference(data / "critic_reference", seed, described, restore, (vision_steps, steps, generated_steps))
    warm_start(data / "critic_reference", data / "critic", data / "seed", seed, human_steps, restore)


@world.command(name="all")
@_folder
@click.pass_context
def everything(context: click.Context, data: Path, seed: int) -> None:
    """All of the above, in order."""
    for command in (generator, labels, critic):
        context.invoke(command, data=data, seed=seed)
