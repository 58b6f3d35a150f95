"""What a user reads while a run goes on."""

from __future__ import annotations

import pytest

from lightune.terminal import Watcher
from lightune.training import Evaluation


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("loss", "epoch 2: dev loss 1.2500, the best so far"),
        ("perplexity", "epoch 2: dev perplexity 3.4903, loss 1.2500, the best so far"),
    ],
)
def test_an_evaluation_names_the_loss_once(metric: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Watcher()(Evaluation(8, 2.0, 1.25, {"loss": 1.25, "perplexity": 3.4903}, metric, True, 4.0))
    assert capsys.readouterr().err.strip() == said
