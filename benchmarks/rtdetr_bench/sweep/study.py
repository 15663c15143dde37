"""From a checkpoint to what should be deployed: export, time briefly, evaluate, time at length, recommend.

    from rtdetr_bench.sweep.options import SweepOptions
    from rtdetr_bench.sweep.study import study_sweep

    print(study_sweep(SweepOptions(Path("r50.pth"), EvaluationSet(Path("val.json"), Path("val")), Path("sweep"))))

All candidates are evaluated. What others clearly beat (at least as accurate, in less than `front.CLEARLY` of the time:
the full one where there is one, or that of a brief measurement) is not expected on the front of latency and is not
timed at length; it could be on that of throughput. With a budget, what takes far more is not evaluated either. Both
are rows with a note. What is on a front at last was timed together, again where it has to be.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rtdetr_bench.machine import describe_machine
from rtdetr_bench.sweep import accuracy, files, speed
from rtdetr_bench.sweep.axes import Candidate, ModelFile
from rtdetr_bench.sweep.estimate import Estimate, read_subject
from rtdetr_bench.sweep.front import beats_clearly
from rtdetr_bench.sweep.options import SweepOptions
from rtdetr_bench.sweep.plan import Plan, build_plan, format_plan
from rtdetr_bench.sweep.progress import Progress
from rtdetr_bench.sweep.recommend import Recommendation, recommend
from rtdetr_bench.sweep.rows import Row, format_rows, fronts, to_csv, to_json
from rtdetr_bench.sweep.speed import Contender, Speed
from rtdetr_bench.sweep.state import NAME, Json, State, digest_file, digest_folder
from rtdetr_deploy.evaluate.coco import Annotations
from rtdetr_deploy.files import check_writable, write_bytes
from rtdetr_deploy.images.find import find_images
from rtdetr_deploy.words import plural

CSV = "sweep.csv"
FAR_ABOVE = 1.5
"""Times the budget beyond which a candidate is not evaluated: half as much again is not noise."""
TIMING = 2
"""Changes where earlier timings lack what is needed: 2 has sessions and rounds."""
TOGETHER = 2
"""Times that what is on a front is timed again: after the first, others may be on it."""
EXPORT, BRIEF, EVALUATE, TIME = "export", "time briefly", "evaluate", "time"


@dataclass(frozen=True)
class Sweep:
    """A row per candidate, and what is recommended. `weights` and `annotations` are names of files."""

    weights: str
    annotations: str
    images: int
    limits: dict[str, float | None]
    rows: tuple[Row, ...]
    recommendation: Recommendation

    def __str__(self) -> str:
        chosen = self.recommendation.row
        parts = [format_rows(self.rows, None if chosen is None else chosen.name), "", self.recommendation.text]
        if chosen is not None:
            parts += [f"  {chosen.export_command}", f"  {chosen.run_hint}   # the file lies in the sweep's folder"]
        return "\n".join(parts)

    def to_json(self) -> Json:
        """Return everything for a JSON file, paths by their last part."""
        chosen = self.recommendation.row
        return {
            "kind": "sweep",
            "weights": self.weights,
            "annotations": self.annotations,
            "images": self.images,
            "limits": self.limits,
            "rows": to_json(self.rows),
            "recommended": None if chosen is None else chosen.name,
            "recommendation": self.recommendation.text,
        }


def study_sweep(options: SweepOptions) -> Sweep | str:
    """Do what `options` ask, and return what was found; with `dry_run` the plan, in words.

    Progress is told on standard error. What a candidate meets is the `failed` of its row. The folder `output` keeps
    files and results: a second call goes on with what is missing.

    Raises `CheckpointError`, `OptionError` and `ImageError` for input that fits nothing, `MissingPackageError` for what
    this machine lacks, `OutputError` when the folder can't be written.
    """
    check_writable(options.output, folder=True)
    subject = read_subject(options)
    truth = accuracy.choose_images(options.data.read(subject.class_names), options.max_images)
    plan = build_plan(options, subject)
    estimate = Estimate(subject, options, len(truth.images))
    expected = _expect(plan, estimate)
    if options.dry_run:
        return format_plan(plan, sum(expected.values()))
    options.output.mkdir(parents=True, exist_ok=True)
    progress = Progress(expected)
    progress.say(format_plan(plan, sum(expected.values())))
    state = State(options.output)
    _begin(state, options, subject.digest, truth, progress)
    sweep = _Run(options, plan, truth, state, progress, estimate)
    try:
        return sweep.run()
    except KeyboardInterrupt:
        progress.say(f"{options.output} keeps what is done ({NAME}); the same command goes on from there")
        raise


def _expect(plan: Plan, estimate: Estimate) -> dict[tuple[str, str], float]:
    """Return the seconds that each step is thought to take."""
    expected = {(EXPORT, file.name): estimate.export(file) for file in plan.files}
    candidates = dict.fromkeys((plan.reference, *plan.candidates))
    expected |= {(BRIEF, one.name): estimate.brief(one) for one in plan.candidates}
    expected |= {(EVALUATE, one.name): estimate.evaluate(one) for one in candidates}
    return expected | {(TIME, one.name): estimate.time(one) for one in plan.candidates}


def _begin(state: State, options: SweepOptions, digest: str, truth: Annotations, progress: Progress) -> None:
    """Begin or continue each part of the results; tell what is begun again."""
    machine: dict[str, Any] = describe_machine()
    weights = {"weights": digest, "versions": machine["packages"]}
    calibration = [] if options.calibration is None else find_images([str(options.calibration)])
    data = {
        "annotations": digest_file(options.data.annotations),
        "images": digest_folder(path for _, path in truth.images),
    }
    how = {"device": options.where.device, "threads": options.where.threads}
    hardware = {name: machine.get(name) for name in ("processor", "cores", "instructions", "limits")}
    made_of = {
        "files": {**weights, **({"calibration": digest_folder(calibration)} if calibration else {})},
        "accuracy": {**weights, **data, **how},
        "speed": {**weights, **data, **how, **hardware, "rounds": options.rounds, "timing": TIMING},
    }
    for part, content in made_of.items():
        changed = state.begin(part, content)
        if changed:
            progress.say(f"{part} of an earlier call: {', '.join(changed)} changed since; begun again")
    if options.retry:
        state.forget_failures()


class _Run:
    """The steps of a sweep, each kept in the state when it is done."""

    def __init__(
        self, options: SweepOptions, plan: Plan, truth: Annotations, state: State, progress: Progress,
        estimate: Estimate,
    ) -> None:  # fmt: skip
        self._options, self._plan, self._truth, self._state, self._progress = options, plan, truth, state, progress
        self._estimate = estimate
        self._images = [path for _, path in truth.images]

    def run(self) -> Sweep:
        self._export()
        usable = [one for one in self._plan.candidates if not self._failure(one)]
        self._time_briefly(usable)
        self._evaluate([one for one in usable if not self._is_far_above_budget(one)])
        usable = [one for one in usable if not self._failure(one) and not self._is_far_above_budget(one)]
        while wanted := [one for one in usable if self._known("speed", one) is None and self._beaten_by(one) is None]:
            self._time(wanted)  # whose full times may let others look better
        for one in self._plan.candidates:
            self._progress.skip(TIME, one.name)
        self._time_front_together()
        return self._result()

    def _export(self) -> None:
        for file in self._plan.files:
            if files.is_there(file, self._options.output, self._state.get("files", file.name)):
                self._progress.skip(EXPORT, file.name)
                continue
            with self._progress.step(EXPORT, file.name) as line:
                made = files.make_file(
                    file, self._options, lambda step, line=line, file=file: line.set_description_str(  # type: ignore[misc]
                        f"{EXPORT} {file.name}: {step}"[:100]
                    ),
                )  # fmt: skip
            self._keep("files", file.name, made)

    def _keep(self, part: str, name: str, result: Json) -> None:
        self._state.put(part, name, result)
        if "failed" in result:
            self._progress.say(f"{name} failed: {result['failed']}")

    def _digest(self, file: ModelFile) -> str | None:
        kept = self._state.get("files", file.name) or {}
        return kept.get("digest")

    def _known(self, part: str, candidate: Candidate, suffix: str = "") -> Json | None:
        """Return a candidate's result, unless it is one of another file of that name."""
        kept = self._state.get(part, candidate.name + suffix)
        return kept if kept is not None and kept.get("digest") == self._digest(candidate.file) else None

    def _put(self, part: str, candidate: Candidate, result: Json, suffix: str = "") -> None:
        self._keep(part, candidate.name + suffix, {**result, "digest": self._digest(candidate.file)})

    def _failure(self, candidate: Candidate) -> str | None:
        """Return why a candidate can't be used; None where nothing went wrong yet."""
        results = (
            self._state.get("files", candidate.file.name), self._known("speed", candidate, BRIEF_SUFFIX),
            self._known("accuracy", candidate), self._known("speed", candidate),
        )  # fmt: skip
        return next((str(one["failed"]) for one in results if one is not None and "failed" in one), None)

    def _contenders(self, candidates: Sequence[Candidate]) -> list[Contender]:
        kept = {one: self._state.get("files", one.file.name) or {} for one in candidates}
        return [Contender(one, float(kept[one].get("mb", 0.0))) for one in candidates]

    def _time_briefly(self, candidates: Sequence[Candidate]) -> None:
        missing = [one for one in candidates if self._known("speed", one, BRIEF_SUFFIX) is None]
        for one in set(self._plan.candidates) - set(missing):
            self._progress.skip(BRIEF, one.name)
        for group in speed.make_groups(self._contenders(missing)):
            with self._progress.steps(BRIEF, [one.candidate.name for one in group]) as line:
                found = speed.time_briefly(group, self._options, self._images, _shown_in(line, BRIEF, group))
            for timed in group:
                self._put("speed", timed.candidate, found[timed.candidate.name], BRIEF_SUFFIX)
                self._expect(timed.candidate)

    def _expect(self, candidate: Candidate) -> None:
        """Correct what is expected of a candidate's steps by how long an image really takes."""
        median = self._brief(candidate)
        if median is not None:
            estimate = replace(self._estimate, measured=median / 1000.0)
            self._progress.expect(EVALUATE, candidate.name, estimate.evaluate(candidate))
            self._progress.expect(TIME, candidate.name, estimate.time(candidate))

    def _brief(self, candidate: Candidate) -> float | None:
        kept = self._known("speed", candidate, BRIEF_SUFFIX)
        return None if kept is None or "failed" in kept else Speed.of(kept).median

    def _is_far_above_budget(self, candidate: Candidate) -> bool:
        budget, median = self._options.limits.budget, self._brief(candidate)
        return budget is not None and median is not None and median > FAR_ABOVE * budget

    def _evaluate(self, candidates: Sequence[Candidate]) -> None:
        """Evaluate the whole model, then the candidates, the fastest first."""
        reference, missing = self._plan.reference, []
        for one in candidates:
            if not self._failure(one) and not self._is_evaluated(one) and one != reference:
                missing.append(one)
        for one in set(self._plan.candidates) - set(missing) - {reference}:
            self._progress.skip(EVALUATE, one.name)
        made_of = json.dumps([self._digest(reference.file), reference.name, self._state.made_of("accuracy")])
        evaluation = accuracy.Evaluation(self._truth, self._options, made_of)
        kept = self._known("accuracy", reference)
        if self._failure(reference) or (kept is not None and (not missing or evaluation.reopen())):
            self._progress.skip(EVALUATE, reference.name)
        else:
            self._run_evaluation(evaluation.look_for, reference)
        reason = self._failure(reference)
        if reason:
            self._progress.say(f"nothing is compared with the whole model, {reference.name}: {reason}")
        for one in sorted(missing, key=lambda one: self._brief(one) or 0.0):
            self._run_evaluation(evaluation.evaluate, one)

    def _is_evaluated(self, candidate: Candidate) -> bool:
        """Tell whether nothing is missing: an AP, and a match rate where there is a whole model to compare with."""
        kept = self._known("accuracy", candidate)
        if kept is None or "failed" in kept:
            return kept is not None
        return kept.get("match_rate") is not None or self._failure(self._plan.reference) is not None

    def _run_evaluation(self, work: Any, candidate: Candidate) -> None:
        with self._progress.step(EVALUATE, candidate.name) as line:
            count = iter(range(1, len(self._images) + 1))

            def on_image() -> None:
                line.set_description_str(f"{EVALUATE} {candidate.name}: image {next(count)} of {len(self._images)}")

            found = files.attempt(lambda: work(candidate, on_image))
        self._put("accuracy", candidate, found)

    def _full(self, candidate: Candidate) -> Speed | None:
        kept = self._known("speed", candidate)
        return None if kept is None or "failed" in kept else Speed.of(kept)

    def _points(self) -> dict[str, tuple[float, float]]:
        """Return the median, of the full measurement if there is one, and the AP of each candidate that has both."""
        points = {}
        for one in self._plan.candidates:
            kept, full, brief = self._known("accuracy", one), self._full(one), self._brief(one)
            median = brief if full is None else full.median
            if kept is not None and "AP" in kept and median is not None and not self._failure(one):
                points[one.name] = (median, float(kept["AP"]))
        return points

    def _beaten_by(self, candidate: Candidate) -> str | None:
        """Return what beats a candidate so clearly that it needs no more timing; None where nothing does."""
        points = self._points()
        if self._options.time_all or candidate.name not in points or self._known("speed", candidate) is not None:
            return None
        return beats_clearly(candidate.name, points)

    def _note(self, candidate: Candidate) -> str | None:
        """Return why a candidate that didn't fail was not measured at length, by what has happened."""
        if self._failure(candidate) or self._known("speed", candidate) is not None:
            return None
        points, median, other = self._points(), self._brief(candidate) or 0.0, self._beaten_by(candidate)
        if self._is_far_above_budget(candidate):
            missing = "timed at length" if candidate.name in points else "evaluated"
            return f"not {missing}: about {median:.0f} ms, far above the budget"
        if other is not None:
            ap = points[candidate.name][1]
            return f"AP {ap:.4f}, about {median:.1f} ms: clearly beaten in latency by {other}"
        return None

    def _time(self, candidates: Sequence[Candidate]) -> None:
        for group in speed.make_groups(self._contenders(candidates)):
            with self._progress.steps(TIME, [one.candidate.name for one in group]) as line:
                found = speed.time_fully(group, self._options, self._images, _shown_in(line, TIME, group))
            for timed in group:
                self._put("speed", timed.candidate, found[timed.candidate.name])

    def _time_front_together(self) -> None:
        """Time what is on a front again, if it was timed in several groups or calls and fits in memory together."""
        for _ in range(TOGETHER):
            single, offline = fronts([self._row(one) for one in self._plan.candidates])
            members = [one for one in self._plan.candidates if one.name in single | offline]
            sessions = {full.session for one in members if (full := self._full(one)) is not None}
            if len(sessions) < 2 or len(speed.make_groups(self._contenders(members))) > 1:
                return
            self._progress.say(f"{plural(len(members), 'candidate')} on the fronts, not timed together: timed again")
            self._time(members)

    def _row(self, candidate: Candidate) -> Row:
        options, failed = self._options, self._failure(candidate)
        kept = self._known("accuracy", candidate) or {}
        return Row(
            candidate,
            _command(candidate, options),
            run_hint(candidate, options),
            (self._state.get("files", candidate.file.name) or {}).get("mb"),
            self._full(candidate),
            kept.get("AP"),
            kept.get("AP50"),
            kept.get("match_rate"),
            failed,
            self._note(candidate),
            kept.get("same_as"),
            self._brief(candidate),
        )

    def _result(self) -> Sweep:
        options = self._options
        rows = tuple(self._row(one) for one in self._plan.candidates)
        write_bytes(options.output / CSV, to_csv(rows).encode())
        return Sweep(
            options.weights.name, options.data.annotations.name, len(self._images), options.limits.to_json(), rows,
            recommend(rows, options.limits),
        )  # fmt: skip


BRIEF_SUFFIX = " (briefly)"


def _shown_in(line: Any, kind: str, group: Sequence[Contender]) -> speed.OnRound:
    told = f"{kind} {plural(len(group), 'candidate')} in turn"
    return lambda turn: line.set_description_str(f"{told}: round {turn} is done")


def _command(candidate: Candidate, options: SweepOptions) -> str:
    """Return the command that writes a candidate's file; what can't be exported has none."""
    try:
        return files.export_command(files.export_options(candidate.file, options))
    except Exception:
        return ""


def run_hint(candidate: Candidate, options: SweepOptions) -> str:
    """Return the line of Python that opens a candidate."""
    arguments = {"runtime": candidate.way.runtime, **accuracy.run_arguments(candidate, options)}
    told = "".join(f", {name}={value!r}" for name, value in arguments.items()).replace("'", '"')
    return f'Predictor("{candidate.file.name}"{told})'
