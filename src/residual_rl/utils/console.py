"""Terminal output: texts are printed as they are, never read as markup."""

from __future__ import annotations

import rich.console

from residual_rl.utils.text import printable


class Console(rich.console.Console):
    """Rich's console without markup and emoji codes, because paths and other people's texts may contain both.

    Styles are given as `rich.text.Text`.
    """

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def say(self, *lines: object) -> None:
        """Print lines without control characters and unwrapped, so that paths and commands can be copied."""
        for line in lines:
            self.print(printable(str(line)), soft_wrap=True)
