"""opt-350m's embeddings are narrower than its states: what keeps states has the width of states."""

from __future__ import annotations

from pathlib import Path

import pytest

import ima
from ima.models.llm.families import TINY
from ima.models.llm.load import tiny

# fmt: off
SMALL = ["llm=tiny", "llm.family=opt_350m", "llm.num_blocks=4", "trainer=cpu", "loader.batch_size=4", "logger=none",
         "name=narrow", "trainer.max_epochs=1", "data=shapes", "data.num_train=12", "data.num_test=6", "data.size=32",
         "encoder=noise", "encoder.dim=8", "encoder.num_tokens=4", "adapter=linear", "task.max_new_tokens=3"]
# fmt: on
GROUPS = "[sinks,probes,maps,connector,lens,patches,twin]"


@pytest.mark.parametrize("family", list(TINY))
def test_states_between_blocks_have_the_width_that_the_llm_says(family: str) -> None:
    import torch

    llm = tiny(family)
    seen: list[int] = []
    handle = llm.table.blocks[1].register_forward_pre_hook(
        lambda _m, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).shape[-1]),
        with_kwargs=True,
    )
    with torch.no_grad():
        llm.model(input_ids=torch.tensor([[5, 6, 7]]))
    handle.remove()
    assert seen == [llm.stream_width]


def test_every_group_and_steering_measure_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ima.pipeline.run.write_report", lambda folders: folders[0] / "report.html")
    assert ima.fit([*SMALL, f"alignment={GROUPS}"]).metrics["val/loss"] is not None
    steered = ["checkpoint=outputs/narrow", "intervention=steer", "intervention.steer.layer=1", "alignment=none"]
    found = ima.evaluate([*steered, "trainer=cpu"])
    assert found.metrics["val/loss"] is not None
