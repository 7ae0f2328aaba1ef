"""The command line of `meshca`: one module for each command.

This module imports next to nothing: from its first moments on, Ctrl-C ends the program
without a traceback.
"""

import os
import signal
import sys


def main() -> None:
    """Run the command line.

    At Ctrl-C a command cleans up, and the process ends by SIGINT, so that a shell that
    runs it in a loop ends the loop. A second Ctrl-C ends it at once.
    """
    # Not where SIGINT is ignored, as in a shell's background.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = _end_if_interrupted
    try:
        from bridge.cli.command_line import run  # noqa: PLC0415 - takes a moment

        run()
    except BaseException:  # a library may have made another error of the interrupt
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            _end_by_signal()
        raise


def _interrupt(*_: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


def _end_if_interrupted(problem: "sys.UnraisableHookArgs") -> None:
    # The interrupt came where no error can be raised, such as in a destructor.
    if problem.exc_type is KeyboardInterrupt:
        _end_by_signal()
    sys.__unraisablehook__(problem)


def _end_by_signal() -> None:
    try:
        sys.stdout.flush()
    finally:
        os.kill(os.getpid(), signal.SIGINT)
