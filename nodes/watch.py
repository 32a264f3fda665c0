"""A run being watched from a node."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..trainer.runs import control
from ..trainer.runs.check_report import clock
from . import host


@dataclass
class Watch:
    """A run being watched from a node: bar, pictures, interrupt."""

    run_dir: Path
    node_id: str
    offset: int
    bar: Any = None
    presses: int = 0
    warnings: list[str] = field(default_factory=list)

    def until_end(self) -> control.Status:
        """Wait for the run's process to end. The first interrupt saves and stops, the second kills."""
        while True:
            now = control.status(self.run_dir)
            self._news(now)
            if now.state == "queued" and now.message and not self.presses:
                host.progress_text(now.message, self.node_id)
            if host.take_interrupt():
                self._press()
            if not now.live:
                return now
            time.sleep(0.1)

    def _press(self) -> None:
        self.presses += 1
        if self.presses > 1:
            control.kill(self.run_dir)
        elif control.status(self.run_dir).live:
            host.progress_text("saving, then stopping; press again to end it at once", self.node_id)
            control.request(self.run_dir, "stop")

    def _news(self, now: control.Status) -> None:
        events, self.offset = control.events(self.run_dir, self.offset)
        if now.total and self.bar is None:
            self.bar = host.Bar(now.total)
        for event in events:
            step = event.get("step") or now.step
            if event["kind"] == "warning":
                self.warnings.append(str(event.get("message", "")))
            preview = picture(event.get("path")) if event["kind"] == "sample" else None
            if self.bar and (event["kind"] == "step" or preview) and self.bar.update(step, preview):
                self._press()
        last = next((e for e in reversed(events) if e["kind"] == "step"), None)
        if last and not self.presses:
            host.progress_text(in_words(last, now), self.node_id)


def in_words(event: dict[str, Any], now: control.Status) -> str:
    """``step 40 of 240, loss 0.1234, 2 min 5 s left``."""
    loss = event.get("loss")
    text = f"step {event.get('step')} of {now.total}"
    text += f", loss {loss:.4f}" if isinstance(loss, (int, float)) else ""
    eta = event.get("eta")
    return text + (f", {clock(eta)} left" if isinstance(eta, (int, float)) else "")


def picture(path: Any) -> Image.Image | None:
    try:
        with Image.open(str(path)) as picture:
            return picture.convert("RGB")
    except OSError:
        return None
