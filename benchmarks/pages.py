"""The part of a page of docs that a measurement writes, between two marks."""

from __future__ import annotations

BEGIN, END = "<!-- measured -->\n", "<!-- /measured -->\n"


def measured_part(page: str) -> tuple[str, str, str]:
    """Return the text of a page before its marks, between them and after them.

    Raises:
        SystemExit: a mark is missing.
    """
    before, begin, rest = page.partition(BEGIN)
    between, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"the page has no place for the table: {BEGIN.strip()} … {END.strip()}")
    return before, between, after


def written(page: str, text: str) -> str:
    """Return a page with a text between its marks."""
    before, _, after = measured_part(page)
    return f"{before}{BEGIN}\n{text}\n\n{END}{after}"
