"""Which of several models holds better, in a sentence: image by image where both were measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from protofast.report import words
from protofast.report.audit_files import Difference, Result
from protofast.report.audit_subjects import stated

# So many images must differ before models are ranked: if either were as likely to come out on top,
# five of five would be the same one's more often than once in twenty times.
_LEAST = 6


def compared(main: str, results: Sequence[Result], differences: Iterable[Difference]) -> str:
    """Whether the models differ by more than chance explains; empty where none is called better.

    The best and the worst by their main number are compared; of more than two models, it is added
    that the interval takes them for any two.

    Args:
        main: Key of that number.
        results: One of each model, under one protocol.
        differences: Those of all models that were compared.
    """
    found = [
        result
        for result in results
        if main in result.numbers and result.numbers[main].value is not None
    ]
    if len(found) < 2 or found[0].numbers[main].better is None:
        return ""
    lower = found[0].numbers[main].better == "lower"
    found.sort(key=lambda result: result.numbers[main].value or 0.0, reverse=not lower)
    best, worst = found[0], found[-1]
    for each in differences:
        about = (each.audit, each.protocol, each.measure.key) == (best.audit, best.protocol, main)
        pair = {each.first.index, each.second.index}
        if about and pair == {best.model.index, worst.model.index}:
            return _image_by_image(each, lower=lower, of=len(found))
    return _by_intervals(best, worst, main, lower=lower, of=len(found))


def _chosen(of: int) -> str:
    """What is to be said of two models that were picked from several because they lie far apart."""
    if of == 2:
        return ""
    return (
        f" They were picked as best and worst of {words.spelled(of)} models, which the interval "
        "does not allow for: the more models, the farther chance alone sets the outermost apart."
    )


def _image_by_image(difference: Difference, *, lower: bool, of: int) -> str:
    value = difference.measure.value
    assert value is not None  # else it is not read
    if value < 0:
        difference = difference.turned  # the second has the higher number
    low, high = difference.first.name, difference.second.name
    best, worst = (low, high) if lower else (high, low)
    measure, count = difference.measure, words.count(difference.measure.n, "image")
    if difference.differ == 0:
        return f"{low} and {high} come out alike on each of the same {count}."
    if measure.low is not None and measure.low <= 0:
        return (
            f"No clear difference between {best} and {worst}: {stated(measure)} on the same images."
        )
    if difference.differ < _LEAST:
        return (
            f"{best} and {worst} differ on {words.count(difference.differ, 'image')} of the same "
            f"{measure.n:,}: too few to tell them apart."
        )
    way = "lower" if lower else "higher"
    said = f"{best} holds better than {worst}: {way} on the same images, by {stated(measure)}."
    return said + _chosen(of)


def _by_intervals(best: Result, worst: Result, main: str, *, lower: bool, of: int) -> str:
    """For models without an image in common, or not measured with equal settings."""
    good, bad = best.numbers[main], worst.numbers[main]
    if None in (good.low, good.high, bad.low, bad.high):
        return ""
    names = f"{best.model.name} and {worst.model.name}"
    apart = good.high < bad.low if lower else good.low > bad.high  # type: ignore[operator]
    if apart:
        said = f"{best.model.name} holds better than {worst.model.name}: their intervals lie apart."
        return said + _chosen(of)
    return f"The intervals of {names} overlap: so many images show no clear difference."
