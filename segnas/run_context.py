"""What a run is: its recipe, its folder, and what surrounds both; and what the user sees of it."""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from segnas.data import Dataset, layout_of, open_dataset
from segnas.errors import UsageError
from segnas.latency import LatencyTable
from segnas.latency_tables.store import load_table
from segnas.measuring import SERVICES, Progress, Services, require_entries
from segnas.recipe import Recipe
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.search.space import Space
from segnas.search.spaces import space as named_space
from segnas.target import Target


class Screen(Protocol):
    """What the user sees while a run is under way."""

    def step(self, title: str) -> AbstractContextManager[Progress]:
        """A step with a progress bar; the callable takes done, total and a short text."""
        ...

    def say(self, text: str) -> None:
        """One line that stays."""
        ...


class SilentScreen:
    """A screen for tests and for `--json`."""

    @contextmanager
    def step(self, title: str) -> Generator[Progress]:
        """Nothing is shown."""
        yield lambda done, total, text="": None

    def say(self, text: str) -> None:
        """Nothing is shown."""


@dataclass(frozen=True)
class Run:
    """A run's recipe, folder and surroundings; every product is a file whose presence says that its step is done."""

    recipe: Recipe
    folder: Path
    screen: Screen
    services: Services = SERVICES
    table_file: Path | None = None
    allow: tuple[str, ...] = ()
    """Fields of the target in which the given table may differ."""

    pretrained: Path | None = None
    device: str = "cpu"
    streets_folder: Path | None = None
    """Where the synthetic streets lie, if not in the run's own folder."""

    def dataset(self, split: str) -> Dataset:
        """A split of the recipe's dataset."""
        data = self.recipe.data
        root = Path(data.root) if data.root else self.streets_folder or self.folder / "streets"
        return open_dataset(data.name, root, split)

    def target(self) -> Target:
        """What is deployed on."""
        wanted = self.recipe.target
        if wanted.runtime != "onnxruntime":
            raise UsageError(f"target runtime {wanted.runtime!r} was given; this version deploys on: onnxruntime (CPU)")
        return cpu_target(wanted.height, wanted.width, threads=wanted.threads)

    def space(self) -> Space:
        """The recipe's space for the dataset's classes."""
        return named_space(self.recipe.space, len(layout_of(self.recipe.data.name).labels.classes))

    def given_table(self) -> LatencyTable | None:
        """The table that is to be used instead of profiling, if there is one, checked against target and space."""
        if self.table_file is None:
            return None
        table = load_table(self.table_file).for_target(self.target(), self.allow)
        require_entries(self.space(), table)
        return table
