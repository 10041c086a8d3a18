"""Command line: run studies, see where they stand, build the book, fetch data, look after the store."""

import ast
import signal
import sys
import threading
from pathlib import Path

import click

sys.modules.setdefault("rfc3987_syntax", None)  # nbformat's schemas load it for seconds, to check no address


class _Commands(click.Group):
    """Turn the package's own errors into one line instead of a traceback."""

    def invoke(self, context):
        try:
            return super().invoke(context)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("ddpmlab"):
                raise
            raise click.ClickException(
                f"this command needs {error.name}, which is not installed: pip install 'ddpmlab[book]'"
            ) from error
        except (ValueError, RuntimeError, OSError, ImportError) as error:  # a store's file system says what to install
            if isinstance(error, RecursionError | NotImplementedError | click.exceptions.Exit | click.Abort):
                raise  # ours to see whole, and click's own: help ends with Exit(0)
            raise click.ClickException(str(error)) from error


def value_of(text: str):
    """A parameter's value from the command line: a number, list, mapping, true/false, null, or else the text itself.

    Raises:
        ValueError: text that begins like a list, mapping or quoted string and does not end like one.
    """
    plain = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in plain:
        return plain[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if text[:1] in "[{('\"":
            raise ValueError(f"cannot read the value {text!r}: its brackets or quotes do not match") from None
        return text


_root = click.option(
    "--root", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".",
    help="Folder with book/, notebooks/ and _config.yml.",
)  # fmt: skip
_profile = click.option("--profile", type=click.Choice(["quick", "colab", "full"]), default="quick", show_default=True)
_device = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
_workers = click.option("--workers", type=int, help="Fan out over a local Dask cluster of so many processes.")
_scheduler = click.option("--scheduler", metavar="ADDRESS", help="Fan out over a Dask cluster: address or file.")
_force = click.option("--force", is_flag=True, help="Run what is fresh, too.")


@click.group(cls=_Commands)
def main() -> None:
    """What makes a small diffusion model good: run the studies and build the book."""


def _interrupted(signum, frame):
    raise KeyboardInterrupt


def _run(project, studies, profile, overrides, force, where, into=None, dry_run=False) -> None:
    import pooch

    from ddpmlab.book import batch, pages
    from ddpmlab.lab import cluster

    if threading.current_thread() is threading.main_thread():
        for ending in (signal.SIGTERM, signal.SIGHUP):  # like Ctrl-C: what runs is ended, what was done is kept
            if signal.getsignal(ending) is signal.SIG_DFL:
                signal.signal(ending, _interrupted)
    pooch.get_logger().setLevel("WARNING")  # data that are not to be had are told in one line
    device, workers, scheduler = where
    gpus = cluster.use_device(device) and (scheduler is None or device == "cuda")
    as_is = not (force or overrides or into)  # what has new text alone need not run
    if as_is and not dry_run:
        for name in pages.chosen(project, studies):
            if pages.refresh_text(project, name, profile):
                click.echo(f"{name}: only its text had changed; it is in the page, and nothing ran")
    todo = batch.plan(project, studies, profile, overrides, force)
    if dry_run:
        for name in pages.chosen(project, studies):
            found = pages.status(project, name, profile, overrides=overrides)
            state = "would run" if name in todo else "fresh"
            if as_is and found.why == pages.TEXT_CHANGED:
                state = "new text"
            runs = f"{found.runs.present} runs there, {found.runs.missing} to compute" if found.runs else "no runs"
            click.echo(f"{name:18} {state:10} {runs}{_expected(found.runs)}")
        return
    with cluster.executor(workers, scheduler, gpus=gpus) as executor:
        failed = batch.run(project, todo, profile, into, executor, say=click.echo)
    for message in failed.values():
        click.echo(message, err=True)
    if failed:
        sys.exit(1)


def _expected(runs) -> str:
    if runs is None or not runs.missing:
        return ""
    return f", about {max(0.1, runs.expected / 60):,.1f} core-minutes"


@main.command()
@click.argument("studies", nargs=-1)
@_profile
@click.option("-p", "--parameter", nargs=2, multiple=True, metavar="NAME VALUE", help="Override one parameter.")
@click.option("--into", type=click.Path(file_okay=False, path_type=Path), help="Folder for pages and tables.")
@click.option("--dry-run", is_flag=True, help="List what is cached and what would be computed.")
@_device
@_workers
@_scheduler
@_force
@_root
def run(studies, profile, parameter, into, dry_run, device, workers, scheduler, force, root) -> None:
    """Run what is not fresh, of STUDIES if any are named. Nothing is rendered."""
    from ddpmlab.book.pages import Project

    overrides = {name: value_of(value) for name, value in parameter}
    where = device, workers, scheduler
    _run(Project(root.resolve()), studies, profile, overrides, force, where, into and into.resolve(), dry_run)


@main.command()
@click.argument("studies", nargs=-1)
@_profile
@_root
def status(studies, profile: str, root: Path) -> None:
    """Say which pages are fresh. Beside each is what of its runs is in the store."""
    from ddpmlab.book import pages

    project = pages.Project(root.resolve())
    for name in pages.chosen(project, studies):
        found = pages.status(project, name, profile)
        known = found.provenance
        made = f" ({known['seconds']:.0f} s, {known.get('device', '?')}, {known.get('commit', '?')})" if known else ""
        runs = f"; {found.runs.present} runs there, {found.runs.missing} missing" if found.runs else ""
        click.echo(f"{name:18} {found.state:8} {found.why}{made}{runs}{_expected(found.runs)}")


@main.command()
@_profile
@click.argument("studies", nargs=-1)
@_device
@_workers
@_scheduler
@_force
@_root
def book(profile, studies, device, workers, scheduler, force, root) -> None:
    """Run what is not fresh, render the book. If STUDIES are named, of those alone."""
    from ddpmlab.book import pages

    project = pages.Project(root.resolve())
    _run(project, studies, profile, {}, force, (device, workers, scheduler))
    output = project.build if profile == "full" else project.build / "quick"
    click.echo(pages.render(project.book(profile), project.root / "_config.yml", output))


@main.command()
@_root
def render(root: Path) -> None:
    """Render the committed pages, running nothing."""
    from ddpmlab.book import pages

    root = root.resolve()
    click.echo(pages.render(root / "book", root / "_config.yml", root / "_build"))


@main.command()
@click.option("--export", type=click.Path(file_okay=False, path_type=Path), help="Write npy files there.")
@click.option("--label", type=int, default=0, show_default=True, help="Which class to export.")
def data(export: Path | None, label: int) -> None:
    """Fetch and verify FashionMNIST. With --export one class is written as npy files of 784 columns."""
    from ddpmlab import data as datasets

    for name, path in datasets.fetch().items():
        click.echo(f"{name}: {path}")
    if export is not None:
        datasets.export_npy(export, label)
        click.echo(f"class {label} exported to {export}")


@main.command()
@click.option("--prune", is_flag=True, help="Delete the entries that no present code can reach.")
def cache(prune: bool) -> None:
    """Show the size of the store, and prune it."""
    from ddpmlab.data import fashion_mnist
    from ddpmlab.lab import stages
    from ddpmlab.lab import store as stores

    store, sizes, dead = stores.default(), {}, []
    pictures = fashion_mnist.available()  # without them nothing tells whether their entries are in reach: they stay
    for kind, key, size in store.entries():
        n, total = sizes.get(kind, (0, 0))
        sizes[kind] = n + 1, total + size
        made = (store.note(kind, key) or {}).get("made")
        unknown = not pictures and fashion_mnist.FashionMNIST.name in str(made)
        if made is None or (not unknown and stages.key_of(made) != key):
            dead.append((kind, key, size))
    click.echo(store.url)
    for kind, (n, total) in sizes.items():
        click.echo(f"{kind:10} {n:7,} entries {total / 2**20:10,.1f} MiB")
    unreachable = sum(size for *_, size in dead) / 2**20
    click.echo(f"out of reach of present code: {len(dead):,} entries, {unreachable:,.1f} MiB")
    if prune:
        for kind, key, _ in dead:
            store.delete(kind, key)
        click.echo("deleted them")


if __name__ == "__main__":
    main()
