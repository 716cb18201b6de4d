"""`farm models`."""

from __future__ import annotations

import click

from farm.cli.farm_context import Farm
from farm.cli.show import console, echo_json, echo_rows, json_option
from farm.errors import InputError, NotFound
from farm.models import all_models, load_model


@click.group()
def models() -> None:
    """See which models this farm can render with.

    \b
    Example:
        farm models list
    """


@models.command("list")
@json_option
@click.pass_obj
def list_models(farm: Farm, as_json: bool) -> None:
    """List the models.

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
    """Show one model: sizes, frame rates, memory, licence, settings and presets.

    \b
    Example:
        farm models show preview
    """
    try:
        model = load_model(model_id)
    except InputError as error:
        raise NotFound(str(error)) from None
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


def _values(spec: object) -> str:
    low, high = getattr(spec, "min", None), getattr(spec, "max", None)
    if low is not None:
        return f"{low:g} to {high:g}"
    choices = getattr(spec, "choices", None)
    return " | ".join(choices) if choices else str(getattr(spec, "type", ""))
