"""The service over HTTP on loopback: tags, labels, reloads, limits, and a fuzzer that finds no 500."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support.commands import until
from support.serving import DOCUMENTS, EVIL, PATIENCE, served, write_bundle
from support.tinyworld import label_rows

pytest.importorskip("fastapi", reason="needs the extra `serve`")

from prometheus_client.parser import text_string_to_metric_families

from ezxmc.bundle.bundle import add_decision, save_bundle
from ezxmc.bundle.labels import add_labels, remove_labels
from ezxmc.bundle.predict import MOST_PARTS, Predictor, prediction_row
from ezxmc.calibration.decisions import Decision, Guarantee
from ezxmc.errors import BundleError
from ezxmc.records import Label, Prediction
from ezxmc.serve.app import create_app
from ezxmc.serve.guard import Limits
from ezxmc.serve.service import BundleHolder, Settings

pytestmark = pytest.mark.usefixtures("one_thread")

FREE = Limits(rate=1e6, burst=1_000_000)
BODY = {"documents": [{"uid": one.uid, "title": one.title, "text": one.text} for one in DOCUMENTS]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, one_thread: None) -> Path:
    return write_bundle(tmp_path_factory.mktemp("serve") / "bundle", tiny_encoder)


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    """A bundle that a test may change."""
    shutil.copytree(made, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture(scope="module")
def client(made: Path) -> Iterator[httpx.Client]:
    """Of a service whose bundle stays as it is."""
    with served(create_app(plain(made, FREE, batch_wait=0.05))) as found:
        yield found


@pytest.fixture
def changing(bundle: Path) -> Iterator[httpx.Client]:
    with served(create_app(plain(bundle, FREE, watch_every=0.05))) as found:
        yield found


def plain(bundle: Path, limits: Limits = FREE, **options: Any) -> Settings:
    """In float32: what a document is batched with must not matter to its scores."""
    return Settings(bundle, limits, precision="float32", **options)


def metric(client: httpx.Client, name: str, **labels: str) -> float:
    return sum(
        sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_the_service_tags_as_the_library_does(client: httpx.Client, made: Path) -> None:
    predictor = Predictor(made)
    for options in ({}, {"k": 2}, {"k": 26, "threshold": 0.5}):
        wanted = [prediction_row(one) for one in predictor.predict(DOCUMENTS, **options)]  # type: ignore[arg-type]
        found = client.post("/predict", json=BODY | options).json()["predictions"]
        assert [[tag["label"] for tag in one["tags"]] for one in found] == [
            [tag["label"] for tag in one["tags"]] for one in wanted
        ]
        for mine, other in zip(found, wanted, strict=True):
            assert mine["uid"] == other["uid"]
            for tag, same in zip(mine["tags"], other["tags"], strict=True):
                assert tag == pytest.approx(same, abs=2e-4)
    texts = client.post("/predict", json={"documents": ["guitar", {"text": "soup"}]}).json()["predictions"]
    assert [one["uid"] for one in texts] == ["0", "1"]


def test_what_speaks_for_a_tag_is_told_where_it_is_asked_for(client: httpx.Client, made: Path) -> None:
    texts = ["Guitar melody. Soup of the oven! A star in orbit.", "guitar", "a, b, comet"]
    plain = client.post("/predict", json={"documents": texts, "k": 26}).json()["predictions"]
    assert {name for one in plain for tag in one["tags"] for name in tag} == {
        "label",
        "title",
        "score",
        "probability",
    }
    body = {"documents": [*texts, {"title": "Guitar", "text": "soup"}], "k": 26, "explain": True}
    # Others are in the same batch, of which some want no reasons.
    with ThreadPoolExecutor(4) as pool:
        others = pool.map(lambda text: client.post("/predict", json={"documents": [text]}).json(), texts)
        found = client.post("/predict", json=body).json()["predictions"]
        assert all("evidence" not in tag for one in others for tag in one["predictions"][0]["tags"])
    predictor = Predictor(made)
    for text, one in zip(texts, found[:3], strict=True):
        prediction, why = predictor.explain(text, k=26)
        assert [tag["label"] for tag in one["tags"]] == list(prediction.labels)
        for tag, evidence in zip(one["tags"], why, strict=True):
            if evidence is None or abs(evidence.drop - 0.005) < 1e-3:
                continue
            assert tag["evidence"] == {"text": evidence.text, "drop": pytest.approx(evidence.drop, abs=1e-3)}
            rest = text.replace(evidence.text, " ").strip()
            scores = dict(zip(*attrs(predictor.predict([rest], k=26)[0]), strict=True))
            assert tag["score"] - scores[tag["label"]] == pytest.approx(evidence.drop, abs=1e-3)
    said = {tag["evidence"]["text"] for one in found[:1] for tag in one["tags"] if tag["evidence"]}
    assert said and said <= {"Guitar melody.", "Soup of the oven!", "A star in orbit."}
    assert [tag["evidence"] for tag in found[1]["tags"]] == [None] * 26
    assert {tag["evidence"]["text"] for tag in found[2]["tags"] if tag["evidence"]} <= {"a,", "b,", "comet"}
    assert {tag["evidence"]["text"] for tag in found[3]["tags"] if tag["evidence"]} <= {"Guitar", "soup"}


def attrs(prediction: Prediction) -> tuple[tuple[str, ...], tuple[float, ...]]:
    return prediction.labels, prediction.scores


def test_requests_at_once_share_batches_and_get_their_own_answers(client: httpx.Client) -> None:
    alone = {
        (number, k): client.post("/predict", json={"documents": [DOCUMENTS[number].text], "k": k}).json()
        for number in range(8)
        for k in (1, 3)
    }
    batches, documents = (
        metric(client, "ezxmc_batch_documents_count"),
        metric(client, "ezxmc_documents_total"),
    )

    def ask(case: tuple[int, int]) -> Any:
        return client.post("/predict", json={"documents": [DOCUMENTS[case[0]].text], "k": case[1]}).json()

    cases = list(alone) * 3
    with ThreadPoolExecutor(16) as pool:
        for case, found in zip(cases, pool.map(ask, cases), strict=True):
            assert [tag["label"] for tag in found["predictions"][0]["tags"]] == [
                tag["label"] for tag in alone[case]["predictions"][0]["tags"]
            ]
    assert metric(client, "ezxmc_documents_total") - documents == len(cases)
    assert metric(client, "ezxmc_batch_documents_count") - batches < len(cases) / 2


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"", 422, "body"),
        (b"{", 422, "JSON"),
        (b"[" * 100_000, 400, ""),
        (b"1" * 5_000, 400, ""),
        (b"{}", 422, "documents"),
        (b'{"documents": []}', 422, "documents"),
        (b'{"documents": [""]}', 422, "neither title nor text"),
        (b'{"documents": [{"uid": "a"}]}', 422, "neither title nor text"),
        (b'{"documents": ["x"], "k": 0}', 422, "k"),
        (b'{"documents": ["x"], "k": 1e999}', 422, "k"),
        (b'{"documents": ["x"], "k": true}', 422, "k: is true or false: give a number"),
        (b'{"documents": ["x"], "threshold": true}', 422, "threshold: is true or false: give a number"),
        (b'{"documents": ["x"], "threshold": NaN}', 422, "threshold"),
        (b'{"documents": ["x"], "threshold": 2}', 422, "threshold"),
        (b'{"documents": ["x"], "thresold": 0.5}', 422, "thresold"),
        (b'{"documents": ["x"], "\\ud800": 1}', 422, ""),
        (b'{"documents": ["\\ud800"]}', 422, "U+D800"),
        (b'{"documents": [{"uid": "\\udfff", "text": "x"}]}', 422, "U+DFFF"),
        (b'{"documents": [{"text": "a\\u0000"}]}', 422, "U+0000 at character 2"),
        (b'{"documents": ["x"], "decision": true, "k": 3}', 422, "decision"),
        (b'{"documents": ["x", {"uid": "a", "text": [5]}]}', 422, "documents[1].text: text is not a string"),
        (b'{"documents": [{"uid": " ", "text": "x"}]}', 422, "documents[0].uid: is blank"),
        (b'{"documents": [{"uid": true, "text": "x"}]}', 422, "documents[0].uid: uid is not a string"),
        (b'{"documents": [5]}', 422, "documents[0]: should be a text, or an object"),
        (b'{"documents": [{"id": 7, "text": "x"}]}', 422, "documents[0].id: is not known here"),
        (b'{"documents": "x"}', 422, "documents: should be a valid list"),
        (b"[]", 422, "the body: should be a JSON object"),
        (b'{"documents": ["x"], "decision": true}', 409, "no decision"),
        (b'"\xff"', 400, ""),
    ],
)
def test_what_cannot_be_answered_is_told(client: httpx.Client, body: bytes, status: int, word: str) -> None:
    found = client.post("/predict", content=body, headers={"Content-Type": "application/json"})
    assert (found.status_code, word in found.json()["detail"]) == (status, True), found.text
    assert not re.search("function|Value error|Input should", found.text)
    assert len(found.content) < 2_000, "what was sent is sent back"


def test_a_form_of_another_site_is_not_taken(client: httpx.Client) -> None:
    for headers in (
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {},
    ):
        found = client.post("/predict", content=json.dumps(BODY).encode(), headers=headers)
        assert found.status_code == 422
        assert found.json() == {
            "detail": "the body is not declared as JSON",
            "cure": "send the header Content-Type: application/json",
        }
    assert client.get("/healthz", headers={"Host": "evil.example"}).status_code == 421
    assert "access-control-allow-origin" not in client.options("/predict").headers


def test_cells_are_taken_as_files_take_them(client: httpx.Client, changing: httpx.Client) -> None:
    rows = [
        {"uid": 7, "text": "soup"},
        {"uid": " 8 ", "title": None, "text": "soup"},
        {"title": "x", "text": None},
    ]
    found = client.post("/predict", json={"documents": rows}).json()["predictions"]
    assert [one["uid"] for one in found] == ["7", "8", "2"] and found[0]["tags"] == found[1]["tags"]
    labels = [{"uid": " l-soup ", "title": "broth", "text": None}, {"uid": 7, "title": "seven"}]
    changed = changing.post("/labels", json={"labels": labels}).json()
    assert (changed["added"], changed["changed"]) == (1, 1)
    assert changing.delete("/labels", params={"uid": [" 7 "]}).json()["removed"] == 1


_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["uid", "title", "text", "id"]), inner, max_size=3),
    ),
    max_leaves=5,
)


@given(
    documents=st.one_of(_JSON, st.lists(_JSON, max_size=3)),
    options=st.dictionaries(
        st.sampled_from(["k", "threshold", "decision", "explain", "x"]), _JSON, max_size=1
    ),
)
@settings(database=None, suppress_health_check=list(HealthCheck))
def test_any_json_is_tagged_or_refused(client: httpx.Client, documents: Any, options: dict[str, Any]) -> None:
    body = json.dumps({"documents": documents, **options}).encode()
    found = client.post("/predict", content=body, headers={"Content-Type": "application/json"})
    if found.status_code != 200:
        assert 400 <= found.status_code < 500 and found.json()["detail"] and found.json()["cure"], found.text
        return
    for document in documents:
        shown = document if isinstance(document, str) else f"{document.get('title')}{document.get('text')}"
        assert shown.replace("None", "").strip(), "a tag for nothing"


def test_hostile_documents_are_tagged_like_any_other(client: httpx.Client) -> None:
    texts = ["guitar melody " * 10_000, "😀" * 500, "\u202e", "é" * 100_000]
    found = client.post("/predict", json={"documents": texts})
    assert found.status_code == 200 and all(len(one["tags"]) == 4 for one in found.json()["predictions"])


def test_limits_of_a_request(made: Path) -> None:
    limits = Limits(documents=3, characters=100, body_bytes=1_000)
    with served(create_app(plain(made, limits))) as client:
        for body, status in (
            ({"documents": ["x"] * 3}, 200),
            ({"documents": ["x"] * 4}, 413),
            ({"documents": ["x" * 100]}, 200),
            ({"documents": [{"title": "x" * 50, "text": "x" * 51}]}, 413),
            ({"documents": ["x" * 2_000]}, 413),
            ({"documents": ["x"], "explain": True}, 413),
        ):
            assert client.post("/predict", json=body).status_code == status
        told = client.post("/predict", json={"documents": ["x"], "explain": True}).json()
        assert told["detail"] == f"each explained document counts as {MOST_PARTS + 1}: 16 of 3"
        labels = [{"title": str(number)} for number in range(4)]
        assert client.post("/labels", json={"labels": labels}).status_code == 413


def test_a_full_queue_answers_503_with_a_time(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, working = threading.Event(), threading.Event()
    encode = Predictor.encode

    def slow(self: Predictor, documents: Any) -> Any:
        if documents[0].text == "slow":
            working.set()
            go.wait(600)
        return encode(self, documents)

    monkeypatch.setattr(Predictor, "encode", slow)
    limits = Limits(queue=2, rate=1e6, burst=1_000_000)
    with served(create_app(plain(made, limits))) as client, ThreadPoolExecutor(8) as pool:
        held = pool.submit(client.post, "/predict", json={"documents": ["slow"]})
        assert working.wait(600)
        waiting = [pool.submit(client.post, "/predict", json={"documents": ["x"]}) for _ in range(2)]
        until(lambda: metric(client, "ezxmc_queue_documents") == 2)
        refused = client.post("/predict", json={"documents": ["x"]})
        go.set()
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert [one.result().status_code for one in (held, *waiting)] == [200] * 3


def test_without_calibrator_thresholds_are_refused(tmp_path: Path, tiny_encoder: Path) -> None:
    path = write_bundle(tmp_path / "plain", tiny_encoder, calibrated=False)
    with served(create_app(plain(path))) as client:
        found = client.post("/predict", json={"documents": ["x"], "threshold": 0.5})
        assert found.status_code == 409 and "calibrat" in found.json()["cure"]
        tag = client.post("/predict", json={"documents": ["x"]}).json()["predictions"][0]["tags"][0]
        assert tag["probability"] is None


def test_a_token_is_asked_for_but_not_for_the_page(made: Path) -> None:
    token = "0123456789abcdef"
    with served(create_app(plain(made, token=token))) as client:
        assert client.post("/predict", json=BODY).status_code == 401
        assert client.get("/").status_code == 200 == client.get("/docs").status_code
        closed = client.get("/healthz").json()
        assert closed == {"status": "ok", "bundle": None, "refused": None}
        client.headers["Authorization"] = f"Bearer {token}"
        assert client.post("/predict", json=BODY).status_code == 200
        assert client.get("/healthz").json()["bundle"]["labels"] == 26


def test_labels_are_listed_in_pages_and_searched(client: httpx.Client) -> None:
    everything = client.get("/labels", params={"limit": 1_000}).json()
    uids = [row["uid"] for row in label_rows()] + ["evil"]
    assert everything["total"] == 26 and [label["uid"] for label in everything["labels"]] == uids
    pages = [client.get("/labels", params={"offset": first, "limit": 10}).json() for first in (0, 10, 20, 30)]
    assert [label["uid"] for one in pages for label in one["labels"]] == uids
    assert [len(one["labels"]) for one in pages] == [10, 10, 6, 0]

    def search(query: str) -> list[str]:
        return [label["uid"] for label in client.get("/labels", params={"query": query}).json()["labels"]]

    assert search("GUIT") == ["l-guitar"] and search("l-soup") == ["l-soup"] and search("aliAS") == ["evil"]
    assert search("no such thing") == [] and len(search("")) == 26
    assert client.get("/labels", params={"limit": 0}).status_code == 422


def test_labels_come_change_and_go_while_documents_are_tagged(changing: httpx.Client, bundle: Path) -> None:
    before = changing.get("/healthz").json()["bundle"]["version"]
    added = changing.post(
        "/labels", json={"labels": [{"title": " zzz "}, {"uid": " l-soup ", "title": "broth"}]}
    )
    assert added.json() | {"bundle": ""} == {
        "added": 1,
        "changed": 1,
        "removed": 0,
        "total": 27,
        "bundle": "",
        "decision": None,
    }
    assert added.json()["bundle"] != before
    found = changing.post("/predict", json={"documents": ["zzz"], "k": 27}).json()
    assert found["bundle"] == added.json()["bundle"]
    titles = [tag["title"] for tag in found["predictions"][0]["tags"]]
    assert titles[0] == "zzz" and "broth" in titles and "soup" not in titles
    # Whoever opens the folder sees the same.
    assert Predictor.load(bundle).predict(["zzz"], k=1)[0].labels == ("zzz",)
    gone = changing.delete("/labels", params={"uid": ["zzz", "evil"]})
    assert gone.json()["removed"] == 2 and gone.json()["total"] == 25
    found = changing.post("/predict", json={"documents": ["zzz"], "k": 100}).json()["predictions"][0]["tags"]
    assert len(found) == 25 and not {"zzz", "evil"} & {tag["label"] for tag in found}


@pytest.mark.parametrize(
    ("method", "options", "status"),
    [
        ("DELETE", {"params": {"uid": "nobody"}}, 404),
        ("DELETE", {}, 422),
        ("DELETE", {"params": {"uid": [row["uid"] for row in label_rows()] + ["evil"]}}, 409),
        ("POST", {"json": {"labels": [{"title": "a"}, {"title": "a"}]}}, 422),
        ("POST", {"json": {"labels": [{"title": "  "}]}}, 422),
        ("POST", {"json": {"labels": [{"uid": " ", "title": "a"}]}}, 422),
        ("POST", {"json": {"labels": [{"uid": " guitar ", "title": "guitar"}]}}, 422),
        ("POST", {"json": {"labels": []}}, 422),
        ("POST", {"json": {"labels": [{"title": "a", "uid": ""}]}}, 422),
    ],
)
def test_wrong_changes_of_labels_change_nothing(
    client: httpx.Client, method: str, options: dict[str, Any], status: int
) -> None:
    before = client.get("/healthz").json()
    found = client.request(method, "/labels", **options)
    assert found.status_code == status, found.text
    assert client.get("/healthz").json() == before


def test_a_new_bundle_is_taken_up_by_itself_and_a_bad_one_is_refused(
    changing: httpx.Client, bundle: Path, tiny_encoder: Path
) -> None:
    add_labels(bundle, [Label("new", "new")])
    until(lambda: changing.get("/healthz").json()["bundle"]["labels"] == 27)
    remove_labels(bundle, ["new"])
    until(lambda: changing.get("/healthz").json()["bundle"]["labels"] == 26)
    good = changing.get("/healthz").json()["bundle"]

    weights = bundle / "student" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    until(lambda: changing.get("/healthz").json()["status"] == "stale")
    health = changing.get("/healthz").json()
    assert "model.safetensors" in health["refused"] and health["bundle"] == good
    assert changing.post("/predict", json=BODY).json()["bundle"] == good["version"]
    refused = changing.post("/reload")
    assert refused.status_code == 409 and "model.safetensors" in refused.json()["detail"]
    assert changing.post("/labels", json={"labels": [{"title": "x"}]}).status_code == 409
    assert metric(changing, "ezxmc_reloads_total", outcome="refused") >= 2

    weights.write_bytes(whole)
    until(lambda: changing.get("/healthz").json()["status"] == "ok")
    save_bundle(bundle, tiny_encoder, [Label("only", "only")], max_length=32, k=1)
    until(lambda: changing.get("/healthz").json()["bundle"]["labels"] == 1)
    assert (
        changing.post("/predict", json={"documents": ["x"]}).json()["predictions"][0]["tags"][0]["label"]
        == "only"
    )


def test_a_bundle_is_reloaded_when_asked(bundle: Path) -> None:
    loads: list[bool] = []
    holder = BundleHolder(lambda: Predictor.load(bundle), bundle, loads.append)
    holder.watch(3_600)
    try:
        add_decision(bundle, Decision.top_k(2))
        assert holder.current.predictor.bundle.decision is None
        holder.ask()
        until(lambda: holder.current.predictor.bundle.decision is not None)
        version = holder.current.version
        (bundle / "manifest.json").unlink()
        with pytest.raises(BundleError, match="no bundle"):
            holder.reload()
        assert holder.current.version == version and holder.refused and loads == [True, False]
    finally:
        holder.stop()


def test_the_decision_of_the_bundle_is_applied(changing: httpx.Client, bundle: Path) -> None:
    add_decision(bundle, Decision.at_threshold(0.7, depth=6))
    assert changing.post("/reload").json()["decision"] == "no rate is guaranteed"
    found = changing.post("/predict", json=BODY | {"decision": True}).json()["predictions"]
    deep = changing.post("/predict", json=BODY | {"k": 6}).json()["predictions"]
    for kept, whole in zip(found, deep, strict=True):
        assert [tag["label"] for tag in kept["tags"]] == [
            tag["label"] for tag in whole["tags"] if tag["probability"] > 0.69999
        ]
    assert len({len(one["tags"]) for one in found}) > 1


def test_a_promise_is_not_shown_for_labels_it_was_not_made_for(changing: httpx.Client, bundle: Path) -> None:
    promised = Decision("missed_rate", 26, threshold=0.7, promise=Guarantee(0.2, 60))
    add_decision(bundle, promised)
    assert "at most 20 %" in changing.post("/reload").json()["decision"]
    gone = changing.delete("/labels", params={"uid": ["l-soup", "l-oven"]}).json()
    assert gone["decision"].startswith("no rate is guaranteed any more")
    assert changing.get("/healthz").json()["bundle"]["decision"] == gone["decision"]
    # Two labels fewer than the rule looked at: it goes on.
    assert changing.post("/predict", json=BODY | {"decision": True}).status_code == 200


def test_requests_during_reloads_are_all_answered(changing: httpx.Client, bundle: Path) -> None:
    over = threading.Event()

    def ask() -> set[int]:
        found = set()
        while not over.is_set():
            answer = changing.post("/predict", json={"documents": ["guitar"], "k": 26})
            found.add(answer.status_code)
            assert len(answer.json()["predictions"][0]["tags"]) in (25, 26)
        return found

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        for _ in range(3):
            remove_labels(bundle, ["evil"])
            assert changing.post("/reload").status_code == 200
            add_labels(bundle, [Label("evil", EVIL)])
            assert changing.post("/reload").status_code == 200
        over.set()
        assert set().union(*(one.result() for one in asking)) == {200}


def test_metrics_are_prometheus_text(client: httpx.Client) -> None:
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    names = {family.name for family in text_string_to_metric_families(response.text)}
    assert {"ezxmc_requests", "ezxmc_request_seconds", "ezxmc_documents", "ezxmc_labels"} <= names
    assert metric(client, "ezxmc_labels") == 26


def test_docs_show_every_operation_and_nothing_from_elsewhere(client: httpx.Client) -> None:
    docs = client.get("/docs")
    assert "default-src 'none'" in docs.headers["content-security-policy"]
    assert "https://" not in docs.text and "<script" not in docs.text
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/predict", "/labels", "/healthz", "/metrics", "/reload"}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            assert f"{method.upper()} {path}" in docs.text and operation["description"] in docs.text.replace(
                "&#39;", "'"
            )


# --- fuzzing: cases are made from the service's own description


@pytest.fixture(scope="module")
def described(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    # Seconds to import, and each process of the tests reads this file.
    schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")
    path = tmp_path_factory.mktemp("fuzzed") / "bundle"
    shutil.copytree(made, path)
    with served(create_app(plain(path, FREE, batch_wait=0))) as client:
        yield schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")


@pytest.mark.parametrize("valid", [True, False], ids=["valid", "invalid"])
@pytest.mark.parametrize(
    "operation",
    [
        "POST /predict",
        "GET /labels",
        "POST /labels",
        "DELETE /labels",
        "GET /healthz",
        "GET /metrics",
        "POST /reload",
    ],
)
def test_a_fuzzer_finds_no_error_of_the_service(described: Any, operation: str, valid: bool) -> None:
    from requests import Request
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

    method, path = operation.split()
    if not valid and path not in ("/predict", "/labels"):
        pytest.skip("takes nothing that could be invalid")
    checks = (not_a_server_error, response_schema_conformance, content_type_conformance)
    mode = GenerationMode.POSITIVE if valid else GenerationMode.NEGATIVE
    statuses = set()

    # Most texts that it makes up for /predict are none.
    share = 1 if path == "/predict" else 3

    @given(case=described[path][method].as_strategy(generation_mode=mode))
    @settings(
        database=None, suppress_health_check=list(HealthCheck), max_examples=settings().max_examples // share
    )
    def fuzz(case: Any) -> None:
        # A longer URL is refused by the HTTP parser, in its own words, before the service sees it.
        assume(len(Request(**case.as_transport_kwargs()).prepare().url or "") < 60_000)
        statuses.add(case.call_and_validate(checks=checks, timeout=PATIENCE).status_code)

    answered = not valid or method == "DELETE"
    for _ in range(5):  # as few as they are, they may all be none
        fuzz()
        if answered or 200 in statuses:
            break
    assert answered or 200 in statuses
