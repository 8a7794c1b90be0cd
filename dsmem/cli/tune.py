"""`dsmem tune`: how to read a set of episodes on this machine, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dsmem.cli import tuned
from dsmem.cli.commands import Json
from dsmem.cli.output import Output
from dsmem.errors import UsageError

if TYPE_CHECKING:
    from dsmem.tune.settings import Settings

EXAMPLES = (
    "dsmem tune episodes/ --batch-size 8",
    "dsmem tune 'episodes/*.hdf5' --gpus 4 -o dsmem.yaml",
    "dsmem tune --preset large -o dsmem.yaml",
)

Preset = Literal["small", "medium", "large", "xlarge"]


def tune(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE...", help="Episodes: HDF5 files, directories that hold some, or globs."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", help="Samples of a batch.", min=1)] = 8,
    gpus: Annotated[
        int | None,
        typer.Option("--gpus", metavar="N", help="Training processes of this machine; else a GPU each.", min=0),
    ] = None,
    camera: Annotated[
        list[str] | None,
        typer.Option("--camera", metavar="NAME", help="A camera that is trained on; else all. May be repeated."),
    ] = None,
    step: Annotated[
        float | None,
        typer.Option("--step", metavar="SECONDS", help="How long a training step takes, loading apart.", min=0),
    ] = None,
    mask: Annotated[
        str | None, typer.Option("--mask", metavar="NAME", help="Only the episodes of this list (robomimic).")
    ] = None,
    changing: Annotated[bool, typer.Option("--changing", help="The files keep changing.")] = False,
    preset: Annotated[
        Preset | None,
        typer.Option("--preset", help="Take the settings for data of a size instead; needs no files."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="FILE", help="Put the settings into this dsmem.yaml; all else stays."),
    ] = None,
    json: Json = False,
) -> None:
    """Find out how episode files are best read here.

    It looks at the machine and at the files, of which a sample is read and timed, and says why, and when not to share.
    Presets: small up to 1 GB of decoded data, medium 10 GB, large 100 GB, xlarge more.
    """
    out = Output(as_json=json)
    if output is not None:
        from dsmem.tune.configuring import check_target

        check_target(output)
    if not paths:
        if preset is None:
            raise UsageError("no files to look at; name some, or a --preset")
        _take_preset(out, preset, output)
        return
    from dsmem.pinning.gather import gather
    from dsmem.tune import DatasetOptimizer

    optimizer = DatasetOptimizer(
        gather(paths),
        camera,
        batch_size,
        gpus=gpus,
        step_s=step,
        mask=mask,
        changing=changing,
    )
    found = optimizer.optimize(preset_name=preset)
    if output is not None:
        _write(found.settings, output)
    if json:
        out.json({**found.as_dict(), "written": output})
    elif out.terminal:
        tuned.show(out, found)
    else:
        tuned.show_rows(out, found)
    if output is not None:
        out.result(f"written to {output}")


def _take_preset(out: Output, name: str, output: str | None) -> None:
    from dsmem.tune.settings import preset as preset_named

    settings = preset_named(name)
    if output is not None:
        _write(settings, output)
    if out.as_json:
        out.json({"preset": name, "config": settings.as_config(), "written": output})
    else:
        out.record(tuned.settings(settings))
    if output is not None:
        out.result(f"written to {output}")


def _write(settings: Settings, output: str) -> None:
    from dsmem.tune.configuring import write_config

    write_config(output, settings)
