"""The table on docs/backbones.md, from the rows: `python -m pathfm.backbones.page docs/backbones.md` writes it anew."""

from __future__ import annotations

import sys
from pathlib import Path

from pathfm.backbones.listing import aliases_of, transform_words
from pathfm.backbones.network import python_class
from pathfm.backbones.rows import ELSEWHERE, ROWS, VARIANTS
from pathfm.errors import InputError
from pathfm.files import write_text

BEGIN, END = "<!-- from the rows -->", "<!-- end of what is from the rows -->"


def page_with_table(page: str) -> str:
    """A page whose part between the two marks is what the rows say.

    Raises:
        InputError: it has no such marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        message = f"the page has no {BEGIN} and {END}; put them where the table belongs"
        raise InputError(message)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


def tables() -> str:
    """What the rows say, as Markdown."""
    known = [
        [
            f"`{row.name}`",
            f"{row.n_params / 1e6:.2f} M" if row.n_params else "",
            row.tile,
            transform_words(row),
            " ".join(
                f"**{one}**" if one == row.output and len(row.outputs) > 1 else one
                for one in row.outputs or (row.output,)
            ),
            str(row.dim or python_class(row).dim),
            str(row.prefix_tokens or ""),
            row.precision,
            {True: "yes", False: "no", None: "unknown"}[row.gated],
            f"{row.licence}: {row.derivatives}" if row.derivatives else row.licence,
            row.source if row.source.startswith(("python:", "https:")) else f"[{row.repo}]({row.page})",
            row.library,
        ]
        for row in ROWS
    ]
    names = [[f"`{row.name}`", ", ".join(f"`{alias}`" for alias in aliases_of(row))] for row in ROWS if row.aliases]
    names += [[f"`{meant}`", f"`{alias}`"] for alias, meant in VARIANTS.items()]
    papers = [f"- `{row.name}`: {row.citation}" for row in ROWS if row.citation]
    return "\n\n".join(
        [
            "## The table",
            _table(
                [
                    "name",
                    "parameters",
                    "tile",
                    "transform",
                    "outputs",
                    "dimension",
                    "prefix",
                    "precision",
                    "gated",
                    "licence",
                    "source",
                    "library",
                ],
                known,
            ),
            "## What others call them",
            _table(["here", "also"], names),
            "## The same name, another network",
            _table(
                ["toolkit", "its name", "here"], [[one, f"`{theirs}`", f"`{ours}`"] for one, theirs, ours in ELSEWHERE]
            ),
            "## Papers",
            "\n".join(papers),
        ]
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["--"] * len(head), *rows))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        write_text(Path(name), page_with_table(Path(name).read_text(encoding="utf-8")))
