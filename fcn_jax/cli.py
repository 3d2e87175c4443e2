"""What the commands share: plain log lines, and a user's error as one line instead of a traceback."""

import contextlib
import errno
import gc
import inspect
import logging
import os
import pathlib
import sys
import tempfile
import textwrap
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging

from fcn_jax.run.stop import Stopped

# What a user can cause and mend; anything else is a defect and shows its traceback.
USER_ERRORS = (ValueError, OSError, FloatingPointError)
_OTHERS = 3  # seconds in which the other processes of a run say what they have found


class _Lasting:
    """An output stream that can go away, such as a pipe to `head`: what comes after that is lost, the work goes on."""

    def __init__(self, stream: Any, lost: type[OSError]):
        self._stream, self._lost = stream, lost

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As a text stream does."""
        with self._kept():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As a text stream does."""
        with self._kept():
            self._stream.flush()

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except self._lost:
            _to_null(self._stream)


def _to_null(stream: Any) -> None:
    """Has what is written to a stream, and what it still holds, go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def run(main: Callable[[Sequence[str]], None], parser: Callable[[Sequence[str]], list[str]] | None = None) -> None:
    """Parses the flags and calls `main`, as a command of this machine; ends the process."""
    open_streams()
    give_home()
    app.run(guarded(main), flags_parser=parser or parse)


def open_streams() -> None:
    """Standard streams that can be written whatever happens to their other end.

    One that is closed is opened on /dev/null: else the next file that is opened, perhaps a checkpoint, gets its number
    and what is written to the stream. Log lines may be lost to a full disk as well, results may not.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # for as long as the process lives
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # an ASCII terminal
    sys.stdout = _Lasting(sys.stdout, BrokenPipeError)  # type: ignore[assignment]
    sys.stderr = _Lasting(sys.stderr, OSError)  # type: ignore[assignment]


def give_home() -> None:
    """Has ~ mean a folder for temporary files where a user has no home that can be written, as in many containers."""
    home = pathlib.Path(os.path.expanduser("~"))
    if home.is_absolute() and (_can_be_written(home) or (home / ".cache" / "fcn_jax").is_dir()):
        return
    own = pathlib.Path(tempfile.gettempdir(), f"fcn_jax-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        own.mkdir(mode=0o700)
    if own.is_symlink() or own.stat().st_uid != os.getuid():
        own = pathlib.Path(tempfile.mkdtemp(prefix="fcn_jax-"))
    os.environ["HOME"] = str(own)
    print(f"no home folder that can be written: ~ is {own}; set HOME to name another", file=sys.stderr)


def _can_be_written(folder: pathlib.Path) -> bool:
    """By trying: what root or a read-only file system may do, permissions do not tell."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def set_up() -> None:
    """Logging as plain lines, and XLA's compilation cache, so that a second start is quick."""
    # Orbax logs every step of a save, and of one that fails the traceback of each thread; it raises the error as well.
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.basicConfig(format="%(message)s", level=logging.CRITICAL, stream=sys.stderr, force=True)
    logging.getLogger("fcn_jax").setLevel(logging.INFO)
    sys.unraisablehook = _unraisable
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters of an image is said by name
    if jax.config.values["jax_disable_jit"]:
        jax.config.update("jax_disable_jit", False)
        logging.getLogger("fcn_jax").warning("JAX_DISABLE_JIT has no effect: steps are compiled before they are run")
    gc.set_threshold(200_000, 50, 1000)  # tracing makes millions of objects that live: looking for cycles takes time
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # a dozen small programs take a second
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path("~/.cache/fcn_jax/xla").expanduser()))


def _unraisable(error: Any) -> None:
    """When one array of a checkpoint cannot be written, tensorstore's other threads find Orbax' event loop closed."""
    if str(error.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(error)


def help_text(argv: Sequence[str]) -> str:
    """What --help prints: the docstring of the command's module, and its own flags in their order."""
    import __main__

    lines = [inspect.cleandoc(__main__.__doc__ or ""), "", "flags:"]
    for flag in flags.FLAGS.get_flags_for_module(argv[0]) or flags.FLAGS.get_flags_for_module("__main__"):
        name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
        given = "" if flag.default in (None, "", False, []) else f" (default: {flag.default_as_str})"
        lines.append(f"  {name}")
        lines += textwrap.wrap(
            f"{flag.help}{given}".replace("(default: '", "(default: ").replace("')", ")"),
            100,
            initial_indent=" " * 6,
            subsequent_indent=" " * 6,
        )
    return "\n".join(lines) + "\n"


def parse(argv: Sequence[str]) -> list[str]:
    """absl's flags, with a mistyped flag, config key or value as one line; --help prints help_text and ends."""
    if any(argument in ("-h", "--help") for argument in argv[1:]):
        print(help_text(argv), end="")
        sys.exit(0)
    try:
        rest = flags.FLAGS(argv)
        _refuse_joined(argv)
        return rest
    except (AttributeError, KeyError) as error:  # ml_collections' way to say that a key does not exist
        detail = error.args[0]
        while isinstance(detail, Exception):
            detail = detail.args[0]
        sys.exit(f"unknown config key {'. '.join(str(detail).splitlines())}")
    except (flags.Error, TypeError, *USER_ERRORS) as error:
        sys.exit(last_line(error))


def _refuse_joined(argv: Sequence[str]) -> None:
    """ValueError if a flag of several values is given twice: ml_collections joins them, where absl takes the last."""
    names = [argument.lstrip("-").partition("=")[0] for argument in argv[1:] if argument.startswith("-")]
    for name in names:
        value = flags.FLAGS[name].value if names.count(name) > 1 and name in flags.FLAGS else None
        if isinstance(value, list):
            joined = ",".join(map(str, value))
            raise ValueError(f"--{name} is given {names.count(name)} times, which would make it {joined}: give it once")


def guarded(main: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str]], None]:
    """`main` set up as a command, whose user's errors are one line and exit code 1."""

    def run(argv: Sequence[str]) -> None:
        set_up()
        usual, threading.excepthook = threading.excepthook, _explain_of_thread
        try:
            main(argv)
            sys.stdout.flush()
        except KeyboardInterrupt:
            if jax.distributed.is_initialized():
                os._exit(130)  # JAX would wait for the other processes, which wait for this one
            sys.exit(130)  # as shells count Ctrl-C
        except Stopped as error:
            sys.exit(error.code)
        except Exception as error:
            try:
                print(explain(error), file=sys.stderr, flush=True)
                with contextlib.suppress(OSError):
                    sys.stdout.flush()  # os._exit does not
            except Exception:
                if not jax.distributed.is_initialized():
                    raise
                traceback.print_exc()
            # Not sys.exit: threads of a save that failed would go on and print their own tracebacks, and JAX would wait
            # for the other processes, which wait for this one.
            if jax.distributed.is_initialized() and jax.process_index() == 0:
                time.sleep(_OTHERS)  # the processes meet in this one: JAX aborts those that still speak when it is gone
            os._exit(1)
        finally:
            threading.excepthook = usual

    return run


def _explain_of_thread(of: threading.ExceptHookArgs) -> None:
    """One line too where a thread ends by what is a user's to mend, as TensorBoard's writer does on a full disk."""
    try:
        assert isinstance(of.exc_value, Exception)
        print(explain(of.exc_value), file=sys.stderr, flush=True)
    except Exception:
        threading.__excepthook__(of)


def explain(error: Exception) -> str:
    """A user's error as one line with a remedy; raises it again if it is none of a user's."""
    text = " ".join(str(error).split())
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ENOSPC or "No space left on device" in text or "Disk quota exceeded" in text:
        return f"disk full: {_shortened(text)}: free some space and give the same command again"
    if number == errno.EROFS or "Read-only file system" in text:
        return f"{_shortened(text)}: name a folder that can be written"
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in text:
        return f"out of memory: {_shortened(text)}: lower data.batch_size, eval.batch_size or --max_side"
    if isinstance(error, RuntimeError | AssertionError) and (asked := _missing_platforms()):
        remedy = f"unset JAX_PLATFORMS to use {jax.default_backend()}, or install JAX for them"
        return f"JAX_PLATFORMS={asked}: there are no such devices, or this JAX is not built for them: {remedy}"
    if not isinstance(error, USER_ERRORS):
        raise error
    return f"{type(error).__name__}: {text}"


def _missing_platforms() -> str:
    """The platforms that were asked for if JAX cannot have them, which is then free to take what is there; else ''."""
    asked = jax.config.values["jax_platforms"] or ""
    try:
        jax.devices()
    except (RuntimeError, AssertionError):
        jax.config.update("jax_platforms", "")
        return asked
    return ""


def last_line(error: Exception) -> str:
    """Of a config file that fails, its traceback's last line; of a short message, all of it."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()


def _shortened(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."
