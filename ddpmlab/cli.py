"""Command line: run studies, build the book."""

from pathlib import Path

import click
import yaml

from ddpmlab import batch


class _Commands(click.Group):
    """Turn the package's own errors into one line instead of a traceback."""

    def invoke(self, context):
        try:
            return super().invoke(context)
        except (batch.StudyError, ValueError) as error:
            raise click.ClickException(str(error)) from error


_root = click.option(
    "--root", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".",
    help="Folder with book/, notebooks/ and _config.yml.",
)  # fmt: skip
_profile = click.option("--profile", type=click.Choice(batch.PROFILES), default="quick", show_default=True)


@click.group(cls=_Commands)
def main() -> None:
    """What makes a small diffusion model good: run the studies and build the book."""


@main.command()
@click.argument("study")
@_profile
@click.option("-p", "--parameter", nargs=2, multiple=True, metavar="NAME VALUE", help="Override one parameter.")
@click.option("--into", type=click.Path(file_okay=False, path_type=Path), help="Folder for page and tables.")
@_root
def run(study: str, profile: str, parameter, into: Path | None, root: Path) -> None:
    """Run one STUDY through papermill, without rendering."""
    manifest = batch.read_manifest(root / "notebooks")
    if study not in manifest:
        raise ValueError(f"unknown study {study}; choose from: {', '.join(manifest)}")
    into = into or root / "_build" / "runs"
    overrides = {name: yaml.safe_load(value) for name, value in parameter}
    seconds = batch.run_study(
        study, profile, {**(manifest[study][profile] or {}), **overrides}, root / "notebooks", into
    )
    click.echo(f"{study} done in {seconds:.0f} s: {into / 'studies' / study}.ipynb")


@main.command()
@_profile
@click.argument("studies", nargs=-1)
@_root
def book(profile: str, studies: tuple[str, ...], root: Path) -> None:
    """Run all STUDIES (or those named) and render the book."""
    click.echo(batch.build_book(profile, root.resolve(), studies))


@main.command()
@_root
def render(root: Path) -> None:
    """Render the committed pages, running nothing."""
    root = root.resolve()
    click.echo(batch.render(root / "book", root / "_config.yml", root / "_build"))


if __name__ == "__main__":
    main()
