from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pathfm import progress as module
from pathfm.progress import log_to, logger, progress

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_progress_yields_every_item_and_logs_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_LINE_EVERY_S", 0.0)
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.INFO, logger="pathfm"):
        assert list(progress(range(4), "extract")) == [0, 1, 2, 3]
    assert [record.message.split(" slides")[0] for record in caplog.records] == [f"extract: {i}/4" for i in range(1, 5)]
    assert all("left" in record.message and "/s" in record.message for record in caplog.records)


def test_the_log_file_gets_what_the_terminal_gets(tmp_path: Path) -> None:
    logger.setLevel(logging.INFO)
    with log_to(tmp_path / "deep" / "pathfm.log"):
        logger.info("first")
    with log_to(tmp_path / "deep" / "pathfm.log"):
        logger.info("second")
    text = (tmp_path / "deep" / "pathfm.log").read_text()
    assert "first" in text
    assert "second" in text
    assert logger.handlers == [h for h in logger.handlers if not isinstance(h, logging.FileHandler)]
