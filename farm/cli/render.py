"""`farm render`: one film, nothing else to start."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from farm.cli.farm_context import Farm
from farm.cli.show import console
from farm.cli.submit import parse_sets
from farm.ledger.progress import JobProgress
from farm.solo import render_one


@click.command()
@click.argument("portrait", type=click.Path(path_type=Path))
@click.argument("audio", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Where the film goes.")
@click.option("--model", help="Which model renders; default: default_model of farm.toml.")
@click.option("--preset", help="A named set of the model's settings; default: the model's own choice.")
@click.option("--size", help="WIDTHxHEIGHT in pixels; default: the model's.")
@click.option("--fps", help="Frames per second; default: the model's.")
@click.option("--seed", type=int, help="The same seed gives the same film; default: made from portrait and audio.")
@click.option("--prompt", help="A sentence for models that read one.")
@click.option(
    "--set", "sets", multiple=True, metavar="SETTING=VALUE", help="A setting of the model; may be given again."
)
@click.pass_obj
def render(
    farm: Farm,
    portrait: Path,
    audio: Path,
    output: Path,
    model: str | None,
    preset: str | None,
    size: str | None,
    fps: str | None,
    seed: int | None,
    prompt: str | None,
    sets: tuple[str, ...],
) -> None:
    """Render one film on this machine.  No Redis and no running farm are needed.

    A render that was interrupted goes on where it was when the same command is given again.

    \b
    Example:
        farm render anna.jpg lesson1.mp3 -o lesson1.mp4
        farm render anna.jpg lesson1.mp3 -o lesson1.mp4 --preset calm --size 720x1280
    """
    given = {"size": size, "fps": fps, "seed": seed, "prompt": prompt, **parse_sets(sets)}
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=console(),
        transient=True,
        disable=not sys.stdout.isatty(),
    ) as bar:
        task = bar.add_task("starting", total=1.0, speed="")

        def show(progress: JobProgress) -> None:
            speed = f"{progress.times_real_time:.1f}x real time" if progress.times_real_time else ""
            bar.update(task, completed=progress.share, description=progress.job.shown_state, speed=speed)

        try:
            film = render_one(
                portrait,
                audio,
                output,
                model=model,
                preset=preset,
                on_progress=show,
                **{name: value for name, value in given.items() if value is not None},
            )
        except KeyboardInterrupt:
            click.echo("stopped; the same command goes on where it was", err=True)
            raise
    click.echo(str(film))
