"""What went wrong in the engine, or with it."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class EngineError:
    """An error as an observer hears it.

    Args:
        code: stable name of the fault, by which the sentence is translated.
        message: one sentence: what is wrong and what to do; in English where it comes from the engine's process.
        values: what the sentence speaks of.
        ours: whether it is a fault of the engine, worth a report, rather than something the user can put right.
        log: a traceback or the end of the engine's log, for the diagnostics; empty when it adds nothing.
    """

    code: str
    message: str
    values: dict = field(default_factory=dict)
    ours: bool = False
    log: str = ""

    @classmethod
    def fromMessage(cls, message: dict) -> "EngineError":
        """As the engine's process has told it."""
        return cls(message["code"], message["message"], message["values"], message["ours"], message["log"] or "")
