"""Commands that a launcher has started several times, as the ranks of one model: rank 0 runs it, the others help."""

from __future__ import annotations

from anthesis.parallel.variables import launched


def leave_to_rank_zero(tp: int, pp: int) -> None:
    """Returns where this process is to run the command; other ranks serve rank 0 here, and end with it.

    Called before a command reads, writes or says anything.

    Raises:
        SystemExit: this rank has served.
        RequestError: variables of a launcher that contradict each other, or another number of processes.
        RankError: rank 0 is not to be found, or can't be.
    """
    if tp * pp > 1 and launched() is not None:
        from anthesis.engine import serve
        from anthesis.parallel.layout import Layout

        serve.leave_to_rank_zero(Layout(tp, pp))
