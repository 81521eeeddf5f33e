"""What train.py and evaluate.py share: they are Hydra applications, and mistakes become one line at their border.

`run_script` hands the command line to `hydra.main`, whose loader (`ima.config.loader`) composes and checks the config
in about a second and without torch; then the job (`ima.cli.job`) runs. A UserError is printed as `error: ...` and gives
exit code 2; a multirun in which a job failed gives 1; errors of the program keep their traceback.
"""

from __future__ import annotations

import atexit
import functools
import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra

from ima.cli import job
from ima.cli.flags import Flags, read_flags
from ima.cli.help import help_text
from ima.config import folders, hydra_private
from ima.config.compose import REFUSED
from ima.config.loader import Loader
from ima.config.refusals import one_line
from ima.core.commands import ROOT, command_of
from ima.core.environment import prepare
from ima.core.errors import UserError
from ima.core.network import settle
from ima.core.trust import CONF
from ima.sweep import launcher
from ima.sweep.job import JobFailed
from ima.sweep.process import refuse_ranks


def run_script(
    root: str,
    argv: Sequence[str],
    entry: Callable[[Any], Any] | None = None,
    conf: Path = CONF,
    follow: Callable[[Path], None] | None = None,
) -> int:
    """The whole of a script; returns its exit code. `entry` replaces the function that trains or evaluates (tests).
    follow: called with the folder of a multirun before its end."""
    prepare()
    # Composing makes many small objects that stay. Looking through them for garbage, meanwhile and at the end of the
    # process, would take a third of the time of a refusal; `ima.cli.job` turns it on again.
    gc.disable()
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    try:
        return at_border(functools.partial(start, root, list(argv), entry, conf, follow))
    finally:
        gc.enable()


def at_border(call: Callable[[], int]) -> int:
    """What `call` returns; a mistake of a person as one line and exit code 2."""
    job.STARTED, job.REFUSAL = False, None
    try:
        return call()
    except JobFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except Exception as error:
        if (line := refusal(error)) is None:
            raise
        return refuse(line)


def start(
    root: str,
    argv: list[str],
    entry: Callable[[Any], Any] | None,
    conf: Path,
    follow: Callable[[Path], None] | None,
) -> int:
    flags = read_flags(argv, conf)
    if flags.has("help"):
        print(help_text(root, conf, flags.config_dirs))
        return 0
    if flags.has("multirun"):
        gc.enable()
        refuse_ranks(os.environ)
    elif flags.is_run and any(text.startswith("sweep=") for text in argv) and "hydra.mode=RUN" not in argv:
        raise UserError(f"sweep: several runs; write {command_of(root)} --multirun, or {command_of('sweep')}")
    typed = [text.partition("=")[2] for text in flags.given.overrides if text.startswith("offline=")]
    if typed:
        settle(typed[-1])  # a checkpoint of the hub is read while the config is composed
    launcher.JOBS.clear()
    begun, failure = time.time(), None
    places: list[Path] = []
    try:
        run_hydra(root, flags, entry, conf, places)
    except JobFailed as error:
        failure = error
    except KeyboardInterrupt:
        if places:
            end_multirun(places[0], begun, draw=False)
        raise
    if places and flags.is_run:
        try:
            if follow is not None:
                follow(places[0])
        except JobFailed as error:
            failure = failure or error
        finally:
            end_multirun(places[0], begun)
    if failure is not None:
        raise failure
    return 0


def end_multirun(folder: Path, begun: float, draw: bool = True) -> int:
    """Table and page of a multirun; 1 where a job has failed that its sweeper passed over."""
    from ima.sweep.run import finish, jobs_in  # draws figures

    jobs = list(launcher.JOBS) or jobs_in(folder)
    if jobs:
        finish(folder, jobs, draw)
    failed = [one for one in jobs if one.state == "failed" and one.has_ended_since(begun)]
    if failed:
        raise JobFailed(f"{failed[0].label}: {failed[0].reason}" + (f" and {len(failed) - 1} more" * bool(failed[1:])))
    return 0


def run_hydra(root: str, flags: Flags, entry: Callable[[Any], Any] | None, conf: Path, places: list[Path]) -> None:
    """`hydra.main` over the job, with our loader. The folder of a multirun is put into `places`. What a single run was
    refused for is raised."""
    made: list[Loader] = []

    def make_loader(config_search_path: Any) -> Loader:
        made.append(Loader(config_search_path, root, conf, looks=not flags.is_run))
        return made[-1]

    make_findable()
    folders.register()
    hydra_private.find_plugin()
    hydra_private.use_loader(make_loader)
    hydra_private.raise_errors()
    typed, job.ENTRY = list(sys.argv), entry
    sys.argv, job.TYPED = [sys.argv[0], *flags.ordered], typed
    try:
        hydra.main(**version_base(), config_path=str(conf), config_name=root)(job.TASKS[root])()
    finally:
        sys.argv, job.ENTRY, job.TYPED = typed, None, None
        places += [loader.sweep_dir for loader in made if loader.sweep_dir is not None]
    if job.REFUSAL is not None:
        raise job.REFUSAL


def version_base() -> dict[str, Any]:
    """1.4 has one behaviour only and says so."""
    return {"version_base": hydra_private.VERSION_BASE} if hydra.__version__ < "1.4" else {}


def make_findable() -> None:
    """A person's own classes lie where she works; our plugin and ima itself are found by processes of launchers too."""
    places = [os.getcwd(), str(ROOT), str(hydra_private.PLUGINS)]
    sys.path += [place for place in places if place not in sys.path]
    known = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    os.environ["PYTHONPATH"] = os.pathsep.join([*known, *(place for place in places if place not in known)])


def refusal(error: Exception) -> str | None:
    """The line for a mistake of a person; None for one of the program."""
    if (line := job.line_of(error)) is not None:
        return line
    if job.STARTED or os.environ.get("HYDRA_FULL_ERROR") == "1":
        return None
    if isinstance(error, REFUSED) or type(error).__module__.startswith("hydra.") or type(error) is ValueError:
        return one_line(error)
    return None


def refuse(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2
