"""The smart turn model as pipecat runs it, as the judge of our features. Optional: ``pipecat-ai``, which carries the model."""

from __future__ import annotations

import numpy as np
import pytest

from tests import recordings
from voiceserver_workers.engines.smart_turn_model import TurnModel, model_path

RATE_HZ = 16_000
SILENCE = np.zeros(RATE_HZ // 5, np.float32)

pipecat = pytest.importorskip(
    "pipecat.audio.turn.smart_turn.local_smart_turn_v3", reason="pipecat-ai is not installed"
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_probabilities_are_those_of_pipecats_own_class() -> None:
    theirs = pipecat.LocalSmartTurnAnalyzerV3(sample_rate=RATE_HZ)
    ours = TurnModel(model_path("pipecat"))
    names = recordings.names()
    assert names
    for name in names:
        audio = recordings.recording(name).audio
        for part in (audio, audio[: len(audio) // 2], np.concatenate((audio, SILENCE))):
            expected = theirs._predict_endpoint(part)["probability"]
            assert ours.probability(part) == pytest.approx(expected, abs=1e-5), name
