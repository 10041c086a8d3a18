"""Many studies at once: their missing runs over one executor, then their notebooks, two at a time.

A study that fails, or whose data are not to be had, takes no other with it; an interrupt stops all of them and loses no
checkpoint.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from ddpmlab.book import pages
from ddpmlab.book.pages import Project, StudyError
from ddpmlab.data import DataUnavailable
from ddpmlab.lab import runner
from ddpmlab.lab import store as stores


def plan(
    project: Project,
    names: Sequence[str],
    profile: str,
    overrides: Mapping[str, Any] | None = None,
    force: bool = False,
) -> dict[str, dict[str, Any]]:
    """The studies that are to run, with their parameters: those that are not fresh, or all with `force` or overrides.

    Raises:
        ValueError: an unknown study, profile or parameter, or a value of the wrong type.
    """
    found = {}
    for name in pages.chosen(project, names):
        parameters = project.parameters(name, profile, overrides)
        project.study(name, parameters)  # a wrong value fails here, before anything starts
        if force or overrides or pages.state(project, name, profile).state != "fresh":
            found[name] = parameters
    return found


def prepare(project: Project, profile: str) -> Path:
    """The folder that a profile's pages go to; for a smaller one a copy of the committed book with its own pages."""
    book = project.book(profile)
    if profile != "full":
        shutil.copytree(
            project.root / "book", book, dirs_exist_ok=True,
            ignore=None if not book.exists() else shutil.ignore_patterns("studies", "results"),
        )  # fmt: skip
    return book


def run(
    project: Project,
    todo: Mapping[str, Mapping[str, Any]],
    profile: str,
    book: Path | None = None,
    executor: Executor | None = None,
    say: Any = print,
) -> dict[str, str]:
    """Run studies and publish their pages; returns what failed, study -> message.

    Args:
        project: the checkout.
        todo: study -> parameters, see `plan`.
        profile: recorded in the provenance.
        book: where pages go; the profile's place if omitted.
        executor: any `concurrent.futures` executor for the runs; this machine's cores if omitted.
        say: called with a line for each event.
    """
    commit = project.commit()
    failed: dict[str, str] = {}
    lacking: dict[str, str] = {}  # data: nothing was tried, so the page is what it was
    book = book or prepare(project, profile)
    logs = project.build / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    wanted = {name: project.study(name, parameters) for name, parameters in todo.items()}
    for name, study in list(wanted.items()):
        try:
            for run in study.runs if study else []:
                _ = run.config.data.n_train
        except DataUnavailable as error:
            lacking[name] = pages.repeatable(project, name, profile, todo[name], f"{name}: {error}")
            del wanted[name]
    owner = {id(run): name for name, study in wanted.items() if study for run in study.runs}
    every = [run for study in wanted.values() if study for run in study.runs]
    if every:
        say(f"{len(every)} runs of {len(wanted)} studies into {stores.default_url()}")
        limits = {name: pages.time_limit(project, name) for name in wanted}
        failures = runner.compute(
            every, executor, title="runs", go_on=True, time_limit=lambda run: limits[owner[id(run)]]
        )
        for job, error in failures:
            for name in {owner[id(run)] for run in job}:
                failed.setdefault(name, f"{name}: {error}")
        if executor is None:
            runner.release()
    for name, error in failed.items():
        failed[name] = pages.failed(project, name, profile, todo[name], error, commit, logs / f"{name}.log")
    failed |= lacking

    def one(name: str) -> float:
        log = logs / f"{name}.log"
        return pages.run_study(project, name, profile, todo[name], book, log, commit)

    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as threads:  # while one starts its kernel the other draws
        took = {name: made["seconds"] for name, made in project.provenance("full").items()}
        order = sorted((name for name in todo if name not in failed), key=lambda name: -took.get(name, 0))  # long first
        futures = {threads.submit(one, name): name for name in order}
        try:
            for future in as_completed(futures):
                name = futures[future]
                try:
                    say(f"{name} done in {future.result():.0f} s")
                except (StudyError, OSError) as error:
                    failed[name] = str(error)
                    say(f"{name} failed")
        except BaseException:
            for future in futures:
                future.cancel()
            pages.interrupt()
            raise
        finally:
            pages.release()
    return failed
