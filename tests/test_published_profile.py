"""The notebook's own profile, whole: pair from wandb, model and Pile shards from the hub, by the real clients.

The servers are local stand-ins that hold a run in miniature under the published names; in a process of its own, because
the clients read their addresses once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.stand_ins.hub_dataset_server import COMMIT, Repository, serve_hub
from tests.stand_ins.wandb_server import serve_wandb
from tests.tiny import run_pipeline, tiny_config

ARTIFACT = "lucyfarnik/jacobian_saes_test/sae_pythia-70m-deduped_blocks.3.ln2.hook_normalized_16384"
CANARY = "canary0123456789canary0123456789canary01"
SETTINGS = ["corpus.max_tokens=500", "corpus.context_tokens=48", "quality.max_fvu_in=50", "quality.max_fvu_out=50"]
DRIVER = """
import json, sys
from jacobian_core.profiles import load_config
from tests.tiny import run_pipeline
config = load_config("pythia-70m", json.loads(sys.argv[2]), sys.argv[1])
first, again = run_pipeline(config), run_pipeline(config)
print(json.dumps({"run_id": first.run_id, "states": [first.state, again.state]}))
"""


def run_profile(tiny: Path, home: Path, lake: Path) -> subprocess.CompletedProcess[str]:
    pile = home / "pile"
    shutil.copytree(tiny / "corpus", pile / "train")
    versions = {"v4": {path.name: path.read_bytes() for path in (tiny / "pair").iterdir()}}
    repositories = {
        ("datasets", "monology/pile-uncopyrighted"): Repository(pile),
        ("models", "EleutherAI/pythia-70m-deduped"): Repository(tiny / "model"),
    }
    with serve_hub(repositories) as hub, serve_wandb(ARTIFACT, versions) as wandb:
        own = {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "WANDB_BASE_URL": wandb.url, "WANDB_API_KEY": CANARY,
            "HOME": str(home), "JACOBIAN_FLOWS_CACHE": str(home / "cache"), "NO_PROXY": "127.0.0.1,localhost",
            "HF_HUB_DISABLE_XET": "1", "WANDB_CONFIG_DIR": str(home / "wandb"),
        }  # fmt: skip
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "WANDB_"))}
        return subprocess.run(
            [sys.executable, "-c", DRIVER, str(lake), json.dumps(SETTINGS)],
            env=kept | own, capture_output=True, text=True, timeout=240, check=False, cwd=Path(__file__).parents[1],
        )  # fmt: skip


def test_the_published_profile_end_to_end(tiny: Path, tmp_path: Path) -> None:
    done = run_profile(tiny, tmp_path / "home", tmp_path / "lake")
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["states"] == ["new", "done"]
    manifest = json.loads((tmp_path / "lake" / "runs" / f"{result['run_id']}.json").read_text())
    assert manifest["totals"]["tokens"] == 500
    assert manifest["artifact"]["locator"] == f"wandb:{ARTIFACT}:v4"
    assert manifest["model"]["files"] == {"commit": COMMIT, "name": "pythia-70m-deduped"}
    assert [shard["name"] for shard in manifest["corpus"]["shards"]] == ["train/00.jsonl.zst", "train/01.jsonl.zst"]
    everything = done.stdout + done.stderr + json.dumps(manifest)
    assert CANARY not in everything
    # The same pair, model and text from local folders give the same entries.
    groups = {"jacobian": manifest["config"]["jacobian"], "interventions": manifest["config"]["interventions"]}
    local = tiny_config(tiny, tmp_path / "local", corpus={"max_tokens": 500, "block_tokens": 4096}, **groups)
    run = run_pipeline(local)
    own = json.loads((tmp_path / "local" / "runs" / f"{run.run_id}.json").read_text())
    assert own["totals"] == manifest["totals"]
    assert own["totals"] != {**manifest["totals"], "tokens": 499}
