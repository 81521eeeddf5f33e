"""The table of verdicts: cells from runs, and their Markdown, CSV and page."""

from __future__ import annotations

import csv
import dataclasses
import html
import math
from collections.abc import Callable, Iterable, Sequence

from ima.core.csv_text import csv_text
from ima.report.claims.claims import CLAIMS, Claim, Quantity
from ima.report.claims.measures import Setting
from ima.report.claims.verdicts import Combined, Effect, Verdict, combine, holm, judge
from ima.report.page.html import document
from ima.report.run import Run

HEADER = ("claim", "quantity", "llm", "modality", "setup", "effect", "low", "high", "seeds", "p_holm", "verdict",
          "commits", "runs")  # fmt: skip
NOT_RUN = "not run"
NO_QUANTITY = "not computed here: read the page of its sweep"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One quantity of a claim in one setting. mixed: its runs come from commits between which the code changed."""

    claim: Claim
    quantity: Quantity
    setting: Setting
    effects: tuple[Effect, ...]
    found: Combined
    adjusted_p: float
    verdict: Verdict
    mixed: bool = False

    @property
    def commits(self) -> list[str]:
        return sorted({commit for effect in self.effects for commit in effect.commits})

    @property
    def words(self) -> str:
        """`holds`, or what was seen with fewer seeds than a verdict needs."""
        few = f": {interval_text(self.found)}" if self.verdict == "few seeds" else ""
        return self.short.replace(" (mixed", f"{few} (mixed") if self.mixed else self.short + few

    @property
    def short(self) -> str:
        """The same without numbers, for a table that has them."""
        few = {1: "one seed", 2: "two seeds"}.get(self.found.num_seeds, "")
        verdict = few if self.verdict == "few seeds" else self.verdict
        return verdict + (" (mixed commits)" if self.mixed else "")


def cells_of(runs: Sequence[Run], changed: Callable[[Sequence[str]], bool] = lambda commits: False) -> list[Cell]:
    """All cells that these runs fill, in the order of the claims. changed: whether the code that these runs rest on
    differs between commits."""
    return [cell for claim in CLAIMS for cell in cells_of_claim(claim, runs, changed)]


def cells_of_claim(claim: Claim, runs: Sequence[Run], changed: Callable[[Sequence[str]], bool]) -> list[Cell]:
    groups: dict[tuple[int, Setting], dict[int, Effect]] = {}
    for index, quantity in enumerate(claim.quantities):
        for found in quantity.measure(runs):
            groups.setdefault((index, found.setting), {}).setdefault(found.effect.seed, found.effect)
    effects = {key: tuple(of_seed.values()) for key, of_seed in groups.items()}
    combined = {key: combine(each, claim.quantities[key[0]].bar) for key, each in effects.items()}
    adjusted = dict(zip(combined, holm([each.p for each in combined.values()]), strict=True))
    out = []
    for key, whole in combined.items():
        quantity = claim.quantities[key[0]]
        verdict = judge(whole, adjusted[key], quantity.smallest, quantity.bar, quantity.absent)
        cell = Cell(claim, quantity, key[1], effects[key], whole, adjusted[key], verdict)
        out.append(dataclasses.replace(cell, mixed=changed(cell.commits)))
    return out


def absence(claim: Claim) -> str:
    return NOT_RUN if claim.quantities else NO_QUANTITY


def number_text(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "unknown"


def interval_text(found: Combined) -> str:
    if not math.isfinite(found.low) or not math.isfinite(found.high):
        return f"{number_text(found.value)} (no interval)"
    return f"{number_text(found.value)} [{number_text(found.low)}, {number_text(found.high)}]"


def lines_of(cells: Sequence[Cell]) -> Iterable[tuple[Claim, Cell | None]]:
    """Every claim once at least: a claim without a cell was not run."""
    for claim in CLAIMS:
        own = [cell for cell in cells if cell.claim is claim]
        yield from ((claim, cell) for cell in own)
        if not own:
            yield claim, None


def csv_of(cells: Sequence[Cell]) -> str:
    rows: list[list[object]] = []
    for claim, cell in lines_of(cells):
        if cell is None:
            rows.append([claim.key, claim.title, *[""] * 8, absence(claim), "", claim.command])
            continue
        found, setting = cell.found, cell.setting
        numbers = [float(f"{each:.6g}") for each in (found.value, found.low, found.high)]
        runs = sorted({run for effect in cell.effects for run in effect.runs})
        rows.append([claim.key, cell.quantity.name, setting.llm, setting.modality, setting.setup, *numbers,
                     found.num_seeds, float(f"{cell.adjusted_p:.3g}"), cell.verdict, " ".join(cell.commits),
                     " ".join(runs)])  # fmt: skip
    return csv_text(list(HEADER), rows)


def cells_text(claim: Claim, cell: Cell | None) -> list[str]:
    if cell is None:
        return [claim.key, claim.title, "", "", "", "", absence(claim)]
    setting = cell.setting
    return [claim.key, cell.quantity.name, f"{setting.llm}, {setting.modality}", setting.setup,
            interval_text(cell.found), str(cell.found.num_seeds), cell.short]  # fmt: skip


COLUMNS = ("claim", "quantity, positive where the claim is right", "LLM, medium", "setup", "effect, 95 % interval",
           "seeds", "verdict")  # fmt: skip


def markdown_of(cells: Sequence[Cell]) -> str:
    """A table a claim, with its title and command."""
    out: list[str] = []
    last: Claim | None = None
    for claim, cell in lines_of(cells):
        if claim is not last:
            out += ["", f"**{claim.key}. {claim.title}** (`{claim.command}`)", ""]
            last = claim
            if cell is None:
                out.append(f"{absence(claim)}.")
                continue
            out += ["| " + " | ".join(COLUMNS[1:]) + " |", "|" + "---|" * len(COLUMNS[1:])]
        out.append("| " + " | ".join(text.replace("|", "/") for text in cells_text(claim, cell)[1:]) + " |")
    return "\n".join(out).strip() + "\n"


def markdown_of_csv(text: str) -> str:
    """A short table of a claims.csv that is kept: what was measured, its interval, seeds, verdict and commit."""
    out = ["| claim | quantity | LLM, medium | effect, 95 % interval | seeds | verdict | commit |", "|" + "---|" * 7]
    for line in csv.DictReader(text.splitlines()):
        if not line["effect"]:
            continue
        low, high = line["low"], line["high"]
        interval = f"[{float(low):.3f}, {float(high):.3f}]" if low not in ("", "nan") else "(no interval)"
        commits = ", ".join(commit[:7] for commit in line["commits"].split())
        verdict = {"1": "one seed", "2": "two seeds"}.get(line["seeds"], line["verdict"])
        cells = [line["claim"], line["quantity"], f"{line['llm']}, {line['modality']}", line["seeds"], verdict]
        cells.insert(3, f"{float(line['effect']):.3f} {interval}")
        out.append("| " + " | ".join([*cells, commits]) + " |")
    return "\n".join(out) + "\n"


def page_of(cells: Sequence[Cell], sources: Sequence[str]) -> str:
    """One HTML document: a section a claim."""
    sections = []
    for claim in CLAIMS:
        own = [cell for cell in cells if cell.claim is claim]
        body = f'<p class="lead"><code>{html.escape(claim.command)}</code></p>'
        if own:
            head = "".join(f"<th>{html.escape(name)}</th>" for name in COLUMNS[1:])
            lines = "".join(
                "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in cells_text(claim, cell)[1:]) + "</tr>"
                for cell in own
            )
            body += f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
        else:
            body += f"<p>{absence(claim)}.</p>"
        sections.append((claim.key.lower(), f"{claim.key}. {claim.title}", body))
    lead = (
        "Effects are in the papers' direction. A verdict needs three seeds; its interval is the wider of Student's t "
        "over seeds and the interval over examples; p values are corrected for the cells of a claim (Holm)."
    )
    header = f"<h1>Claims</h1><p class='lead'>{html.escape(lead)} Runs: {html.escape(', '.join(sources))}.</p>"
    return document("ima · claims", header, sections)
