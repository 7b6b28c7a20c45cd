"""What the turns of a contest say: medians, spreads, and ratios of neighbouring turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

from benchmarks.contest import ContestError, ContestRecord, Profile


@dataclass(frozen=True)
class Ratio:
    """Of the times of two contestants, taken round by round: the median, and both ends."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f}-{self.most:.2f})"


@dataclass(frozen=True)
class ContestResult:
    """One contestant's line.

    Attributes
    ----------
    seconds
        Of a call: the median over the rounds of each round's median call.
    spread
        Half the distance between the quartiles of the rounds, as a share of `seconds`.
    ratios
        `seconds` over those of each of our forms, by that form's label: 2 is half as fast.
    gflops, sgemm_share
        Rate, 10^9 floating-point operations (two a multiply-add; three times a forward's in a
        training step) a second, and its share of the sgemm rate of the same rounds. None where
        the operations are not known.
    """

    record: ContestRecord
    seconds: float
    spread: float
    ratios: dict[str, Ratio]
    gflops: float | None
    sgemm_share: float | None

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold, the seconds of each call included."""
        record = self.record
        task = record.contestant.task
        return {
            "contestant": record.contestant.label,
            "network": task.get("network"),
            "form": task.get("form"),
            "ms": self.seconds * 1e3,
            "spread": self.spread,
            "ratios": {label: asdict(ratio) for label, ratio in self.ratios.items()},
            "gflops": self.gflops,
            "sgemm_share": self.sgemm_share,
            "peak_mb": record.peak_mb,
            "baseline_mb": record.baseline_mb,
            **record.facts,
            "started": record.started,
            "seconds": record.turns,
        }


def results(
    records: Sequence[ContestRecord], ours: Sequence[str], sgemm: ContestRecord
) -> list[ContestResult]:
    """A line for each of `records`, and the last for `sgemm`.

    Parameters
    ----------
    records
        Of one contest, so that equal places in their turns are neighbours in time.
    ours
        Labels that the others' times are divided by.
    sgemm
        Of the same contest; its facts hold the operations of a call, ``flop``.
    """
    times = {record.contestant.label: _times(record) for record in records}
    of_sgemm = _rates(sgemm)
    lines = []
    for record in records:
        own, rates = _times(record), _rates(record)
        lines.append(ContestResult(
            record, median(own), spread(own), {label: ratio(own, times[label]) for label in ours},
            median(rates) / 1e9 if rates else None,
            ratio(rates, of_sgemm).median if rates else None))
    own = _times(sgemm)
    return [*lines, ContestResult(sgemm, median(own), spread(own), {}, median(of_sgemm) / 1e9, 1.0)]


def _times(record: ContestRecord) -> list[float]:
    """Seconds of a call, one for each round: a first call that found cold caches drops out."""
    return [median(turn) for turn in record.turns]


def _rates(record: ContestRecord) -> list[float]:
    """Operations a second, one for each round; none where the operations are not known."""
    flop = record.facts.get("flop", record.contestant.flop)
    return [flop / seconds for seconds in _times(record)] if flop else []


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Both are of the same rounds; what slowed a round down slowed both and cancels."""
    quotients = [above / below for above, below in zip(numerators, denominators)]
    return Ratio(median(quotients), min(quotients), max(quotients))


def spread(times: Sequence[float]) -> float:
    """Half the distance between the quartiles, as a share of the median; 0 for one value."""
    if len(times) < 2:
        return 0.0
    lower, _, upper = quantiles(times, n=4, method="inclusive")
    return (upper - lower) / 2 / median(times)


@dataclass(frozen=True)
class PipelineResult:
    """One input pipeline's line.

    Attributes
    ----------
    images_per_second, cpu_ms
        Medians over the rounds: images, and CPU time an image of the process and its workers.
    spread
        Half the distance between the quartiles of the rounds' times, as a share.
    time_ratio, cpu_ratio
        Time and CPU time of an epoch over those of our pipeline: 2 is half as fast as ours.
    decode_share
        Images a second over those that our decoder alone reaches, the median of the rounds.
    idle_share
        CPU time between its turns over that in them: near 0, or it works at others' expense.
    """

    record: ContestRecord
    images_per_second: float
    cpu_ms: float
    spread: float
    time_ratio: Ratio
    cpu_ratio: Ratio
    decode_share: float
    idle_share: float

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold, the seconds of each turn included."""
        record, task = self.record, self.record.contestant.task
        return {
            "contestant": record.contestant.label,
            "peer": task["peer"],
            "images_per_second": self.images_per_second,
            "cpu_ms": self.cpu_ms,
            "spread": self.spread,
            "time_ratio": asdict(self.time_ratio),
            "cpu_ratio": asdict(self.cpu_ratio),
            "decode_share": self.decode_share,
            "idle_share": self.idle_share,
            "peak_mb": record.peak_mb,
            **record.facts,
            "started": record.started,
            "seconds": [sum(turn) for turn in record.turns],
            "cpu_seconds": record.cpu_seconds,
        }


def pipeline_results(
    records: Sequence[ContestRecord], images: int, ours: str, decoder: str
) -> list[PipelineResult]:
    """A line for each of `records`, whose turns are one epoch of so many images each.

    Parameters
    ----------
    records
        Of one contest.
    images
        In an epoch.
    ours, decoder
        Labels of our pipeline and of our decoder alone.

    Raises
    ------
    ContestError
        If a pipeline gave more or fewer images.
    """
    for record in records:
        for number, counts in enumerate(record.counts, start=1):
            if list(counts) != [images]:
                given = ", ".join(f"{count:,}" for count in counts) or "an unknown number of"
                raise ContestError(f"{record.contestant.label} gave {given} images in round "
                                   f"{number}, where the records hold {images:,}")
    times = {record.contestant.label: [sum(turn) for turn in record.turns] for record in records}
    cpu = {record.contestant.label: record.cpu_seconds for record in records}
    lines = []
    for record in records:
        label = record.contestant.label
        lines.append(PipelineResult(
            record, images / median(times[label]), median(cpu[label]) / images * 1e3,
            spread(times[label]), ratio(times[label], times[ours]), ratio(cpu[label], cpu[ours]),
            ratio(times[decoder], times[label]).median,
            sum(record.idle_cpu_seconds) / sum(cpu[label])))
    return lines


def operator_rows(profiles: Sequence[Profile]) -> list[dict[str, Any]]:
    """Operators of all `profiles`, the slowest first.

    Returns
    -------
    list of dict
        ``operator``, and below each contestant's label ``ms`` and ``count`` of a call and its
        ``share`` of all operators' time; a label is missing where the operator is.
    """
    rows: dict[str, dict[str, Any]] = {}
    for profile in profiles:
        total = sum(row["ms"] for row in profile.operators) or 1.0
        for row in profile.operators:
            rows.setdefault(row["operator"], {"operator": row["operator"]})[
                profile.contestant.label] = {
                    "ms": row["ms"] / profile.calls, "count": row["count"] / profile.calls,
                    "share": row["ms"] / total}
    labels = [profile.contestant.label for profile in profiles]
    return sorted(rows.values(), reverse=True,
                  key=lambda row: max(row[label]["ms"] for label in labels if label in row))
