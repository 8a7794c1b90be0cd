"""`dsmem tune`: how to read a set of episodes on this machine, and why."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dsmem import stopping
from dsmem.cli import progress, tuned
from dsmem.cli.commands import Json
from dsmem.cli.output import Output, note
from dsmem.errors import OutputExists, UsageError

if TYPE_CHECKING:
    from dsmem.tune import Analysis, Rechunked, Settings

EXAMPLES = (
    "dsmem tune episodes/ --batch-size 8",
    "dsmem tune 'episodes/*.hdf5' --gpus 4 -o dsmem.yaml",
    "dsmem tune episode_0.hdf5 --rechunk fitting.hdf5",
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
    measure: Annotated[
        bool, typer.Option("--measure", help="Try the best few for real, take one if clearly faster; about a minute.")
    ] = False,
    rechunk: Annotated[
        str | None,
        typer.Option("--rechunk", metavar="OUT", help="Write the file in chunks that fit; of several, a directory."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="With --rechunk: replace what is there.")] = False,
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
    if preset is not None and measure:
        raise UsageError("--measure looks for the fastest settings, and --preset takes its own: give one of them")
    if not paths:
        if preset is None:
            raise UsageError("no files to look at; name some, or a --preset")
        asked = {
            "--measure": measure, "--rechunk": rechunk, "--force": force, "--camera": camera, "--mask": mask,
            "--gpus": gpus is not None, "--step": step is not None, "--changing": changing,
        }  # fmt: skip
        meant = [name for name, value in asked.items() if value]
        if meant:
            raise UsageError(f"{', '.join(meant)}: there are no files to look at; name some")
        _take_preset(out, preset, output)
        return
    from dsmem.pinning.gather import gather
    from dsmem.tune import DatasetOptimizer

    files = gather(paths)
    targets = _targets(files, rechunk, force)
    optimizer = DatasetOptimizer(
        files,
        camera,
        batch_size,
        gpus=gpus,
        step_s=step,
        mask=mask,
        changing=changing,
    )
    if measure and out.terminal:
        note("trying the best settings for real; about a minute")
    with stopping.raised():  # what is tried is removed
        found = optimizer.optimize(preset_name=preset, measure=measure)
    if output is not None:
        _write(found.settings, output)
    rewritten = _rechunked(files, targets, found, mask=mask, force=force)
    if json:
        out.json({**found.as_dict(), "written": output, "rechunked": rewritten})
    elif out.terminal:
        tuned.show(out, found)
    else:
        tuned.show_rows(out, found)
    for one in rewritten:
        tuned.show_rechunked(out, one)
    if output is not None:
        out.result(f"written to {output}")


def _targets(files: Sequence[str], rechunk: str | None, force: bool) -> list[str]:
    """Where each file goes; raises UsageError, OutputExists before any work is done."""
    if rechunk is None:
        return []
    directory = os.path.isdir(rechunk) or rechunk.endswith("/")
    if len(files) > 1 and not directory:
        raise UsageError(f"--rechunk {rechunk}: of {len(files)} files it must be a directory; end it with /")
    targets = [os.path.join(rechunk, os.path.basename(path)) if directory else rechunk for path in files]
    if len(set(targets)) < len(targets):
        raise UsageError(f"--rechunk {rechunk}: some of the files have the same name")
    for target in targets:
        if not force and os.path.lexists(target):
            raise OutputExists(f"{target} is there already", path=target)
        if os.path.exists(target) and not os.path.isfile(target):
            raise UsageError(f"--rechunk: {target} is not a regular file")
    return targets


def _rechunked(
    files: Sequence[str], targets: Sequence[str], found: Analysis, *, mask: str | None, force: bool
) -> list[Rechunked]:
    if not targets:
        return []
    from dsmem.tune import rechunk

    os.makedirs(os.path.dirname(os.path.abspath(targets[0])), exist_ok=True)
    done: list[Rechunked] = []
    with progress.bar("rechunking", files) as bar:
        for path, target in zip(files, targets, strict=True):
            follow = bar.follow(path)
            done.append(rechunk(path, target, found.data.cameras, mask=mask, force=force, progress=follow))
    return done


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
