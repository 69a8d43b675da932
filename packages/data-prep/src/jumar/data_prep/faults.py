"""What is wrong with one record: it leaves the stream at the step that finds it, is counted and kept with its reason."""

from __future__ import annotations


class BadRecord(Exception):
    """A record that cannot be used.

    reason: what kind of fault, in a few fixed words: rejects are counted by it ("not UTF-8", "no assistant turn").
    detail: what was found and expected in this very record.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail
