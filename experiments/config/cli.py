"""A dataclass as a command line: one option per field, differences from a TOML file.

Every script of experiments/ shares this, and its way to end on bad input.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import json
import os
import re
import signal
import sys
import threading
import tomllib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

Config = TypeVar("Config")
Main = Callable[[Sequence[str]], int | None]

CODE = re.compile(r"(?:^|[\s,=])[A-Za-z_][\w.]*:[A-Za-z_]")
"""`package.module:function`, wherever it stands in a value."""
DEBUG = "--debug"
"""Word of every command: what nobody foresaw is shown with its traceback."""
_DEBUGGED: ContextVar[bool] = ContextVar("debugged", default=False)


class Terminated(KeyboardInterrupt):
    """SIGTERM came: what is under way ends as after Ctrl-C."""


def main_guard(main: Main) -> Callable[[Sequence[str] | None], int]:
    """`main` with progress and an exit status.

    2 and a line on stderr for bad input, 130 and 143 when interrupted or terminated, 1 and a line
    for whatever else went wrong: its traceback only with `--debug`, which every command knows.

    In a script: `if __name__ == "__main__": sys.exit(main(None))`; None takes `sys.argv`.
    """

    @functools.wraps(main)
    def guarded(argv: Sequence[str] | None = None) -> int:
        from prune_env.progress import aloud, showing

        words = list(sys.argv[1:] if argv is None else argv)
        debugged = _DEBUGGED.get() or DEBUG in words
        token = _DEBUGGED.set(debugged)  # a command that hands its words to another one has it too
        try:
            with showing(aloud()), _terminable():
                return main([word for word in words if word != DEBUG]) or 0
        except KeyboardInterrupt as stop:
            print("interrupted; the same command goes on from here", file=sys.stderr)
            return 143 if isinstance(stop, Terminated) else 130
        except BrokenPipeError:  # `... | head` went away; keep Python from complaining at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except Exception as error:
            from prune_env.errors import PruneEnvError  # late, see config_error

            if debugged:
                raise
            known = isinstance(error, PruneEnvError)
            said = str(error) if known else _fault(error)
            print("error: " + " ".join(said.split()), file=sys.stderr)
            return 2 if known else 1
        finally:
            _DEBUGGED.reset(token)

    return guarded


def _fault(error: Exception) -> str:
    """What is said of an error that nobody foresaw."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno}). Nobody foresaw "
        f"this; the same command with {DEBUG} shows how it came about."
    )


@contextmanager
def _terminable() -> Iterator[None]:
    """Inside, SIGTERM raises `Terminated` in the main thread of this process, and in no child."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    here = os.getpid()

    def stop(number: int, frame: Any) -> None:
        if os.getpid() != here:  # a forked child has this handler too
            os._exit(128 + number)
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def config_error(message: str) -> Exception:
    """A `prune_env.errors.ConfigError`, imported only now: with prune_env comes torch, and
    `--help` shall not wait for that."""
    from prune_env.errors import ConfigError

    return ConfigError(message)


def invoked(command: str) -> str:
    """How a command was called: `prune-env run` where the package is installed, or the module."""
    installed = Path(sys.argv[0]).stem == "prune-env"
    return f"prune-env {command}" if installed else f"python -m experiments.{command}"


def parse(
    config_class: type[Config], argv: Sequence[str], *, prog: str = "", description: str = ""
) -> Config:
    """A config from defaults, then `--config` (TOML or JSON), then the rest of `argv`.

    Raises:
        ConfigError: an unknown option or key (says the nearest), a value of the wrong type or
            out of range, or a file that cannot be read.
        SystemExit: status 0, after `--help` and `--print-config`.
    """
    hints = get_type_hints(config_class)
    parser = _parser(config_class, hints, prog, description or (config_class.__doc__ or ""))
    found, unknown = parser.parse_known_args(argv)
    given = vars(found)
    if unknown:
        known = [s for a in parser._actions for s in a.option_strings if s.startswith("--")]
        name = unknown[0].split("=")[0]
        raise config_error(f"unknown option '{name}'.{nearest(name, known)} See --help.")
    file, shown = given.pop("config", None), given.pop("print_config", False)
    given.pop("debug", None)  # `main_guard` has seen to it
    from_file = {} if file is None else _read_values(Path(file), hints)
    for name, value in from_file.items():
        if name not in given:
            _require_data(name, value, file)
    config = config_class(**{**from_file, **given})
    if shown:
        print(as_toml(config))
        raise SystemExit(0)
    return config


def as_toml(config: Any) -> str:
    """All fields of a config as `--config` reads them back."""
    return "\n".join(
        f"{field.name} = {_toml_value(getattr(config, field.name))}" for field in fields(config)
    )


def _toml_value(value: Any) -> str:
    if isinstance(value, float):  # inf and nan are TOML, not JSON
        return repr(value)
    # TOML escapes what JSON does, and one character more.
    plain = list(value) if isinstance(value, tuple) else value
    return json.dumps(plain, default=str, ensure_ascii=False).replace("\x7f", "\\u007f")


def _require_data(name: str, value: Any, file: Any) -> None:
    """Check that a value from a file names no code: whose code is run, the command line says."""
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str) and CODE.search(text):
            flag = "--" + name.replace("_", "-")
            raise config_error(
                f"'{name}' in '{file}' is {text!r}, which names code to run; a file holds values "
                f"only. Give it on the command line: {flag} {text}."
            )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise config_error(f"{message}. See --help.")


def _parser(
    config_class: type[Any], hints: Mapping[str, Any], prog: str, description: str
) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog or None,
        description=description.split("\n\n")[0],
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    shipped = ", ".join(sorted(path.name for path in SHIPPED.glob("*.toml")))
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"file of values that differ: TOML, a run's own config.json, or one of {shipped}",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print all values as TOML and do nothing"
    )
    parser.add_argument(DEBUG, action="store_true", help="show the traceback of an error")
    for entry in fields(config_class):
        kind = KINDS[hints[entry.name]]
        default = kind.show(entry.default)
        text = f"{entry.metadata.get('help', '')} (default: {default or 'none'})"
        flag = "--" + entry.name.replace("_", "-")
        parser.add_argument(flag, dest=entry.name, help=text.replace("%", "%%"), **kind.argparse)
    return parser


@dataclass(frozen=True)
class Kind:
    """How a field of one type is written on the command line and in TOML."""

    word: str
    from_toml: Callable[[Any], Any]
    argparse: Mapping[str, Any]
    show: Callable[[Any], str] = str


def _exactly(*types: type) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if type(value) not in types:  # bool is an int to isinstance
            raise TypeError
        return types[0](value)

    return convert


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise TypeError
    return tuple(value)


def _counts(value: Any) -> tuple[int, ...]:
    if isinstance(value, str):
        return tuple(int(part) for part in _names(value))
    if not isinstance(value, list) or not all(type(part) is int for part in value):
        raise TypeError
    return tuple(value)


def _numbers(value: Any) -> tuple[float, ...]:
    if isinstance(value, str):
        return tuple(float(part) for part in _names(value))
    if not isinstance(value, list) or not all(type(part) in (int, float) for part in value):
        raise TypeError
    return tuple(float(part) for part in value)


KINDS: dict[Any, Kind] = {
    str: Kind("a text", _exactly(str), {"metavar": "TEXT"}),
    int: Kind("a whole number", _exactly(int), {"type": int, "metavar": "N"}),
    float: Kind("a number", _exactly(float, int), {"type": float, "metavar": "X"}),
    bool: Kind("true or false", _exactly(bool), {"action": argparse.BooleanOptionalAction}),
    Path: Kind(
        "a path", lambda value: Path(_exactly(str)(value)), {"type": Path, "metavar": "PATH"}
    ),
    tuple[str, ...]: Kind(
        "a list of texts", _names, {"type": _names, "metavar": "A,B"}, lambda value: ",".join(value)
    ),
    tuple[int, ...]: Kind(
        "a list of whole numbers",
        _counts,
        {"type": _counts, "metavar": "N,M"},
        lambda value: ",".join(map(str, value)),
    ),
    tuple[float, ...]: Kind(
        "a list of numbers",
        _numbers,
        {"type": _numbers, "metavar": "X,Y"},
        lambda value: ",".join(f"{number:g}" for number in value),
    ),
}
"""Type of a config's field -> how it is read. Add a type here."""


SHIPPED = Path(__file__).parents[1] / "configs"
"""TOML files that come with the commands, known by their names alone: `--config digits.toml`."""


def _from_json(text: str) -> dict[str, Any]:
    from prune_env.storage import unseal  # late, see config_error

    return unseal(text, required=False)


def _read_values(file: Path, hints: Mapping[str, Any]) -> dict[str, Any]:
    if not file.exists() and (SHIPPED / file).exists():
        file = SHIPPED / file
    try:
        text = file.read_text(encoding="utf-8")
        content = _from_json(text) if file.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        reason = error.strerror if isinstance(error, OSError) else error
        raise config_error(f"cannot read the config file '{file}': {reason}.") from error
    values = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in hints:
            raise config_error(f"unknown key '{key}' in '{file}'.{nearest(name, list(hints))}")
        kind = KINDS[hints[name]]
        try:
            values[name] = kind.from_toml(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise config_error(f"'{key}' in '{file}' is {value!r}, not {kind.word}.") from error
    return values


def nearest(name: str, known: Sequence[str]) -> str:
    """A clause that names the known word most like `name`, empty where none is."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""
