"""What a static student loses against its student, and how much faster it is, in one run.

    python tests/bench/static.py BUNDLE DOCUMENTS GOLD --pool UIDS --report UIDS [--reviewed 200]
        [--ranks 0] [--on-pool] [--seeds 0 1 2] [--vectors FILE]

BUNDLE is of a student that saw neither the documents that `--pool` names nor those of `--report`; it stays.
A copy is calibrated on so many reviewed documents of the pool (gold stands for people; with `--ranks 1` their
decisions change ranks too). All other documents of DOCUMENTS, without tags, tune the static student, whose
probabilities are carried over from the student's. Figures are of the report part; with `--on-pool`, which
chooses, of what is left of the pool. Speeds are of the same documents, turn by turn, medians of three, in
processor time, so that what else the machine does changes little: plain `SentenceTransformer.encode`
(float32), and from text to calibrated tags of each.
"""

from __future__ import annotations

import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from people import SHOWN, opened, parser_of

from ezxmc.bundle.predict import Predictor
from ezxmc.errors import EzxmcError
from ezxmc.hashing import text_hash
from ezxmc.metrics.evaluation import evaluate
from ezxmc.pipeline.calibrate import calibrate
from ezxmc.pipeline.export import export_static, export_student
from ezxmc.records import Document, Prediction
from ezxmc.retrieval import BiEncoder

SHARE = 0.65  # the student's, where both are averaged


def remember(file: Path) -> None:
    """Let encoders look up texts that were encoded before, and keep in a file what they encode."""
    known: dict[str, np.ndarray] = {}
    if file.exists():
        read = np.load(file)
        known.update(zip(read["hashes"].tolist(), read["vectors"], strict=True))
    encode = BiEncoder._encode

    def looked_up(encoder: BiEncoder, texts: Sequence[str], progress: object) -> np.ndarray:
        hashes = [text_hash(text) for text in texts]
        if fresh := [place for place, name in enumerate(hashes) if name not in known]:
            found = encode(encoder, [texts[place] for place in fresh], progress)
            known.update((hashes[place], vector) for place, vector in zip(fresh, found, strict=True))
            np.savez(file, hashes=np.array(list(known)), vectors=np.stack(list(known.values())))
        return np.stack([known[name] for name in hashes]).astype(np.float32)

    BiEncoder._encode = looked_up


def figures(found: Sequence[Prediction], gold: dict[str, set[str]]) -> str:
    made = evaluate(found, gold, precision_ks=(1, 3, 5), recall_ks=(10, 50), ndcg_ks=(), coverage_ks=())
    return "  ".join(f"{100 * made.values.get(name, float('nan')):6.1f}" for name in (*SHOWN, "ECE@5"))


def averaged(one: Predictor, other: Predictor, documents: list[Document]) -> list[Prediction]:
    """The ranking by both students' scores, without probabilities."""
    rows = one.bundle.index.rows
    scores = SHARE * one.bundle.scores(one.encode(documents), rows)
    scores += (1 - SHARE) * other.bundle.scores(other.encode(documents), rows)
    best = np.argsort(-scores, axis=1)[:, :50]
    labels = one.bundle.labels
    return [
        Prediction(
            document.uid,
            tuple(labels[row].uid for row in rows[places]),
            tuple(labels[row].title for row in rows[places]),
            tuple(map(float, own[places])),
        )
        for document, places, own in zip(documents, best, scores, strict=True)
    ]


def speeds(
    ways: dict[str, Callable[[list[Document]], object]], documents: list[Document]
) -> dict[str, float]:
    """Documents a processor second of all threads, of each way, in turn; the first turn does not count."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(4):
        for way, act in ways.items():
            some = documents * 8 if way.startswith("static") else documents[:200]
            began = time.process_time()
            act(some)
            if turn:
                seconds[way].append((time.process_time() - began) / len(some))
    return {way: 1 / statistics.median(taken) for way, taken in seconds.items()}


def alone(predictor: Predictor, documents: list[Document]) -> float:
    """Milliseconds of processor time from one text to calibrated tags, the median."""
    taken = []
    for document in documents[:300]:
        began = time.process_time()
        predictor.predict([document])
        taken.append(time.process_time() - began)
    return 1000 * statistics.median(taken)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--reviewed", type=int, default=200)
    parser.add_argument("--ranks", type=float, default=0)
    parser.add_argument("--on-pool", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--no-speed", action="store_true")
    parser.add_argument("--vectors", type=Path, help="the student's, kept from run to run (.npz)")
    args = parser.parse_args()
    if args.vectors:
        args.no_speed = True
        remember(args.vectors)
    by_uid, tags, pool, report = opened(args)
    apart = {document.uid for document in (*pool, *report)}
    rest = [document for uid, document in by_uid.items() if uid not in apart]
    drawn = random.Random(0).sample(pool, args.reviewed)
    if args.on_pool:
        known = {document.uid for document in drawn}
        report = [document for document in pool if document.uid not in known]
    gold = {document.uid: tags.get(document.uid, set()) for document in report}
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(shutil.copytree(args.bundle, Path(folder, "bundle")))
        said = {document.uid: tags.get(document.uid, set()) for document in drawn}
        calibrate(bundle, drawn, gold=said, without_gold="none", ranks=args.ranks)
        print(f"{'':24}  " + "  ".join(f"{name:>6}" for name in (*SHOWN, "ECE@5")))
        student = Predictor.load(bundle)
        print(f"{'student':24}  " + figures(student.predict(report, k=50), gold), flush=True)
        for seed in args.seeds:
            began = time.perf_counter()
            made = export_static(bundle, rest, seed=seed)
            seconds = time.perf_counter() - began
            static = Predictor.load(bundle, backend="static")
            print(f"{f'static, seed {seed}':24}  " + figures(static.predict(report, k=50), gold))
            print(f"{'both, .65 : .35':24}  " + figures(averaged(student, static, report), gold))
            print(f"{'':24}  {seconds:.0f} s; {made.to_dict()}", flush=True)
        if args.no_speed:
            return
        exact = Predictor.load(bundle, precision="float32")
        plain = exact.bundle.encoder.model
        ways: dict[str, Callable[[list[Document]], object]] = {
            "SentenceTransformer.encode": lambda some: plain.encode([one.shown for one in some]),
            "student, to tags": student.predict,
            "static, to tags": static.predict,
            "static, vectors alone": static.encode,
        }
        try:
            export_student(bundle, backend="onnx", precision="int8")
            ways["onnx int8, to tags"] = Predictor.load(bundle, backend="onnx").predict
        except EzxmcError as error:
            print(f"no onnx int8: {error}")
        found = speeds(ways, report)
        for way, speed in found.items():
            times = speed / found["SentenceTransformer.encode"]
            print(f"{way:28}  {speed:9,.0f} documents a processor second, {times:6.1f} times plain encode")
        slow, fast = alone(student, report), alone(static, report)
        print(f"one document, p50: student {slow:.2f} ms, static {fast:.2f}")


if __name__ == "__main__":
    main()
