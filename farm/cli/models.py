"""`farm models`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from farm.cli.farm_context import Farm
from farm.cli.show import console, echo_json, echo_rows, json_option
from farm.engine_files import fetch_engine_files, find_engine_files
from farm.errors import InputError, NotFound
from farm.hub import open_hub
from farm.models import ModelSpec, all_models, load_model
from farm.weights import pull, verify


@click.group()
def models() -> None:
    """List the models of this farm; fetch and verify their weights.

    \b
    Example:
        farm models list
    """


@models.command("list")
@json_option
@click.pass_obj
def list_models(farm: Farm, as_json: bool) -> None:
    """List the models with their devices, memory, sizes and presets.

    \b
    Example:
        farm models list
    """
    rows = [
        {
            "id": m.id,
            "summary": m.summary,
            "licence": m.licence,
            "devices": list(m.device_kinds),
            "memory_gb": m.memory_gb,
            "presets": list(m.presets),
            "fps": m.frames.default_fps,
            "size": f"{m.size.default[0]}x{m.size.default[1]}",
        }
        for m in all_models()
    ]
    columns = ("id", "summary", "devices", "memory_gb", "size", "fps", "presets")
    echo_rows(rows, as_json=as_json, columns=columns, empty="no models")


@models.command("show")
@click.argument("model_id", metavar="MODEL")
@json_option
@click.pass_obj
def show_model(farm: Farm, model_id: str, as_json: bool) -> None:
    """Show one model: sizes, memory, licence, settings and presets.

    \b
    Example:
        farm models show preview
    """
    model = _find(model_id)
    if as_json:
        echo_json(model.model_dump())
        return
    size = model.size
    sizes = (
        ", ".join(f"{w}x{h}" for w, h in size.choices)
        if size.choices
        else f"{size.min} to {size.max} px a side, multiples of {size.step}"
    )
    click.echo(f"{model.id}: {model.summary}")
    click.echo(f"licence   {model.licence}")
    click.echo(f"devices   {', '.join(model.device_kinds)}; about {model.memory_gb:g} GB")
    click.echo(f"sizes     {sizes}; default {size.default[0]}x{size.default[1]}")
    click.echo(f"fps       {', '.join(map(str, model.frames.fps))}; default {model.frames.default_fps}")
    click.echo(f"prompt    {'read' if model.prompt else 'not read'}")
    for repository in model.source.repositories:
        click.echo(
            f"weights   {repository.hub}, {repository.gigabytes:g} GB, {repository.licence}: {repository.setting}"
        )
    if model.source.checkout:
        licence = model.source.checkout_licence or "no licence given"
        click.echo(f"code      {model.source.checkout}, {licence}: repo_path")
    presets = [
        {
            "preset": f"{name} (default)" if name == model.default_preset else name,
            "meaning": preset.help,
            "settings": ", ".join(f"{k} {v}" for k, v in {**preset.load, **preset.settings}.items()),
        }
        for name, preset in model.presets.items()
    ]
    settings = [
        {
            "setting": name,
            "default": spec.default,
            "values": _values(spec),
            "set by": "a row" if spec.job else "workers.toml",
            "meaning": spec.help,
        }
        for name, spec in model.settings.items()
    ]
    out = console()
    out.print()
    echo_rows(presets, as_json=False, columns=("preset", "meaning", "settings"), empty="no presets")
    columns = ("setting", "default", "values", "set by", "meaning")
    echo_rows(settings, as_json=False, columns=columns, empty="no settings")


into_option = click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that holds the models' folders; default: $FARM_HOME/weights.",
)


@models.command("pull")
@click.argument("model_id", metavar="MODEL")
@into_option
@click.option(
    "--from",
    "source",
    type=click.Choice(["huggingface", "modelscope"]),
    default="huggingface",
    show_default=True,
    help="The hub; HF_ENDPOINT and MODELSCOPE_ENDPOINT name mirrors.",
)
@click.option("--revision", default="", help="A branch, tag or commit of the hub's repository; default: its newest.")
@click.option("--accept-licence", is_flag=True, help="Say that you have read the licence, where a hub asks for it.")
@click.pass_obj
def pull_model(farm: Farm, model_id: str, into: Path | None, source: str, revision: str, accept_licence: bool) -> None:
    """Fetch the weights of a model.

    It goes on where an earlier try stopped, and checks size and hash of every file.

    \b
    Example:
        farm models pull soulx-flashhead-1.3b
        HF_ENDPOINT=https://hf-mirror.com farm models pull soulx-flashhead-1.3b --into /models
    """
    model = _find(model_id)
    if model.engine_files:
        click.echo(str(fetch_engine_files(model, into)))
        return
    home = (into or farm.settings.home / "weights").expanduser().absolute()
    for repository in model.source.repositories:
        licence = f"{repository.hub}: {repository.licence}, about {repository.gigabytes:g} GB"
        click.echo(licence, err=True)
    bars = _Bars()
    with bars:
        done = list(
            pull(
                model,
                open_hub(source),
                home,
                revision=revision,
                accepts_licence=accept_licence,
                min_free_bytes=int(farm.settings.room.min_free_disk_gb * 1e9),
                progress=bars.say,
            )
        )
    click.echo("# for the worker's table in workers.toml")
    click.echo("[workers.NAME.settings]")
    for one in done:
        click.echo(f'{one.repository.setting} = "{one.folder}"  # {one.fetched} of {one.files} files fetched now')
    if model.source.checkout:
        click.echo(f'repo_path = "..."  # a checkout of {model.source.checkout}')


@models.command("verify")
@click.argument("model_id", metavar="MODEL")
@into_option
@click.option("--quick", is_flag=True, help="Leave the hashes out; sizes and headers take a second.")
@json_option
@click.pass_context
def verify_model(ctx: click.Context, model_id: str, into: Path | None, quick: bool, as_json: bool) -> None:
    """Check that the weights of a model are complete and unharmed.

    Each file must be there, of its size and hash, and readable.  Exits with 1 if one is not.

    \b
    Example:
        farm models verify soulx-flashhead-1.3b
        farm models verify soulx-flashhead-1.3b --into /models --quick
    """
    farm: Farm = ctx.obj
    model = _find(model_id)
    if model.engine_files:
        click.echo(f"{find_engine_files(model)}: each file is there, with its hash")
        return
    home = (into or farm.settings.home / "weights").expanduser().absolute()
    found = list(verify(model, home, reads_everything=not quick))
    rows = [{"file": str(f.path), "is": f.verdict, "found": f.found, "repository": f.repository} for f in found]
    echo_rows(rows, as_json=as_json, columns=("file", "is", "found"), empty="no files")
    if any(f.verdict == "wrong" for f in found):
        ctx.exit(1)


class _Bars:
    """A bar for each file on a terminal; a line for each file elsewhere."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._said: set[str] = set()

    def __enter__(self) -> _Bars:
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._progress = self._stack.enter_context(Progress(*columns, console=console(stderr=True)))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def say(self, file: str, done: int, size: int) -> None:
        if self._progress is None:
            if file not in self._said:
                self._said.add(file)
                click.echo(f"{file}  {size / 1e6:.1f} MB", err=True)
            return
        if file not in self._tasks:
            self._tasks[file] = self._progress.add_task(file, total=size)
        self._progress.update(self._tasks[file], completed=done)


def _find(model_id: str) -> ModelSpec:
    try:
        return load_model(model_id)
    except InputError as error:
        raise NotFound(str(error)) from None


def _values(spec: object) -> str:
    low, high = getattr(spec, "min", None), getattr(spec, "max", None)
    if low is not None:
        return f"{low:g} to {high:g}"
    choices = getattr(spec, "choices", None)
    return " | ".join(choices) if choices else str(getattr(spec, "type", ""))
