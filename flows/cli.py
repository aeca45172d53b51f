"""The `jacobian` command. Start-up is quick because every command imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

from flows import cli_config, cli_data, cli_deploy, cli_maintain, cli_run, cli_server, cli_sweep, cli_train, json_log
from flows.cli_options import DEBUG
from flows.output import note, show_warnings, traceback_text, write_error_log
from jacobian_core.artifact.redact import redact
from jacobian_core.errors import JacobianFlowsError
from jacobian_core.memory import share_heap

INTERRUPTED = 130
_BROKEN_PIPE = 141
_ANYWHERE = {"--debug": DEBUG, "--log-json": json_log.ENVIRONMENT}

app = typer.Typer(
    name="jacobian",
    help="Sparse Jacobians between SAE latents, from text to a lake of Parquet tables and SQL reports.",
    epilog="Begin with: jacobian run. Any command takes --debug, which shows tracebacks and all logs, "
    "and --log-json, which writes logs as JSON lines.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for _module in (cli_run, cli_sweep, cli_data, cli_maintain, cli_deploy, cli_server, cli_config, cli_train):
    _module.register(app)


def main() -> NoReturn:
    """Run the command line; every failure becomes one line on stderr and an exit code."""
    arguments = [a for a in sys.argv[1:] if a not in _ANYWHERE]
    for option in _ANYWHERE.keys() & set(sys.argv[1:]):  # wherever it stands: no command has to know of it
        os.environ[_ANYWHERE[option]] = "1"
    # OpenMP's idle threads spin by default, which on a machine shared with others slows torch down several times.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    share_heap()
    json_log.install() if json_log.wanted() else show_warnings()
    try:
        code = app(arguments, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)
    except JacobianFlowsError as error:
        _fail(str(error), error.exit_code, error)
    except typer.TyperException as error:  # a wrong option or argument
        _fail(error.format_message(), error.exit_code, error)
    except BrokenPipeError:  # `jacobian sql ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_BROKEN_PIPE)
    except Exception as error:
        log = write_error_log(error)
        where = f" The traceback is in {log}." if log else " Use --debug to see the traceback."
        _fail(f"unexpected {type(error).__name__}: {error}.{where}", 1, error)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int, error: BaseException) -> NoReturn:
    if os.environ.get(DEBUG):
        note(traceback_text(error).rstrip(), "error")
    else:
        note("error: " + redact(message), "error")
    sys.exit(code)


if __name__ == "__main__":
    main()
