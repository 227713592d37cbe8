"""The whole line with a real LLM, a real encoder and the real command, killed once on the way."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.llm, pytest.mark.encoder]

TOPICS = {
    "astronomy": ("Stars and planets", "a telescope shows stars, planets and galaxies at night"),
    "cooking": ("Cooking recipes", "a recipe for soup with onions, salt and fresh bread"),
    "music": ("Music and sound", "an orchestra plays a symphony with violins and drums"),
    "travel": ("Travel guides", "a guide to trains, hotels and old towns along the river"),
}
EZXMC = [sys.executable, "-c", "from ezxmc.cli.app import main; main()"]


def stored(path: Path) -> int:
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
            return int(db.execute("SELECT COUNT(*) FROM judgments").fetchone()[0])
    except sqlite3.Error:
        return 0


@pytest.fixture
def config(tmp_path: Path) -> Path:
    documents = [
        {"uid": f"{topic}-{i}", "title": "", "text": f"Entry {i}: {text}"}
        for i in range(30)
        for topic, (_, text) in TOPICS.items()
    ]
    lines = [json.dumps(document) for document in documents]
    lines.insert(7, "this line is broken")
    (tmp_path / "documents.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "labels.jsonl").write_text(
        "".join(json.dumps({"uid": uid, "title": title}) + "\n" for uid, (title, _) in TOPICS.items())
    )
    (tmp_path / "gold.tsv").write_text(
        "".join(f"{document['uid']}\t{document['uid'].split('-')[0]}\n" for document in documents)
    )
    path = tmp_path / "config.yaml"
    path.write_text(
        "run_dir: run\n"
        "data: {documents: documents.jsonl, labels: labels.jsonl, gold: gold.tsv}\n"
        # This LLM knows little and often answers something else: mechanics only.
        "teacher: {model: SmolLM2-135M-Instruct, kv_cache_gib: 0.5, max_num_seqs: 8, min_label_mass: 0.01}\n"
        "shortlist: {size: 4, explore: 0}\n"
        "training: {epochs: 1, batch_size: 16, held_out: 0.4}\n"
    )
    return path


def test_run_is_killed_goes_on_and_tags(config: Path) -> None:
    run = config.parent / "run"
    store = run / "feedback.sqlite"
    first = subprocess.Popen([*EZXMC, "run", str(config)])  # what it says is shown if the test fails
    while stored(store) == 0 and first.poll() is None:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = stored(store)
    assert 0 < kept < 480, "the kill came too late to prove anything"

    done = subprocess.run([*EZXMC, "run", str(config), "--json"], capture_output=True, text=True)
    assert done.returncode == 3, done.stderr  # finished, and one row was bad
    report = json.loads(done.stdout)
    assert report["cycles"][0]["pairs_known"] >= kept
    assert report["cycles"][0]["pairs_known"] + report["cycles"][0]["pairs_new"] == 480
    assert report["teacher"]["cached_tokens"] > 0
    assert report["data"]["documents"]["problems"][0]["line"] == 8
    # Four topics in plain words: the untrained encoder is near perfect, and one
    # round of a poor teacher must not have broken that wholly.
    assert report["evaluation"]["before"]["P@1"] > 0.9
    assert report["evaluation"]["after"]["P@1"] > 0.4
    assert "</html>" in (run / "report.html").read_text()
    assert len((run / "predictions.jsonl").read_text().splitlines()) == 120

    text = '{"uid": "x", "text": "violins and a drum"}\nbroken\n'
    tagged = subprocess.run(
        [*EZXMC, "predict", str(run / "bundle")], input=text, capture_output=True, text=True
    )
    assert tagged.returncode == 3, tagged.stderr
    good, bad = sorted(map(json.loads, tagged.stdout.splitlines()), key=lambda row: "error" in row)
    assert len(good["tags"]) == 4 and good["tags"][0]["probability"] is not None
    assert bad["line"] == 2 and bad["error"].startswith("bad_json")
