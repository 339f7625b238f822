"""What the user sees while something runs: progress bars with time left, on stderr."""

import sys
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from segnas.measuring import Progress as Report


class RichScreen:
    """Bars on a terminal; one line at the end of each step elsewhere."""

    def __init__(self) -> None:
        self.console = Console(file=sys.stderr)

    @contextmanager
    def step(self, title: str) -> Generator[Report]:
        """A step with a progress bar; the callable takes done, total and a short text."""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as bars:
            task = bars.add_task(title, total=None, note="")

            def report(done: int, total: int, text: str = "") -> None:
                bars.update(task, completed=done, total=total or None, note=text)

            yield report
            seconds = bars.tasks[task].elapsed or 0.0
            note = str(bars.tasks[task].fields["note"])
        if not self.console.is_terminal:
            self.say(f"{title}: {seconds:.1f} s{f', {note}' if note else ''}")

    def say(self, text: str) -> None:
        """One line that stays."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
