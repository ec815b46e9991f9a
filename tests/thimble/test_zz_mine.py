import json
import signal
from pathlib import Path

from core.artifacts import path_digest


def test_mine(factory, tmp_path: Path):
    ws = tmp_path / "ws"
    ran = factory.kill_in("finetune", "checkpoint-30", ws)
    assert ran.code == -signal.SIGKILL, ran.stderr
    ran = factory.run(ws, "--until", "finetune")
    assert ran.code == 0, ran.stderr
    un = tmp_path / "un"
    ran = factory.run(un, "--until", "finetune")
    assert ran.code == 0, ran.stderr
    for part in ("models/checkpoints/lora", "models/checkpoints/merged", "metrics/lora.json"):
        assert path_digest(un / part) == path_digest(ws / part), part
    stats = json.loads((un / "metrics/training-stats.json").read_text())
    Path("/tmp/mine-stats.json").write_text(json.dumps(stats, indent=1))
    Path("/tmp/mine-status.json").write_text((un / ".factory/training-status.json").read_text())
    print([e for e in ran.events if e.get("event") == "phase"][-1])
